"""`python -m src.exp.recommend` on the shared run."""

import re
import shutil

import pandas as pd
import pytest
from harness import TINY_STUDENT, run_here

from src.exp import recommend
from src.serving import answers


def ask(pipeline, tmp_path, capsys, *overrides: str) -> tuple[int, str, str]:
    root = f"paths.result_root={pipeline.folder.parent}"
    code = run_here(recommend.run, *pipeline.overrides, root, f"hydra.run.dir={tmp_path / 'asked'}", *overrides)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def ranked(out: str) -> list[str]:
    """The raw ids of the table, best first."""
    return [found[2] for found in re.finditer(r"│\s*(\d+) │ (\S+)\s*│", out)]


def test_titles_of_the_best_items_and_no_folder_left_behind(pipeline, tmp_path, capsys) -> None:
    checkpoint = f"recommend.checkpoint={pipeline.folder / 'models' / 'distill'}"
    code, out, _ = ask(pipeline, tmp_path, capsys, checkpoint, "recommend.history=['1','2']", "recommend.top_k=5")

    assert code == 0 and len(ranked(out)) == 5 and not {"1", "2"} & set(ranked(out))
    assert not (tmp_path / "asked").exists()


def test_an_unknown_item_and_an_empty_history(pipeline, tmp_path, capsys) -> None:
    checkpoint = f"recommend.checkpoint={pipeline.folder / 'models' / 'baseline'}"
    code, _, err = ask(pipeline, tmp_path, capsys, checkpoint, "recommend.history=['no such item']")
    assert code == 1 and "error: recommend.history: 'no such item' is neither a raw item id nor a title" in err
    code, _, err = ask(pipeline, tmp_path, capsys, checkpoint)
    assert code == 1 and "error: recommend.history=[]: must name at least one item" in err


@pytest.fixture
def shop(pipeline, tmp_path) -> list[str]:
    """A student in a folder of its own, without the log or the run that it comes from."""
    shutil.copytree(pipeline.folder / "models" / "distill", tmp_path / "student")
    nothing = [f"paths.data_dir={tmp_path / 'none'}", f"paths.result_root={tmp_path / 'none'}"]
    return [
        *TINY_STUDENT,
        *nothing,
        f"recommend.checkpoint={tmp_path / 'student'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]


def answer(tmp_path, shop: list[str], text: str | bytes, *overrides: str) -> int:
    source = tmp_path / "histories.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    files = [f"recommend.input={source}", f"recommend.output={tmp_path / 'answers.csv'}"]
    return run_here(recommend.run, *shop, *files, *overrides)


def test_a_file_of_histories_is_answered_by_the_folder_alone(shop, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(answers, "_CHUNK", 2)
    text = '\ufeffage,user,history\r\n7,"a,b",1 2\r\n8,=c,5\r\n9,d,  9   1\r\n'
    assert answer(tmp_path, shop, text, "recommend.top_k=3") == 0
    found = pd.read_csv(tmp_path / "answers.csv", dtype=str)
    assert list(found.columns) == ["user", "rank", "item", "title", "score"]
    assert list(found["user"]) == ["a,b"] * 3 + ["=c"] * 3 + ["d"] * 3 and list(found["rank"]) == ["1", "2", "3"] * 3
    assert run_here(recommend.run, *shop, "recommend.history=['9','1']", "recommend.top_k=3") == 0
    assert ranked(capsys.readouterr().out) == list(found["item"][6:])


def test_parquet_is_read_as_csv_is(shop, tmp_path) -> None:
    table = pd.DataFrame({"user": ["a", "b"], "history": ["1 2", "5"]})
    table.to_parquet(tmp_path / "histories.parquet")
    assert answer(tmp_path, shop, table.to_csv(index=False)) == 0
    from_csv = (tmp_path / "answers.csv").read_bytes()
    files = [f"recommend.input={tmp_path / 'histories.parquet'}", f"recommend.output={tmp_path / 'answers.csv'}"]
    (tmp_path / "answers.csv").unlink()
    assert run_here(recommend.run, *shop, *files) == 0
    assert (tmp_path / "answers.csv").read_bytes() == from_csv


def test_what_is_skipped_and_what_is_short_is_counted(shop, tmp_path, capsys) -> None:
    text = "user,history\na,1 new 2 new\nb,older\nc,\nd,3\n"
    assert answer(tmp_path, shop, text, "recommend.unknown=skip", "recommend.top_k=200") == 0
    told = capsys.readouterr().err
    assert "recommend.unknown=skip: left out 3 times 2 names that are no item's, such as 'new', 'older'" in told
    assert "4 of them have fewer than recommend.top_k=200" in told  # the histories are not shown
    counts = pd.read_csv(tmp_path / "answers.csv")["user"].value_counts()
    assert counts.to_dict() == {"a": 198, "d": 199}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,history\na,1\nb,1 nothing 2\n", "histories.csv: line 3: recommend.history: 'nothing' is neither"),
        ("user,history\na,\n", "histories.csv: line 2: recommend.history=[]: must name at least one item"),
        ("user,items\na,1\n", "no column history among user, items; a line is a user and the raw ids"),
        ("", "no column user and history among none"),
        ("user,history\na,1,2\n", "histories.csv: line 2: 3 fields where the header has 2; put quotes around"),
        (b"user,history\n\xff,1\n", "cannot be read as CSV in UTF-8"),
        (b'user,history\nu,1\nv,"1\nw,2\nx,3"\n', "line 3: the quote that opens here is not closed in its line"),
        (b'user,history\nu,1\nv,"1\n', "line 3: cannot be read as CSV in UTF-8 (unexpected end of data)"),
        ("user,history\na,1\0\n", "line 2: recommend.history: '1\\x00' is neither a raw item id"),
    ],
    ids=["unknown item", "empty", "column", "nothing", "fields", "encoding", "quote over lines", "quote", "nul"],
)
def test_a_file_that_is_not_right_is_refused_and_nothing_is_written(shop, tmp_path, capsys, text, message) -> None:
    assert answer(tmp_path, shop, text) == 1
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert message in error
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("answers")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recommend.input=a.csv"], "recommend.output=None: must be a file .csv with recommend.input"),
        (["recommend.output=a.csv", "recommend.history=[1]"], "recommend.output='a.csv': must be a file .csv with"),
        (
            ["recommend.input=a.txt", "recommend.output=b.csv"],
            "recommend.input='a.txt': must be null or a file .csv or",
        ),
        (["recommend.input=no.csv", "recommend.output=b.csv"], "no.csv: cannot be read as CSV in UTF-8 ([Errno 2]"),
        (["recommend.input=no.parquet", "recommend.output=b.csv"], "no.parquet: cannot be read as Parquet"),
        (
            ["recommend.input=a.csv", "recommend.output=b.csv", "recommend.history=[1]"],
            "must be [] with recommend.input",
        ),
    ],
)
def test_a_question_that_is_not_right(shop, capsys, words, message) -> None:
    assert run_here(recommend.run, *shop, *words) == 1
    assert message in capsys.readouterr().err


def test_a_question_that_is_not_right_is_no_lines_fault(shop, tmp_path, capsys) -> None:
    for words, message in (
        ("recommend.top_k=201", "error: recommend.top_k=201: must be from 1 to 200"),
        ("recommend.allowed=[x]", "error: recommend.allowed: 'x' is neither"),
    ):
        assert answer(tmp_path, shop, "user,history\na,1\n", words) == 1
        assert message in capsys.readouterr().err


def test_a_student_of_an_earlier_version_has_no_items(shop, tmp_path, capsys) -> None:
    (tmp_path / "student" / "items.json").unlink()
    assert run_here(recommend.run, *shop, "recommend.history=[1]") == 1
    assert "items.json: missing file" in capsys.readouterr().err

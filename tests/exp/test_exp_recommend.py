"""`python -m src.exp.recommend` on the shared run."""

import re

from harness import run_here

from src.exp import recommend


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

"""`conf/dataset`: every key of every data set gives other rows."""

from pathlib import Path

import pytest
from harness import TINY_STUDENT, compose_config, places, read, refusal, run_here
from leaves_bench import Bench
from leaves_table import Effect, cases, refused
from raw_files import write_raw_files

from src.core.metrics import HISTORIES
from src.core.settings import flat_settings
from src.exp import run_student_baseline
from src.exp.settings import parse_settings


def _name(bench: Bench) -> None:
    """What the data are called, and where they lie; the same data all the same."""
    usual, named = bench.load(), bench.load("dataset.name=mine")
    assert named.name == "mine" != usual.name and named.fingerprint == usual.fingerprint
    assert all((bench.tmp / "data" / "processed" / name).is_dir() for name in ("mine", usual.name))


def _max_seq_len(bench: Bench) -> None:
    """The student's window is cut to the data set's."""
    name = bench.file.split("/")[1]
    raw = write_raw_files(name, bench.tmp / "raw")
    width = []
    for length in (2, 3):
        small = [*TINY_STUDENT, "student.batch_size=4", "student.num_epochs=1"]
        overrides = [*small, bench.choice, f"dataset.raw_dir={raw}", f"dataset.max_seq_len={length}"]
        folder = bench.folder()
        where = places(bench.tmp / "data", bench.tmp, folder)
        assert run_here(run_student_baseline.run, *overrides, *where) == 0
        width.append(read(folder / "models" / "baseline" / "config.json")["model"]["max_seq_len"])
    assert width == [2, 3]


def _min_user_inter(bench: Bench) -> None:
    assert bench.load().num_users == 24
    assert bench.load("dataset.min_user_inter=7").num_users == 8  # every third user has 7 items


def _split_method(bench: Bench) -> None:
    leave_one_out, temporal = bench.load(), bench.load("dataset.split.method=temporal")
    assert leave_one_out.fingerprint != temporal.fingerprint
    assert (len(leave_one_out.test), len(temporal.test)) == (24, 12)  # one a user; a tenth of 120 rows


def _raw_dir(bench: Bench) -> None:
    other = write_raw_files(bench.file.split("/")[1], bench.tmp / "other", num_users=12)
    assert (bench.load().num_users, bench.load(raw=other).num_users) in ((24, 12), (216, 108))


def _max_train_rows(bench: Bench) -> None:
    whole, part = bench.load(), bench.load("dataset.max_train_rows=7")
    assert len(whole.train) > 7 == len(part.train)
    assert whole.fingerprint != part.fingerprint


def _history(bench: Bench) -> None:
    """It says which ranking decides, and is no reason to process the data again."""
    chosen = [compose_config(bench.choice, f"dataset.history={history}") for history in HISTORIES]
    assert [parse_settings(config).metrics.history for config in chosen] == list(HISTORIES)
    assert flat_settings(parse_settings(chosen[0]).dataset, "dataset").keys().isdisjoint({"dataset.history"})
    refused("dataset.history=hidden", "dataset.history='hidden': must be one of shown, removed")(bench)


def _duplicates(bench: Bench) -> None:
    raw = write_raw_files(bench.file.split("/")[1], bench.tmp / "other")
    usual = bench.load(raw=raw)
    for path in raw.iterdir():
        if not path.read_text().startswith(("item,", "0|", "0::")) and not path.name.startswith("meta"):
            header, _, rest = path.read_text().partition("\n") if path.suffix == ".csv" else ("", "", path.read_text())
            path.write_text((header and header + "\n") + rest + rest)
    assert bench.load(raw=raw).fingerprint == usual.fingerprint
    assert len(bench.load("dataset.duplicates=keep", raw=raw).train) > len(usual.train)
    refused("dataset.duplicates=merge", "dataset.duplicates='merge': must be one of drop, keep")(bench)


def _quoting(bench: Bench) -> None:
    raw = write_raw_files("csv", bench.tmp / "other")
    (raw / "items.csv").write_text((raw / "items.csv").read_text().replace("Title 0", '"Title" 0'))
    assert bench.load("dataset.quoting=none", raw=raw).titles[0] == '"Title" 0'
    assert "items.csv:2: the quote that opens here" in refusal(lambda: bench.load(raw=raw))


def _version(bench: Bench) -> None:
    assert (bench.load().num_users, bench.load("dataset.version=1m").num_users) == (24, 12)


def _renamed(bench: Bench, file: str) -> Path:
    raw = write_raw_files("csv", bench.tmp / "other")
    (raw / file).rename(raw / "renamed")
    return raw


def _interactions_file(bench: Bench) -> None:
    raw = _renamed(bench, "interactions.csv")
    assert bench.load("dataset.interactions_file=renamed", raw=raw).num_users == 24
    assert "missing interactions.csv" in refusal(lambda: bench.load(raw=raw))


def _titles_file(bench: Bench) -> None:
    raw = _renamed(bench, "items.csv")
    assert bench.load("dataset.titles_file=renamed", raw=raw).titles[0] == "Title 0"
    assert "missing items.csv" in refusal(lambda: bench.load(raw=raw))


def _separator(bench: Bench) -> None:
    raw = write_raw_files("csv", bench.tmp / "other")
    for path in raw.iterdir():
        path.write_text(path.read_text().replace(",", ";"))
    assert bench.load("dataset.separator=';'", raw=raw).num_users == 24
    assert "items.csv" in refusal(lambda: bench.load(raw=raw))


def _column(key: str) -> Effect:
    def effect(bench: Bench) -> None:
        raw = write_raw_files("csv", bench.tmp / "other")
        for path in raw.iterdir():
            header, _, rest = path.read_text().partition("\n")
            names = ["renamed" if name == key else name for name in header.split(",")]
            path.write_text(",".join(names) + "\n" + rest)
        assert bench.load(f"dataset.columns.{key}=renamed", raw=raw).fingerprint == bench.load().fingerprint
        assert repr(key) in refusal(lambda: bench.load(raw=raw))

    return effect


def _missing_titles(bench: Bench) -> None:
    raw = write_raw_files("csv", bench.tmp / "other")
    (raw / "items.csv").write_text("item,title\n0,Title 0\n")
    assert bench.load("dataset.missing_titles=name", raw=raw).titles[:2] == ["Title 0", "item 1"]
    assert "item '1' has no entry" in refusal(lambda: bench.load(raw=raw))


def _category(bench: Bench) -> None:
    raw = write_raw_files("amazon", bench.tmp / "other")  # Beauty
    write_raw_files("amazon_games", raw, num_users=12)
    assert bench.load("dataset.category=Beauty", "dataset.release=2014", *_ANY_FILE, raw=raw).num_users == 24
    assert bench.load("dataset.category=Video_Games", "dataset.release=2018", *_ANY_FILE, raw=raw).num_users == 12


_ANY_FILE = ("dataset.interactions_file=null",)


def _release(bench: Bench) -> None:
    """Two releases in one folder: nothing says which, unless the key does."""
    raw = write_raw_files("amazon", bench.tmp / "other")
    (raw / "Beauty_5.json").write_text("".join((raw / "reviews_Beauty_5.json").read_text().splitlines(True)[:72]))
    for release, users in ((2014, 24), (2018, 12)):
        words = ("dataset.category=Beauty", f"dataset.release={release}", *_ANY_FILE)
        assert bench.load(*words, raw=raw).num_users == users
    message = refusal(lambda: bench.load("dataset.category=Beauty", "dataset.release=null", *_ANY_FILE, raw=raw))
    assert (
        "reviews_Beauty_5.json with meta_Beauty.json (2014) and Beauty_5.json with meta_Beauty.json (2018)" in message
    )


def _amazon_file(bench: Bench) -> None:
    raw = write_raw_files("amazon", bench.tmp / "other")
    (raw / "reviews_Beauty.json").write_text("".join((raw / "reviews_Beauty_5.json").read_text().splitlines(True)[:72]))
    for file, users in (("reviews_Beauty_5.json", 24), ("reviews_Beauty.json", 12)):
        words = ("dataset.category=Beauty", "dataset.release=2014", f"dataset.interactions_file={file}")
        assert bench.load(*words, raw=raw).num_users == users


EFFECTS: dict[str, Effect] = {
    "dataset.source": refused("dataset.source=other", "dataset.source='other': must be one of"),
    "dataset.name": _name,
    "dataset.max_seq_len": _max_seq_len,
    "dataset.min_user_inter": _min_user_inter,
    "dataset.split.method": _split_method,
    "dataset/lastfm:dataset.min_user_inter": refused("dataset.min_user_inter=5", "dataset.min_user_inter=5: must be 0"),
    "dataset/lastfm:dataset.split.method": refused(
        "dataset.split.method=temporal", "dataset.split.method='temporal': must be given"
    ),
    "dataset.raw_dir": _raw_dir,
    "dataset.max_train_rows": _max_train_rows,
    "dataset.history": _history,
    "dataset.duplicates": _duplicates,
    "dataset.quoting": _quoting,
    "dataset.version": _version,
    "dataset.interactions_file": _interactions_file,
    "dataset.titles_file": _titles_file,
    "dataset.missing_titles": _missing_titles,
    "dataset.category": _category,
    "dataset.release": _release,
    "dataset/amazon:dataset.interactions_file": _amazon_file,
    "dataset/amazon_games:dataset.interactions_file": _amazon_file,
    "dataset.separator": _separator,
    "dataset.columns.user": _column("user"),
    "dataset.columns.item": _column("item"),
    "dataset.columns.timestamp": _column("timestamp"),
    "dataset.columns.title": _column("title"),
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)

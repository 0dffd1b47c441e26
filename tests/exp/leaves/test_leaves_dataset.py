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


EFFECTS: dict[str, Effect] = {
    "dataset.name": refused("dataset.name=other", "dataset.name='other': must be one of"),
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
    "dataset.version": _version,
    "dataset.interactions_file": _interactions_file,
    "dataset.titles_file": _titles_file,
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

"""The cache of processed data: made once, by one process, whole or not at all."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from raw_examples import ROOT, write

from src.core.artefacts import Artefact, locked
from src.core.data_utils import load_dataset
from src.core.datasets.csv_log import CsvConfig, CsvLog
from src.core.errors import UserError
from src.core.sequences import cache
from src.core.sequences.cache import ARRAY_FILES, FILES, ITEMS_FILE, RECORD_FILE, Processed, load_or_make

LOGGER = logging.getLogger("test_processed_cache")
MADE_FROM = {"dataset.min_user_inter": 3, "u.data": [120, 7]}


def processed(title: str = 'A, "B"') -> Processed:
    """One user with items 2 0 1 2; each split has one row, of the places 1, 2 and 3."""
    pos = {split: np.array([place], dtype=np.int32) for place, split in enumerate(("train", "valid", "test"), start=1)}
    items, bounds = np.array([2, 0, 1, 2], dtype=np.int32), np.array([0, 4])
    return Processed(item_ids=["7", "8", "9"], titles=[title, "ä", "C"], items=items, bounds=bounds, pos=pos)


class Maker:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Processed:
        self.calls += 1
        return processed()


@pytest.fixture
def make() -> Maker:
    return Maker()


def load(folder: Path, make: Maker, made_from: dict = MADE_FROM) -> Processed:
    return load_or_make(folder / "processed" / "csv", made_from, make, logger=LOGGER)


def kept(folder: Path) -> list[Path]:
    """What lies beside the lock, hidden leftovers included."""
    return [path for path in (folder / "processed" / "csv").iterdir() if path.name != ".lock"]


def test_the_second_call_reads_what_the_first_kept(tmp_path, make):
    first, second = load(tmp_path, make), load(tmp_path, make)
    assert make.calls == 1
    assert (second.num_users, second.item_ids, second.titles) == (1, ["7", "8", "9"], ['A, "B"', "ä", "C"])
    for mine, other in ((first.items, second.items), *((first.pos[s], second.pos[s]) for s in first.pos)):
        np.testing.assert_array_equal(mine, other)
        assert mine.dtype == other.dtype == np.int32
    assert first.fingerprint() == second.fingerprint() != processed("another title").fingerprint()


def test_the_record_says_what_it_was_made_from_and_holds_the_hashes(tmp_path, make):
    load(tmp_path, make)
    (folder,) = kept(tmp_path)
    status = Artefact(name="processed data", record_file=folder / RECORD_FILE, base=folder).status(
        MADE_FROM, verify=True
    )
    assert status.is_current
    assert status.record.artefact == "processed data" and {*status.record.files} == {*FILES}


def test_what_is_made_from_something_else_lies_elsewhere(tmp_path, make):
    load(tmp_path, make)
    load(tmp_path, make, {**MADE_FROM, "u.data": [120, 8]})
    load(tmp_path, make)
    assert make.calls == 2 and len(kept(tmp_path)) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in (*FILES, RECORD_FILE) for damage in (cut, Path.unlink)),
        (ARRAY_FILES["items"], flip),
        (ITEMS_FILE, flip),
    ],
)
def test_damaged_files_are_made_again(tmp_path, caplog, make, name, damage):
    load(tmp_path, make)
    (folder,) = kept(tmp_path)
    damage(folder / name)
    assert load(tmp_path, make).fingerprint() == processed().fingerprint()
    assert make.calls == 2 and caplog.text.count("processing the raw files again") == 1
    assert kept(tmp_path) == [folder] and {path.name for path in folder.iterdir()} == {*FILES, RECORD_FILE}
    load(tmp_path, make)
    assert make.calls == 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("items", [2, 0, 1, 3]),  # no such item
        ("items", [2, 0, 1]),
        ("bounds", [0, 3]),
        ("bounds", [1, 4]),
        ("bounds", [0, 3, 2, 4]),
        ("bounds", []),
        ("train", [0]),  # a history without an item
        ("valid", [4]),
        ("test", [-1]),
        ("test", [[1]]),
        ("test", [1.0]),
    ],
)
def test_arrays_that_do_not_fit_together_are_made_again(tmp_path, caplog, make, name, values):
    """As if they had been written like that, so that their hashes do not give them away."""
    load(tmp_path, make)
    (folder,) = kept(tmp_path)
    np.save(folder / ARRAY_FILES[name], np.array(values) if values else np.zeros(0, np.int64))
    artefact = Artefact(name="processed data", record_file=folder / RECORD_FILE, base=folder)
    artefact.complete(files={file: cache.sha256_file(folder / file) for file in FILES})
    assert load(tmp_path, make).fingerprint() == processed().fingerprint()
    assert make.calls == 2 and "the arrays hold other users, items or rows than items.csv" in caplog.text


def test_what_a_killed_process_left_does_not_count_and_goes(tmp_path, caplog, make):
    load(tmp_path, make)
    (folder,) = kept(tmp_path)
    (folder / RECORD_FILE).unlink()
    folder.rename(folder.with_name(f".{folder.name}.part"))
    load(tmp_path, make)
    assert make.calls == 2 and not caplog.records
    assert kept(tmp_path) == [folder]


@pytest.mark.parametrize("step", ["save", "replace"])
def test_a_full_disk_is_only_a_warning_and_leaves_nothing(tmp_path, caplog, monkeypatch, make, step):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"save": (np, "save"), "replace": (cache.os, "replace")}[step], full)
    assert load(tmp_path, make).num_users == 1
    assert "could not keep the processed data" in caplog.text
    assert kept(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_only_a_warning(tmp_path, caplog, make):
    (tmp_path / "processed").write_text("a file where the folder should be")
    assert load(tmp_path, make).num_users == 1
    assert "could not keep the processed data" in caplog.text


def test_reading_takes_no_lock(tmp_path, monkeypatch, make):
    """What lies on a read-only disk can be read."""
    load(tmp_path, make)
    monkeypatch.setattr(cache, "locked", None)  # calling it would fail
    load(tmp_path, make)
    assert make.calls == 1


def test_bad_raw_data_keep_nothing_and_free_the_lock(tmp_path, make):
    def refuse() -> Processed:
        raise UserError("u.data:3: has 3 fields")

    with pytest.raises(UserError, match=r"u\.data:3"):
        load_or_make(tmp_path / "processed" / "csv", MADE_FROM, refuse, logger=LOGGER)
    assert kept(tmp_path) == []
    load(tmp_path, make)
    assert len(kept(tmp_path)) == 1


PROGRAM = """
import logging, sys
from pathlib import Path
from src.core.data_utils import load_dataset
from src.core.datasets.csv_log import CsvConfig
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
load_dataset(CsvConfig(min_user_inter=3, raw_dir=sys.argv[1]), Path(sys.argv[2]), logging.getLogger())
"""


def test_of_two_processes_at_once_one_processes_and_the_other_takes_its_result(tmp_path):
    log = "user,item,timestamp\n" + "".join(f"u,{item},{item}\n" for item in "1234") + "short,1,1\n"
    raw = write(tmp_path / "raw", interactions__csv=log, items__csv="item,title\n1,A\n2,B\n3,C\n4,D\n")
    parent = tmp_path / "data" / "processed" / "csv"
    command = [sys.executable, "-c", PROGRAM, str(raw), str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with locked(parent):  # until both have come to the lock, so that they are there at once
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) for _ in "12"
        ]
        waiting = [process.stdout.readline() for process in processes]
    rest = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert all(f"{parent}: in use by process {os.getpid()}" in line and "waiting" in line for line in waiting)
    assert "".join(rest).count("dropped 1 of 2 users") == 1  # who processes says so
    sizes = [line for text in rest for line in text.splitlines() if line.startswith("dataset csv: 1 users, 4 items")]
    assert len(sizes) == 2 and sizes[0] == sizes[1]
    assert len([path for path in parent.iterdir() if path.name != ".lock"]) == 1


def test_a_log_that_is_replaced_while_it_is_read_is_an_error_and_is_not_kept(tmp_path, monkeypatch) -> None:
    """Else titles of one time beside interactions of another would be kept as the first."""
    folder = write(tmp_path / "raw", interactions__csv="user,item,timestamp\n" + "u,a,1\nu,b,2\nu,a,3\nu,b,4\n")
    write(folder, items__csv="item,title\na,A\nb,B\n")
    config, original = CsvConfig(min_user_inter=3, raw_dir=str(folder)), CsvLog.read

    def read(self, config, raw_dir):
        raw = original(self, config, raw_dir)
        write(folder, items__csv="item,title\na,C\nb,D\n")
        os.utime(folder / "items.csv", (1, 1))
        return raw

    with monkeypatch.context() as patch:
        patch.setattr(CsvLog, "read", read)
        with pytest.raises(UserError, match=r"items\.csv: was changed while it was read; start the same command again"):
            load_dataset(config, tmp_path / "data", LOGGER)
    assert list((tmp_path / "data").rglob(RECORD_FILE)) == []
    assert load_dataset(config, tmp_path / "data", LOGGER).titles == ["C", "D"]

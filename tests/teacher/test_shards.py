"""Shards of an export: kept when it is killed, shared between processes."""

import errno
import logging

import numpy as np
import pytest

from src.core.errors import UserError
from src.teacher.scoring import shards
from src.teacher.scoring.shards import read_shards, remove_shards, shard_folder, write_shards

LOGGER = logging.getLogger("tests")
FILES = ("all_embeddings.pt", "myrank_train.txt", "confidence_train.txt", "row_stats.npz", "manifest.json")
ROWS = 24


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)


def double(rows: np.ndarray, advance) -> dict[str, np.ndarray]:
    advance(len(rows))
    return {"twice": 2 * rows, "text": np.array([f"row {i}" for i in rows])}


def test_shards_hold_every_row_in_order(tmp_path):
    write_shards(tmp_path, ROWS, double, logger=LOGGER)
    whole = read_shards(tmp_path, ROWS)
    assert whole["twice"].tolist() == [2 * i for i in range(ROWS)]
    assert whole["text"][-1] == "row 23"
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_processes_share_the_shards(tmp_path):
    asked: list[list[int]] = [[], []]
    for process in (1, 0):

        def score(rows: np.ndarray, advance, process: int = process) -> dict[str, np.ndarray]:
            asked[process].append(int(rows[0]))
            return double(rows, advance)

        write_shards(tmp_path, ROWS, score, logger=LOGGER, index=process, count=2)
    assert asked == [[0, 20], [10]]
    assert read_shards(tmp_path, ROWS)["twice"].tolist() == [2 * i for i in range(ROWS)]


def test_a_missing_or_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, ROWS, double, logger=LOGGER, index=0, count=2)
    with pytest.raises(UserError, match="00001.npz: missing shard of the export; start the stage again"):
        read_shards(tmp_path, ROWS)
    (tmp_path / "00001.npz").write_bytes(b"PK")
    with pytest.raises(
        UserError, match="00001.npz: not an array file, or a damaged one .* delete it and start the stage again"
    ):
        read_shards(tmp_path, ROWS)


def test_other_settings_have_another_folder(tmp_path):
    one, other = shard_folder(tmp_path, {"seed": 1}), shard_folder(tmp_path, {"seed": 2})
    assert one != other
    assert shard_folder(tmp_path, {"seed": 1}) == one
    assert '"seed": 1' in (one / "settings.json").read_text()


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_shards(tmp_path, 10, double, logger=LOGGER)
    before = (tmp_path / "00000.npz").read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"00001.npz: cannot be written \(No space left on device\); .* make room"):
        write_shards(tmp_path, ROWS, double, logger=LOGGER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.npz"]
    assert (tmp_path / "00000.npz").read_bytes() == before


def test_removing_shards_leaves_those_of_another_export(tmp_path):
    one, other = (shard_folder(tmp_path / "shards", {"seed": seed}) for seed in (1, 2))
    remove_shards(one)
    assert [path for path in (tmp_path / "shards").iterdir()] == [other]
    remove_shards(other)
    assert not (tmp_path / "shards").exists()

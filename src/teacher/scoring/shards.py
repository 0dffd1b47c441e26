"""Finished shards of an export, so that a killed one goes on where it stopped and several jobs can share it.

A folder belongs to one set of settings: its name is their hash. A shard is computed from its own rows alone, so
it comes out the same in whichever process and order the shards are made.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artefacts import locked
from src.core.errors import UserError
from src.core.files import LOCK_FILE, write_atomic, write_json
from src.core.foreign.arrays import read_arrays
from src.core.logging import row_progress

SHARD_ROWS = 1024
_ADVICE = "delete it and start the stage again"

Score = Callable[[np.ndarray, Callable[[int], None]], dict[str, np.ndarray]]


def shard_folder(parent: Path, settings: dict[str, Any]) -> Path:
    """Where the shards of these settings lie; `settings.json` there tells what they are."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = parent / digest[:16]
    write_json(folder / "settings.json", settings)
    return folder


@contextmanager
def working_on(folder: Path, part: str) -> Iterator[None]:
    """While one of several independent jobs makes its part of the shards.

    Raises:
        UserError: another process is making the same part.
    """
    with locked(_part_folder(folder, part)):
        (folder / LOCK_FILE).touch()  # so that who locks the run folder leaves alone what is being written here
        yield


def wait_for_parts(folder: Path, notify: Callable[[str], None]) -> None:
    """Wait until no job makes a part any more; whatever one of them has not made is missing then."""
    for part in sorted(folder.glob(_part_folder(folder, "*/*").name)):
        with locked(part, notify=notify):
            pass


def _part_folder(folder: Path, part: str) -> Path:
    return folder / f"part_{part.replace('/', '_of_')}"


def write_shards(
    folder: Path,
    num_rows: int,
    score: Score,
    *,
    logger: logging.Logger,
    on_shard: Callable[[], None] = lambda: None,
    index: int = 0,
    count: int = 1,
) -> None:
    """Make the shards that process `index` of `count` owns (index, index + count, ...) and that are not there yet.

    Args:
        score: from row numbers int64 [n] and a function that counts finished rows to arrays of length n.
        on_shard: called when a shard is written.
    """
    own = range(index, _num_shards(num_rows), count)
    missing = [number for number in own if not _path(folder, number).is_file()]
    total, todo = (sum(len(_rows(number, num_rows)) for number in numbers) for numbers in (own, missing))
    if len(missing) < len(own):
        logger.info("export: %d of %d rows are there already (%s)", total - todo, total, folder)
    begin, done = time.perf_counter(), 0
    with row_progress("exporting rows", total, total - todo) as advance:
        for number in missing:
            rows = _rows(number, num_rows)
            arrays = score(rows, advance)
            write_atomic(_path(folder, number), partial(_write, arrays=arrays))
            on_shard()
            done += len(rows)
            rate = done / (time.perf_counter() - begin)
            logger.info(
                "export: %d/%d rows, %.1f rows/s, %.0f s left", total - todo + done, total, rate, (todo - done) / rate
            )


def read_shards(folder: Path, num_rows: int) -> dict[str, np.ndarray]:
    """All shards as one.

    Raises:
        UserError: one is missing or damaged.
    """
    shards: list[dict[str, np.ndarray]] = []
    for number in range(_num_shards(num_rows)):
        shard, length = _read(_path(folder, number)), len(_rows(number, num_rows))
        first = shards[0] if shards else shard
        whole = all(array.shape[:1] == (length,) for array in shard.values())
        if not (shard and whole and _kinds(shard) == _kinds(first)):
            raise UserError(f"{_path(folder, number)}: not a shard of {length} rows like the others; {_ADVICE}")
        shards.append(shard)
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def _kinds(shard: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    """What shards have in common: the arrays' names, types (of any length in text), and shapes but for the rows."""
    types = {name: "text" if array.dtype.kind == "U" else array.dtype for name, array in shard.items()}
    return {name: (types[name], *array.shape[1:]) for name, array in shard.items()}


def remove_shards(folder: Path) -> None:
    """Remove what is needed no more, and the folder of shards if it holds no other export's."""
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _num_shards(num_rows: int) -> int:
    return -(-num_rows // SHARD_ROWS)


def _rows(number: int, num_rows: int) -> np.ndarray:
    return np.arange(number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, num_rows))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # a file object: numpy would append .npz to a name
        np.savez(file, **arrays)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: missing shard of the export; start the stage again in the same folder")
    return read_arrays(path, max_bytes=None, advice=_ADVICE)

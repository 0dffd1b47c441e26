"""The cache of processed data: a folder with a record, made once by whoever needs it first."""

import csv
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artefacts import Artefact, locked
from src.core.errors import UserError
from src.core.files import sha256_file, writing
from src.core.foreign.arrays import read_arrays

ROWS_FILE = "rows.npz"
ITEMS_FILE = "items.csv"
RECORD_FILE = "record.json"
SPLITS = ("train", "valid", "test")
_ROW_TYPES = {"start": "<i8", "pos": "<i8", "user": "<i4"}  # in the fingerprint, on any machine


@dataclass(frozen=True, kw_only=True)
class Processed:
    """All of a data set but its window, which is cut when rows are read.

    Attributes:
        item_ids: raw id of each item 0..num_items-1.
        titles: title of each item, all different.
        items: int32 [T], what the rows of all splits point into.
        rows: (start int64 [N], pos int64 [N], user int32 [N]) by `train`, `valid` and `test`, as in `data_utils.Rows`.
    """

    num_users: int
    item_ids: list[str]
    titles: list[str]
    items: np.ndarray
    rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def fingerprint(self) -> str:
        """sha256, hexadecimal; every part is preceded by its length, so that no two data sets read alike."""
        digest = hashlib.sha256()

        def add(part: bytes) -> None:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)

        add(str(self.num_users).encode())
        add(json.dumps([self.item_ids, self.titles]).encode())
        add(self.items.astype("<i4").tobytes())
        for split in SPLITS:
            for values, kind in zip(self.rows[split], _ROW_TYPES.values(), strict=True):
                add(values.astype(kind).tobytes())
        return digest.hexdigest()


def load_or_make(
    parent: Path, made_from: dict[str, Any], make: Callable[[], Processed], *, logger: logging.Logger
) -> Processed:
    """What was made from the same, or what `make` makes now and is then kept in `parent/<key>`.

    Of two processes that need the same at once, one makes it and the other waits for it. Damaged files are made again.
    A folder that cannot be written to is only a warning: the data are in memory all the same.

    Args:
        parent: folder of this data set's processed data; its lock is held meanwhile.
        made_from: all that decides the content, as `Record.made_from`.
        make: raises UserError where the raw data do not allow it.
    """
    folder = parent / _key(made_from)
    processed, _ = _load(folder, made_from)
    if processed is not None:
        logger.info("processed data: %s", folder)
        return processed
    with _locked_if_writable(parent, logger) as is_writable:
        processed, damage = _load(folder, made_from)  # whoever held the lock may have made it
        if processed is not None:
            return processed
        if damage:
            logger.warning("%s is damaged (%s): processing the raw files again", folder, damage)
        processed = make()
        if is_writable:
            _keep(processed, folder, made_from, logger)
        return processed


def _key(made_from: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _locked_if_writable(folder: Path, logger: logging.Logger) -> Iterator[bool]:
    """The folder's lock, and True; or, where the folder cannot be written to, False and a warning."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, notify=logger.info))
            is_writable = True
        except UserError as error:
            logger.warning("could not keep the processed data: %s", error)
            is_writable = False
        yield is_writable


def _artefact(folder: Path) -> Artefact:
    return Artefact(name="processed data", record_file=folder / RECORD_FILE, base=folder)


def _load(folder: Path, made_from: dict[str, Any]) -> tuple[Processed | None, str]:
    """The processed data; or None and what is wrong with the folder, in words, empty where there is no folder."""
    if not folder.exists():
        return None, ""
    try:
        status = _artefact(folder).status(made_from, verify=True)
        if status.is_current:
            return _read(folder), ""
    except (OSError, csv.Error, UserError, KeyError, ValueError, IndexError) as error:
        return None, str(error)
    return None, status.why or status.changes or f"it has no {RECORD_FILE}"


def _keep(processed: Processed, folder: Path, made_from: dict[str, Any], logger: logging.Logger) -> None:
    """Write the folder under another name and rename it, so that it appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        for leftover in filter(Path.exists, (folder, temporary)):  # damaged, or of a killed process
            shutil.rmtree(leftover)
        artefact = _artefact(temporary)
        artefact.begin(made_from)
        with writing(temporary):
            _write(processed, temporary)
        artefact.complete(files={name: sha256_file(temporary / name) for name in (ROWS_FILE, ITEMS_FILE)})
        os.replace(temporary, folder)
        logger.info("processed data: %s", folder)
    except (OSError, UserError) as error:
        logger.warning("could not keep the processed data in %s: %s", folder, error)
        shutil.rmtree(temporary, ignore_errors=True)


def _write(processed: Processed, folder: Path) -> None:
    arrays = {"num_users": np.array(processed.num_users), "items": processed.items}
    for split, values in processed.rows.items():
        arrays |= {f"{split}_{name}": array for name, array in zip(_ROW_TYPES, values, strict=True)}
    np.savez(folder / ROWS_FILE, **arrays)
    with (folder / ITEMS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["item", "raw_id", "title"])
        writer.writerows(zip(range(len(processed.titles)), processed.item_ids, processed.titles, strict=True))


def _read(folder: Path) -> Processed:
    names = ["num_users", "items", *(f"{split}_{name}" for split in SPLITS for name in _ROW_TYPES)]
    arrays = read_arrays(folder / ROWS_FILE, names, max_bytes=None, advice="it is made again")
    with (folder / ITEMS_FILE).open(newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    rows = {s: (arrays[f"{s}_start"], arrays[f"{s}_pos"], arrays[f"{s}_user"]) for s in SPLITS}
    item_ids, titles = [line[1] for line in lines], [line[2] for line in lines]
    num_users, items = arrays["num_users"], arrays["items"]
    sound = num_users.shape == () and num_users.dtype.kind == "i" and _holds(items, 0, len(titles))
    if not sound or not all(_are_rows(*rows[split], num_users=num_users, num_items=len(items)) for split in SPLITS):
        raise ValueError(f"{ROWS_FILE} holds other users, items or rows than {ITEMS_FILE}")
    return Processed(num_users=int(num_users), item_ids=item_ids, titles=titles, items=items, rows=rows)


def _are_rows(start: np.ndarray, pos: np.ndarray, user: np.ndarray, *, num_users: np.ndarray, num_items: int) -> bool:
    """Whether these are rows of `num_items` items that users have had one after another."""
    alike = start.shape == pos.shape == user.shape and _holds(start, 0, num_items) and _holds(user, 0, int(num_users))
    return alike and _holds(pos, 0, num_items) and bool((start <= pos).all())


def _holds(values: np.ndarray, low: int, high: int) -> bool:
    """Whether these are integers from `low` to `high - 1`, in one dimension."""
    return values.dtype.kind == "i" and values.ndim == 1 and bool(((values >= low) & (values < high)).all())

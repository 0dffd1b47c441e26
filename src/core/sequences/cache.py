"""The cache of processed data: a folder with a record, made once by whoever needs it first."""

import csv
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artefacts import Artefact, locked
from src.core.errors import UserError
from src.core.files import sha256_file, writing
from src.core.foreign.arrays import map_array
from src.core.sequences.rows import Rows

SPLITS = ("train", "valid", "test")
ITEMS_FILE = "items.csv"
ARRAY_FILES = {"items": "sequences.npy", "bounds": "bounds.npy", **{split: f"{split}.npy" for split in SPLITS}}
FILES = (ITEMS_FILE, *ARRAY_FILES.values())
RECORD_FILE = "record.json"
_ROW_TYPES = {"start": "<i8", "pos": "<i8", "user": "<i4"}  # in the fingerprint, on any machine
_PART = 1 << 20  # rows that are hashed at once


@dataclass(frozen=True, kw_only=True)
class Processed:
    """All of a data set but its window, which is cut when rows are read.

    Attributes:
        item_ids: raw id of each item 0..num_items-1.
        titles: title of each item, all different.
        items, bounds: as in `Rows`, which the rows of all splits share.
        pos: of the rows by `train`, `valid` and `test`.
    """

    item_ids: list[str]
    titles: list[str]
    items: np.ndarray
    bounds: np.ndarray
    pos: dict[str, np.ndarray]

    @property
    def num_users(self) -> int:
        return len(self.bounds) - 1

    def rows(self, split: str) -> Rows:
        return Rows(self.items, self.bounds, self.pos[split])

    def fingerprint(self) -> str:
        """sha256, hexadecimal; every part is preceded by its length, so that no two data sets read alike.

        Of a row it has start, position and user, though all but the position are computed: so had the first version.
        """
        digest = hashlib.sha256()

        def add(size: int, parts: Iterable[bytes | memoryview]) -> None:
            digest.update(size.to_bytes(8, "little"))
            for part in parts:
                digest.update(part)

        for text in (str(self.num_users).encode(), json.dumps([self.item_ids, self.titles]).encode()):
            add(len(text), [text])
        add(4 * len(self.items), [self.items.astype("<i4", copy=False).data])
        for split in SPLITS:
            rows = self.rows(split)
            for name, kind in _ROW_TYPES.items():
                columns = (getattr(part, name).astype(kind, copy=False).data for part in rows.parts(_PART))
                add(np.dtype(kind).itemsize * len(rows), columns)
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
        artefact.complete(files={name: sha256_file(temporary / name) for name in FILES})
        os.replace(temporary, folder)
        logger.info("processed data: %s", folder)
    except (OSError, UserError) as error:
        logger.warning("could not keep the processed data in %s: %s", folder, error)
        shutil.rmtree(temporary, ignore_errors=True)


def _write(processed: Processed, folder: Path) -> None:
    for name, array in {"items": processed.items, "bounds": processed.bounds, **processed.pos}.items():
        np.save(folder / ARRAY_FILES[name], array)
    with (folder / ITEMS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["item", "raw_id", "title"])
        writer.writerows(zip(range(len(processed.titles)), processed.item_ids, processed.titles, strict=True))


def _read(folder: Path) -> Processed:
    """The arrays stay in their files, and come into memory as they are asked for."""
    arrays = {name: map_array(folder / file, advice="it is made again") for name, file in ARRAY_FILES.items()}
    with (folder / ITEMS_FILE).open(newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    item_ids, titles = [line[1] for line in lines], [line[2] for line in lines]
    items, bounds = arrays["items"], arrays["bounds"]
    pos = {split: arrays[split] for split in SPLITS}
    if not _holds(items, 0, len(titles)) or not _are_rows(bounds, pos, num_places=len(items)):
        raise ValueError(f"the arrays hold other users, items or rows than {ITEMS_FILE}")
    return Processed(item_ids=item_ids, titles=titles, items=items, bounds=bounds, pos=pos)


def _are_rows(bounds: np.ndarray, pos: dict[str, np.ndarray], *, num_places: int) -> bool:
    """Whether these cut a log into users, and are places of it that are none's first."""
    cuts = _holds(bounds, 0, num_places + 1) and bool((np.diff(bounds) >= 0).all())
    if not cuts or not len(bounds) or (bounds[0], bounds[-1]) != (0, num_places):
        return False
    is_first = np.zeros(num_places + 1, dtype=bool)
    is_first[bounds] = True
    return all(_holds(places, 0, num_places) and not is_first[places].any() for places in pos.values())


def _holds(values: np.ndarray, low: int, high: int) -> bool:
    """Whether these are integers from `low` to `high - 1`, in one dimension."""
    is_list = values.dtype.kind == "i" and values.ndim == 1
    return is_list and (not len(values) or bool(values.min() >= low and values.max() < high))

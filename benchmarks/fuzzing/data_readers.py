"""Readers of raw and processed data."""

import gzip
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.fuzzing.reader import Reader
from src.core.data_utils import _process
from src.core.datasets.amazon import FILES, AmazonConfig
from src.core.datasets.base import DatasetConfig
from src.core.datasets.csv_log import CsvConfig
from src.core.datasets.lastfm import FILES as LASTFM_FILES
from src.core.datasets.lastfm import LastfmConfig
from src.core.datasets.movielens import RELEASES, MovielensConfig
from src.core.datasets.sources import SOURCES, find_raw_files
from src.core.files import sha256_file
from src.core.sequences.cache import FILES as CACHE_FILES
from src.core.sequences.cache import RECORD_FILE, SPLITS, Processed, _load, load_or_make

LOGGER = logging.getLogger("fuzz")
_USERS, _ITEMS = 4, 6
_LOG = [(user, (user + place) % _ITEMS, 100 * place + user) for user in range(_USERS) for place in range(5)]


def _reads(config: DatasetConfig) -> Callable[[Path], Any]:
    """What the source returns, and all that becomes of it but for the cache, which is a reader of its own."""
    source = SOURCES[config.source]

    def read(folder: Path) -> Processed:
        files = find_raw_files(source, config, folder, logger=LOGGER)
        assert files
        return _process(source.read(config, folder), config, LOGGER)

    return read


def _movielens(version: str) -> Reader:
    release = RELEASES[version]

    def make(folder: Path) -> None:
        between = release.ratings_separator
        lines = (between.join(map(str, (user + 1, item + 1, 5, time))) for user, item, time in _LOG)
        (folder / release.ratings).write_text("".join(f"{line}\n" for line in lines))
        titles = (release.movies_separator.join([str(i + 1), f"Film, The {i} (1999)", "x"]) for i in range(_ITEMS))
        (folder / release.movies).write_text("".join(f"{line}\n" for line in titles), encoding="latin-1")

    files = (release.ratings, release.movies)
    return Reader(make, files, _reads(MovielensConfig(version=version, min_user_inter=3)))


def _csv(ending: str) -> Reader:
    files = (f"interactions.{ending}", f"items.{ending}")

    def make(folder: Path) -> None:
        log = pd.DataFrame([(f"u{u}", f"i{i}", time) for u, i, time in _LOG], columns=["user", "item", "timestamp"])
        titles = pd.DataFrame([(f"i{i}", f'The "{i}", blue é') for i in range(_ITEMS)], columns=["item", "title"])
        for name, frame in zip(files, (log, titles), strict=True):
            if ending == "parquet":
                frame.to_parquet(folder / name)
            else:
                frame.to_csv(folder / name, index=False)

    config = CsvConfig(interactions_file=files[0], titles_file=files[1], min_user_inter=3)
    return Reader(make, files, _reads(config))


def _amazon(number: int) -> Reader:
    kind = FILES[number]
    files = (kind.interactions.format("Beauty"), kind.metadata.format("Beauty"))
    fields = kind.fields

    def make(folder: Path) -> None:
        rows = [
            {fields.user: f"U{u}", fields.item: f"B{i}", "rating": 5.0, fields.time: t, "helpful": [0, 1]}
            for u, i, t in _LOG
        ]
        write = repr if kind.release == 2014 else json.dumps
        if files[0].endswith(".csv"):
            columns = {"user": fields.user, "item": fields.item, "timestamp": fields.time, "rating": "rating"}
            names = kind.header or (fields.user, fields.item, "rating", fields.time)
            frame = pd.DataFrame(rows)[[columns.get(name, name) for name in names]]
            frame.to_csv(folder / files[0], index=False, header=kind.header is None)
        else:
            (folder / files[0]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        products = ({fields.item: f"B{i}", "title": f"Soap &amp; {i}", "also": {"a": [1]}} for i in range(_ITEMS))
        (folder / files[1]).write_text("".join(f"{write(product)}\n" for product in products))

    config = AmazonConfig(release=kind.release, interactions_file=files[0], min_user_inter=3)
    return Reader(make, files, _reads(config))


def _csv_gz() -> Reader:
    plain = _csv("csv")

    def make(folder: Path) -> None:
        plain.make(folder)
        for name in plain.files:
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()

    return Reader(make, tuple(f"{name}.gz" for name in plain.files), plain.read)


def _lastfm() -> Reader:
    def make(folder: Path) -> None:
        for name in LASTFM_FILES[:3]:
            history = [[1, 2, 3], [4, 5, 6], [6, 6, 6]]
            frame = pd.DataFrame({"seq": history, "len_seq": [3, 1, 1], "next": [4, 5, 0]})
            (folder / name).write_bytes(pickle.dumps(frame, protocol=4))
        (folder / LASTFM_FILES[3]).write_text("".join(f"{i}::Artist é {i}\n" for i in range(_ITEMS)), encoding="utf-8")

    return Reader(make, LASTFM_FILES, _reads(LastfmConfig(max_seq_len=3)))


# --- the cache ----------------------------------------------------------------------------------------------

_MADE_FROM = {"dataset.name": "toy", "dataset.min_user_inter": 3}


def _processed() -> Processed:
    items = np.array([item for _, item, _ in _LOG], dtype=np.int32)
    bounds = np.arange(_USERS + 1) * 5
    pos = {split: np.repeat(bounds[:-1], 3) + 1 + np.tile(np.arange(3), _USERS) for split in SPLITS}
    titles = [f'A "{i}", é' for i in range(_ITEMS)]
    return Processed(item_ids=[f"i{i}" for i in range(_ITEMS)], titles=titles, items=items, bounds=bounds, pos=pos)


def _make_cache(folder: Path) -> None:
    load_or_make(folder, _MADE_FROM, _processed, logger=LOGGER)
    (found,) = (path.parent for path in folder.rglob(RECORD_FILE))
    found.rename(folder / "cache")


def _read_cache(folder: Path) -> Processed | None:
    """None where it is to be made again."""
    processed, _ = _load(folder / "cache", _MADE_FROM)
    if processed is not None:
        processed.fingerprint()
        for split in SPLITS:
            processed.rows(split).windows(5, len(processed.titles))
    return processed


def _read_rehashed(folder: Path) -> Processed | None:
    """As if it had been written like that, so that the hashes in its record do not give it away."""
    record = folder / "cache" / RECORD_FILE
    content = json.loads(record.read_text())
    content["files"] = {name: sha256_file(folder / "cache" / name) for name in CACHE_FILES}
    record.write_text(json.dumps(content))
    return _read_cache(folder)


_CACHE_FILES = tuple(f"cache/{name}" for name in CACHE_FILES)

READERS = {
    "movielens_100k": _movielens("100k"),
    "movielens_1m": _movielens("1m"),
    "csv": _csv("csv"),
    "csv_gz": _csv_gz(),
    "csv_parquet": _csv("parquet"),
    "amazon_2014_reviews": _amazon(0),
    "amazon_2014_ratings": _amazon(2),
    "amazon_2018_reviews": _amazon(3),
    "amazon_2018_ratings": _amazon(5),
    "amazon_2023_reviews": _amazon(6),
    "amazon_2023_ratings": _amazon(7),
    "lastfm": _lastfm(),
    "cache": Reader(_make_cache, (*_CACHE_FILES, f"cache/{RECORD_FILE}"), _read_cache),
    "cache_with_sound_hashes": Reader(_make_cache, _CACHE_FILES, _read_rehashed),
}

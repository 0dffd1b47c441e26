"""Readers of raw data files, one function per format, and the download of what has a public source.

Every reader raises UserError, with file and line where there is one, for anything that is wrong with a file.
"""

import csv
import gzip
import html
import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.foreign.frames import read_pickled_frame

DOWNLOAD_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Interactions:
    """An interaction log in file order.

    Attributes:
        users: raw user ids [N], int64 or object (str).
        items: raw item ids [N], int64 or object (str).
        timestamps: int64 or float64 [N], any unit.
        titles: raw item id (str) -> title; may be empty or lack an item where the format allows it.
    """

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    titles: dict[str, str]


@dataclass(frozen=True)
class Windows:
    """Ready-made (history, target) pairs in file order.

    history int64 [N, L], length int64 [N], target int64 [N]. Only the first ``length`` entries of a history
    are items; the rest is padding.
    """

    history: np.ndarray
    length: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class WindowSplits:
    """A data set that comes already split; item ids are positions in ``titles``."""

    train: Windows
    valid: Windows
    test: Windows
    titles: list[str]


@dataclass(frozen=True)
class MovielensVersion:
    """Where the files of one MovieLens release are and how they are separated."""

    ratings: str
    movies: str
    ratings_separator: str
    movies_separator: str
    url: str
    md5: str


MOVIELENS = {
    "100k": MovielensVersion(
        ratings="u.data",
        movies="u.item",
        ratings_separator="\t",
        movies_separator="|",
        url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        md5="0e33842e24a9c977be4e0107933c0723",
    ),
    "1m": MovielensVersion(
        ratings="ratings.dat",
        movies="movies.dat",
        ratings_separator="::",
        movies_separator="::",
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        md5="c4d9eecfca2ab87c1945afe126590906",
    ),
}
LASTFM_FILES = ("train_data.df", "Val_data.df", "Test_data.df", "id2name.txt")
AMAZON_REVIEWS = "Video_Games_5.json"
AMAZON_METADATA = "meta_Video_Games.json"


# --- files --------------------------------------------------------------------------------------------------


def require_files(paths: list[Path], advice: str) -> None:
    """Raises UserError naming the folder and every file of ``paths`` that is missing or empty.

    Args:
        paths: files of one folder.
        advice: what the user can do about a missing file.
    """
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{paths[0].parent}: missing {', '.join(missing)}; {advice}")
    for path in paths:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; replace it by a complete copy")


def plain_or_gzipped(path: Path) -> Path:
    """``path``, or ``path`` + ".gz" where only that exists."""
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.is_file() and not path.is_file() else path


def _decode(path: Path, encoding: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not valid {encoding} text; save the file as {encoding}") from None


def _numbered_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of the lines that are not blank."""
    for number, line in enumerate(_decode(path, encoding).split("\n"), start=1):
        line = line.rstrip("\r")
        if line.strip():
            yield number, line


# --- MovieLens ----------------------------------------------------------------------------------------------


def movielens_files(folder: Path, version: str) -> list[Path]:
    """The files that ``read_movielens`` reads."""
    return [folder / MOVIELENS[version].ratings, folder / MOVIELENS[version].movies]


def read_movielens(folder: Path, version: str) -> Interactions:
    """Reads MovieLens-100K (``u.data``, ``u.item``) or -1M (``ratings.dat``, ``movies.dat``).

    Args:
        folder: where the files are.
        version: a key of ``MOVIELENS``.

    Returns:
        Integer ids, and titles with the year stripped and the article in front.
    """
    files = MOVIELENS[version]
    ratings = _read_ratings(folder / files.ratings, files.ratings_separator)
    titles = _read_movie_titles(folder / files.movies, files.movies_separator)
    return Interactions(ratings["user"], ratings["item"], ratings["timestamp"], titles)


def _read_ratings(path: Path, separator: str) -> dict[str, np.ndarray]:
    # The C parser takes one-character separators only, and pandas' Python parser is far slower.
    data = path.read_bytes().replace(separator.encode(), b"\t")
    columns = {"user": np.int64, "item": np.int64, "timestamp": np.int64}
    try:
        frame = pd.read_csv(
            io.BytesIO(data),
            sep="\t",
            header=None,
            names=["user", "item", "rating", "timestamp"],
            usecols=list(columns),
            dtype=columns,
            na_filter=False,
            quoting=csv.QUOTE_NONE,
            encoding="latin-1",
        )
    except (ValueError, OverflowError) as error:
        _raise_first_bad_rating(path, separator)
        raise UserError(f"{path}: cannot be read: {error}") from None
    # Four fields on average and none missing: exactly four on each line.
    if data.count(b"\t") != 3 * len(frame):
        _raise_first_bad_rating(path, separator)
        raise UserError(f"{path}: cannot be read as lines of 4 fields")
    if frame.empty:
        raise UserError(f"{path}: has no interactions; replace it by a complete copy")
    return {name: frame[name].to_numpy() for name in columns}


def _raise_first_bad_rating(path: Path, separator: str) -> None:
    for number, line in _numbered_lines(path, "latin-1"):
        fields = line.split(separator)
        if len(fields) != 4:
            raise UserError(
                f"{path}:{number}: has {len(fields)} fields, expected 4 (user, item, rating, timestamp) "
                f"separated by {separator!r}"
            )
        for name, value in zip(("user", "item", "rating", "timestamp"), fields, strict=True):
            if name != "rating" and not re.fullmatch(r"\s*[+-]?\d+\s*", value):
                raise UserError(f"{path}:{number}: {name} {value!r} is not an integer; correct or remove the line")


def _read_movie_titles(path: Path, separator: str) -> dict[str, str]:
    titles: dict[str, str] = {}
    for number, line in _numbered_lines(path, "latin-1"):
        fields = line.split(separator)
        if len(fields) < 3:
            raise UserError(f"{path}:{number}: has {len(fields)} fields, expected id{separator}title and more")
        item = fields[0].strip()
        if item in titles:
            raise UserError(f"{path}:{number}: item {item!r} occurs twice; remove one of its lines")
        titles[item] = clean_movie_title(fields[1])
    return titles


def clean_movie_title(title: str) -> str:
    """Strips the year and moves the article to the front.

    >>> clean_movie_title("Matrix, The (1999)")
    'The Matrix'
    >>> clean_movie_title("Seventh Seal, The (Sjunde inseglet, Det) (1957)")
    'The Seventh Seal (Sjunde inseglet, Det)'
    """
    title = re.sub(r"\s*\(\d{4}\)(\s*\(V\))?\s*$", "", title.strip())  # (V): released on video
    return re.sub(r"^(.+?), (The|An|A)(?=$| \()", r"\2 \1", title)


def fetch_movielens(folder: Path, version: str, logger: logging.Logger) -> None:
    """Downloads a MovieLens release, verifies its MD5 and puts its two files into ``folder``.

    Raises:
        UserError: where it cannot be had, naming the files and the folder to put them in.
    """
    import pooch  # only here: a run that has its data does not need it

    source = MOVIELENS[version]
    logger.info("fetching %s into %s", source.url, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        try:
            archive = pooch.retrieve(
                source.url,
                known_hash=f"md5:{source.md5}",
                path=temporary,
                fname="archive.zip",
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=DOWNLOAD_TIMEOUT_SECONDS),
            )
            unpacked = [_unpack(Path(archive), path.name) for path in movielens_files(folder, version)]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"could not fetch {source.url} ({type(error).__name__}: {_shorten(str(error))}); "
                f"put {source.ratings} and {source.movies} into {folder}, "
                "or set dataset.raw_dir to a folder that has them"
            ) from error
        for path in unpacked:
            os.replace(path, folder / path.name)


def _unpack(archive: Path, name: str) -> Path:
    """Extracts the file called ``name``, in whatever folder of the archive, beside the archive."""
    target = archive.with_name(name)
    with zipfile.ZipFile(archive) as files:
        member = next((entry for entry in files.namelist() if entry.rsplit("/", 1)[-1] == name), name)
        with files.open(member) as source, target.open("wb") as destination:
            shutil.copyfileobj(source, destination)
    return target


def _shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- CSV ----------------------------------------------------------------------------------------------------


def read_csv(
    interactions: Path, titles: Path, separator: str, user: str, item: str, timestamp: str, title: str
) -> Interactions:
    """Reads a log and a table of titles, both with a header line.

    Args:
        interactions: file with the columns ``user``, ``item``, ``timestamp`` (a number); others are ignored.
        titles: file with the columns ``item``, ``title``; every item of the log must be in it once.
        separator: one character.
        user, item, timestamp, title: names of the columns.
    """
    title_of = _read_titles_table(titles, separator, item, title)
    names = {"user": user, "item": item, "timestamp": timestamp}
    scan = _LogScan(interactions, titles, separator, names, title_of)
    try:
        frame = _parse_log(interactions, separator)
    except (ValueError, pd.errors.ParserWarning) as error:
        scan.raise_first_error()
        raise UserError(f"{interactions}: cannot be read: {_shorten(str(error))}") from None
    for key, column in names.items():
        _check_column(interactions, list(frame.columns), key, column)
    if frame.empty:
        raise UserError(f"{interactions}: has no interactions; add lines below the header")
    times = pd.to_numeric(frame[timestamp], errors="coerce").to_numpy()
    users, items = frame[user].to_numpy(), frame[item].to_numpy()
    known = pd.Series(frame[item].unique()).isin(title_of.keys()).all()
    if not (known and np.isfinite(times).all() and (users != "").all() and (items != "").all()):
        scan.raise_first_error()
        raise UserError(f"{interactions}: has a line that cannot be used")
    return Interactions(users, items, times, title_of)


def _parse_log(path: Path, separator: str) -> pd.DataFrame:
    text = _decode(path, "utf-8-sig")
    with warnings.catch_warnings():
        # A first line that is longer than the header is only warned about, and cut.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False, index_col=False)


def _check_column(path: Path, header: list[str], key: str, column: str) -> int:
    """Position of ``column`` in ``header``."""
    if column not in header:
        raise UserError(
            f"{path}:1: dataset.columns.{key}={column!r} is not a column; the file has "
            f"{', '.join(map(str, header))}"
        )
    return header.index(column)


def _csv_rows(path: Path, separator: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and (line number, fields) of each row, every row checked to be as long as the header."""
    reader = csv.reader(io.StringIO(_decode(path, "utf-8-sig"), newline=""), delimiter=separator)
    header = next(reader, [])

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise UserError(
                        f"{path}:{reader.line_num}: has {len(fields)} fields, expected {len(header)} "
                        f"({separator.join(header)}); put quotes round a field that contains {separator!r}"
                    )
                if fields:
                    yield reader.line_num, fields
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}") from None

    return header, rows()


def _read_titles_table(path: Path, separator: str, item: str, title: str) -> dict[str, str]:
    header, rows = _csv_rows(path, separator)
    item_at = _check_column(path, header, "item", item)
    title_at = _check_column(path, header, "title", title)
    titles: dict[str, str] = {}
    for line, fields in rows:
        if fields[item_at] in titles:
            raise UserError(f"{path}:{line}: item {fields[item_at]!r} occurs twice; remove one of its lines")
        titles[fields[item_at]] = fields[title_at]
    return titles


@dataclass(frozen=True)
class _LogScan:
    """Reads a log line by line, slowly, to name the line at which the fast parser or a check failed."""

    path: Path
    titles_path: Path
    separator: str
    names: dict[str, str]
    titles: dict[str, str]

    def raise_first_error(self) -> None:
        header, rows = _csv_rows(self.path, self.separator)
        at = {key: _check_column(self.path, header, key, column) for key, column in self.names.items()}
        for line, fields in rows:
            self._check(line, {key: fields[index] for key, index in at.items()})

    def _check(self, line: int, row: dict[str, str]) -> None:
        where = f"{self.path}:{line}"
        for key in ("user", "item"):
            if row[key] == "":
                raise UserError(f"{where}: the {key} is empty; correct or remove the line")
        if not np.isfinite(pd.to_numeric(pd.Series([row["timestamp"]]), errors="coerce")).all():
            raise UserError(f"{where}: timestamp {row['timestamp']!r} is not a number; correct or remove the line")
        if row["item"] not in self.titles:
            raise UserError(f"{where}: item {row['item']!r} has no entry in {self.titles_path}; add one")


# --- Amazon Reviews 2018 ------------------------------------------------------------------------------------


def amazon_files(folder: Path) -> list[Path]:
    """The files that ``read_amazon_games`` reads, gzipped or not."""
    return [plain_or_gzipped(folder / AMAZON_REVIEWS), plain_or_gzipped(folder / AMAZON_METADATA)]


def read_amazon_games(folder: Path) -> Interactions:
    """Reads Amazon Reviews 2018 "Video Games": the 5-core reviews and the metadata, as JSON lines."""
    reviews, metadata = amazon_files(folder)
    users: list[str] = []
    items: list[str] = []
    times: list[int] = []
    for line, review in _json_lines(reviews):
        try:
            times.append(int(review["unixReviewTime"]))
            users.append(str(review["reviewerID"]))
            items.append(str(review["asin"]))
        except KeyError as error:
            raise UserError(f"{reviews}:{line}: the field {error} is missing") from None
        except (TypeError, ValueError):
            value = review["unixReviewTime"]
            raise UserError(f"{reviews}:{line}: unixReviewTime {value!r} is not an integer") from None
    if not users:
        raise UserError(f"{reviews}: has no reviews; replace it by a complete copy")
    titles = _read_amazon_titles(metadata)
    return Interactions(
        np.array(users, dtype=object), np.array(items, dtype=object), np.array(times, dtype=np.int64), titles
    )


def _read_amazon_titles(path: Path) -> dict[str, str]:
    titles: dict[str, str] = {}
    for line, product in _json_lines(path):
        if "asin" not in product:
            raise UserError(f"{path}:{line}: the field 'asin' is missing")
        # The release repeats products, and some titles are a piece of JavaScript, told by "getTime".
        title = html.unescape(str(product.get("title") or ""))
        if not titles.get(product["asin"]):
            titles[product["asin"]] = "" if "getTime" in title else title
    return titles


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opener(path, "rb") as file:
            for line, text in enumerate(file, start=1):
                if not text.isspace():
                    value = json.loads(text)
                    if not isinstance(value, dict):
                        raise UserError(f"{path}:{line}: expected a JSON object, got {_shorten(repr(value), 40)}")
                    yield line, value
    except ValueError as error:  # covers JSON and Unicode errors
        raise UserError(f"{path}:{line}: not a line of JSON ({error}); correct or remove the line") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged after line {line} ({error}); replace it by a complete copy") from None


# --- LastFM (windows of iLoRA) ------------------------------------------------------------------------------


def lastfm_files(folder: Path) -> list[Path]:
    """The files that ``read_lastfm`` reads."""
    return [folder / name for name in LASTFM_FILES]


def read_lastfm(folder: Path) -> WindowSplits:
    """Reads iLoRA's LastFM windows; rows with an empty history are dropped."""
    train, valid, test, names = lastfm_files(folder)
    titles = _read_id2name(names)
    return WindowSplits(
        train=_read_windows(train, len(titles)),
        valid=_read_windows(valid, len(titles)),
        test=_read_windows(test, len(titles)),
        titles=titles,
    )


def _read_id2name(path: Path) -> list[str]:
    titles: dict[int, str] = {}
    for number, line in _numbered_lines(path, "utf-8"):
        item, separator, title = line.partition("::")
        if not separator or not item.isdecimal():
            raise UserError(f"{path}:{number}: expected id::name, got {_shorten(line, 60)!r}")
        if int(item) in titles:
            raise UserError(f"{path}:{number}: item {item} occurs twice; remove one of its lines")
        titles[int(item)] = title
    missing = next((item for item in range(len(titles)) if item not in titles), None)
    if missing is not None:
        raise UserError(f"{path}: ids must be 0 to {len(titles) - 1} without a gap, but {missing} is missing")
    return [titles[item] for item in range(len(titles))]


def _read_windows(path: Path, num_items: int) -> Windows:
    columns = read_pickled_frame(path)
    try:
        history = np.array(list(columns["seq"]), dtype=np.int64)  # [N, L]
        length = np.array(columns["len_seq"], dtype=np.int64)
        target = np.array(columns["next"], dtype=np.int64)
    except KeyError as error:
        raise UserError(f"{path}: the column {error} is missing; it has {', '.join(columns)}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: seq must hold lists of ids of one length, len_seq and next integers: {error}"
        ) from None
    if history.ndim != 2 or not len(history) == len(length) == len(target):
        raise UserError(f"{path}: seq must hold lists of ids of one length, one for each len_seq and next")
    if len(history) == 0:
        raise UserError(f"{path}: has no rows; replace it by a complete copy")
    # An empty history is written as one padding id with len_seq 1: 976 rows of the training file.
    length = np.where((length == 1) & (history[:, 0] == num_items), 0, length)
    _check_windows(path, history, length, target, num_items)
    keep = length > 0
    if not keep.any():
        raise UserError(f"{path}: has no row with a history; replace it by a complete copy")
    return Windows(history[keep], length[keep], target[keep])


def _check_windows(path: Path, history: np.ndarray, length: np.ndarray, target: np.ndarray, num_items: int) -> None:
    width = history.shape[1]
    bad = np.flatnonzero((length < 0) | (length > width))
    if len(bad):
        raise UserError(f"{path}: row {bad[0]}: len_seq {length[bad[0]]} is not between 0 and {width}")
    real = np.arange(width) < length[:, None]
    items = np.concatenate([np.where(real, history, 0), target[:, None]], axis=1)
    rows, places = np.nonzero((items < 0) | (items >= num_items))
    if len(rows):
        item = items[rows[0], places[0]]
        raise UserError(f"{path}: row {rows[0]}: item {item} is not in id2name.txt (ids 0 to {num_items - 1})")

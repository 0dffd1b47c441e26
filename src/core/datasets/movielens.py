"""MovieLens-100K and -1M."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.datasets.base import Ids, Interactions, LogConfig, plain_or_gzipped
from src.core.datasets.download import Archive
from src.core.errors import UserError, check
from src.core.foreign.text import numbered_lines, read_text

_OTHERWISE = "latin-1"  # as the releases come; what people save again is UTF-8
_COLUMNS = ("user", "item", "rating", "timestamp")


@dataclass(frozen=True, kw_only=True)
class Release:
    """The files of one release, what separates their fields, and where it is published."""

    ratings: str
    movies: str
    ratings_separator: str
    movies_separator: str
    archive: Archive


RELEASES = {
    "100k": Release(
        ratings="u.data",
        movies="u.item",
        ratings_separator="\t",
        movies_separator="|",
        archive=Archive(
            url="https://files.grouplens.org/datasets/movielens/ml-100k.zip", md5="0e33842e24a9c977be4e0107933c0723"
        ),
    ),
    "1m": Release(
        ratings="ratings.dat",
        movies="movies.dat",
        ratings_separator="::",
        movies_separator="::",
        archive=Archive(
            url="https://files.grouplens.org/datasets/movielens/ml-1m.zip", md5="c4d9eecfca2ab87c1945afe126590906"
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class MovielensConfig(LogConfig):
    """`conf/dataset/movielens.yaml`.

    Attributes:
        version: a key of `RELEASES`.
    """

    source: str = "movielens"
    name: str = "movielens"
    version: str = "100k"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.version in RELEASES, "dataset.version", self.version, f"one of {', '.join(RELEASES)}")


class Movielens:
    """The source of MovieLens."""

    config = MovielensConfig

    def archive(self, config: MovielensConfig) -> Archive:
        return RELEASES[config.version].archive

    def files(self, config: MovielensConfig, folder: Path) -> list[Path]:
        return raw_files(folder, RELEASES[config.version])

    def read(self, config: MovielensConfig, folder: Path) -> Interactions:
        return read_movielens(folder, RELEASES[config.version])


def raw_files(folder: Path, release: Release) -> list[Path]:
    """Ratings and movies."""
    return [plain_or_gzipped(folder / name) for name in (release.ratings, release.movies)]


def read_movielens(folder: Path, release: Release) -> Interactions:
    """Read a release's ratings and movies: int64 ids; titles with the year stripped and the article in front.

    Raises:
        UserError: naming file and line of what is wrong.
    """
    ratings, movies = raw_files(folder, release)
    log = _read_ratings(ratings, release.ratings_separator)
    titles, changed = _read_titles(movies, release.movies_separator)
    return Interactions(
        users=Ids.of(log["user"]),
        items=Ids.of(log["item"]),
        timestamps=log["timestamp"],
        titles=titles,
        notes=(f"{movies.name}: took off the year or moved the article of {changed} titles",),
    )


def _read_ratings(path: Path, separator: str) -> dict[str, np.ndarray]:
    """int64 [N] by `user`, `item` and `timestamp`."""
    import pandas as pd  # a second that only a log costs, not what was processed before

    # The C parser takes one-character separators only, and pandas' Python parser is far slower.
    data = read_text(path, _OTHERWISE).replace(separator, "\t")
    columns = [name for name in _COLUMNS if name != "rating"]
    try:
        frame = pd.read_csv(
            io.BytesIO(data.encode()),
            sep="\t",
            header=None,
            names=list(_COLUMNS),
            usecols=columns,
            dtype={name: np.int64 for name in columns},
            na_filter=False,
            quoting=csv.QUOTE_NONE,
        )
    except (ValueError, OverflowError) as error:
        _raise_first_bad_rating(path, separator)
        raise UserError(f"{path}: cannot be read: {error}") from None
    # Four fields on average and none missing: exactly four on each line.
    if data.count("\t") != 3 * len(frame):
        _raise_first_bad_rating(path, separator)
        raise UserError(f"{path}: cannot be read as lines of 4 fields")
    if frame.empty:
        raise UserError(f"{path}: has no interactions; replace it by a complete copy")
    return {name: frame[name].to_numpy() for name in columns}


def _raise_first_bad_rating(path: Path, separator: str) -> None:
    """Read the lines one by one, slowly, to name the one that the fast parser refused."""
    for number, line in numbered_lines(path, _OTHERWISE):
        fields = line.split(separator)
        if len(fields) != 4:
            raise UserError(
                f"{path}:{number}: has {len(fields)} fields, expected 4 ({', '.join(_COLUMNS)}) "
                f"separated by {separator!r}"
            )
        for name, value in zip(_COLUMNS, fields, strict=True):
            if name != "rating" and not re.fullmatch(r"\s*[+-]?\d+\s*", value):
                raise UserError(f"{path}:{number}: {name} {value!r} is not an integer; correct or remove the line")


def _read_titles(path: Path, separator: str) -> tuple[dict[str, str], int]:
    """Title by movie, and how many are not as they were given."""
    titles: dict[str, str] = {}
    changed = 0
    for number, line in numbered_lines(path, _OTHERWISE):
        fields = line.split(separator)
        if len(fields) < 3:
            raise UserError(f"{path}:{number}: has {len(fields)} fields, expected id{separator}title and more")
        item = fields[0].strip()
        item = item.lstrip("0") or "0" if item.isascii() and item.isdecimal() else item  # as the ratings' ids are read
        if item in titles:
            raise UserError(f"{path}:{number}: item {item!r} occurs twice; remove one of its lines")
        titles[item] = clean_movie_title(fields[1])
        changed += titles[item] != fields[1]
    return titles, changed


def clean_movie_title(title: str) -> str:
    """Strip the year and move the article to the front.

    >>> clean_movie_title("Matrix, The (1999)")
    'The Matrix'
    >>> clean_movie_title("Seventh Seal, The (Sjunde inseglet, Det) (1957)")
    'The Seventh Seal (Sjunde inseglet, Det)'
    """
    title = re.sub(r"\s*\(\d{4}\)(\s*\(V\))?\s*$", "", title.strip())  # (V): released on video
    return re.sub(r"^(.+?), (The|An|A)(?=$| \()", r"\2 \1", title)

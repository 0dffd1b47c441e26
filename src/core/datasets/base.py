"""What the data sets share: the types that readers return, the common settings, and helpers for raw files."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.core.errors import UserError, check
from src.core.metrics import HISTORIES
from src.core.settings import NOTHING

MIN_INTERACTIONS = 3  # a training, a validation and a test target are too many for fewer
LOG_SPLITS = ("leave_one_out", "temporal")
DUPLICATES = ("drop", "keep")
GIVEN_SPLIT = "given"  # of data that come split
NO_IDS = {"", "nan", "none", "null", "<na>", "n/a", "undefined"}  # what programs write for a missing one


# --- what a reader returns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ids:
    """A column of raw ids, of which each is kept once: a Python object for every interaction would take gigabytes.

    Attributes:
        codes: int32 [N], places in `values`.
        values: the raw ids in the order of their first occurrence, int64 or object (str) [n]; after `select` some may
            not occur.
    """

    codes: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, column: np.ndarray) -> "Ids":
        """Of the raw ids themselves, int64 or object (str) [N]."""
        import pandas as pd  # a second that only raw data cost, not what was processed before

        codes, values = pd.factorize(column)
        return cls(codes.astype(np.int32), values)

    @classmethod
    def joined(cls, parts: Sequence["Ids"]) -> "Ids":
        """The parts of a column of text, one behind the other."""
        ids = cls.of(np.concatenate([part.values for part in parts]))
        places = np.split(ids.codes, np.cumsum([len(part.values) for part in parts])[:-1])
        return cls(np.concatenate([place[part.codes] for place, part in zip(places, parts, strict=True)]), ids.values)

    def __len__(self) -> int:
        return len(self.codes)

    def tolist(self) -> list:
        return self.values[self.codes].tolist()

    def select(self, keep: np.ndarray) -> "Ids":
        """Those at `keep`, int [M] or bool [N]."""
        return Ids(self.codes[keep], self.values)

    def first_rows(self) -> np.ndarray:
        """Where each value occurs first, int64 [n]; all do."""
        rows = np.empty(len(self.values), dtype=np.int64)
        rows[self.codes[::-1]] = np.arange(len(self))[::-1]  # of several places numpy keeps the last
        return rows

    def in_order(self) -> tuple[np.ndarray, list[str]]:
        """The ids that occur, numbered 0..n-1 in their order: by value if all are decimal numbers, else as text.

        Returns:
            codes int32 [N], and the raw id of each code as text.
        """
        occurring = np.flatnonzero(np.bincount(self.codes, minlength=len(self.values)))
        ids = [str(value) for value in self.values[occurring]]
        numeric = all(value.isascii() and value.isdecimal() for value in ids)
        order = sorted(range(len(ids)), key=lambda i: (*_value_of(ids[i]), ids[i]) if numeric else (ids[i],))
        rank = np.empty(len(self.values), dtype=np.int32)
        rank[occurring[order]] = np.arange(len(ids))
        return rank[self.codes], [ids[i] for i in order]


def _value_of(digits: str) -> tuple[int, str]:
    """Sorts as the number does; Python makes no integer of more than 4,300 digits.

    >>> sorted(["10", "9", "009", "0"], key=_value_of)
    ['0', '9', '009', '10']
    """
    digits = digits.lstrip("0")
    return len(digits), digits


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """An interaction log in file order.

    Attributes:
        users, items: raw ids, N each.
        timestamps: int64 or float64 [N], any unit.
        titles: raw item id (str) -> title; may be empty or lack an item where the format allows it.
        notes: what was changed or left out, a line each with its count, for the log.
        warnings: what may be misread, in the same way.
    """

    users: Ids
    items: Ids
    timestamps: np.ndarray
    titles: dict[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Windows:
    """Ready-made (history, target) pairs in file order.

    history int64 [N, L], length int64 [N], target int64 [N]. Only the first `length` entries of a history
    are items; the rest is padding.
    """

    history: np.ndarray
    length: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class WindowSplits:
    """A data set that comes already split; item ids are positions in `titles`, the rest is as in `Interactions`."""

    train: Windows
    valid: Windows
    test: Windows
    titles: list[str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


# --- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How rows are split.

    Attributes:
        method: `leave_one_out` (a user's last item tests, the one before validates), `temporal` (all rows by the time
            of their target, 8:1:1), or `given` for data that come split.
    """

    method: str = "leave_one_out"

    def __post_init__(self) -> None:
        allowed = (*LOG_SPLITS, GIVEN_SPLIT)
        check(self.method in allowed, "dataset.split.method", self.method, f"one of {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The settings that every data set has.

    Attributes:
        source: its reader, a key of `SOURCES`.
        name: what it is called in folders, reports and records; letters, digits, `.`, `_` and `-`.
        max_seq_len: window of a row; the last items count.
        min_user_inter: users with fewer interactions are dropped.
        split: see `SplitConfig`.
        raw_dir: folder of the raw files; None is `<data_dir>/raw/<name>`. A relative one starts where the command was
            called.
        max_train_rows: size of a fixed random sample of the training rows; None is all.
        history: what `metrics.history` is unless it is given.

    Raises:
        UserError: for a value out of range.
    """

    source: str
    name: str
    max_seq_len: int = 50
    min_user_inter: int = 5
    split: SplitConfig = field(default_factory=SplitConfig)
    raw_dir: str | None = field(default=None, metadata=NOTHING)
    max_train_rows: int | None = None
    history: str = field(default="shown", metadata=NOTHING)  # what it decides, metrics.history says

    def __post_init__(self) -> None:
        rows = self.max_train_rows
        check_label("dataset.name", self.name)
        check(self.max_seq_len >= 1, "dataset.max_seq_len", self.max_seq_len, "an integer >= 1")
        check(rows is None or rows >= 1, "dataset.max_train_rows", rows, "null or an integer >= 1")
        check(self.history in HISTORIES, "dataset.history", self.history, f"one of {', '.join(HISTORIES)}")
        check(self.raw_dir != "", "dataset.raw_dir", self.raw_dir, "null or a folder")


@dataclass(frozen=True, kw_only=True)
class LogConfig(DatasetConfig):
    """The settings of a data set that comes as a log of interactions, and is split here.

    Attributes:
        duplicates: exact repeats of user, item and time: `drop` or `keep` them.
    """

    duplicates: str = "drop"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.duplicates in DUPLICATES, "dataset.duplicates", self.duplicates, f"one of {', '.join(DUPLICATES)}")
        check(
            self.split.method in LOG_SPLITS,
            "dataset.split.method",
            self.split.method,
            f"{' or '.join(LOG_SPLITS)}, because {self.name} does not come split",
        )
        check(
            self.min_user_inter >= MIN_INTERACTIONS,
            "dataset.min_user_inter",
            self.min_user_inter,
            f"an integer >= {MIN_INTERACTIONS} (one item each to train, validate and test)",
        )


def check_label(key: str, value: str) -> None:
    """Refuse what cannot be (part of) the name of a folder on every system.

    >>> check_label("dataset.name", "a/b")
    Traceback (most recent call last):
    ...
    src.core.errors.UserError: dataset.name='a/b': must be a name of letters, digits, '.', '_' and '-', no sign first
    """
    allowed = "a name of letters, digits, '.', '_' and '-', no sign first"
    check(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value) is not None, key, value, allowed)


# --- raw files ----------------------------------------------------------------------------------------------


def require_files(paths: list[Path], advice: str) -> None:
    """Refuse missing and empty files.

    Args:
        paths: files of one folder.
        advice: what the user can do about a missing file.

    Raises:
        UserError: naming the folder and every file of `paths` that is missing, or the first that is empty.
    """
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{paths[0].parent}: missing {', '.join(missing)}; {advice}")
    for path in paths:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; replace it by a complete copy")


def plain_or_gzipped(path: Path) -> Path:
    """`path`, or `path` + ".gz" where only that exists."""
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.is_file() and not path.is_file() else path


def likeness(raw_id: str) -> str:
    """What ids have in common that people may mean to be one: blanks, case, Unicode form and `.0` left aside.

    >>> likeness(" U7.0") == likeness("u7")
    True
    """
    return re.sub(r"\.0+$", "", unicodedata.normalize("NFKC", raw_id).strip().casefold())


def shorten(text: str, limit: int = 160) -> str:
    """A text of at most `limit` characters, for a message."""
    return text if len(text) <= limit else text[: limit - 1] + "…"

"""Amazon Reviews of 2014, 2018 and 2023, any category: reviews or ratings, and the products' metadata.

The files are those of https://jmcauley.ucsd.edu/data/amazon/links.html (2014),
https://nijianmo.github.io/amazon/ (2018) and https://amazon-reviews-2023.github.io (2023).
"""

import html
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from src.core.datasets.base import Ids, Interactions, LogConfig, check_label, plain_or_gzipped
from src.core.datasets.sound_text import Layout
from src.core.datasets.tables import read_table
from src.core.errors import UserError, check
from src.core.foreign.object_lines import read_object_lines
from src.core.foreign.text import nul_error
from src.core.settings import NOTHING

_MAX_TIME = 2**63
_MOST_ESCAPES = 5
_HALF = "\N{REPLACEMENT CHARACTER}"
_BREAKS = ("br", "div", "h1", "h2", "h3", "h4", "hr", "img", "li", "p", "td", "tr", "ul")  # where words end
_TAG = re.compile(  # of the names that titles have, so that `<3` and `<Import>` stay
    rf"<(?:!--[^<>]*--|/?({'|'.join(_BREAKS)}|a|b|big|center|del|em|font|i|mark|s|small|span|strong|sub|sup|table|u|wbr)"
    r"\b[^<>]*)>",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class AmazonConfig(LogConfig):
    """`conf/dataset/amazon.yaml`.

    Attributes:
        category: as in the files' names, such as `Video_Games`.
        release: 2014, 2018 or 2023; None is the one whose files lie in the folder.
        interactions_file: name of the reviews or ratings, of `FILES`; None is what lies there.
    """

    source: str = "amazon"
    name: str = "amazon_Beauty"
    history: str = field(default="removed", metadata=NOTHING)  # nobody reviews a product twice
    category: str = "Beauty"
    release: int | None = None
    interactions_file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label("dataset.category", self.category)
        releases = sorted({kind.release for kind in FILES})
        allowed = f"null or one of {', '.join(map(str, releases))}"
        check(self.release is None or self.release in releases, "dataset.release", self.release, allowed)
        of_release = (kind for kind in FILES if self.release in (None, kind.release))
        names = ", ".join(dict.fromkeys(kind.interactions.format(self.category) for kind in of_release))
        allowed = f"null or one of {names}, gzipped or not"
        check(bool(_admitted(self)), "dataset.interactions_file", self.interactions_file, allowed)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What the fields are called in reviews and metadata."""

    user: str
    item: str
    time: str


_TO_2018 = Fields(user="reviewerID", item="asin", time="unixReviewTime")
_OF_2023 = Fields(user="user_id", item="parent_asin", time="timestamp")  # the time in milliseconds


@dataclass(frozen=True, kw_only=True)
class Files:
    """One kind of interactions of a release, with the metadata that go with it; `{}` stands for the category.

    Attributes:
        header: of a CSV file without a header line.
    """

    release: int
    interactions: str
    metadata: str = "meta_{}.json"
    fields: Fields = _TO_2018
    header: tuple[str, ...] | None = None

    def paths(self, category: str, folder: Path) -> list[Path]:
        """Interactions and metadata."""
        return [plain_or_gzipped(folder / name.format(category)) for name in (self.interactions, self.metadata)]


FILES = (
    Files(release=2014, interactions="reviews_{}_5.json"),
    Files(release=2014, interactions="reviews_{}.json"),
    Files(release=2014, interactions="ratings_{}.csv", header=("user", "item", "rating", "timestamp")),
    Files(release=2018, interactions="{}_5.json"),
    Files(release=2018, interactions="{}.json"),
    Files(release=2018, interactions="{}.csv", header=("item", "user", "rating", "timestamp")),
    Files(release=2023, interactions="{}.jsonl", metadata="meta_{}.jsonl", fields=_OF_2023),
    Files(release=2023, interactions="{}.csv", metadata="meta_{}.jsonl", fields=_OF_2023),
)


class Amazon:
    """The source of Amazon Reviews. Not fetched: no checksum of it is known."""

    config = AmazonConfig

    def archive(self, config: AmazonConfig) -> None:
        return None

    def files(self, config: AmazonConfig, folder: Path) -> list[Path]:
        return find_files(config, folder).paths(config.category, folder)

    def read(self, config: AmazonConfig, folder: Path) -> Interactions:
        kind = find_files(config, folder)
        interactions, metadata = kind.paths(config.category, folder)
        return read_amazon(interactions, metadata, kind)


def _admitted(config: AmazonConfig) -> list[Files]:
    """Those that `release` and `interactions_file` leave."""
    name = None if config.interactions_file is None else config.interactions_file.removesuffix(".gz")
    return [
        kind
        for kind in FILES
        if config.release in (None, kind.release) and name in (None, kind.interactions.format(config.category))
    ]


def find_files(config: AmazonConfig, folder: Path) -> Files:
    """The kind of files that lie in a folder; where only one is admitted, that one, whether it is there or not.

    Raises:
        UserError: none or several.
    """
    admitted = _admitted(config)
    if len(admitted) == 1:
        return admitted[0]
    paths = {kind: kind.paths(config.category, folder) for kind in admitted}
    there = [kind for kind in admitted if paths[kind][0].is_file()]
    whole = [kind for kind in there if paths[kind][1].is_file()] or there
    if len(whole) == 1:
        return whole[0]
    if not there:
        _refuse_absent(config, folder, admitted)
    listed = " and ".join(f"{paths[kind][0].name} with {paths[kind][1].name} ({kind.release})" for kind in whole)
    raise UserError(f"{folder}: may be {listed}; choose by dataset.release or dataset.interactions_file")


def _refuse_absent(config: AmazonConfig, folder: Path, admitted: list[Files]) -> NoReturn:
    names = {
        kind.release: (kind.metadata, [k.interactions for k in admitted if k.release == kind.release])
        for kind in admitted
    }
    wanted = "; ".join(
        f"{' or '.join(files)} with {metadata} ({release})" for release, (metadata, files) in names.items()
    )
    raise UserError(
        f"{folder}: no reviews of dataset.category={config.category!r}; looked for "
        f"{wanted.replace('{}', config.category)}, gzipped or not; put them there, or set dataset.raw_dir, "
        "dataset.category or dataset.release"
    )


def read_amazon(interactions: Path, metadata: Path, kind: Files) -> Interactions:
    """Read reviews or ratings and the products' titles: ids as text, times as the release has them, int64.

    Raises:
        UserError: naming file and line of what is wrong; or no product of the log has a title.
    """
    read = _read_ratings if ".csv" in kind.interactions else _read_reviews
    users, items, times = read(interactions, kind)
    if not len(users):
        raise UserError(f"{interactions}: has no reviews; replace it by a complete copy")
    titles, notes = _read_titles(metadata, kind.fields.item)
    if not any(titles.get(item) for item in items.values):
        raise UserError(
            f"{metadata}: has no title for any product of {interactions.name}; give the metadata of the same release "
            "and category"
        )
    return Interactions(users=users, items=items, timestamps=times, titles=titles, notes=notes)


def _read_ratings(path: Path, kind: Files) -> tuple[Ids, Ids, np.ndarray]:
    fields = kind.fields
    names = {"user": fields.user, "item": fields.item, "timestamp": fields.time}
    if kind.header is not None:
        names = {name: name for name in names}
    table = read_table(path, Layout(names=names, header=kind.header, setting=""))
    return table.required("user"), table.required("item"), table.times()


def _read_reviews(path: Path, kind: Files) -> tuple[Ids, Ids, np.ndarray]:
    fields = kind.fields
    users: list[str] = []
    items: list[str] = []
    times = array("q")
    known: dict[str, str] = {}  # so that an id is one object however often it occurs
    for line, review in read_object_lines(path, (fields.user, fields.item, fields.time)):
        where = f"{path}:{line}"
        times.append(_time(where, review, fields.time))
        for ids, name in ((users, fields.user), (items, fields.item)):
            raw_id = _id(where, review, name)
            ids.append(known.setdefault(raw_id, raw_id))
    user, item = (Ids.of(np.array(column, dtype=object)) for column in (users, items))
    return user, item, np.array(times, dtype=np.int64)


def _read_titles(path: Path, field: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Title by product, "" where there is none, and what was done to them."""
    titles: dict[str, str] = {}
    stripped = halved = unusable = 0
    for line, product in read_object_lines(path, (field, "title")):
        where = f"{path}:{line}"
        item = _id(where, product, field)
        if titles.get(item):  # the release of 2018 repeats products
            continue
        given = product.get("title")
        titles[item] = _title(given)
        if "\0" in titles[item]:
            raise nul_error(f"{where}: title")
        stripped += bool(titles[item]) and isinstance(given, str) and _plain_text(given) != given
        halved += _HALF in titles[item] and _HALF not in str(given)
        unusable += not titles[item] and bool(given) and not str(given).isspace()
    notes = {f"{path.name}: took HTML out of %d titles": stripped}
    notes[f"{path.name}: replaced half characters in %d titles"] = halved
    notes[f"{path.name}: dropped %d titles that are no text, or nothing but HTML or a piece of script"] = unusable
    return titles, tuple(note % number for note, number in notes.items() if number)


def _title(value: Any) -> str:
    """A title without HTML; "" for what is no text, and for the pieces of JavaScript, told by "getTime"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or "getTime" in value:
        return ""
    return _whole_characters(_plain_text(value))


def _plain_text(text: str) -> str:
    """HTML as the text that it shows, escaped once or more often.

    >>> _plain_text("<i>A &amp;amp; B</i><br>&lt;b&gt;1 < 2 <3")
    'A & B 1 < 2 <3'
    """
    for _ in range(_MOST_ESCAPES):
        before, text = text, html.unescape(_TAG.sub(lambda tag: " " if (tag[1] or "").lower() in _BREAKS else "", text))
        if text == before:
            break
    return text if text.strip() else ""


def _whole_characters(text: str) -> str:
    """Escapes such as \\ud83d\\ude00 as the character they mean, half ones replaced: no file could hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _id(where: str, record: dict[str, Any], field: str) -> str:
    value = _require(where, record, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UserError(f"{where}: {field} {_shown(value)} is no id; correct or remove the line")
    return value


def _time(where: str, record: dict[str, Any], field: str) -> int:
    value = _require(where, record, field)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,19}", value, re.ASCII):
        value = int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -_MAX_TIME <= value < _MAX_TIME:
        raise UserError(f"{where}: {field} {_shown(value)} is not an integer of 64 bits; correct or remove the line")
    return value


def _require(where: str, record: dict[str, Any], field: str) -> Any:
    if field not in record:
        raise UserError(f"{where}: the field {field!r} is missing")
    return record[field]


def _shown(value: Any) -> str:
    """A value in a message; what is nested by its kind alone."""
    return f"{value!r:.60}" if value is None or isinstance(value, str | int | float) else f"(a {type(value).__name__})"

"""Amazon Reviews 2018, Video Games: the 5-core reviews and the metadata, as JSON lines, gzipped or not."""

import gzip
import html
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.core.datasets.base import Interactions, LogConfig, shorten
from src.core.errors import UserError
from src.core.settings import NOTHING

REVIEWS_FILE = "Video_Games_5.json"
METADATA_FILE = "meta_Video_Games.json"


@dataclass(frozen=True, kw_only=True)
class AmazonGamesConfig(LogConfig):
    """`conf/dataset/amazon_games.yaml`."""

    name: str = "amazon_games"
    history: str = field(default="removed", metadata=NOTHING)  # nothing is bought twice there


class AmazonGames:
    """The source of Amazon Video Games. Not fetched: no checksum of it is known."""

    config = AmazonGamesConfig

    def archive(self, config: AmazonGamesConfig) -> None:
        return None

    def files(self, config: AmazonGamesConfig, folder: Path) -> list[Path]:
        return [_plain_or_gzipped(folder / REVIEWS_FILE), _plain_or_gzipped(folder / METADATA_FILE)]

    def read(self, config: AmazonGamesConfig, folder: Path) -> Interactions:
        return read_amazon_games(*self.files(config, folder))


def _plain_or_gzipped(path: Path) -> Path:
    """`path`, or `path` + ".gz" where only that exists."""
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.is_file() and not path.is_file() else path


def read_amazon_games(reviews: Path, metadata: Path) -> Interactions:
    """Read the reviews and the products' titles: ids as text, times in seconds, int64.

    Raises:
        UserError: naming file and line of what is wrong.
    """
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
    return Interactions(
        users=np.array(users, dtype=object),
        items=np.array(items, dtype=object),
        timestamps=np.array(times, dtype=np.int64),
        titles=_read_titles(metadata),
    )


def _read_titles(path: Path) -> dict[str, str]:
    titles: dict[str, str] = {}
    for line, product in _json_lines(path):
        if "asin" not in product:
            raise UserError(f"{path}:{line}: the field 'asin' is missing")
        # The release repeats products, and some titles are a piece of JavaScript, told by "getTime".
        title = html.unescape(str(product.get("title") or ""))
        item = str(product["asin"])
        if not titles.get(item):
            titles[item] = "" if "getTime" in title else title
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
                        raise UserError(f"{path}:{line}: expected a JSON object, got {shorten(repr(value), 40)}")
                    yield line, value
    except ValueError as error:  # covers JSON and Unicode errors
        raise UserError(f"{path}:{line}: not a line of JSON ({error}); correct or remove the line") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged after line {line} ({error}); replace it by a complete copy") from None

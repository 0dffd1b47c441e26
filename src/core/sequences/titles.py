"""Titles of items: one line each, none empty, all different."""

import logging
import re
import unicodedata

from src.core.datasets.base import NO_IDS


def make_titles(raw_titles: list[str], item_ids: list[str], logger: logging.Logger) -> list[str]:
    """Clean titles: one line each, none empty, all different (ignoring case, as answers are matched).

    A missing title becomes "item <raw id>"; a title that occurs again gets " (2)", " (3)", ... in item order.
    """
    titles = [_one_line(title) for title in raw_titles]
    missing = sum(not title for title in titles)
    if missing:
        logger.warning('%d of %d items have no title: named "item <id>"', missing, len(titles))
    doubtful = [title for title in titles if title and title.casefold() in NO_IDS]
    if doubtful:
        logger.warning("%d items have titles such as %r, which may stand for a missing one", len(doubtful), doubtful[0])
    titles = [title or f"item {raw}" for title, raw in zip(titles, item_ids, strict=True)]
    taken = {title.casefold() for title in titles}
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    repeated = 0
    for i, title in enumerate(titles):
        if title.casefold() in seen:
            repeated += 1
            titles[i] = _free_title(title, taken, numbers)
            taken.add(titles[i].casefold())
        seen.add(title.casefold())
    if repeated:
        logger.info('%d of %d titles occurred before: made distinct by " (2)" and so on', repeated, len(titles))
    return titles


def _one_line(title: str) -> str:
    """A title with single blanks; "" for one of which nothing is to be seen, such as a zero-width space."""
    title = re.sub(r"\s+", " ", title).strip()
    is_seen = title.isascii() or any(unicodedata.category(character)[0] not in "CZ" for character in title)
    return title if is_seen else ""


def _free_title(title: str, taken: set[str], numbers: dict[str, int]) -> str:
    """The title with the lowest number that is free; `numbers` has the last one of each."""
    number = numbers.get(title.casefold(), 1) + 1
    while f"{title} ({number})".casefold() in taken:
        number += 1
    numbers[title.casefold()] = number
    return f"{title} ({number})"

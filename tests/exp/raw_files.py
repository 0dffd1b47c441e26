"""Tiny raw files of every data set, written from one invented log."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

NUM_ITEMS = 9


def make_log(num_users: int) -> list[tuple[int, int, int]]:
    """(user, item, time): user u takes 5 + u % 3 items, one after another, round the catalogue."""
    return [
        (user, (user + step) % NUM_ITEMS, 1000 * step + user)
        for user in range(num_users)
        for step in range(5 + user % 3)
    ]


def _csv(folder: Path, num_users: int) -> None:
    log = pd.DataFrame(make_log(num_users), columns=["user", "item", "timestamp"])
    log.to_csv(folder / "interactions.csv", index=False)
    items = pd.DataFrame({"item": range(NUM_ITEMS), "title": [f"Title {i}" for i in range(NUM_ITEMS)]})
    items.to_csv(folder / "items.csv", index=False)


def _movielens(folder: Path, num_users: int) -> None:
    log = make_log(num_users)
    (folder / "u.data").write_text("".join(f"{u}\t{i}\t5\t{t}\n" for u, i, t in log))
    (folder / "u.item").write_text("".join(f"{i}|Film {i} (1999)|x\n" for i in range(NUM_ITEMS)))
    million = log[: len(log) // 2]  # the other release: fewer lines, so that it is told apart
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::5::{t}\n" for u, i, t in million))
    (folder / "movies.dat").write_text("".join(f"{i}::Film {i} (1999)::x\n" for i in range(NUM_ITEMS)))


def _amazon(category: str, pattern: str = "reviews_{}_5.json") -> Callable[[Path, int], None]:
    def write(folder: Path, num_users: int) -> None:
        reviews = [{"reviewerID": f"u{u:03d}", "asin": f"a{i}", "unixReviewTime": t} for u, i, t in make_log(num_users)]
        products = [{"asin": f"a{i}", "title": f"Product {i}"} for i in range(NUM_ITEMS)]
        for name, lines in ((pattern.format(category), reviews), (f"meta_{category}.json", products)):
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write


def _lastfm(folder: Path, num_users: int) -> None:
    windows = [
        {"seq": [*((u + i) % NUM_ITEMS for i in range(3)), NUM_ITEMS], "len_seq": 3, "next": (u + 3) % NUM_ITEMS}
        for u in range(3 * num_users)
    ]
    for name in ("train_data.df", "Val_data.df", "Test_data.df"):
        pd.DataFrame(windows).to_pickle(folder / name)
    (folder / "id2name.txt").write_text("".join(f"{i}::Artist {i}\n" for i in range(NUM_ITEMS)))


_WRITERS: dict[str, Callable[[Path, int], None]] = {
    "sample": _csv,
    "csv": _csv,
    "movielens": _movielens,
    "beauty": _csv,
    "amazon": _amazon("Beauty"),
    "amazon_beauty": _amazon("Beauty"),
    "amazon_toys": _amazon("Toys_and_Games"),
    "amazon_games": _amazon("Video_Games", "{}_5.json"),
    "lastfm": _lastfm,
}


def write_raw_files(name: str, folder: Path, num_users: int = 24) -> Path:
    """Files of data set `name`; a test that meets a data set without a writer says so."""
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[name](folder, num_users)
    return folder

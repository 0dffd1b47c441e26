"""Writes the invented data set of data/raw/sample: ``python -m src.core.datasets.make_sample [folder]``.

Ten series of twenty titles, "The Silver Harbor" = adjective + noun. Within a series the usual next title has
the same noun and the next adjective, then the next noun's first: what a model learns from the titles of one
series holds in another. Users prefer two or three series and follow that order most of the time.
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

NUM_USERS = 300
FOLLOW = 0.60  # chance to take the usual next title
SKIP = 0.12  # chance to skip one title of the usual order
STAY = 0.20  # chance to take any title of a preferred series; the rest is any title at all
FIRST_TIME = 1_600_000_000
ADJECTIVES = ("Silver", "Hidden", "Golden", "Broken", "Last")
SERIES = {
    "sea": ("Harbor", "Tide", "Lighthouse", "Voyage"),
    "space": ("Comet", "Orbit", "Nebula", "Rocket"),
    "crime": ("Alibi", "Verdict", "Heist", "Witness"),
    "magic": ("Wizard", "Potion", "Dragon", "Spell"),
    "western": ("Saddle", "Canyon", "Outlaw", "Ranch"),
    "music": ("Melody", "Anthem", "Chorus", "Fiddle"),
    "war": ("Regiment", "Bunker", "Siege", "Medal"),
    "romance": ("Wedding", "Letter", "Kiss", "Summer"),
    "horror": ("Coffin", "Whisper", "Crypt", "Shadow"),
    "sport": ("Racket", "Marathon", "Goal", "Champion"),
}
SERIES_SIZE = len(ADJECTIVES) * 4


def make_titles() -> list[str]:
    """Titles in the usual order, series by series."""
    return [f"The {adjective} {noun}" for nouns in SERIES.values() for noun in nouns for adjective in ADJECTIVES]


def make_history(random: np.random.RandomState, popularity: np.ndarray) -> list[int]:
    """One user's items in order, none twice; popularity float [num_items]."""
    preferred = random.choice(len(SERIES), size=random.randint(2, 4), replace=False)
    in_preferred = np.isin(np.arange(len(popularity)) // SERIES_SIZE, preferred)
    free = np.ones(len(popularity), dtype=bool)
    history: list[int] = []
    for _ in range(random.randint(12, 46)):
        item = _next_item(random, history, popularity, in_preferred, free)
        free[item] = False
        history.append(item)
    return history


def _next_item(
    random: np.random.RandomState,
    history: list[int],
    popularity: np.ndarray,
    in_preferred: np.ndarray,
    free: np.ndarray,
) -> int:
    draw = random.random_sample()
    if history and draw < FOLLOW + SKIP:
        series, place = divmod(history[-1], SERIES_SIZE)
        step = 1 if draw < FOLLOW else 2
        item = series * SERIES_SIZE + (place + step) % SERIES_SIZE
        if free[item]:
            return item
    pool = free & in_preferred if draw < FOLLOW + SKIP + STAY else free
    weight = popularity * (pool if pool.any() else free)
    return int(random.choice(len(weight), p=weight / weight.sum()))


def make_interactions(random: np.random.RandomState, num_items: int) -> list[tuple[int, int, int]]:
    """(user, item, timestamp) in order of time; ids count from 1."""
    popularity = 1.0 / np.arange(5, num_items + 5) ** 0.5
    random.shuffle(popularity)
    log = []
    for user in range(1, NUM_USERS + 1):
        time = FIRST_TIME + random.randint(0, 300 * 86_400)
        for item in make_history(random, popularity):
            time += random.randint(600, 3 * 86_400)
            log.append((time, user, item + 1))
    return [(user, item, time) for time, user, item in sorted(log)]


def write_sample(folder: Path) -> None:
    """Writes ``interactions.csv`` and ``items.csv``, the same bytes each time."""
    # RandomState: its stream is frozen across NumPy versions, that of default_rng is not.
    random = np.random.RandomState(2024)
    titles = make_titles()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "items.csv", ("item", "title"), enumerate(titles, start=1))
    _write(folder / "interactions.csv", ("user", "item", "timestamp"), make_interactions(random, len(titles)))


def _write(path: Path, header: tuple[str, ...], rows: Iterable[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    default = Path(__file__).parents[3] / "data" / "raw" / "sample"
    write_sample(Path(sys.argv[1]) if len(sys.argv) > 1 else default)

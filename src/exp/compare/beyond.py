"""Whether distillation changes how popular the recommended items are."""

import numpy as np

from src.exp.compare.comparison import STUDENTS, Comparison
from src.exp.compare.significance import PairedTest, Ranks, paired_test

_COLUMNS = {False: "popularity", True: "popularity_masked"}


def popularity_shift(comparison: Comparison) -> str:
    """What distillation does to the mean popularity of the recommended items, in one sentence; empty where the two
    students are not compared.

    The unit is the user, as in every test; of several seeds the first counts.
    """
    masked = comparison.settings.metrics.masked
    ranks = [comparison.ranks[name][0] for name in STUDENTS if name in comparison.ranks]
    if comparison.unlike or len(ranks) < len(STUDENTS) or any(_COLUMNS[masked] not in run for run in ranks):
        return ""
    before, after = (_by_user(run, _COLUMNS[masked]) for run in ranks)
    test = paired_test(after, before)
    interval = f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]"
    means = f"{after.mean():.2f} instead of {before.mean():.2f} training interactions an item on average ({interval})"
    return f"{_claim(test)}: {means}."


def _by_user(ranks: Ranks, column: str) -> np.ndarray:
    """Mean over each user's rows, float [U], users ascending."""
    _, position = np.unique(ranks["user"], return_inverse=True)
    return np.bincount(position, ranks[column]) / np.bincount(position)


def _claim(test: PairedTest) -> str:
    return {
        "better": "Distillation shifts what is recommended towards more popular items",
        "worse": "Distillation shifts what is recommended towards less popular items",
    }.get(test.verdict, "No shift in the popularity of what is recommended can be told")

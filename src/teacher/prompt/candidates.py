"""Candidate sets of a prompt."""

import numpy as np

from src.core.data_utils import Rows
from src.core.errors import UserError


def sample_candidates(
    rng: np.random.Generator, *, num_items: int, count: int, history: np.ndarray, target: int
) -> np.ndarray:
    """The target and `count - 1` different random items that are neither it nor in the history, shuffled.

    Returns:
        int64 [count].

    Raises:
        UserError: the catalogue is too small for that.
    """
    taken = np.zeros(num_items, dtype=bool)
    taken[history] = True
    taken[target] = True
    free = num_items - int(taken.sum())
    if free < count - 1:
        raise UserError(
            f"teacher.num_candidates={count}: only {free} items are outside a history of {len(history)}; "
            f"use at most {free + 1}"
        )
    chosen: list[int] = []
    while len(chosen) < count - 1:  # rejection: far cheaper than a permutation of a large catalogue
        for item in rng.integers(num_items, size=2 * count):
            if not taken[item] and len(chosen) < count - 1:
                taken[item] = True
                chosen.append(int(item))
    return rng.permutation(np.array([*chosen, target], dtype=np.int64))


def fixed_candidates(seed: int, rows: Rows, index: np.ndarray, *, num_items: int, count: int) -> np.ndarray:
    """Candidates that depend on row number and seed only, so that every evaluation sees the same: int64 [B, count].

    Args:
        index: row numbers int64 [B].
    """
    return np.stack(
        [
            sample_candidates(
                np.random.default_rng([seed, int(row)]),
                num_items=num_items,
                count=count,
                history=rows.history(row),
                target=rows.target(row),
            )
            for row in index
        ]
    )

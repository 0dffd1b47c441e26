"""Batches by tokens."""

import numpy as np

from src.teacher.prompt.batching import token_batches

LENGTHS = np.array([7, 3, 12, 3, 9, 1, 40, 7])


def test_batches_by_hand():
    """Longest first: 40 alone is over the budget; 12 + 9 padded to 24; 7, 7, 3 to 21; 3, 1 to 6."""
    batches = [batch.tolist() for batch in token_batches(LENGTHS, 24)]
    assert batches == [[6], [2, 4], [0, 7, 1], [3, 5]]


def test_every_row_once_within_the_budget():
    for budget in (1, 12, 50, 1000):
        batches = token_batches(LENGTHS, budget)
        assert sorted(np.concatenate(batches).tolist()) == list(range(8))
        assert all(len(b) == 1 or len(b) * LENGTHS[b].max() <= budget for b in batches)


def test_no_rows_no_batches():
    assert token_batches(np.array([], dtype=int), 10) == []

"""Batches by tokens instead of rows."""

import numpy as np


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Group rows of similar length so that rows x longest length stays within a budget.

    The longest come first: what does not fit into memory fails at once. A row longer than the budget stands alone.

    Args:
        lengths: tokens of each row, int [N].
        budget: tokens of a batch, padding included.

    Returns:
        Row numbers int64 of each batch; together every row once.

    >>> token_batches(np.array([2, 5, 3, 4]), 9)
    [array([1]), array([3, 2]), array([0])]
    """
    order = np.argsort(-lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, budget // max(1, int(lengths[order[begin]])))
        batches.append(order[begin : begin + size])
        begin += size
    return batches

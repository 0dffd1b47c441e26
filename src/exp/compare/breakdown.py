"""A metric by groups of test rows: how popular the target is, how long the history is."""

import numpy as np
import pandas as pd

from src.core.data_utils import SequenceDataset
from src.exp.compare.significance import PairedTest, Ranks, half_width, paired_tests, row_metric


def row_groups(dataset: SequenceDataset) -> dict[str, np.ndarray]:
    """What test rows are grouped by: the target's number of training rows, the history's length; int64 [N] each."""
    counts = np.bincount(dataset.train.targets, minlength=dataset.num_items)
    return {
        "target's training rows": counts[dataset.test.targets],
        "items of history": dataset.test.pos - dataset.test.start,
    }


def thirds(values: np.ndarray) -> dict[str, np.ndarray]:
    """Masks bool [N] of the rows below, in and above the middle third, named by their range; fewer where values tie.

    >>> {name: mask.tolist() for name, mask in thirds(np.array([1, 1, 5, 9])).items()}
    {'1': [True, True, False, False], '5': [False, False, True, False], '9': [False, False, False, True]}
    """
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    masks = (values <= low, (values > low) & (values <= high), values > high)
    return {_range(values[mask]): mask for mask in masks if mask.any()}


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def breakdown(
    models: dict[str, list[Ranks]], masks: dict[str, np.ndarray], metric: str, masked: bool = False
) -> pd.DataFrame:
    """Mean of a metric by group (lines, with their number of rows) and model (columns), averaged over its runs.

    Args:
        models: the runs of each model, all of the same test rows.
        masked: whether the history's items are out of the ranking.
    """
    columns: dict[str, dict[str, float]] = {"rows": {name: int(mask.sum()) for name, mask in masks.items()}}
    for model, runs in models.items():
        values = row_metric(runs, metric, masked)
        columns[model] = {name: float(values[mask].mean()) for name, mask in masks.items()}
    return pd.DataFrame(columns)


def spreads(
    models: dict[str, list[Ranks]], masks: dict[str, np.ndarray], metric: str, masked: bool = False
) -> pd.DataFrame:
    """Half of the 95 % interval of each mean of `breakdown`, over the users of the group; lines and columns alike."""
    columns = {
        model: {name: half_width(_within(runs, mask), metric, masked) for name, mask in masks.items()}
        for model, runs in models.items()
    }
    return pd.DataFrame(columns, index=list(masks))


def _within(runs: list[Ranks], mask: np.ndarray) -> list[Ranks]:
    return [{name: values[mask] for name, values in run.items()} for run in runs]


def group_differences(
    pair: tuple[list[Ranks], list[Ranks]], masks: dict[str, np.ndarray], metric: str, masked: bool = False
) -> dict[str, PairedTest]:
    """The pair's first model against its second within each group, p values Holm-corrected together.

    Args:
        pair: the runs of two models, all of the same test rows.
        masks: bool [N] by group; masked: as in `breakdown`.
    """
    one, other = pair
    pairs = {name: (_within(one, mask), _within(other, mask)) for name, mask in masks.items()}
    return paired_tests(pairs, metric, masked)

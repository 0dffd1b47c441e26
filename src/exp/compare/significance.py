"""Whether one model is really better than another: paired tests over users.

The unit is the user: a user's rows are averaged first, and so are the runs of several seeds. What the interval covers
is therefore the choice of users, not the choice of seeds; how far seeds differ is told by their standard deviation.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.errors import UserError
from src.core.foreign.arrays import read_arrays
from src.core.metrics import metric_per_row

LEVEL = 0.05
_RESAMPLES = 4000
_BATCH_BYTES = 1 << 28  # what one batch of resamples may take
_MAX_RANKS_BYTES = 1 << 29  # eleven million rows
_MAX_ITEMS = 1 << 24
_COLUMNS = ("user", "target", "better", "equal", "better_masked", "equal_masked")
_OF_LISTS = ("popularity", "popularity_masked")  # what earlier versions did not write

Ranks = dict[str, np.ndarray]
"""Columns of a `ranks_*.npz`: int64 [N] each, of the same test rows in the same order for all models of a data set."""


@dataclass(frozen=True)
class PairedTest:
    """One model against another.

    Attributes:
        difference: mean over users of one's metric minus the other's.
        low, high: 95 % percentile bootstrap interval of it.
        p_value: two-sided Wilcoxon signed-rank test, corrected by `paired_tests` for their number.
        num_users: users that both models were tested on.
    """

    difference: float
    low: float
    high: float
    p_value: float
    num_users: int

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval and the test agree that it is not chance, else `cannot tell`."""
        if self.p_value > LEVEL or self.low <= 0 <= self.high:
            return "cannot tell"
        return "better" if self.difference > 0 else "worse"


def row_metric(runs: list[Ranks], metric: str, masked: bool = False) -> np.ndarray:
    """A metric by test row, averaged over the runs of one model: float [N]; arguments as in `user_metric`."""
    better, equal = ("better_masked", "equal_masked") if masked else ("better", "equal")
    return np.mean([metric_per_row(metric, run[better], run[equal]) for run in runs], axis=0)


def user_metric(runs: list[Ranks], metric: str, masked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A metric by user, averaged over the user's rows and over the runs.

    Args:
        runs: the ranks of one model under one or more seeds, of the same test rows.
        metric: such as `ndcg@10`.
        masked: whether the history's items are out of the ranking.

    Returns:
        Users int64 [U], ascending, and their values float [U].

    Raises:
        UserError: runs of other test rows.
    """
    first = runs[0]
    if any(not np.array_equal(run[name], first[name]) for run in runs for name in ("user", "target")):
        raise UserError("the ranks to average are of different test rows; give runs of one data set and one split")
    values = row_metric(runs, metric, masked)
    users, position = np.unique(first["user"], return_inverse=True)
    return users, np.bincount(position, values) / np.bincount(position)


def paired_tests(
    pairs: dict[str, tuple[list[Ranks], list[Ranks]]], metric: str, masked: bool = False
) -> dict[str, PairedTest]:
    """Each pair's first model against its second, on the users that both know; p values Holm-corrected together.

    Args:
        pairs: by name, the runs (seeds) of the two models.
        metric, masked: as in `user_metric`.

    Raises:
        UserError: two models without a user in common.
    """
    tests = {}
    for name, (one, other) in pairs.items():
        (users, values), (other_users, other_values) = (user_metric(runs, metric, masked) for runs in (one, other))
        _, left, right = np.intersect1d(users, other_users, assume_unique=True, return_indices=True)
        if len(left) == 0:
            raise UserError(f"{name}: the two models have no test user in common; give runs of one data set")
        tests[name] = paired_test(values[left], other_values[right])
    corrected = holm([test.p_value for test in tests.values()])
    return {
        name: PairedTest(test.difference, test.low, test.high, p, test.num_users)
        for (name, test), p in zip(tests.items(), corrected, strict=True)
    }


def paired_test(one: np.ndarray, other: np.ndarray) -> PairedTest:
    """Test `one - other`, float [U] each, user by user; the resamples are the same in every call.

    Users without a difference say nothing about its sign: the signed-rank test leaves them out (Wilcoxon's own way).
    """
    from scipy.stats import wilcoxon

    difference = one - other
    low, high = bootstrap_interval(difference)
    p_value = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return PairedTest(float(difference.mean()), low, high, p_value, len(difference))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of float [N]; a point where there is one value."""
    if len(values) == 1:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # half a second that only a comparison costs, not reading ranks

    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_BYTES // (16 * len(values))),  # an index and a value per draw
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def normal_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of float [N] by its standard error: what a training can tell without a bootstrap,
    which takes seconds for each metric of 20,000 users; a point where there is one value.

    >>> normal_interval(np.array([0.0, 2.0]))  # 1 -+ 1.96
    (-0.96, 2.96)
    """
    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean - 1.96 * error, mean + 1.96 * error


def half_width(runs: list[Ranks], metric: str, masked: bool = False) -> float:
    """Half of the `normal_interval` of a metric over the users, as in `user_metric`."""
    low, high = normal_interval(user_metric(runs, metric, masked)[1])
    return (high - low) / 2


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of n is multiplied by n - i, and none falls below a smaller one.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values)
    order = np.argsort(values)
    factors = len(values) - np.arange(len(values))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return corrected.tolist()


def load_ranks(path: Path) -> Ranks:
    """Read a `ranks_*.npz`.

    Raises:
        UserError: it is missing or damaged.
    """
    advice = "evaluate that run again (src.exp.run_eval_all)"
    found = read_arrays(path, max_bytes=_MAX_RANKS_BYTES, advice=advice)
    kinds = {**dict.fromkeys(_COLUMNS, "i"), **{name: "f" for name in _OF_LISTS if name in found}}
    ranks = {name: found[name] for name in kinds if name in found}
    shape = next(iter(ranks.values())).shape if ranks else ()
    alike = all(values.dtype.kind == kinds[name] and values.shape == shape for name, values in ranks.items())
    sound = ranks.keys() == kinds.keys() and alike and len(shape) == 1 and shape[0] > 0
    if not (sound and all(_are_ranks(ranks, end) for end in ("", "_masked"))):
        raise UserError(f"{path}: must hold {', '.join(_COLUMNS)}, one integer of each per test row; {advice}")
    return ranks


def _are_ranks(ranks: Ranks, end: str) -> bool:
    """Whether each target has a place among at most `_MAX_ITEMS` items, and its list a popularity if it has one."""
    better, equal = ranks[f"better{end}"], ranks[f"equal{end}"]
    popularity = ranks.get(f"popularity{end}", np.zeros(1))
    if not (np.isfinite(popularity).all() and (popularity >= 0).all()):
        return False
    return bool(((better >= 0) & (better <= _MAX_ITEMS) & (equal >= 1) & (equal <= _MAX_ITEMS)).all())

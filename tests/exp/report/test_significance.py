"""Paired tests over users."""

import numpy as np
import pytest
from invented import ranks
from scipy.stats import norm

from src.core.errors import UserError
from src.exp.compare.significance import (
    bootstrap_interval,
    holm,
    load_ranks,
    paired_test,
    paired_tests,
    user_metric,
)


def test_a_users_rows_and_the_seeds_are_averaged() -> None:
    seeds = [ranks([0, 99, 0], users=[7, 7, 3]), ranks([0, 0, 99], users=[7, 7, 3])]
    users, values = user_metric(seeds, "recall@10")
    assert users.tolist() == [3, 7]
    assert values.tolist() == [(1 + 0) / 2, ((1 + 0) / 2 + (1 + 1) / 2) / 2]
    assert user_metric(seeds, "recall@10", masked=True)[1].tolist() == [1, 1]


def test_seeds_of_other_rows_are_refused() -> None:
    with pytest.raises(UserError, match="of different test rows; give runs of one data set"):
        user_metric([ranks([0, 1]), ranks([0, 1], users=[5, 6])], "mrr")


def test_models_meet_on_the_users_that_both_know() -> None:
    """The teacher is tested on a sample of the users."""
    tests = paired_tests({"pair": ([ranks([0, 0, 0])], [ranks([99, 0], users=[1, 2])])}, "recall@10")
    assert (tests["pair"].num_users, tests["pair"].difference) == (2, 0.5)
    with pytest.raises(UserError, match="pair: the two models have no test user in common"):
        paired_tests({"pair": ([ranks([0])], [ranks([0], users=[4])])}, "mrr")


def test_identical_models_cannot_be_told_apart() -> None:
    values = np.linspace(0, 1, 50)
    test = paired_test(values, values)
    assert (test.difference, test.low, test.high, test.p_value, test.verdict) == (0, 0, 0, 1, "cannot tell")


def test_a_clear_difference_is_told_and_its_sign_follows_the_order() -> None:
    other = np.linspace(0, 1, 60)
    one = other + 0.1 + 0.05 * np.sin(np.arange(60))
    better, worse = paired_test(one, other), paired_test(other, one)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.difference == pytest.approx((one - other).mean()) == pytest.approx(-worse.difference)
    assert better.low < better.difference < better.high


def test_the_signed_rank_test_is_wilcoxons() -> None:
    """Five differences of one sign: two of 2**5 equally likely sign patterns are as extreme."""
    assert paired_test(np.array([1.0, 2, 3, 4, 5]), np.zeros(5)).p_value == pytest.approx(2 / 32)


def test_an_interval_alone_does_not_decide() -> None:
    """Five gains of five users: the bootstrap excludes zero, 2 / 32 > .05 does not."""
    test = paired_test(np.array([1.0, 2, 3, 4, 5]), np.zeros(5))
    assert test.low > 0 and test.verdict == "cannot tell"


def test_the_bootstrap_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    error = norm.ppf(0.975) * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)
    assert bootstrap_interval(np.array([2.0])) == (2, 2)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([3 * 0.01, 0.06, 2 * 0.03])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([]) == []


def test_comparisons_are_corrected_together() -> None:
    """Six differences of one sign: 2 / 64 alone is enough, one of two such comparisons is not."""
    other = ranks([5] * 6)
    one = ranks([0, 0, 1, 1, 2, 2])
    alone = paired_tests({"a": ([one], [other])}, "ndcg@10")["a"]
    both = paired_tests({"a": ([one], [other]), "b": ([one], [other])}, "ndcg@10")
    assert alone.verdict == "better"
    assert both["a"].p_value == pytest.approx(2 * alone.p_value) and both["a"].verdict == "cannot tell"


def test_chance_is_rarely_taken_for_a_difference() -> None:
    """Under the null hypothesis at most 5 % are called better or worse: 12 of 120 has a probability below .02."""
    random = np.random.default_rng(3)
    called = 0
    for _ in range(120):
        one, other = random.random((2, 40)) < 0.3
        called += paired_test(one.astype(float), other.astype(float)).verdict != "cannot tell"
    assert called < 12


@pytest.mark.parametrize(
    "changes",
    [
        {"user": np.zeros(2, dtype=np.int64)},  # another length
        {"user": np.zeros((3, 1), dtype=np.int64)},
        {"target": np.array(["a", "b", "c"])},
        {"better": np.array([0.0, np.nan, 1])},
        {"better": np.array([0, -1, 1])},
        {"equal": np.array([1, 0, 1])},  # the target itself stands there
        {"equal_masked": np.array([1, 2**40, 1])},  # as many reciprocal ranks would be made
    ],
)
def test_ranks_that_are_none(tmp_path, changes) -> None:
    np.savez(tmp_path / "ranks.npz", **ranks([0, 5, 2]))
    assert load_ranks(tmp_path / "ranks.npz")["better"].tolist() == [0, 5, 2]
    np.savez(tmp_path / "ranks.npz", **{**ranks([0, 5, 2]), **changes})
    with pytest.raises(
        UserError, match=r"ranks\.npz: must hold user, target, .* one integer of each per test row; eval"
    ):
        load_ranks(tmp_path / "ranks.npz")

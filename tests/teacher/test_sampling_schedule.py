"""Candidate sets, learning rate and curriculum."""

from math import cos, pi

import numpy as np
import pytest

from src.core.errors import UserError
from src.teacher.prompt.candidates import fixed_candidates, sample_candidates
from src.teacher.schedule import embedding_probability, learning_rate_factor


@pytest.mark.parametrize("target", [3, 7])
def test_candidates_hold_the_target_once_and_no_history(target):
    history = np.array([1, 5, 5, 9, 3])  # target 3 is in its own history and stays
    for seed in range(30):
        chosen = sample_candidates(np.random.default_rng(seed), num_items=12, count=5, history=history, target=target)
        assert (chosen.shape, chosen.dtype) == ((5,), np.int64)
        assert chosen.tolist().count(target) == 1
        assert len(set(chosen.tolist())) == 5
        assert not set(chosen.tolist()) & (set(history.tolist()) - {target})
        assert ((chosen >= 0) & (chosen < 12)).all()


def test_every_other_item_and_every_place_of_the_target_occurs():
    draws = [
        sample_candidates(np.random.default_rng(seed), num_items=8, count=3, history=np.array([0]), target=1)
        for seed in range(200)
    ]

    assert {int(item) for draw in draws for item in draw} == {1, 2, 3, 4, 5, 6, 7}
    assert {draw.tolist().index(1) for draw in draws} == {0, 1, 2}


def test_exactly_enough_items():
    chosen = sample_candidates(np.random.default_rng(0), num_items=6, count=4, history=np.array([0, 1]), target=2)
    assert sorted(chosen.tolist()) == [2, 3, 4, 5]


def test_an_empty_history():
    chosen = sample_candidates(
        np.random.default_rng(0), num_items=3, count=3, history=np.array([], dtype=np.int64), target=2
    )
    assert sorted(chosen.tolist()) == [0, 1, 2]


def test_a_catalogue_that_is_too_small():
    message = "teacher.num_candidates=5: only 3 items are outside a history of 2; use at most 4"
    with pytest.raises(UserError, match=message):
        sample_candidates(np.random.default_rng(0), num_items=6, count=5, history=np.array([0, 1]), target=2)


def test_fixed_candidates_depend_on_seed_and_row_only(make_dataset):
    rows = make_dataset([[0, 1, 2, 3, 4, 5, 6, 7, 8]] * 2, num_items=30).train
    index = np.array([4, 9, 2])

    def candidates(seed: int, index: np.ndarray) -> np.ndarray:
        return fixed_candidates(seed, rows, index, num_items=30, count=6)

    first = candidates(7, index)
    np.random.seed(1)

    assert first.shape == (3, 6)
    assert np.array_equal(candidates(7, index), first)
    assert np.array_equal(candidates(7, index[::-1]), first[::-1])
    assert np.array_equal(candidates(7, index[1:2]), first[1:2])
    assert not np.array_equal(candidates(8, index), first)
    other_row = candidates(7, np.array([10, 9, 2]))  # row 10 has the history and the target of row 4
    assert rows.history(10).tolist() == rows.history(4).tolist() and rows.targets[10] == rows.targets[4]
    assert not np.array_equal(other_row[0], first[0])
    assert np.array_equal(other_row[1:], first[1:])


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    # 105 steps: 5 of warm-up, 100 of cosine.
    factors = [learning_rate_factor(step, 105) for step in range(106)]

    assert factors[:6] == pytest.approx([0.01 + 0.99 * step / 5 for step in range(6)])
    assert factors[55] == pytest.approx((1 + 0.01) / 2)
    assert factors[30] == pytest.approx(0.01 + 0.99 * (1 + cos(pi / 4)) / 2)
    assert factors[105] == pytest.approx(0.01)
    assert max(factors) == factors[5] == 1.0
    assert min(factors) >= 0.01


@pytest.mark.parametrize("total", [1, 2, 3])
def test_learning_rate_of_very_short_runs(total):
    assert all(0.01 <= learning_rate_factor(step, total) <= 1 for step in range(total + 1))


def test_curriculum_grows_from_above_nothing_to_one():
    values = [embedding_probability(step, 8) for step in range(8)]
    assert values == [(step + 1) / 8 for step in range(8)]
    assert values[0] > 0 and values[-1] == 1.0
    assert embedding_probability(0, 1) == 1.0

"""`conf/active`: every key of every policy has other rows distilled."""

import pytest
from leaves_bench import Bench
from leaves_table import LEAVES, Effect, cases, refused


def _other_distillation(override: str) -> Effect:
    """Other losses than with the defaults."""

    def effect(bench: Bench) -> None:
        assert bench.distil().losses != bench.distil(override).losses

    return effect


EFFECTS: dict[str, Effect] = {
    "active.name": refused("active.name=other", "active.name='other': must be active.strategy ("),
    "active.strategy": refused("active.strategy=other", "active.strategy='other': must be one of all"),
    "active.budget_ratio": _other_distillation("active.budget_ratio=0.7"),
    "active/all:active.budget_ratio": refused("active.budget_ratio=0.5", "active.budget_ratio=0.5: must be 1.0"),
    "active.measure": _other_distillation("active.measure=disagreement"),
    "active.budget_per": _other_distillation("active.budget_per=batch"),
    "active.validation_batch_size": _other_distillation("active.validation_batch_size=20"),
    "active.validation_temperature": _other_distillation("active.validation_temperature=1"),
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)


@pytest.mark.parametrize("file", sorted({leaf.file for leaf in LEAVES if leaf.group == "active"}))
def test_equal_settings_select_equally(bench, file) -> None:
    """What is taken for an effect above must not be noise."""
    bench.file = file
    assert bench.distil().losses == bench.distil(fresh=True).losses

"""Which samples are distilled."""

from math import log

import pytest
import torch
from omegaconf import OmegaConf

from src.core.errors import UserError
from src.distill.selection_policy import (
    SelectionPolicyAll,
    StudentInfo,
    TeacherInfo,
    build_selection_policy,
)
from src.student.datamodule import Batch


def build(**section):
    return build_selection_policy(OmegaConf.create(section))


def test_all_selects_every_sample():
    target = torch.tensor([2, 0, 1])
    batch = Batch(torch.arange(3), torch.zeros(3, 4), torch.ones(3), target)
    teacher = TeacherInfo(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2))

    mask = SelectionPolicyAll().select(batch, teacher, StudentInfo(torch.zeros(3, 5), target))

    assert mask.tolist() == [True, True, True]
    assert mask.dtype == torch.bool


def test_students_loss_by_hand():
    info = StudentInfo(torch.tensor([[0.0, 0.0], [log(3), 0.0]]), torch.tensor([0, 1]))
    assert info.loss.tolist() == pytest.approx([log(2), log(4)])


def test_build():
    assert isinstance(build(name="all", strategy="all"), SelectionPolicyAll)
    assert isinstance(build(name="all", strategy="all", budget_ratio=1), SelectionPolicyAll)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "x", "strategy": "x"}, "active.strategy='x': must be one of all"),
        ({"name": "x", "strategy": "all"}, r"active.name='x': must be active.strategy \(all\)"),
        ({"name": "all", "strategy": "all", "budget_ratio": 0.5}, "active.budget_ratio=0.5: must be 1.0, because"),
        ({"name": "all", "strategy": "all", "ratio": 0.5}, "active.ratio: unknown key"),
        ({"name": "all", "strategy": "all", "budget_ratio": "half"}, "active.budget_ratio=half: "),
        ({"name": "all"}, "active.strategy=None: .*missing"),
    ],
)
def test_refused(section, message):
    with pytest.raises(UserError, match=message):
        build(**section)

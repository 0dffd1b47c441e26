"""Which samples of a batch are distilled.

A new policy is a class with `select`, an entry in `POLICIES`, and a YAML in `conf/active`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from src.core.errors import check
from src.core.settings import parse_section
from src.student.datamodule import Batch


@dataclass(frozen=True)
class TeacherInfo:
    """The teacher's rows of a batch: ranking int64 [B, K] and confidence float [B, K]."""

    ranking: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class StudentInfo:
    """The student's view of a batch: scores float [B, num_items], detached, and target int64 [B]."""

    scores: Tensor
    target: Tensor

    @property
    def loss(self) -> Tensor:
        """Cross-entropy per sample, float [B]; computed when a policy asks for it."""
        return F.cross_entropy(self.scores, self.target, reduction="none")


class SelectionPolicy(Protocol):
    """Decides per sample whether, or how much, it is distilled."""

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        """Weights in [0, 1], float or bool [B], on the batch's device; a mask is the special case."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the policy remembers from step to step, for an interrupted training."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SelectionPolicyAll:
    """Distils every sample."""

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        return torch.ones_like(batch.target, dtype=torch.bool)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class ActiveConfig:
    """The keys of `conf/active/*.yaml`: `strategy` chooses the policy, `budget_ratio` is its share of samples."""

    name: str
    strategy: str
    budget_ratio: float = 1.0

    def __post_init__(self) -> None:
        check(self.strategy in POLICIES, "active.strategy", self.strategy, f"one of {', '.join(POLICIES)}")
        check(self.name == self.strategy, "active.name", self.name, f"active.strategy ({self.strategy})")
        if self.strategy == "all":
            check(
                self.budget_ratio == 1.0,
                "active.budget_ratio",
                self.budget_ratio,
                "1.0, because `all` leaves none out",
            )


POLICIES = {"all": SelectionPolicyAll}


def build_selection_policy(cfg: DictConfig) -> SelectionPolicy:
    """The policy of a `conf/active` section.

    Raises:
        UserError: unknown strategy, or settings it does not allow.
    """
    return POLICIES[parse_section(ActiveConfig, cfg, "active").strategy]()

"""Which samples of a batch are distilled, and how much.

A new policy is a subclass of `SelectionPolicy` in `POLICIES`, its settings in `active_config.SCHEMAS`, and a YAML in
`conf/active`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.seed import generator
from src.distill.active_config import ActiveConfig, MetaConfig, UncertaintyConfig
from src.student.datamodule import Batch
from src.student.models import Student

_NO_RANKING = (
    "needs the teacher's ranking, and there is none before the export, nor with distill.lambda=0 or distill.alpha=0"
)


# --- what a policy sees -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherInfo:
    """The teacher's rows of a batch.

    Attributes:
        ranking: int64 [B, K] item ids, best first; K = 0 where no ranking is used, or before there is one.
        confidence: float [B, K] distances of those items, or [B, 1] of the rows.
        known: bool [B], whether the teacher was asked for the row; the others are never distilled.
    """

    ranking: Tensor
    confidence: Tensor
    known: Tensor


@dataclass(frozen=True)
class StudentInfo:
    """The student's view of a batch.

    Attributes:
        scores: float [B, num_items], detached, or [B, 0] for a policy with `reads_scores = False`; target: int64 [B].
        hidden: float [B, width], detached, the user representations that the output layer made the scores of.
        model: the student itself.
        score_gradient: d (sum_j l_j) / d scores_i of the rows' ranking losses, float [B, num_items]; computed when
            called. Only `distill.dros_average=batch` lets a row's scores enter the losses of other rows.
    """

    scores: Tensor
    target: Tensor
    hidden: Tensor
    model: Student
    score_gradient: Callable[[], Tensor]

    @property
    def loss(self) -> Tensor:
        """Cross-entropy per sample, float [B]; computed when a policy asks for it."""
        return F.cross_entropy(self.scores, self.target, reduction="none")

    @property
    def entropy(self) -> Tensor:
        """Entropy of softmax(scores) per sample in nats, float [B]."""
        log_p = self.scores.log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)


class SelectionPolicy(ABC):
    """Decides per sample whether, or how much, it is distilled.

    A training starts it once; then each epoch shows it every training row exactly once, in batches of any size and
    order. Policies with memory override the two methods for a checkpoint.

    Attributes:
        reads_scores: whether `select` looks at the scores of all items, which are then made even where no loss does.
    """

    reads_scores: bool = True

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        """A training on this data begins: forget an earlier one."""
        return

    @abstractmethod
    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        """Weights in [0, 1], float or bool [B], on the batch's device; a mask is the special case."""

    def state_dict(self) -> dict[str, Any]:
        """What the policy remembers: tensors and numbers, and dictionaries and lists of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        return


# --- the policies -------------------------------------------------------------------------------------------


class SelectionPolicyAll(SelectionPolicy):
    """Distils every sample."""

    reads_scores = False

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        return torch.ones_like(batch.target, dtype=torch.bool)


class Budget:
    """An exact share of every epoch: of the first n rows that have a teacher, round(ratio * n) are taken.

    So each batch gets its share to within one row, and no rounding adds up over an epoch.

    Raises:
        UserError: the share is no row at all.
    """

    def __init__(self, ratio: float, num_rows: int) -> None:
        _require_some(ratio, num_rows, "training rows")
        self.ratio, self.num_rows = ratio, num_rows
        self.passed = self.known = 0  # rows of this epoch; those among them that have a teacher

    def take(self, values: Tensor, known: Tensor) -> Tensor:
        """The rows with the highest values, float [B], among the known ones, bool [B]: a mask bool [B]."""
        if self.passed == self.num_rows:
            self.passed = self.known = 0
        before, self.known = self.known, self.known + int(known.sum())
        self.passed += len(known)
        if self.passed == self.num_rows:
            _require_some(self.ratio, self.known, "training rows that have a teacher")
        count = _share(self.ratio, self.known) - _share(self.ratio, before)
        return _top(values.masked_fill(~known, float("-inf")), count)

    def state_dict(self) -> dict[str, int]:
        return {"passed": self.passed, "known": self.known}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passed, self.known = state["passed"], state["known"]


def _share(ratio: float, count: int) -> int:
    return int(ratio * count + 0.5)


def _require_some(ratio: float, count: int, rows: str) -> None:
    """Raises a UserError where a share is none: what is trained then is the baseline."""
    if count and _share(ratio, count) == 0:
        raise UserError(f"active.budget_ratio={ratio:g}: chooses none of {count} {rows}; at least {0.5 / count:.2g}")


def _top(values: Tensor, count: int) -> Tensor:
    """Mask bool [N] of the `count` highest values, float [N]."""
    return torch.zeros_like(values, dtype=torch.bool).index_fill(0, values.topk(count).indices, True)


class SelectionPolicyRandom(SelectionPolicy):
    """A uniformly drawn share of the rows, drawn anew each epoch from a generator of its own."""

    reads_scores = False

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        self.budget = Budget(self.settings.budget_ratio, len(dataset.train))
        self._generator = generator(seed, "selection")

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        lots = torch.rand(len(batch.target), generator=self._generator).to(batch.target.device)
        return self.budget.take(lots, teacher_info.known)

    def state_dict(self) -> dict[str, Any]:
        return {"budget": self.budget.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.budget.load_state_dict(state["budget"])
        self._generator.set_state(state["generator"])


def _student_entropy(teacher: TeacherInfo, student: StudentInfo) -> Tensor:
    return student.entropy


def _student_loss(teacher: TeacherInfo, student: StudentInfo) -> Tensor:
    return student.loss


def _teacher_confidence(teacher: TeacherInfo, student: StudentInfo) -> Tensor:
    """softmax(-distance) of the teacher's first item; minus the distance where there is one for the row."""
    if teacher.confidence.shape[1] == 1:
        return -teacher.confidence[:, 0]
    return (-teacher.confidence).softmax(1)[:, 0]


def _disagreement(teacher: TeacherInfo, student: StudentInfo) -> Tensor:
    """Cross-entropy of the student on the teacher's items, these weighted by softmax(-distance)."""
    q = (-teacher.confidence).expand_as(teacher.ranking).softmax(1)
    return -(q * student.scores.log_softmax(1).gather(1, teacher.ranking)).sum(1)


# Each gives float [B]; the highest are distilled.
STUDENT_MEASURES = {"student_entropy": _student_entropy, "student_loss": _student_loss}
TEACHER_MEASURES = {"teacher_confidence": _teacher_confidence, "disagreement": _disagreement}
MEASURES = STUDENT_MEASURES | TEACHER_MEASURES


class SelectionPolicyHighest(SelectionPolicy):
    """The rows with the highest values, which a subclass gives.

    With a budget per batch they are the highest of their batch. With one per epoch they are those that were the
    highest of all rows when the epoch before passed them; the first epoch, which has none before it, goes by batch.
    """

    budget_per: str = "epoch"  # or batch

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        self.budget = Budget(self.settings.budget_ratio, len(dataset.train))
        self.latest = torch.full((self.budget.num_rows,), float("-inf"))  # of the latest pass; -inf: no teacher
        self.chosen: Tensor | None = None  # bool [num_rows], for this epoch

    @abstractmethod
    def values(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        """What the rows are compared by: float [B]."""

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        values = self.values(batch, teacher_info, student_info).float()
        if self.budget_per == "epoch" and self.budget.passed == self.budget.num_rows:
            self.chosen = _top(self.latest, _share(self.budget.ratio, self.budget.known))
        by_batch = self.budget.take(values, teacher_info.known)
        self.latest = self.latest.to(values.device)
        self.latest[batch.row] = values.masked_fill(~teacher_info.known, float("-inf"))
        return by_batch if self.chosen is None else self.chosen.to(values.device)[batch.row]

    def state_dict(self) -> dict[str, Any]:
        return {"budget": self.budget.state_dict(), "values": self.latest, "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.budget.load_state_dict(state["budget"])
        self.latest, self.chosen = state["values"].clone(), state["chosen"]


class SelectionPolicyUncertainty(SelectionPolicyHighest):
    """The rows with the highest values of a measure of student and teacher."""

    settings: UncertaintyConfig

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        super().start(dataset, seed)
        self.budget_per = self.settings.budget_per

    def values(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        measure = self.settings.measure
        if measure in TEACHER_MEASURES and teacher_info.ranking.shape[1] == 0:
            raise UserError(f"active.measure={measure}: {_NO_RANKING}; use {' or '.join(STUDENT_MEASURES)}")
        return MEASURES[measure](teacher_info, student_info)


class SelectionPolicyCoverage(SelectionPolicyHighest):
    """One row of each last item before a second of any: what follows every item is taught, however rare the item is.

    A share drawn at random teaches a popular item's followers many times, and those of a rare one not at all. (Strata
    with equal numbers, the last item being the stratum.) Which rows stand for their item is drawn once.
    """

    reads_scores = False

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        super().start(dataset, seed)
        rows = dataset.train
        self._turn = turns(rows.items[rows.pos - 1], generator(seed, "selection"))

    def values(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        self._turn = self._turn.to(batch.row.device)
        return -self._turn[batch.row]


def turns(groups: np.ndarray, random: torch.Generator) -> Tensor:
    """When each row is taken if every group gives one row, drawn among its own, and then another: float32 [N].

    The number of the round, from 0, and a fraction that orders the rows of a round by lot.

    Args:
        groups: integers [N].
    """
    lots = torch.rand(2, len(groups), generator=random).numpy()
    order = np.lexsort((lots[0], groups))  # group after group
    sizes = np.unique(groups, return_counts=True)[1]
    begin = np.repeat(sizes.cumsum() - sizes, sizes)
    turn = np.empty(len(groups), np.float32)
    turn[order] = np.arange(len(groups)) - begin
    return torch.from_numpy(turn + 0.9 * lots[1])


class SelectionPolicyMeta(SelectionPolicy):
    """Weights by whether distilling the row would lower the loss on validation rows.

    Learning to Reweight Examples (Ren et al. 2018, arXiv 1803.09050): after a virtual step theta - alpha * sum_i eps_i
    grad l_i (eq. 5) on the rows' distillation losses l_i, row i gets u_i = -d/d eps_i of the validation loss at eps = 0
    (eq. 7), which is alpha <grad L_valid, grad l_i>, and the weight max(u_i, 0) (eq. 8). Equation 9 makes the weights
    of a batch sum to 1; here they are scaled until their mean is the budget, none above 1, because the loss is their
    weighted mean. If too few rows help, those have weight 1 and the mean stays below the budget.

    The inner product is over the output layer's parameters, where it has a closed form: with gradients delta_i of the
    scores, user representation h_i and validation gradients G (weight) and g (bias, 0 where there is none) it is
    <delta_i, G h_i + g>. No second derivative, nothing that a student's layers have to support; it leaves the encoder's
    share out, and with cosine scores the weight is the item's direction.
    Validation rows are drawn anew each step and pass without dropout, so the run's random stream stays as it is.

    L_valid is the cross-entropy of scores / temperature. At temperature 1 an over-confident student gains from whatever
    smooths its scores, random teachers most of all; a higher one asks what helps the order of the items.
    """

    settings: MetaConfig

    def start(self, dataset: SequenceDataset, seed: int) -> None:
        self.dataset = dataset
        self.batch_size = min(self.settings.validation_batch_size, len(dataset.valid))
        self._generator = generator(seed, "selection")

    def select(self, batch: Batch, teacher_info: TeacherInfo, student_info: StudentInfo) -> Tensor:
        if teacher_info.ranking.shape[1] == 0:
            raise UserError(f"active.strategy=meta: {_NO_RANKING}; use random, or uncertainty with a student's measure")
        # u_i / alpha, float [B]: what a step on the row's loss would take off the validation loss
        gains = (student_info.score_gradient() * self._direction(student_info)).sum(1)
        return fill_budget(gains * teacher_info.known, self.settings.budget_ratio * teacher_info.known.sum())

    @torch.no_grad()
    def _direction(self, student: StudentInfo) -> Tensor:
        """G h_i + g of each row: float [B, num_items]."""
        with torch.autocast(student.scores.device.type, enabled=False):
            hidden, scores, target = self._validation(student.model, student.scores.device)
            # temperature * gradient of the cross-entropy
            delta = (scores / self.settings.validation_temperature).softmax(1)
            delta[torch.arange(len(target)), target] -= 1
            bias = delta.sum(0) if student.model.has_output_bias else None
            return F.linear(student.hidden.float(), delta.T @ hidden, bias) / len(target)

    def _validation(self, model: Student, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden float [M, width], scores float [M, num_items] and targets int64 [M] of some validation rows."""
        index = torch.randperm(len(self.dataset.valid), generator=self._generator)[: self.batch_size].numpy()
        windows = self.dataset.valid.windows(model.config.max_seq_len, self.dataset.pad_id, index)
        history, length, target = (torch.from_numpy(values).to(device) for values in windows)
        training = model.training
        model.eval()
        table = model.shared_table()
        hidden = model.encode(history, length, table)
        scores = model.score(hidden, table)
        model.train(training)
        return hidden, scores, target

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])


def fill_budget(values: Tensor, total: Tensor | float) -> Tensor:
    """Weights min(1, c * max(value, 0)) with the c that makes them sum to `total`; if fewer are positive, 1 for those.

    Args:
        values: float [N]; total: at most N.
    """
    positive = values.clamp(min=0)
    ordered = positive.sort(descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0).clamp(min=torch.finfo(ordered.dtype).tiny)  # of the k-th and all below it
    scale = (total - torch.arange(len(ordered), device=values.device)) / rest  # c if the k highest are capped
    first = (scale * ordered <= 1).int().argmax()
    weights = (scale[first] * positive).clamp(max=1)
    return torch.where((positive > 0).sum() <= total, (positive > 0).to(values.dtype), weights)


# By `active.strategy`, as `active_config.SCHEMAS`.
POLICIES: dict[str, type[SelectionPolicy]] = {
    "all": SelectionPolicyAll,
    "random": SelectionPolicyRandom,
    "uncertainty": SelectionPolicyUncertainty,
    "coverage": SelectionPolicyCoverage,
    "meta": SelectionPolicyMeta,
}


def build_selection_policy(settings: ActiveConfig) -> SelectionPolicy:
    """The policy of a `conf/active` section; a training starts it with its data set and seed."""
    return POLICIES[settings.strategy](settings)

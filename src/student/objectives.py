"""Base losses of a student: what a step minimises besides distillation."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.seed import generator
from src.student.config import LossSettings
from src.student.datamodule import Batch
from src.student.models import Student

_MOST_SCORES = 1 << 26  # of a step, held at once: 256 MiB
_CACHED_SCORES, _FEWEST_ROWS = 1 << 18, 64  # fewer rows would read the output layer more often than a product is worth


@dataclass(frozen=True)
class Scored:
    """A batch under the base loss.

    Attributes:
        loss: scalar; terms: its named terms, detached.
        hidden: float [B, width], the user representations; scores: float [B, num_items], None where the loss was
            taken without holding them all (sampled_softmax; ce without a teacher's ranking, or with many items).
        table: the item table that made them with a tied output, or None.
        candidates: float [B, K], the scores of the items that were asked for, or None.
        negative: float [B], the scores of the negatives of `bce`, or None; dros: what the DROS terms share, or None.
        log_partition: float [B, 1], log sum_j exp(s_j), estimated by sampled_softmax; None where there are scores.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    hidden: Tensor
    scores: Tensor | None
    table: Tensor | None
    candidates: Tensor | None = None
    negative: Tensor | None = None
    dros: "Dros | None" = None
    log_partition: Tensor | None = None


class BaseLoss:
    """The base loss of a training run.

    Attributes:
        propensity: float32 [num_items], DROS's item weights.
    """

    def __init__(
        self, settings: LossSettings, dataset: SequenceDataset, *, max_seq_len: int, seed: int, device: torch.device
    ) -> None:
        self.settings = settings
        self.num_items = dataset.num_items
        require_negatives(settings.name, dataset.num_items, max_seq_len)
        self.propensity = propensity(dataset.train.targets, dataset.num_items).to(device)
        self._generator = generator(seed, "negatives")
        self._proposal = _half_popular(dataset) if settings.negatives == "popular" else None

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream of negatives is."""
        return {"negatives": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["negatives"])

    def __call__(self, model: Student, batch: Batch, candidates: Tensor | None = None) -> Scored:
        """The loss of a batch, and the scores of `candidates` (int64 [B, K]) on the way.

        All scores that a step picks are gathered at once: each gather's gradient fills a [B, num_items] tensor.
        """
        table = model.shared_table()
        hidden = batch.encode(model, table)
        if self.settings.name == "sampled_softmax" or self._in_chunks(batch, candidates):
            return self._by_partition(model, batch, hidden=hidden, table=table, candidates=candidates)
        scores = model.score(hidden, table)
        if self.settings.name == "ce":
            loss = F.cross_entropy(scores, batch.target)
            picked = None if candidates is None else scores.gather(1, candidates)
            return Scored(loss, {"loss_ce": loss.detach()}, hidden, scores, table, picked)
        pair = torch.stack([batch.target, sample_negatives(batch, self.num_items, self._generator)], 1)
        picked = scores.gather(1, pair if candidates is None else torch.cat([pair, candidates], 1))
        positive, negative, rest = picked[:, 0], picked[:, 1], None if candidates is None else picked[:, 2:]
        loss = bce(positive, negative)
        terms = {"loss_bce": loss.detach()}
        if self.settings.name == "bce" or self.settings.dros_weight == 0:
            return Scored(loss, terms, hidden, scores, table, rest, negative)
        robust = Dros(scores, self.propensity, self.settings.dros_beta)
        term = robust.term(batch.target[:, None], positive[:, None]).mean()
        loss, terms["loss_dros"] = loss + self.settings.dros_weight * term, term.detach()
        return Scored(loss, terms, hidden, scores, table, rest, negative, robust)

    def _in_chunks(self, batch: Batch, candidates: Tensor | None) -> bool:
        """Whether cross-entropy does without the scores of a whole batch: a teacher's ranking is compared with them."""
        if self.settings.name != "ce":
            return False
        large = len(batch.target) * self.num_items > _MOST_SCORES
        return candidates is None or large or self.settings.loss_chunk is not None

    def _by_partition(
        self, model: Student, batch: Batch, *, hidden: Tensor, table: Tensor | None, candidates: Tensor | None
    ) -> Scored:
        """mean(log sum_j exp(s_j) - s_target), the sum over all items or estimated, and the candidates' scores."""
        weight, bias = model.output_layer(table)
        if self.settings.name == "sampled_softmax":
            negatives, proposal = self._draw(hidden.device)
            positive, partition = sampled_softmax(weight, bias, hidden, batch.target, negatives, proposal)
        else:
            chunk = self.settings.loss_chunk or rows_at_once(self.num_items, hidden.device)
            positive = _scores_of(batch.target[:, None], weight, bias, hidden)[:, 0]
            partition = log_partition(weight, bias, hidden, chunk=chunk, equally=candidates is None)
        loss = (partition - positive).mean()
        picked = None if candidates is None else _scores_of(candidates, weight, bias, hidden)
        terms = {f"loss_{self.settings.name}": loss.detach()}
        return Scored(loss, terms, hidden, None, table, picked, log_partition=partition[:, None])

    def _draw(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Negatives int64 [n] with replacement, and the probability float [n] of each where they differ."""
        count, proposal = self.settings.num_negatives, self._proposal
        if proposal is None:
            return torch.randint(self.num_items, (count,), generator=self._generator).to(device), None
        negatives = torch.multinomial(proposal, count, replacement=True, generator=self._generator)
        return negatives.to(device), proposal[negatives].to(device)


def _scores_of(items: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
    """Scores of the items int64 [B, K] alone, from an output layer and hidden [B, width]: float [B, K]."""
    return torch.einsum("bkd,bd->bk", F.embedding(items, weight), hidden) + bias[items]


def require_negatives(loss: str, num_items: int, max_seq_len: int) -> None:
    """Raises a UserError where the base loss draws an item outside of a history and there may be none."""
    if loss in ("bce", "bce_dros") and num_items <= max_seq_len + 1:
        raise UserError(
            f"student.loss={loss}: a history of {max_seq_len} and its target may leave no item for a negative, the "
            f"dataset has {num_items}; use ce, or a smaller student.max_seq_len"
        )


def _half_popular(dataset: SequenceDataset) -> Tensor:
    """Probability of each item, float32 [num_items]: the mean of uniform and its share of the training targets."""
    counts = torch.bincount(torch.as_tensor(dataset.train.targets), minlength=dataset.num_items).double()
    return ((counts / counts.sum() + 1 / dataset.num_items) / 2).float()


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy with logits over the scores of targets and negatives, float [B] each, mean over the 2 B."""
    return (F.softplus(-positive) + F.softplus(negative)).mean() / 2


def propensity(targets: np.ndarray, num_items: int) -> Tensor:
    """DROS's item weights ((count + 1) / sum)^0.05 over the training targets: float32 [num_items]."""
    counts = torch.bincount(torch.as_tensor(targets, dtype=torch.int64), minlength=num_items).double() + 1
    return (counts / counts.sum()).pow(0.05).float()


class Dros:
    """Distributionally robust terms of a batch (as DLLM2Rec@b78cc65 computes them), each item its positive one in turn.

    log(sum_j exp(s_j^2 p_j / beta) - exp(s_c^2 p_c / beta) + exp((s_c - 1)^2 p_c / beta)). The sum over all
    items is taken once, whatever the number of items c, relative to its largest power, which is kept apart: taking
    it away from a sum that it dominates would leave rounding noise.

    Args:
        scores: float [B, num_items]; propensity: float [num_items].
    """

    def __init__(self, scores: Tensor, propensity: Tensor, beta: float) -> None:
        self.weight = propensity / beta
        self.rest, self.largest, self.shift, self.top = _SumOfPowers.apply(scores, self.weight)

    def term(self, items: Tensor, chosen: Tensor) -> Tensor:
        """Items c, int64 [B, K], and their scores, float [B, K] -> float64 [B, K]."""
        shift, chosen, weight = self.shift.double(), chosen.double(), self.weight[items].double()
        power = (chosen.square() * weight - shift).exp()
        without = self.rest.double() + torch.where(items == self.top, 0.0, self.largest.double() - power)  # all but c's
        return shift + (without + ((chosen - 1).square() * weight - shift).exp()).log()


class _SumOfPowers(torch.autograd.Function):
    """sum_j exp(s_j^2 w_j - m), m the row's largest exponent, whose item stands apart.

    Returns [B, 1] each: the sum over the others, that item's power (1, for its gradient), m, and the item. One
    exponential for both directions: d/ds_j = exp(s_j^2 w_j - m) 2 s_j w_j. No gradient through m.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        powers = scores.square().mul_(weight)  # [B, num_items]
        shift, top = powers.max(1, keepdim=True)
        powers.sub_(shift).exp_().scatter_(1, top, 0.0)
        ctx.save_for_backward(scores, weight, powers, top)
        ctx.mark_non_differentiable(shift, top)
        return powers.sum(1, keepdim=True), torch.ones_like(shift), shift, top

    @staticmethod
    def backward(ctx: BackwardCFunction, rest: Tensor, largest: Tensor, *unused: Tensor) -> tuple[Tensor, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # declared as a single one
        scores, weight, powers, top = saved
        gradient = (powers * scores).mul_(weight).mul_(2 * rest)
        return gradient.scatter_(1, top, 2 * largest * scores.gather(1, top) * weight[top]), None


def rows_at_once(num_items: int, device: torch.device) -> int:
    """Rows of scores that a step computes at a time: on a CPU what its cache holds, else what is little memory."""
    scores = _CACHED_SCORES if device.type == "cpu" else _MOST_SCORES
    return max(scores // num_items, _FEWEST_ROWS)


def log_partition(weight: Tensor, bias: Tensor, hidden: Tensor, *, chunk: int, equally: bool) -> Tensor:
    """log sum_j exp(s_j) of each row over all items, never holding more than `chunk` rows of scores: float [B].

    Args:
        weight: float [num_items, width] and bias float [num_items] of the output layer; hidden: float [B, width].
        equally: the rows will weigh equally in the loss. Then gradients are taken in the forward pass, where the
            scores are at hand; else the backward pass computes the scores once more, a fourth product beside three.
    """
    kind = hidden.device.type
    low = torch.is_autocast_cpu_enabled() if kind == "cpu" else torch.is_autocast_enabled()
    if low:  # autocast does not look into a function of our own
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    else:
        hidden = hidden.to(weight.dtype)
    with torch.autocast(kind, enabled=False):
        result: Tensor = _LogPartition.apply(hidden, weight, bias, chunk, equally)
    return result


class _LogPartition(torch.autograd.Function):
    """See `log_partition`: d/dh = p W, d/dW = p^T h, d/db = p summed over rows, with p = softmax(s), row by row."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor, chunk: int, equally: bool) -> Tensor:
        result = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradients = _Gradients(hidden, weight) if equally else None
        for rows in _slices(len(hidden), chunk):
            scores = _chunk_of_scores(hidden[rows], weight, bias)
            shift = scores.amax(1, keepdim=True)
            powers = scores.sub_(shift).exp_()
            total = powers.sum(1, keepdim=True)
            result[rows] = (shift + total.log())[:, 0]
            if gradients is not None:
                gradients.add(rows, powers.mul_(1 / total))
        if gradients is not None:
            ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        else:
            ctx.save_for_backward(hidden, weight, bias, result)
        ctx.chunk = chunk  # type: ignore[attr-defined]
        return result

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        if len(saved) == 3:
            share = gradient[0]
            return saved[0] * share, saved[1] * share, saved[2] * share, None, None
        hidden, weight, bias, result = saved
        gradients = _Gradients(hidden, weight)
        for rows in _slices(len(hidden), ctx.chunk):  # type: ignore[attr-defined]
            powers = _chunk_of_scores(hidden[rows], weight, bias).sub_(result[rows, None]).exp_()
            gradients.add(rows, powers.mul_(gradient[rows, None]))
        return gradients.hidden, gradients.weight, gradients.bias, None, None


class _Gradients:
    """Gradients of an output layer and its input, float32, collected from those of chunks of scores."""

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        self._hidden, self._weight = hidden, weight
        self.hidden = torch.empty_like(hidden)
        self.weight = torch.zeros_like(weight, dtype=torch.float32)
        self.bias = self.weight.new_zeros(len(weight))

    def add(self, rows: slice, scores: Tensor) -> None:
        """The gradient of the scores of some rows: float32 [b, num_items]."""
        self.bias += scores.sum(0)
        scores = scores.to(self._weight.dtype)
        self.hidden[rows] = scores @ self._weight
        if scores.dtype == torch.float32:
            self.weight.addmm_(scores.T, self._hidden[rows])
        else:
            self.weight += scores.T @ self._hidden[rows]


def _chunk_of_scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """float32 [b, num_items]; on a CPU `addmm` takes two thirds of the time of a product into new memory."""
    if weight.dtype == torch.float32:
        return torch.addmm(bias, hidden, weight.T)
    return (hidden @ weight.T).float().add_(bias)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def sampled_softmax(
    weight: Tensor,
    bias: Tensor,
    hidden: Tensor,
    target: Tensor,
    negatives: Tensor,
    proposal: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The terms of a cross-entropy whose partition is estimated from negatives that the batch shares.

    exp(s_t) + sum over negatives other than the target of exp(s_j) / (n q_j), n of them, drawn with probability q_j:
    without bias for the sum over all items (Bengio and Senecal 2008). Uniform negatives know that the target is not
    among the N - 1 others, and count n without it. Only the scores of those items are computed.

    Args:
        weight: float [num_items, width] and bias float [num_items] of the output layer.
        hidden: float [B, width]; target: int64 [B]; negatives: int64 [n], drawn with replacement.
        proposal: float [n], the probability that each was drawn with; None: uniform.

    Returns:
        The targets' scores s_t and the estimates of log sum_j exp(s_j), both float [B].
    """
    positive = (hidden * weight[target]).sum(1) + bias[target]  # [B]
    others = hidden @ weight[negatives].T + bias[negatives]  # [B, n]
    same = negatives == target[:, None]
    others = others.masked_fill(same, float("-inf"))
    if proposal is None:
        count = (~same).sum(1).clamp(min=1)
        others = others + torch.log((len(bias) - 1) / count)[:, None]
    else:
        others = others - torch.log(len(negatives) * proposal)
    return positive, torch.cat([positive[:, None], others], 1).logsumexp(1)


def sample_negatives(batch: Batch, num_items: int, random: torch.Generator) -> Tensor:
    """For each row one item, uniform over those that are neither in its window nor its target: int64 [B].

    The u-th item that is left, found by counting how many excluded ones come before it; nothing is drawn twice
    and a GPU need not wait.
    """
    excluded = torch.cat([batch.histories(num_items), batch.target[:, None]], 1).sort(1).values
    repeated = torch.zeros_like(excluded, dtype=torch.bool)
    repeated[:, 1:] = excluded[:, 1:] == excluded[:, :-1]
    excluded = excluded.masked_fill(repeated, num_items).sort(1).values  # padding and repetitions last
    free = num_items - (excluded < num_items).sum(1)  # [B]
    draw = torch.rand(len(free), generator=random, dtype=torch.float64).to(free.device)
    place = (draw * free).long().clamp(max=free - 1)
    before = excluded - torch.arange(excluded.shape[1], device=excluded.device) <= place[:, None]
    return place + (before & (excluded < num_items)).sum(1)

"""Training with a teacher."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError, check
from src.core.git_info import git_commit
from src.core.logging import TensorBoardWriter
from src.core.metrics import MetricsConfig
from src.core.seed import generator, set_seed
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import TeacherTable, folded_state, fuse_teacher, make_projection
from src.distill.kd_losses import (
    RankingWeights,
    alignment_loss,
    broadcast_mean,
    candidate_weights,
    official_losses,
    positive_losses,
    softmax_losses,
    weighted_mean,
)
from src.distill.selection_policy import SelectionPolicy, SelectionPolicyAll, StudentInfo, TeacherInfo
from src.student.checkpoint import CheckpointInfo, load_checkpoint_of, load_weights, save_checkpoint
from src.student.config import FitSettings, StudentConfig
from src.student.datamodule import Batch
from src.student.models import Student, build_model
from src.student.objectives import LOSSES, BaseLoss, LossSettings, Scored
from src.student.resume import Resume
from src.student.training import FitResult, train_student

PRESETS = ("dllm2rec", "dllm2rec_official", "dllm2rec_paper")
CANDIDATE_LOSSES = ("paper", "official", "softmax")
CONFIDENCES = ("per_candidate", "per_sequence")
EMBEDDING_MODES = ("fuse", "align")
INITS = ("scratch", "baseline")
TEACHER_TABLES = ("float32", "bfloat16", "cpu")
ENGINES = ("native", "submodule")


@dataclass
class DistillConfig:
    """The keys of `conf/distill/*.yaml`; `kd_weight` stands for the key `lambda`, a reserved word.

    total = base loss + lambda * (alpha * ranking [+ ed_weight * alignment]); with `embedding=fuse`, ed_weight
    scales the projected teacher embedding inside the model instead. With `candidate_loss=official`, alpha is
    upstream's: the weight of DROS, in the base loss and for each candidate, and the ranking's own weight is 1.

    Attributes:
        teacher_table: where and as what the teacher's embeddings are kept while training (`fusion.TeacherTable`).
        engine: this framework, or the original program (`dllm2rec_wrapper`).
        loss: base loss, one of `student.objectives.LOSSES`; None takes the student's.
        candidate_loss: loss of one candidate of the teacher; confidence: a distance per candidate or one per row.
    """

    name: str
    engine: str = "native"
    alpha: float = 0.5
    ed_weight: float = 0.3
    kd_weight: float = 0.7
    batch_size: int = 256
    lr: float = 1e-3
    num_epochs: int = 200
    top_k: int = 10
    gamma_position: float = 0.3
    gamma_confidence: float = 0.5
    gamma_consistency: float = 0.1
    loss: str | None = None
    candidate_loss: str = "paper"
    confidence: str = "per_candidate"
    embedding: str = "fuse"
    teacher_table: str = "float32"
    init: str = "scratch"
    init_checkpoint: str | None = None

    def __post_init__(self) -> None:
        check(self.name in PRESETS, "distill.name", self.name, f"one of {', '.join(PRESETS)}")
        check(self.engine in ENGINES, "distill.engine", self.engine, f"one of {', '.join(ENGINES)}")
        losses = ", ".join(LOSSES)
        check(self.loss is None or self.loss in LOSSES, "distill.loss", self.loss, f"one of {losses}, or null")
        allowed = f"one of {', '.join(CANDIDATE_LOSSES)}"
        check(self.candidate_loss in CANDIDATE_LOSSES, "distill.candidate_loss", self.candidate_loss, allowed)
        check(self.confidence in CONFIDENCES, "distill.confidence", self.confidence, "per_candidate or per_sequence")
        for key in ("alpha", "ed_weight", "gamma_position", "gamma_confidence", "gamma_consistency"):
            check(getattr(self, key) >= 0, f"distill.{key}", getattr(self, key), "a number >= 0")
        check(self.kd_weight >= 0, "distill.lambda", self.kd_weight, "a number >= 0")
        for key in ("batch_size", "num_epochs", "top_k"):
            check(getattr(self, key) >= 1, f"distill.{key}", getattr(self, key), "an integer >= 1")
        check(self.lr > 0, "distill.lr", self.lr, "a number > 0")
        check(self.embedding in EMBEDDING_MODES, "distill.embedding", self.embedding, "fuse or align")
        allowed = f"one of {', '.join(TEACHER_TABLES)}"
        check(self.teacher_table in TEACHER_TABLES, "distill.teacher_table", self.teacher_table, allowed)
        check(self.init in INITS, "distill.init", self.init, "scratch or baseline")
        check(
            self.init == "baseline" or self.init_checkpoint is None,
            "distill.init_checkpoint",
            self.init_checkpoint,
            "null with distill.init=scratch",
        )
        check(
            self.gamma_position + self.gamma_confidence + self.gamma_consistency > 0,
            "distill.gamma_position",
            self.gamma_position,
            "above 0 if the two other gammas are 0",
        )

    @property
    def ranking_weight(self) -> float:
        return 1.0 if self.candidate_loss == "official" else self.alpha

    @property
    def needs_ranking(self) -> bool:
        return self.kd_weight * self.ranking_weight > 0

    @property
    def needs_embeddings(self) -> bool:
        return self.ed_weight > 0 and (self.embedding == "fuse" or self.kd_weight > 0)

    @property
    def gates_samples(self) -> bool:
        """Whether a loss of its own distils each sample; `fuse` alone is part of the model."""
        return self.needs_ranking or (self.embedding == "align" and self.needs_embeddings)

    def loss_settings(self, student: StudentConfig) -> LossSettings:
        """The base loss.

        Raises:
            UserError: the candidates' loss needs negatives and the base loss draws none.
        """
        settings = replace(student.loss_settings(), name=self.loss or student.loss)
        if self.candidate_loss != "official":
            return settings
        if settings.name not in ("bce", "bce_dros"):
            raise UserError(
                "distill.candidate_loss=official: needs a base loss with negatives, distill.loss=bce or bce_dros, "
                f"not {settings.name}"
            )
        return replace(settings, dros_weight=self.alpha)

    def fit_settings(self, student: StudentConfig) -> FitSettings:
        """Its own batch size, rate and epochs; the rest as for the baseline."""
        return FitSettings(
            self.batch_size,
            self.lr,
            self.num_epochs,
            student.weight_decay,
            student.grad_clip,
            student.patience,
            student.batching,
            student.mixed_precision,
            student.save_interval,
        )


class Alignment(nn.Module):
    """The projection of `embedding=align`; part of the model only while it trains."""

    def __init__(self, teacher: TeacherTable, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection
        self.teacher = teacher

    def forward(self, items: Tensor) -> Tensor:
        """Item ids int64 [B] -> projected teacher embeddings float [B, emb_size]."""
        return self.projection(self.teacher.rows(items))


Terms = dict[str, tuple[float, Tensor]]  # weight and losses float [B] of each active distillation term


@dataclass
class DistillObjective:
    """The base loss on every row, distillation on what the policy selects.

    Attributes:
        outputs: the teacher's tensors on the training device.
        alignment: projection of the explicit embedding loss, or None.
    """

    settings: DistillConfig
    base_loss: BaseLoss
    policy: SelectionPolicy
    outputs: TeacherOutputs
    alignment: Alignment | None

    def __call__(self, model: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        info = self._teacher_info(batch)
        scored = self.base_loss(model, batch, info.ranking if self.settings.needs_ranking else None)
        loss, parts = scored.loss, scored.parts
        if not self.settings.needs_ranking and self.alignment is None:
            return loss, parts
        if scored.scores is None:
            scored = replace(scored, scores=model.score(scored.hidden, scored.table))
        terms = self._distillation_terms(model, batch, scored, info)
        weights = self._selected(model, batch, scored, info, terms)
        parts["selected"] = weights.float().mean()
        for name, (weight, losses) in terms.items():
            term = weighted_mean(losses, weights)
            loss = loss + self.settings.kd_weight * weight * term
            parts[f"loss_{name}"] = term.detach()
        return loss, parts

    def _teacher_info(self, batch: Batch) -> TeacherInfo:
        outputs, everything = self.outputs, torch.ones_like(batch.target, dtype=torch.bool)
        known = everything if outputs.known is None else outputs.known[batch.row]
        if outputs.ranking is None or outputs.confidence is None:
            empty = batch.target.new_zeros(len(batch.target), 0)
            return TeacherInfo(empty, empty.float(), known)
        return TeacherInfo(outputs.ranking[batch.row], outputs.confidence[batch.row], known)

    def _selected(self, model: Student, batch: Batch, scored: Scored, info: TeacherInfo, terms: Terms) -> Tensor:
        """The policy's weights, bool or float [B]; 0 where the teacher was not asked."""

        def score_gradient() -> Tensor:
            return torch.autograd.grad(terms["ranking"][1].sum(), scored.scores, retain_graph=True)[0]

        assert scored.scores is not None
        student = StudentInfo(scored.scores.detach(), batch.target, scored.hidden.detach(), model, score_gradient)
        return self.policy.select(batch, info, student) * info.known

    def _distillation_terms(self, model: Student, batch: Batch, scored: Scored, info: TeacherInfo) -> Terms:
        settings, terms = self.settings, {}
        if settings.needs_ranking:
            terms["ranking"] = (settings.ranking_weight, self._ranking(scored, info))
        if self.alignment is not None:
            values = alignment_loss(model.item_embeddings(batch.target), self.alignment(batch.target))
            terms["alignment"] = (settings.ed_weight, values)
        return terms

    def _ranking(self, scored: Scored, info: TeacherInfo) -> Tensor:
        """The ranking loss of each sample: float [B]."""
        settings, scores, candidates = self.settings, scored.scores, scored.candidates
        gammas = RankingWeights(settings.gamma_position, settings.gamma_confidence, settings.gamma_consistency)
        per_sequence = settings.confidence == "per_sequence"
        weights = candidate_weights(info.ranking, info.confidence, scores, gammas, per_sequence)  # [B, K]
        if settings.candidate_loss == "softmax":
            return (weights * softmax_losses(scores, candidates)).sum(1)
        if settings.candidate_loss == "paper":
            return (weights * positive_losses(candidates)).sum(1)
        assert scored.negative is not None
        losses = official_losses(candidates, scored.negative)  # [B, K]
        if scored.dros is None:
            return (weights * losses).sum(1)
        robust = scored.dros.term(info.ranking, candidates)  # [B, K]
        if isinstance(self.policy, SelectionPolicyAll) and self.outputs.known is None:
            # Upstream's slip mixes the samples: the same amount stands in each.
            return (weights * losses).sum(1) + settings.alpha * broadcast_mean(robust, weights)
        return (weights * (losses + settings.alpha * robust)).sum(1)


def train_distilled(
    settings: DistillConfig,
    student: StudentConfig,
    dataset: SequenceDataset,
    outputs: TeacherOutputs,
    policy: SelectionPolicy,
    init_checkpoint: Path | None,
    metrics: MetricsConfig,
    folder: Path,
    seed: int,
    device: torch.device,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
    resume: Resume | None = None,
) -> FitResult:
    """Train a student with a teacher; its best epoch, folded, is in `folder` afterwards.

    Args:
        outputs: what `load_teacher_outputs` read; only what `settings` needs is used.
        init_checkpoint: folder of the student to start from, or None for a fresh one.
        resume: where an interrupted training goes on from.
    """
    set_seed(seed)
    model = build_model(student.model_config(dataset.num_items))
    base_loss = BaseLoss(settings.loss_settings(student), dataset, student.max_seq_len, seed, device)
    if init_checkpoint is not None:
        load_checkpoint_of(init_checkpoint, dataset, "distill.init_checkpoint")
        load_weights(model, init_checkpoint)
    outputs, alignment = outputs.to(device), None
    if settings.needs_embeddings:
        assert outputs.embeddings is not None
        table = TeacherTable(outputs.embeddings, settings.teacher_table, device)
        projection = make_projection(
            table.width,
            student.emb_size,
            generator(seed, "projection"),
            zero=init_checkpoint is not None and settings.embedding == "fuse",
        )
        if settings.embedding == "fuse":
            fuse_teacher(model, table, projection, settings.ed_weight)
        else:
            alignment = model.alignment = Alignment(table, projection)
    commit = git_commit()

    def save_best(epoch: int, value: float) -> None:
        info = CheckpointInfo(
            dataset.name,
            dataset.fingerprint,
            seed,
            commit,
            epoch,
            metrics.monitor,
            value,
            outputs.manifest_sha256,
        )
        state = {k: v for k, v in folded_state(model).items() if not k.startswith("alignment.")}
        save_checkpoint(folder, model, state, info)

    objective = DistillObjective(settings, base_loss, policy, outputs, alignment)
    return train_student(
        model,
        dataset,
        objective,
        save_best,
        metrics,
        settings.fit_settings(student),
        seed,
        device,
        logger,
        tb_writer,
        resume,
        {"negatives": base_loss, "policy": policy},
    )

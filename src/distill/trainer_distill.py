"""Training with a teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import Sighting
from src.core.git_info import git_commit
from src.core.metrics import MetricsConfig
from src.core.seed import generator, set_seed
from src.distill import kd_losses
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import (
    TeacherTable,
    add_ids_to_text,
    folded_state,
    fuse_teacher,
    make_projection,
    start_from_text,
    whiten,
)
from src.distill.kd_losses import Term
from src.distill.selection_policy import SelectionPolicy, SelectionPolicyAll, StudentInfo, TeacherInfo
from src.student.checkpoint import CheckpointInfo, load_checkpoint_of, load_weights, save_checkpoint
from src.student.config import StudentConfig
from src.student.context import RunContext, Stateful
from src.student.datamodule import Batch
from src.student.models import Student, build_model
from src.student.objectives import BaseLoss, Scored
from src.student.training import FitResult, train_student, validation_on, watched


class Alignment(nn.Module):
    """The projection of `embedding=align`; part of the model only while it trains."""

    def __init__(self, teacher: TeacherTable, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection
        self.teacher = teacher

    def forward(self, items: Tensor) -> Tensor:
        """Item ids int64 [B] -> projected teacher embeddings float [B, emb_size]."""
        return self.projection(self.teacher.rows(items))


@dataclass(frozen=True, kw_only=True)
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
    alignment: Alignment | None = None

    @property
    def components(self) -> dict[str, Stateful]:
        return {"negatives": self.base_loss, "policy": self.policy}

    def __call__(self, model: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_info = self._teacher_info(batch)
        scored = self.base_loss(model, batch, teacher_info.ranking if self.settings.needs_ranking else None)
        if not self.settings.needs_ranking and self.alignment is None:
            return scored.loss, scored.terms
        if scored.scores is None and (self.policy.reads_scores or self.settings.gamma_consistency > 0):
            with torch.no_grad():  # the losses of sampled_softmax do without
                scored = replace(scored, scores=model.score(scored.hidden, scored.table))
        terms = self._terms(model, batch, scored=scored, teacher_info=teacher_info)
        student_info = self._student_info(model, batch, scored=scored, terms=terms, teacher_info=teacher_info)
        mask = self.policy.select(batch, teacher_info, student_info) * teacher_info.known
        weights = kd_losses.standing_for_all(mask) if self.settings.average_over == "selected" else mask
        kd_loss, kd_terms = kd_losses.compute(terms, mask=weights)
        return scored.loss + kd_loss, {**scored.terms, "selected": mask.float().mean(), **kd_terms}

    def _teacher_info(self, batch: Batch) -> TeacherInfo:
        outputs, everything = self.outputs, torch.ones_like(batch.target, dtype=torch.bool)
        known = everything if outputs.known is None else outputs.known[batch.row]
        if outputs.ranking is None or outputs.confidence is None:
            empty = batch.target.new_zeros(len(batch.target), 0)
            return TeacherInfo(empty, empty.float(), known)
        return TeacherInfo(outputs.ranking[batch.row], outputs.confidence[batch.row], known)

    def _terms(self, model: Student, batch: Batch, *, scored: Scored, teacher_info: TeacherInfo) -> dict[str, Term]:
        """The distillation losses of each sample, before any is selected."""
        settings, terms = self.settings, {}
        if scored.candidates is not None:
            losses = self._ranking(scored, teacher_info)
            terms["ranking"] = Term(weight=settings.kd_weight * settings.ranking_weight, losses=losses)
        if self.alignment is not None:
            losses = kd_losses.alignment_loss(model.item_embeddings(batch.target), self.alignment(batch.target))
            terms["alignment"] = Term(weight=settings.kd_weight * settings.ed_weight, losses=losses)
        return terms

    def _ranking(self, scored: Scored, teacher_info: TeacherInfo) -> Tensor:
        """The ranking loss of each sample, float [B], from the scores of the teacher's items."""
        settings, ranking = self.settings, teacher_info.ranking
        scores, candidates = scored.scores, scored.candidates
        assert candidates is not None
        weights = kd_losses.candidate_weights(
            ranking,
            teacher_info.confidence,
            scores,
            settings.ranking_weights,
            settings.confidence == "per_sequence",
        )  # [B, K]
        if settings.candidate_loss == "softmax":
            partition = scored.log_partition
            if partition is None:
                assert scores is not None
                partition = scores.logsumexp(1, keepdim=True)
            return (weights * kd_losses.softmax_losses(partition, candidates)).sum(1)
        if settings.candidate_loss == "paper":
            return (weights * kd_losses.positive_losses(candidates)).sum(1)
        assert scored.negative is not None  # `as_student` asks for a base loss with negatives
        losses = kd_losses.official_losses(candidates, scored.negative)  # [B, K]
        if scored.dros is not None:
            robust = scored.dros.term(ranking, candidates)  # [B, K]
            if settings.dros_average == "batch":
                robust = kd_losses.average_over_batch(robust, teacher_info.known)  # [1, K]
            losses = losses + settings.alpha * robust
        return (weights * losses).sum(1)

    def _student_info(
        self,
        model: Student,
        batch: Batch,
        *,
        scored: Scored,
        terms: Mapping[str, Term],
        teacher_info: TeacherInfo,
    ) -> StudentInfo:
        scores = scored.hidden.new_zeros(len(batch.target), 0) if scored.scores is None else scored.scores

        def score_gradient() -> Tensor:
            if scores.requires_grad:
                return torch.autograd.grad(terms["ranking"].losses.sum(), scores, retain_graph=True)[0]
            leaf = scores.detach().requires_grad_()  # of sampled_softmax: as if the sum over all items were taken
            candidates = leaf.gather(1, teacher_info.ranking)
            exact = replace(scored, scores=leaf, candidates=candidates, log_partition=None)
            with torch.enable_grad():
                return torch.autograd.grad(self._ranking(exact, teacher_info).sum(), leaf)[0]

        return StudentInfo(scores.detach(), batch.target, scored.hidden.detach(), model, score_gradient)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What makes a training a distillation.

    Attributes:
        outputs: the teacher's, of which only what `settings` needs is used.
        init_checkpoint: folder of the student to start from, or None for a fresh one.
        files: how they looked that the teacher and the initial weights are from; asked again when all is read.
    """

    settings: DistillConfig
    outputs: TeacherOutputs
    policy: SelectionPolicy = field(default_factory=SelectionPolicyAll)
    init_checkpoint: Path | None = None
    files: Sighting = field(default_factory=Sighting.of)


def train_distilled(
    student: StudentConfig,
    dataset: SequenceDataset,
    *,
    distillation: Distillation,
    metrics: MetricsConfig,
    folder: Path,
    context: RunContext,
) -> FitResult:
    """Train a student with a teacher; its best epoch, folded, is in `folder` afterwards.

    Args:
        student: the settings of the baseline; the distillation's own replace some (`DistillConfig.as_student`).

    Raises:
        UserError: as `train_baseline`, or the initial checkpoint is of another data set or shape.
    """
    student = distillation.settings.as_student(student)
    set_seed(context.seed)
    model = build_model(student.model_config(dataset.num_items))
    objective = _objective(student, dataset, model, distillation=distillation, context=context)
    commit = git_commit()

    def save_best(epoch: int, value: float) -> None:
        info = CheckpointInfo(
            dataset.name,
            dataset.fingerprint,
            context.seed,
            commit,
            epoch,
            watched(metrics, student, dataset),
            value,
            distillation.outputs.manifest_sha256,
        )
        state = {k: v for k, v in folded_state(model).items() if not k.startswith("alignment.")}
        save_checkpoint(folder, model, state, info)

    return train_student(
        model,
        dataset,
        objective,
        validation=validation_on(
            dataset, model, student=student, metrics=metrics, save_best=save_best, device=context.device
        ),
        settings=student.fit_settings(),
        context=context,
    )


def _objective(
    student: StudentConfig,
    dataset: SequenceDataset,
    model: Student,
    *,
    distillation: Distillation,
    context: RunContext,
) -> DistillObjective:
    """The objective, once the model has its initial weights and reads or trains what the teacher's embeddings need."""
    settings, init, device = distillation.settings, distillation.init_checkpoint, context.device
    base_loss = BaseLoss(
        student.loss_settings(), dataset, max_seq_len=student.max_seq_len, seed=context.seed, device=device
    )
    if init is not None:
        load_checkpoint_of(init, dataset, "distill.init_checkpoint")
        load_weights(model, init)
    distillation.files.require_same()
    alignment = None
    if settings.needs_embeddings:
        assert distillation.outputs.embeddings is not None  # whoever reads the files reads what the settings need
        embeddings = entering_embeddings(distillation.outputs.embeddings, settings, student.emb_size)
        alignment = _enter(model, embeddings, distillation=distillation, context=context)
    distillation.policy.start(dataset, context.seed)
    return DistillObjective(
        settings=settings,
        base_loss=base_loss,
        policy=distillation.policy,
        outputs=distillation.outputs.to(device),
        alignment=alignment,
    )


def transformed(embeddings: Tensor, settings: DistillConfig, emb_size: int) -> Tensor:
    """The teacher's embeddings [num_items, llm_dim] after `distill.embedding_transform`: float32 [num_items, width].

    Raises:
        UserError: they cannot be whitened.
    """
    if settings.embedding_transform == "whiten":
        return whiten(embeddings, settings.embedding_dims or emb_size, fill=settings.embedding_dims is None)
    return embeddings


def entering_embeddings(embeddings: Tensor, settings: DistillConfig, emb_size: int) -> Tensor:
    """The teacher's embeddings [num_items, llm_dim] as they enter a student: float32 [num_items, width].

    Raises:
        UserError: they cannot be whitened, or are to be the item table and have another width.
    """
    embeddings = transformed(embeddings, settings, emb_size)
    if settings.embedding in ("residual", "init") and embeddings.shape[1] != emb_size:
        raise UserError(
            f"distill.embedding={settings.embedding}: the teacher's embeddings have {embeddings.shape[1]} columns, the "
            f"item table student.emb_size={emb_size}; set distill.embedding_transform=whiten"
        )
    return embeddings


def _enter(model: Student, embeddings: Tensor, *, distillation: Distillation, context: RunContext) -> Alignment | None:
    """Bring the embeddings into the model as `distill.embedding` says; returns what `align` trains."""
    settings, device = distillation.settings, context.device
    if settings.embedding == "init":
        start_from_text(model, embeddings, settings.ed_weight)
        return None
    random = generator(context.seed, "projection")
    if settings.embedding == "residual":
        add_ids_to_text(model, embeddings, settings.ed_weight, random)
        return None
    table = TeacherTable(embeddings, settings.teacher_table, device)
    starts_at_zero = distillation.init_checkpoint is not None and settings.embedding == "fuse"
    projection = make_projection(table.width, model.config.emb_size, random, zero=starts_at_zero)
    if settings.embedding == "fuse":
        fuse_teacher(model, table, projection, settings.ed_weight)
        return None
    model.alignment = Alignment(table, projection)
    return model.alignment

"""Training with a teacher."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError, check
from src.core.git_info import git_commit
from src.core.logging import TensorBoardWriter
from src.core.metrics import MetricsConfig
from src.core.seed import generator, set_seed
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import folded_state, fuse_teacher, make_projection
from src.distill.kd_losses import (
    RankingWeights,
    alignment_loss,
    candidate_weights,
    ranking_loss,
    weighted_mean,
)
from src.distill.selection_policy import SelectionPolicy, StudentInfo, TeacherInfo
from src.student.checkpoint import CheckpointInfo, load_checkpoint, load_weights, save_checkpoint
from src.student.config import FitSettings, StudentConfig
from src.student.datamodule import Batch
from src.student.models import Student, build_model
from src.student.training import FitResult, train_student

EMBEDDING_MODES = ("fuse", "align")
INITS = ("scratch", "baseline")


@dataclass
class DistillConfig:
    """The keys of `conf/distill/*.yaml`; `kd_weight` stands for the key `lambda`, a reserved word.

    total = CE + lambda * (alpha * ranking [+ ed_weight * alignment]); with `embedding=fuse`, ed_weight
    scales the projected teacher embedding inside the model instead.
    """

    name: str
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
    embedding: str = "fuse"
    init: str = "scratch"
    init_checkpoint: str | None = None

    def __post_init__(self) -> None:
        check(self.name == "dllm2rec", "distill.name", self.name, "dllm2rec")
        for key in ("alpha", "ed_weight", "gamma_position", "gamma_confidence", "gamma_consistency"):
            check(getattr(self, key) >= 0, f"distill.{key}", getattr(self, key), "a number >= 0")
        check(self.kd_weight >= 0, "distill.lambda", self.kd_weight, "a number >= 0")
        for key in ("batch_size", "num_epochs", "top_k"):
            check(getattr(self, key) >= 1, f"distill.{key}", getattr(self, key), "an integer >= 1")
        check(self.lr > 0, "distill.lr", self.lr, "a number > 0")
        check(self.embedding in EMBEDDING_MODES, "distill.embedding", self.embedding, "fuse or align")
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
    def needs_ranking(self) -> bool:
        return self.kd_weight * self.alpha > 0

    @property
    def needs_embeddings(self) -> bool:
        return self.ed_weight > 0 and (self.embedding == "fuse" or self.kd_weight > 0)

    def fit_settings(self, student: StudentConfig) -> FitSettings:
        """Its own batch size, rate and epochs; the rest as for the baseline."""
        return FitSettings(
            self.batch_size,
            self.lr,
            self.num_epochs,
            student.weight_decay,
            student.grad_clip,
            student.patience,
        )


class Alignment(nn.Module):
    """The projection of `embedding=align`; part of the model only while it trains."""

    def __init__(self, teacher: Tensor, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("teacher", teacher, persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """Item ids int64 [B] -> projected teacher embeddings float [B, emb_size]."""
        return self.projection(self.teacher[items])


@dataclass
class DistillObjective:
    """CE on every row, distillation on what the policy selects.

    Attributes:
        outputs: the teacher's tensors on the training device.
        alignment: projection of the explicit embedding loss, or None.
    """

    settings: DistillConfig
    policy: SelectionPolicy
    outputs: TeacherOutputs
    alignment: Alignment | None

    def __call__(self, model: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        scores = model(batch.history, batch.length)
        loss = F.cross_entropy(scores, batch.target)
        parts = {"loss_ce": loss.detach()}
        if not self.settings.needs_ranking and self.alignment is None:
            return loss, parts
        mask = self.policy.select(batch, self._teacher_info(batch), StudentInfo(scores.detach(), batch.target))
        parts["selected"] = mask.float().mean()
        terms = self._distillation_terms(model, batch, scores)
        for name, (weight, values) in terms.items():
            term = weighted_mean(values, mask)
            loss = loss + self.settings.kd_weight * weight * term
            parts[f"loss_{name}"] = term.detach()
        return loss, parts

    def _teacher_info(self, batch: Batch) -> TeacherInfo:
        if self.outputs.ranking is None or self.outputs.confidence is None:
            empty = batch.target.new_zeros(len(batch.target), 0)
            return TeacherInfo(empty, empty.float())
        return TeacherInfo(self.outputs.ranking[batch.row], self.outputs.confidence[batch.row])

    def _distillation_terms(self, model: Student, batch: Batch, scores: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and per-sample values [B] of each active term."""
        settings, terms = self.settings, {}
        if settings.needs_ranking:
            info = self._teacher_info(batch)
            gammas = RankingWeights(settings.gamma_position, settings.gamma_confidence, settings.gamma_consistency)
            weights = candidate_weights(info.ranking, info.confidence, scores, gammas)
            terms["ranking"] = (settings.alpha, ranking_loss(scores, info.ranking, weights))
        if self.alignment is not None:
            values = alignment_loss(model.item_embeddings(batch.target), self.alignment(batch.target))
            terms["alignment"] = (settings.ed_weight, values)
        return terms


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
) -> FitResult:
    """Train a student with a teacher; its best epoch, folded, is in `folder` afterwards.

    Args:
        outputs: what `load_teacher_outputs` read; only what `settings` needs is used.
        init_checkpoint: folder of the student to start from, or None for a fresh one.
    """
    set_seed(seed)
    model = build_model(student.model_config(dataset.num_items))
    if init_checkpoint is not None:
        _start_from(model, init_checkpoint, dataset)
    outputs = outputs.to(device)
    alignment = None
    if settings.needs_embeddings:
        assert outputs.embeddings is not None
        projection = make_projection(
            outputs.embeddings.shape[1],
            student.emb_size,
            generator(seed, "projection"),
            zero=init_checkpoint is not None and settings.embedding == "fuse",
        )
        if settings.embedding == "fuse":
            fuse_teacher(model, outputs.embeddings, projection, settings.ed_weight)
        else:
            alignment = model.alignment = Alignment(outputs.embeddings, projection)
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

    objective = DistillObjective(settings, policy, outputs, alignment)
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
    )


def _start_from(model: Student, folder: Path, dataset: SequenceDataset) -> None:
    _, info = load_checkpoint(folder)
    if info.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"distill.init_checkpoint={folder}: trained on {info.dataset} ({info.dataset_fingerprint[:12]}), this run "
            f"uses {dataset.name} ({dataset.fingerprint[:12]})"
        )
    load_weights(model, folder)

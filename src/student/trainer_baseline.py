"""Training without a teacher."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.git_info import git_commit
from src.core.metrics import MetricsConfig
from src.core.seed import set_seed
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.config import StudentConfig
from src.student.context import RunContext, Stateful
from src.student.datamodule import Batch
from src.student.models import Student, build_model
from src.student.objectives import BaseLoss
from src.student.training import FitResult, train_student, validation_on, watched


@dataclass(frozen=True)
class BaselineObjective:
    """The base loss alone."""

    base_loss: BaseLoss

    @property
    def components(self) -> dict[str, Stateful]:
        return {"negatives": self.base_loss}

    def __call__(self, model: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        scored = self.base_loss(model, batch)
        return scored.loss, scored.terms


def train_baseline(
    student: StudentConfig, dataset: SequenceDataset, *, metrics: MetricsConfig, folder: Path, context: RunContext
) -> FitResult:
    """Train a fresh student, or go on with an interrupted training; its best epoch is in `folder` afterwards.

    Raises:
        UserError: the training rows are too few for a batch or a loss, or the training diverges.
    """
    set_seed(context.seed)
    model = build_model(student.model_config(dataset.num_items))
    base_loss = BaseLoss(
        student.loss_settings(), dataset, max_seq_len=student.max_seq_len, seed=context.seed, device=context.device
    )
    commit = git_commit()

    def save_best(epoch: int, value: float) -> None:
        info = CheckpointInfo(
            dataset.name, dataset.fingerprint, context.seed, commit, epoch, watched(metrics, student, dataset), value
        )
        save_checkpoint(folder, model, model.state_dict(), info)

    return train_student(
        model,
        dataset,
        BaselineObjective(base_loss),
        validation=validation_on(
            dataset, model, student=student, metrics=metrics, save_best=save_best, device=context.device
        ),
        settings=student.fit_settings(),
        context=context,
    )

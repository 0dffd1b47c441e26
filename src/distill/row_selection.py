"""Choosing rows before the teacher is asked, from a trained student alone."""

from collections.abc import Iterator

import numpy as np
import torch

from src.core.data_utils import SequenceDataset
from src.distill.active_config import ActiveConfig
from src.distill.selection_policy import StudentInfo, TeacherInfo, build_selection_policy
from src.student.datamodule import Batch
from src.student.models import Student

_BATCH = 512


@torch.no_grad()
def select_rows(
    settings: ActiveConfig, model: Student, dataset: SequenceDataset, *, seed: int, device: torch.device
) -> np.ndarray:
    """The training rows that a policy gives a weight, int64 ascending.

    The policy sees every row twice, as in two epochs, with the student as it is and a teacher that has said nothing:
    what it chooses the second time counts, so that a measure is compared over all rows.

    Raises:
        UserError: the policy needs the teacher's ranking.
    """
    policy = build_selection_policy(settings.comparing_all_rows())
    policy.start(dataset, seed)
    training = model.training
    model.eval().to(device)
    for _ in range(2):
        weights = [
            policy.select(batch, _silent_teacher(batch), _student_info(model, batch))
            for batch in _batches(model, dataset, device)
        ]
    model.train(training)
    return torch.cat(weights).nonzero()[:, 0].cpu().numpy()


def _batches(model: Student, dataset: SequenceDataset, device: torch.device) -> Iterator[Batch]:
    for begin in range(0, len(dataset.train), _BATCH):
        row = np.arange(begin, min(begin + _BATCH, len(dataset.train)))
        windows = dataset.train.windows(model.config.max_seq_len, dataset.pad_id, row)
        rows, history, length, target = (torch.from_numpy(values).to(device) for values in (row, *windows))
        yield Batch(rows, history, length, target)


def _silent_teacher(batch: Batch) -> TeacherInfo:
    empty = batch.target.new_zeros(len(batch.target), 0)
    return TeacherInfo(empty, empty.float(), torch.ones_like(batch.target, dtype=torch.bool))


def _student_info(model: Student, batch: Batch) -> StudentInfo:
    table = model.shared_table()
    hidden = batch.encode(model, table)

    def score_gradient() -> torch.Tensor:
        raise RuntimeError("no distillation loss without a teacher")

    return StudentInfo(model.score(hidden, table), batch.target, hidden, model, score_gradient)

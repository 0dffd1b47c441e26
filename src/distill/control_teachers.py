"""Teachers that are no LLM: what a distillation has to be compared with."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.seed import generator
from src.distill.data_bridge import TeacherOutputs
from src.student.checkpoint import load_checkpoint_of
from src.student.serving import rank_unseen

_CHUNK = 512


def recommender_teacher(
    folder: Path, dataset: SequenceDataset, *, top_k: int, per_sequence: bool, device: torch.device
) -> TeacherOutputs:
    """A frozen recommender's item table, and its best items of each training row, none of the row's history.

    An item's distance is minus its log-probability; min-max over the row's items as in an export, or with
    `per_sequence` the best item's own.

    Args:
        folder: the recommender's checkpoint, one of a student.

    Raises:
        UserError: no checkpoint of this data set, or a history leaves fewer than `top_k` items.
    """
    model = load_checkpoint_of(folder, dataset, "distill.teacher=recommender").eval().to(device)
    items, distances = [], []
    for index in np.array_split(np.arange(len(dataset.train)), -(-len(dataset.train) // _CHUNK)):
        best, distance = rank_unseen(model, dataset.train, index, count=top_k, key="distill.top_k")
        items.append(best)
        distances.append(distance)
    distance = torch.cat(distances).cpu()  # [num_rows, top_k]
    return TeacherOutputs(
        embeddings=model.item_embeddings.weight[:-1].detach().cpu().float(),
        ranking=torch.cat(items).cpu(),
        confidence=distance[:, :1] if per_sequence else _min_max(distance),
    )


def _min_max(distance: Tensor) -> Tensor:
    low, high = distance[:, :1], distance[:, -1:]
    return (distance - low) / (high - low).clamp(min=1e-12)


def random_teacher(like: TeacherOutputs, num_items: int, seed: int) -> TeacherOutputs:
    """Normal embeddings of `like`'s width and spread, `like`'s distances on items that are drawn at random.

    What `like` lacks stays away.
    """
    random = generator(seed, "random teacher")
    embeddings, ranking = like.embeddings, like.ranking
    if embeddings is not None:
        embeddings = torch.randn(embeddings.shape, generator=random) * embeddings.std()
    if ranking is not None:
        ranking = torch.stack(
            [torch.randperm(num_items, generator=random)[: ranking.shape[1]] for _ in range(len(ranking))]
        )
    return TeacherOutputs(embeddings=embeddings, ranking=ranking, confidence=like.confidence)

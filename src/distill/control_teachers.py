"""Control teachers: what a distillation has to be compared with before its gain is the LLM's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.seed import generator
from src.distill.blending import ranked, recommended
from src.distill.data_bridge import TeacherOutputs
from src.student.checkpoint import load_checkpoint_of
from src.student.evaluator import best_unseen
from src.student.models import Student
from src.student.references import title_vectors

_TITLE_DIMS = 256
_SMALLEST_SINGULAR_VALUE = 1e-5  # relative to the largest: below it, float32 vectors hold rounding noise


def load_recommenders(folders: Sequence[Path], dataset: SequenceDataset, device: torch.device) -> list[Student]:
    """Checkpoints of students as recommenders, in evaluation mode.

    Raises:
        UserError: a folder holds no checkpoint of this data set.
    """
    return [load_checkpoint_of(path, dataset, "distill.teacher=recommender").eval().to(device) for path in folders]


def recommender_teacher(
    models: Sequence[Student], dataset: SequenceDataset, *, top_k: int, per_sequence: bool
) -> TeacherOutputs:
    """The best items of each training row by recommenders (`recommended`), none of the row's history.

    Distances are those of `ranked`.

    Raises:
        UserError: a history leaves fewer than `top_k` items.
    """
    rows, scores = dataset.train, recommended(models).scores

    def rank(index: np.ndarray) -> tuple[Tensor, Tensor]:
        part = rows.select(index)
        return best_unseen(torch.from_numpy(scores(part, 1.0)), part, count=top_k, key="distill.top_k")

    return ranked(rank, len(rows), per_sequence)


def recommender_embeddings(models: Sequence[Student]) -> Tensor:
    """The recommenders' item tables side by side: float32 [num_items, sum of their emb_size]."""
    return torch.cat([model.item_embeddings.weight[:-1].detach().cpu().float() for model in models], 1)


def required_title_vectors(dataset: SequenceDataset) -> sparse.csr_matrix:
    """`title_vectors`.

    Raises:
        UserError: the titles have no words in common.
    """
    vectors = title_vectors(dataset)
    if vectors is None:
        raise UserError(
            f"distill.teacher=tfidf: no word stands in two titles of {dataset.name} and in at most half of them (are "
            "they missing, or all the same?), so titles teach nothing; leave this control out"
        )
    return vectors


def title_embeddings(dataset: SequenceDataset) -> Tensor:
    """TF-IDF of the titles, its 256 strongest directions or all (truncated SVD): float32 [num_items, directions].

    Raises:
        UserError: the titles have no words in common.
    """
    from sklearn.decomposition import TruncatedSVD  # two seconds that only this control costs

    vectors = required_title_vectors(dataset)
    svd = TruncatedSVD(n_components=min(_TITLE_DIMS, *vectors.shape), random_state=0)
    embeddings = svd.fit_transform(vectors)
    kept = svd.singular_values_ > _SMALLEST_SINGULAR_VALUE * svd.singular_values_.max()
    return torch.from_numpy(embeddings[:, kept]).float()


def shuffled_teacher(like: TeacherOutputs, num_items: int, seed: int) -> TeacherOutputs:
    """`like`'s knowledge with each item given another's text: one cycle through all items, drawn by `seed`.

    An item has the embedding of the item whose text it got; where the teacher ranked a text, the item that has it now
    stands, at the same distance.

    Raises:
        UserError: all items have one embedding, so that nothing can be mixed up.
    """
    embeddings, ranking = like.embeddings, like.ranking
    if embeddings is not None and (embeddings == embeddings[0]).all():
        raise UserError(
            "distill.teacher=shuffled: the teacher has one embedding for all items (are all titles equal?), so that "
            "another's text changes nothing; leave this control out"
        )
    order = torch.randperm(num_items, generator=generator(seed, "shuffled titles"))
    text, owner = torch.empty_like(order), torch.empty_like(order)
    text[order] = order.roll(-1)  # item -> the item whose text it gets
    owner[text] = torch.arange(num_items)  # and back
    return replace(
        like,
        embeddings=None if embeddings is None else embeddings[text],
        ranking=None if ranking is None else owner[ranking],
        manifest_sha256=None,
    )


def random_teacher(like: TeacherOutputs, num_items: int, seed: int) -> TeacherOutputs:
    """Normal embeddings of `like`'s width and spread, `like`'s distances on items that are drawn at random.

    What `like` lacks stays away, rows that it was not asked for as well.
    """
    random = generator(seed, "random teacher")
    embeddings, ranking = like.embeddings, like.ranking
    if embeddings is not None:
        embeddings = torch.randn(embeddings.shape, generator=random) * embeddings.std()
    if ranking is not None:
        ranking = torch.stack(
            [torch.randperm(num_items, generator=random)[: ranking.shape[1]] for _ in range(len(ranking))]
        )
    return replace(like, embeddings=embeddings, ranking=ranking, manifest_sha256=None)

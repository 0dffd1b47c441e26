"""Control teachers: what a distillation has to be compared with before its gain is the LLM's."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.core.seed import generator
from src.distill.data_bridge import TeacherOutputs
from src.student.checkpoint import load_checkpoint_of
from src.student.models import Student
from src.student.references import ChainWithTitles, title_vectors
from src.student.serving import best_unseen, rank_unseen

_CHUNK = 512
_TITLE_DIMS = 256
_SMALLEST_SINGULAR_VALUE = 1e-5  # relative to the largest: below it, float32 vectors hold rounding noise
_Ranks = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # row numbers to best items and distances, as `rank_unseen`


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
    outputs = _ranked(
        lambda index: rank_unseen(model, dataset.train, index, count=top_k, key="distill.top_k"),
        len(dataset.train),
        per_sequence,
    )
    return replace(outputs, embeddings=_item_table(model))


def recommender_embeddings(folder: Path, dataset: SequenceDataset) -> Tensor:
    """The item table of `recommender_teacher` alone: float32 [num_items, emb_size]."""
    return _item_table(load_checkpoint_of(folder, dataset, "distill.teacher=recommender"))


def _item_table(model: Student) -> Tensor:
    return model.item_embeddings.weight[:-1].detach().cpu().float()


def _ranked(rank: _Ranks, num_rows: int, per_sequence: bool) -> TeacherOutputs:
    """The best items of all training rows, and their distances."""
    parts = [rank(index) for index in np.array_split(np.arange(num_rows), -(-num_rows // _CHUNK))]
    items, distance = (torch.cat(part).cpu() for part in zip(*parts, strict=True))  # [num_rows, top_k]
    return TeacherOutputs(ranking=items, confidence=distance[:, :1] if per_sequence else _min_max(distance))


def _min_max(distance: Tensor) -> Tensor:
    low, high = distance[:, :1], distance[:, -1:]
    return (distance - low) / (high - low).clamp(min=1e-12)


def title_embeddings(dataset: SequenceDataset) -> Tensor:
    """TF-IDF of the titles, its 256 strongest directions or all (truncated SVD): float32 [num_items, directions].

    Raises:
        UserError: the titles have no words in common.
    """
    vectors = title_vectors(dataset)
    if vectors is None:
        raise UserError(
            f"distill.teacher=tfidf: no word stands in two titles of {dataset.name} and in at most half of them (are "
            "they missing, or all the same?), so titles teach nothing; leave this control out"
        )
    svd = TruncatedSVD(n_components=min(_TITLE_DIMS, *vectors.shape), random_state=0)
    embeddings = svd.fit_transform(vectors)
    kept = svd.singular_values_ > _SMALLEST_SINGULAR_VALUE * svd.singular_values_.max()
    return torch.from_numpy(embeddings[:, kept]).float()


def title_ranking(
    dataset: SequenceDataset, metrics: MetricsConfig, *, top_k: int, per_sequence: bool, logger: logging.Logger
) -> TeacherOutputs:
    """The best items of each training row by the Markov chain and the titles, none of the row's history.

    The chain counts training rows, but for each row all others only (leave-one-out), so that the teacher does not
    see the target. Distances are those of `recommender_teacher`, with the scores for logits.

    Args:
        metrics: by these, the weight of the titles is chosen on validation rows.

    Raises:
        UserError: a history leaves fewer than `top_k` items.
    """
    model, rows = ChainWithTitles.of(dataset, metrics), dataset.train
    assert model is not None  # `title_embeddings` has refused titles without words
    logger.info("distill.teacher=tfidf: Markov chain, leave-one-out, and %s", model.description(metrics))

    def rank(index: np.ndarray) -> tuple[Tensor, Tensor]:
        part = rows.select(index)
        return best_unseen(model.scores(part, leave_one_out=True), part, count=top_k, key="distill.top_k")

    return _ranked(rank, len(rows), per_sequence)


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

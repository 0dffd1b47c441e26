"""Ranking rows with the teacher, for the student's training rows and for evaluation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows
from src.core.logging import progress_bar
from src.teacher.evaluation import EVALUATION_TEMPLATE
from src.teacher.llm import encode_texts
from src.teacher.training import TeacherParts


@dataclass(frozen=True)
class Ranking:
    """The teacher's order of items per row.

    Attributes:
        items: int64 [N, C], best first; distances: float32 [N, C], ascending (raw).
        spread: float32 [N, 2], smallest and largest distance over everything that was ranked.
        log_prob: float32 [N], log-probability of the best answer's tokens.
        valid: bool [N], whether the best answer is a catalogue title.
    """

    items: np.ndarray
    distances: np.ndarray
    spread: np.ndarray
    log_prob: np.ndarray
    valid: np.ndarray

    def confidences(self, kind: str) -> np.ndarray:
        """The distances as exported: `raw`, or `minmax` over what was ranked (0 = best, 1 = worst)."""
        if kind == "raw":
            return self.distances
        low, high = self.spread[:, :1], self.spread[:, 1:]
        return (self.distances - low) / np.maximum(high - low, 1e-12)


def base_embeddings(parts: TeacherParts, texts: list[str]) -> Tensor:
    """Embeddings of texts by the base LLM, adapter off: float32 [len(texts), llm_dim]."""
    lora = parts.engine.lora
    with lora.model.disable_adapter():
        return encode_texts(lora.llm, parts.builder.tokenizer, texts, parts.config.export.batch_size)


def rank_rows(parts: TeacherParts, rows: Rows, index: np.ndarray, embeddings: Tensor, seed: int, count: int) -> Ranking:
    """Rank items for some rows by `teacher.export.method`.

    The prompt's candidates are the frozen recommender's best items, none of the history: the target
    plays no part in choosing them.

    Args:
        index: row numbers int64 [N].
        embeddings: base embeddings of all titles, float32 [num_items, llm_dim] (for `generate`).
        count: items to keep per row.
    """
    config = parts.config
    rank = _rank_by_likelihood if config.export.method == "likelihood" else _rank_by_answer
    results = []
    with progress_bar() as bar:
        task = bar.add_task("ranking rows", total=len(index), info="")
        for begin in range(0, len(index), config.export.batch_size):
            batch = index[begin : begin + config.export.batch_size]
            results.append(rank(parts, rows, batch, embeddings, seed, count))
            bar.update(task, advance=len(batch))
    return Ranking(*(np.concatenate([getattr(r, f) for r in results]) for f in Ranking.__dataclass_fields__))


def _candidates(parts: TeacherParts, rows: Rows, batch: np.ndarray, seed: int) -> np.ndarray:
    """Retrieved items in an order that depends on seed and row only, so that the place tells nothing: int64 [B, C]."""
    best = parts.recommender.retrieve(rows, batch, parts.config.num_candidates)
    return np.stack([np.random.default_rng([seed, int(i)]).permutation(c) for i, c in zip(batch, best, strict=True)])


def _prompts(parts: TeacherParts, rows: Rows, batch: np.ndarray, candidates: np.ndarray):
    prompts = [
        parts.builder.prompt(rows.history(i)[-parts.config.max_history :], c, EVALUATION_TEMPLATE, embed=True)
        for i, c in zip(batch, candidates, strict=True)
    ]
    return parts.builder.batch(prompts).to(parts.engine.lora.llm.device)


@torch.no_grad()
def _rank_by_likelihood(
    parts: TeacherParts, rows: Rows, batch: np.ndarray, embeddings: Tensor, seed: int, count: int
) -> Ranking:
    candidates = _candidates(parts, rows, batch, seed)
    gates = parts.engine.lora.router(parts.recommender.users(rows, batch))
    answers = [[parts.builder.answer(int(item)) for item in row] for row in candidates]
    total, mean = parts.engine.candidate_log_probs(_prompts(parts, rows, batch, candidates), gates, answers)
    distance, total = -mean.cpu().numpy(), total.cpu().numpy()
    order = np.argsort(distance, axis=1, kind="stable")
    ordered = np.take_along_axis(distance, order, 1)
    return Ranking(
        np.take_along_axis(candidates, order, 1)[:, :count],
        ordered[:, :count],
        ordered[:, [0, -1]],
        np.take_along_axis(total, order, 1)[:, 0],
        np.ones(len(batch), dtype=bool),
    )


@torch.no_grad()
def _rank_by_answer(
    parts: TeacherParts, rows: Rows, batch: np.ndarray, embeddings: Tensor, seed: int, count: int
) -> Ranking:
    candidates = _candidates(parts, rows, batch, seed)
    gates = parts.engine.lora.router(parts.recommender.users(rows, batch))
    texts, log_probs = parts.engine.generate(
        _prompts(parts, rows, batch, candidates), gates, parts.builder.tokenizer, parts.builder.newline_id
    )
    distance = torch.cdist(base_embeddings(parts, [_unquoted(text) for text in texts]), embeddings)
    count = min(count, distance.shape[1])
    nearest = distance.topk(count, largest=False)
    known = {_unquoted(title).casefold() for title in parts.dataset.titles}
    spread = torch.stack([distance.min(1).values, distance.max(1).values], 1)
    return Ranking(
        nearest.indices.numpy(),
        nearest.values.numpy(),
        spread.numpy(),
        log_probs.cpu().numpy(),
        np.array([_unquoted(text).casefold() in known for text in texts]),
    )


def _unquoted(text: str) -> str:
    """BIGRec's answers come in quotes, which are no part of a title."""
    return text.strip("\"' ")

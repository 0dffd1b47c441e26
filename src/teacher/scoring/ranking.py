"""Ranking rows with the teacher, for the student's training rows and for evaluation.

In two steps: the LLM scores the rows (hours on a GPU, so `shards.py` keeps what is done), and the scores become
rankings. A score is an answer in words (`generate`) or the ranked candidates (`likelihood`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows
from src.core.logging import row_progress
from src.teacher.llm.texts import encode_texts
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBatch
from src.teacher.scoring.inference import answer_tokens, candidate_items, candidate_log_probs, run_rows

_DISTANCES_AT_ONCE = 1 << 24

Scores = dict[str, np.ndarray]


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


def base_embeddings(teacher: TeacherModel, texts: list[str]) -> Tensor:
    """Embeddings of texts by the base LLM, adapter off, as `teacher.export` says: float32 [len(texts), llm_dim]."""
    lora = teacher.lm.lora
    with lora.model.disable_adapter():
        return encode_texts(lora.llm, teacher.builder.tokenizer, texts, teacher.config.export)


def rank_rows(
    teacher: TeacherModel,
    rows: Rows,
    index: np.ndarray,
    *,
    embeddings: Tensor,
    seed: int,
    candidates: str,
    count: int,
) -> Ranking:
    """Rank items for some rows by `teacher.export.method`.

    Args:
        index: row numbers int64 [N].
        embeddings: base embeddings of all titles, float32 [num_items, llm_dim] (for `generate`).
        candidates: what the prompts offer, see `candidate_items`.
        count: items to keep per row.
    """
    with row_progress("ranking rows", len(index)) as advance:
        scores = score_rows(teacher, rows, index, seed=seed, candidates=candidates, advance=advance)
    return to_ranking(teacher, scores, embeddings=embeddings, count=count)


def score_rows(
    teacher: TeacherModel,
    rows: Rows,
    index: np.ndarray,
    *,
    seed: int,
    candidates: str,
    advance: Callable[[int], None],
) -> Scores:
    """What the LLM does for some rows.

    Returns:
        `log_prob` float32 [N] of the best answer, and either `answer` str [N], or `items` int64 [N, C], best first,
        and their `distances` float32 [N, C].
    """
    items = candidate_items(teacher, rows, index, seed=seed, kind=candidates)
    if teacher.config.export.method == "generate":
        work, extra_tokens = partial(_answer, teacher), np.zeros(len(index), dtype=int)
    else:
        work, extra_tokens = partial(_compare, teacher), answer_tokens(teacher, items)
    return run_rows(teacher, rows, index, candidates=items, work=work, extra_tokens=extra_tokens, advance=advance)


def _answer(teacher: TeacherModel, batch: PromptBatch, gates: Tensor, offered: np.ndarray) -> Scores:
    """The answers that the teacher writes."""
    builder = teacher.builder
    texts, log_prob = teacher.lm.generate(batch, gates, tokenizer=builder.tokenizer, newline_id=builder.newline_id)
    return {"answer": np.array([_unquoted(text) for text in texts]), "log_prob": log_prob.cpu().numpy()}


def _compare(teacher: TeacherModel, batch: PromptBatch, gates: Tensor, offered: np.ndarray) -> Scores:
    """The candidates by minus the mean log-probability of their titles' tokens."""
    total, mean = candidate_log_probs(teacher, batch, gates, candidates=offered)
    order = np.argsort(-mean, axis=1, kind="stable")
    ordered = {"items": offered, "distances": -mean, "log_prob": total}
    scores = {name: np.take_along_axis(values, order, 1) for name, values in ordered.items()}
    return {**scores, "log_prob": scores["log_prob"][:, 0]}


def to_ranking(teacher: TeacherModel, scores: Scores, *, embeddings: Tensor, count: int) -> Ranking:
    """The best `count` items of each row."""
    if teacher.config.export.method == "generate":
        return _ground(teacher, scores, embeddings, count)
    items, distances = scores["items"], scores["distances"]
    valid = np.ones(len(items), dtype=bool)
    return Ranking(items[:, :count], distances[:, :count], distances[:, [0, -1]], scores["log_prob"], valid)


# --- from answers to items ----------------------------------------------------------------------------------


def _ground(teacher: TeacherModel, scores: Scores, embeddings: Tensor, count: int) -> Ranking:
    """Rank all items by the distance of their embeddings to the answer's; equal answers are ranked once."""
    answers, place = np.unique(scores["answer"], return_inverse=True)
    encoded, device = encode_answers(teacher, answers.tolist(), embeddings), teacher.lm.lora.llm.device
    items, distances, spread = _nearest(encoded.to(device), embeddings.to(device), count)
    known = {_unquoted(title).casefold() for title in teacher.dataset.titles}
    valid = np.array([answer.casefold() in known for answer in answers.tolist()])
    return Ranking(items[place], distances[place], spread[place], scores["log_prob"], valid[place])


def encode_answers(teacher: TeacherModel, answers: list[str], embeddings: Tensor) -> Tensor:
    """Base embeddings of distinct answers, float32 [len(answers), llm_dim]; a title's is looked up."""
    item = {title: i for i, title in enumerate(teacher.dataset.titles)}
    other = [answer for answer in answers if answer not in item]
    table = torch.cat([embeddings, base_embeddings(teacher, other)]) if other else embeddings
    item |= {answer: len(embeddings) + i for i, answer in enumerate(other)}
    return table[[item[answer] for answer in answers]]


def _nearest(queries: Tensor, embeddings: Tensor, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items int64 [N, count] nearest to each query, their distances, and the extremes over all items [N, 2]."""
    # Distances don't change, but squares of what all embeddings have in common would swamp them in float32.
    center = embeddings.mean(0)
    queries, embeddings = queries - center, embeddings - center
    items, distances, spread = [], [], []
    for chunk in queries.split(max(1, _DISTANCES_AT_ONCE // len(embeddings))):
        distance = torch.cdist(chunk, embeddings)
        nearest = distance.topk(min(count, len(embeddings)), largest=False)
        items.append(nearest.indices.cpu().numpy())
        distances.append(nearest.values.cpu().numpy())
        spread.append(torch.stack([distance.min(1).values, distance.max(1).values], 1).cpu().numpy())
    return np.concatenate(items), np.concatenate(distances), np.concatenate(spread)


def _unquoted(text: str) -> str:
    """BIGRec's answers come in quotes, which are no part of a title."""
    return text.strip("\"' ")

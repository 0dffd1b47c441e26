"""How good a teacher is on test rows: answers among fixed candidates, and full ranking the way the export ranks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.foreign.escape import markdown
from src.core.metrics import metrics_from_ranks
from src.student.cost import answer_latency, parameter_counts
from src.student.evaluator import Evaluation
from src.teacher.model import TeacherModel
from src.teacher.scoring.answers import Answers, answer_metrics, generate_answers, named_candidate
from src.teacher.scoring.inference import EVALUATION_TEMPLATE, candidate_items
from src.teacher.scoring.ranking import Ranking, base_embeddings, rank_rows

_SHOWN_ROWS = 20
_SHOWN_ITEMS = 10
_TIMED_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class TeacherEvaluation:
    """A teacher on test rows.

    Attributes:
        answers: see `answer_metrics`; full_ranking: as students are evaluated.
        examples: a Markdown page of prompts and answers.
        cost: parameters, and the time of one ranking.
    """

    answers: dict[str, float]
    full_ranking: Evaluation
    examples: str
    cost: dict[str, object]


def evaluated_rows(rows: Rows, count: int | None) -> np.ndarray:
    """Row numbers to evaluate, the same in every run, `count` at most (None: all): int64 [N], ascending."""
    if count is None or count >= len(rows):
        return np.arange(len(rows))
    return np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))


def evaluate_teacher(teacher: TeacherModel, *, seed: int, ks: list[int]) -> TeacherEvaluation:
    """Evaluate on `teacher.max_eval_rows` test rows; `seed` decides the candidates, `ks` are cut-offs."""
    test, dataset = teacher.dataset.test, teacher.dataset
    index = evaluated_rows(test, teacher.config.max_eval_rows)
    answers = generate_answers(teacher, test, index, seed=seed)
    by_answer = teacher.config.export.method == "generate"
    titles = base_embeddings(teacher, dataset.titles) if by_answer else torch.empty(0)

    def rank(index: np.ndarray) -> Ranking:
        return _rank_as_exported(teacher, index, titles=titles, seed=seed, depth=max(ks))

    ranking = rank(index)
    shown, first = index[:_SHOWN_ROWS], ranking.items[:, :_SHOWN_ITEMS]
    device = teacher.lm.lora.llm.device
    latency = answer_latency(lambda i: rank(index[i : i + 1]), min(_TIMED_ROWS + 1, len(index)), device)
    return TeacherEvaluation(
        answers=answer_metrics(answers),
        full_ranking=full_ranking(ranking, dataset, index=index, ks=ks),
        examples=examples(teacher, test, shown, seed=seed, answers=answers, ranked=first),
        cost=parameter_counts(teacher.lm.lora.model) | latency,
    )


def _rank_as_exported(teacher: TeacherModel, index: np.ndarray, *, titles: Tensor, seed: int, depth: int) -> Ranking:
    """The export's way on test rows, deep enough for `depth` items without the history.

    A prompt that offers the target would give it away, so `sampled` candidates are replaced by retrieved ones.
    """
    config, test = teacher.config, teacher.dataset.test
    longest = int((test.pos - test.start)[index].max())
    by_answer = config.export.method == "generate"
    count = min(depth + longest, teacher.dataset.num_items) if by_answer else config.num_candidates
    candidates = "retrieval" if config.export.candidates == "sampled" else config.export.candidates
    return rank_rows(teacher, test, index, embeddings=titles, seed=seed, candidates=candidates, count=count)


def full_ranking(ranking: Ranking, dataset: SequenceDataset, *, index: np.ndarray, ks: list[int]) -> Evaluation:
    """Metrics of test rows whose rankings hold some items only: a target that is missing counts as last.

    With the history removed, its items above the target don't count (the target never is removed).

    Args:
        index: the test rows int64 [N] that were ranked.
    """
    test = dataset.test
    targets, columns = test.targets[index], np.arange(ranking.items.shape[1])
    found = ranking.items == targets[:, None]
    is_found, place = found.any(1), found.argmax(1)
    seen = [np.setdiff1d(test.history(i), target) for i, target in zip(index, targets, strict=True)]
    seen_above = [np.isin(row[columns < at], s).sum() for row, at, s in zip(ranking.items, place, seen, strict=True)]
    last = dataset.num_items - 1
    better = np.where(is_found, place, last)
    masked = np.where(is_found, place - seen_above, last - np.array([len(s) for s in seen]))
    equal = np.ones_like(better)
    ranks = {"user": test.user[index].astype(np.int64), "target": targets, "better": better, "equal": equal}
    ranks |= {"better_masked": masked, "equal_masked": equal}
    lists = {"metrics": ranking.items[:, : max(ks)], "metrics_masked": _without(ranking.items, seen, max(ks))}
    return Evaluation(metrics_from_ranks(better, equal, ks), metrics_from_ranks(masked, equal, ks), ranks, lists)


def _without(items: np.ndarray, seen: list[np.ndarray], count: int) -> np.ndarray:
    """The first `count` items of each ranking that are not seen, -1 where there are no more: int64 [N, count]."""
    lists = np.full((len(items), count), -1)
    for row, (ranked, out) in enumerate(zip(items, seen, strict=True)):
        left = ranked[~np.isin(ranked, out)][:count]
        lists[row, : len(left)] = left
    return lists


def examples(
    teacher: TeacherModel, rows: Rows, index: np.ndarray, *, seed: int, answers: Answers, ranked: np.ndarray
) -> str:
    """A Markdown page to read: prompts, answers, and the items that the teacher ranks first.

    Args:
        index: row numbers int64 [N], the first of those that `answers` (with this seed) are of.
        ranked: int64 [N, C], best first; made with the export's prompts, which offer other candidates.
    """
    titles, embed = teacher.dataset.titles, teacher.config.reads_items
    lines = ["# Answers of the teacher on test rows", ""]
    for i, offered in enumerate(candidate_items(teacher, rows, index, seed=seed, kind="sampled")):
        history = rows.history(index[i])[-teacher.config.max_history :]
        prompt = teacher.builder.text(history, offered, template=EVALUATION_TEMPLATE, embed=embed)
        chosen = named_candidate(answers.texts[i], answers.candidates[i])
        verdict = "invalid" if chosen is None else "right" if chosen == answers.targets[i] else "wrong"
        lines += [
            f"## Test row {index[i]}: {verdict}",
            f"- prompt: {markdown(prompt)}",
            f"- answer: {markdown(answers.texts[i])}",
            f"- likeliest candidate: {markdown(answers.likeliest[i])}",
            f"- target: {markdown(answers.targets[i])}",
            f"- ranking ({teacher.config.export.method}): {markdown('; '.join(titles[item] for item in ranked[i]))}",
            "",
        ]
    return "\n".join(lines)

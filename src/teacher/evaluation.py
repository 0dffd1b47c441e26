"""How good a teacher is: answers among fixed candidates, and full ranking through the export's path."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.logging import row_progress
from src.core.metrics import metrics_from_ranks
from src.student.evaluator import Evaluation
from src.teacher.export import Ranking
from src.teacher.inference import EVALUATION_TEMPLATE, answer_tokens, candidate_items, candidate_log_probs, run_rows
from src.teacher.prompts import PromptBatch
from src.teacher.training import TeacherParts


@dataclass(frozen=True)
class Answers:
    """Answers: one record per row with its candidates' titles and the target's.

    Attributes:
        texts: what the teacher wrote; likeliest: the candidate whose title it gives the highest probability.
    """

    texts: list[str]
    candidates: list[list[str]]
    targets: list[str]
    likeliest: list[str]


def named_candidate(answer: str, candidates: list[str]) -> str | None:
    """The candidate an answer names: valid iff exactly one title occurs in it (case-folded), else None."""
    text = answer.casefold().strip()
    found = [title for title in candidates if title.casefold().strip() in text]
    return found[0] if len(found) == 1 else None


def answer_metrics(answers: Answers) -> dict[str, float]:
    """HR@1 among the candidates, ValidRatio, and their product, with 95 % Wilson intervals.

    `hr@1` = correct / valid and `valid_ratio` = valid / rows as iLoRA reports them; `hr@1_all` = correct /
    rows is their product. `hr@1_likelihood` counts the rows whose likeliest candidate is the target: it tells a
    teacher that cannot choose from one that cannot spell its choice.
    """
    chosen = [named_candidate(a, c) for a, c in zip(answers.texts, answers.candidates, strict=True)]
    total, valid = len(chosen), sum(c is not None for c in chosen)
    correct = sum(c is not None and c == t for c, t in zip(chosen, answers.targets, strict=True))
    likeliest = sum(c == t for c, t in zip(answers.likeliest, answers.targets, strict=True))
    result = {"num_rows": total, "hr@1": correct / valid if valid else 0.0}
    result["valid_ratio"], result["hr@1_all"] = valid / total, correct / total
    result["hr@1_likelihood"] = likeliest / total
    for name, successes, trials in (
        ("hr@1", correct, valid),
        ("valid_ratio", valid, total),
        ("hr@1_all", correct, total),
        ("hr@1_likelihood", likeliest, total),
    ):
        low, high = _interval(successes, trials)
        result[f"{name}_low"], result[f"{name}_high"] = low, high
    return result


def _interval(successes: int, trials: int) -> tuple[float, float]:
    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def generate_answers(parts: TeacherParts, rows: Rows, index: np.ndarray, seed: int) -> Answers:
    """Let the teacher answer rows with the target among fixed random candidates, markers carrying embeddings."""
    if len(index) == 0:  # the share of a process where there are more processes than rows
        return Answers([], [], [], [])
    builder, titles = parts.builder, np.array(parts.dataset.titles, dtype=object)
    candidates = candidate_items(parts, rows, index, seed, "sampled")

    def answer(batch: PromptBatch, gates: Tensor, offered: np.ndarray) -> dict[str, np.ndarray]:
        texts, _ = parts.engine.generate(batch, gates, builder.tokenizer, builder.newline_id)
        log_probs, _ = candidate_log_probs(parts, batch, gates, offered)
        likeliest = np.take_along_axis(offered, log_probs.argmax(1)[:, None], 1)[:, 0]
        return {"text": np.array(texts, dtype=object), "likeliest": likeliest}

    with row_progress("answers", len(index)) as advance:
        done = run_rows(parts, rows, index, candidates, answer, answer_tokens(parts, candidates), advance)
    return Answers(
        done["text"].tolist(),
        titles[candidates].tolist(),
        titles[rows.targets[index]].tolist(),
        titles[done["likeliest"]].tolist(),
    )


def full_ranking(ranking: Ranking, dataset: SequenceDataset, index: np.ndarray, ks: list[int]) -> Evaluation:
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
    return Evaluation(metrics_from_ranks(better, equal, ks), metrics_from_ranks(masked, equal, ks), ranks)


def examples(
    parts: TeacherParts, rows: Rows, index: np.ndarray, seed: int, answers: Answers, ranked: np.ndarray
) -> str:
    """A Markdown page to read: prompts, answers, and the items that the teacher ranks first.

    Args:
        index: row numbers int64 [N], the first of those that `answers` (with this seed) are of.
        ranked: int64 [N, C], best first; made with the export's prompts, which offer other candidates.
    """
    titles = parts.dataset.titles
    lines = ["# Answers of the teacher on test rows", ""]
    for i, offered in enumerate(candidate_items(parts, rows, index, seed, "sampled")):
        history = rows.history(index[i])[-parts.config.max_history :]
        chosen = named_candidate(answers.texts[i], answers.candidates[i])
        verdict = "invalid" if chosen is None else "right" if chosen == answers.targets[i] else "wrong"
        lines += [
            f"## Test row {index[i]}: {verdict}",
            f"- prompt: {parts.builder.text(history, offered, EVALUATION_TEMPLATE, embed=True)}",
            f"- answer: {answers.texts[i]}",
            f"- likeliest candidate: {answers.likeliest[i]}",
            f"- target: {answers.targets[i]}",
            f"- ranking ({parts.config.export.method}): {'; '.join(titles[item] for item in ranked[i])}",
            "",
        ]
    return "\n".join(lines)

"""What the teacher answers when the target is among fixed candidates, and how often it is right."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from src.core.data_utils import Rows
from src.core.logging import row_progress
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBatch
from src.teacher.scoring.inference import answer_tokens, candidate_items, candidate_log_probs, run_rows


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
    from scipy.stats import binomtest  # seconds that reading settings and training need not wait for

    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def generate_answers(teacher: TeacherModel, rows: Rows, index: np.ndarray, *, seed: int) -> Answers:
    """Let the teacher answer rows with the target among fixed random candidates, markers carrying embeddings."""
    if len(index) == 0:  # the share of a process where there are more processes than rows
        return Answers([], [], [], [])
    builder, titles = teacher.builder, np.array(teacher.dataset.titles, dtype=object)
    candidates = candidate_items(teacher, rows, index, seed=seed, kind="sampled")

    def answer(batch: PromptBatch, gates: Tensor, offered: np.ndarray) -> dict[str, np.ndarray]:
        texts, _ = teacher.lm.generate(batch, gates, tokenizer=builder.tokenizer, newline_id=builder.newline_id)
        log_probs, _ = candidate_log_probs(teacher, batch, gates, candidates=offered)
        likeliest = np.take_along_axis(offered, log_probs.argmax(1)[:, None], 1)[:, 0]
        return {"text": np.array(texts, dtype=object), "likeliest": likeliest}

    with row_progress("answers", len(index)) as advance:
        done = run_rows(
            teacher,
            rows,
            index,
            candidates=candidates,
            work=answer,
            extra_tokens=answer_tokens(teacher, candidates),
            advance=advance,
        )
    return Answers(
        done["text"].tolist(),
        titles[candidates].tolist(),
        titles[rows.targets[index]].tolist(),
        titles[done["likeliest"]].tolist(),
    )

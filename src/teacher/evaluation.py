"""How good a teacher is: answers among fixed candidates, and full ranking through the export's path."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest

from src.core.data_utils import Rows
from src.core.logging import progress_bar
from src.teacher.sampling import fixed_candidates
from src.teacher.training import TeacherParts

EVALUATION_TEMPLATE = 0


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


@torch.no_grad()
def generate_answers(parts: TeacherParts, rows: Rows, index: np.ndarray, seed: int) -> Answers:
    """Let the teacher answer rows with the target among fixed random candidates, markers carrying embeddings."""
    config, lora = parts.config, parts.engine.lora
    texts, titles, targets, likeliest = [], [], [], []
    with progress_bar() as bar:
        task = bar.add_task("answers", total=len(index), info="")
        for begin in range(0, len(index), config.export.batch_size):
            batch = index[begin : begin + config.export.batch_size]
            histories = [rows.history(i) for i in batch]
            candidates = fixed_candidates(
                seed, batch, parts.dataset.num_items, config.num_candidates, histories, rows.targets[batch]
            )
            prompts = [
                parts.builder.prompt(h[-config.max_history :], c, EVALUATION_TEMPLATE, embed=True)
                for h, c in zip(histories, candidates, strict=True)
            ]
            gates = lora.router(parts.recommender.users(rows, batch))
            prompt_batch = parts.builder.batch(prompts).to(lora.llm.device)
            texts += parts.engine.generate(prompt_batch, gates, parts.builder.tokenizer, parts.builder.newline_id)[0]
            choices = [[parts.builder.answer(int(item)) for item in row] for row in candidates]
            log_probs, _ = parts.engine.candidate_log_probs(prompt_batch, gates, choices)
            best = log_probs.argmax(1).cpu().numpy()
            likeliest += [parts.dataset.titles[i] for i in candidates[np.arange(len(batch)), best]]
            titles += [[parts.dataset.titles[i] for i in row] for row in candidates]
            targets += [parts.dataset.titles[i] for i in rows.targets[batch]]
            bar.update(task, advance=len(batch))
    return Answers(texts, titles, targets, likeliest)

"""Rows through the LLM: what their prompts offer, and batches that are full of tokens."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows
from src.core.errors import UserError
from src.teacher.model import TeacherModel
from src.teacher.prompt.batching import token_batches
from src.teacher.prompt.builder import Prompt, PromptBatch
from src.teacher.prompt.candidates import fixed_candidates

EVALUATION_TEMPLATE = 0
CHUNK_ROWS = 1024  # whose prompts are in memory at once
_SCORES_AT_ONCE = 1 << 28  # of rows and items, 1 GiB: of large catalogues fewer rows' scores are

Work = Callable[[PromptBatch, Tensor, np.ndarray], dict[str, np.ndarray]]


def candidate_items(teacher: TeacherModel, rows: Rows, index: np.ndarray, *, seed: int, kind: str) -> np.ndarray:
    """What the prompts offer, in an order that depends on seed and row only: int64 [N, C], C = 0 for `none`.

    `retrieval` takes the frozen recommender's best items outside the history: the target plays no part.
    `sampled` takes the target and random items, as iLoRA does.
    """
    count = teacher.config.num_candidates
    if kind == "none":
        return np.empty((len(index), 0), dtype=np.int64)
    if kind == "sampled":
        return fixed_candidates(seed, rows, index, num_items=teacher.dataset.num_items, count=count)
    chunks = _chunks(index, max(1, _SCORES_AT_ONCE // teacher.dataset.num_items))
    best = np.concatenate([teacher.recommender.retrieve(rows, chunk, count) for chunk in chunks])
    return np.stack([np.random.default_rng([seed, int(i)]).permutation(c) for i, c in zip(index, best, strict=True)])


@torch.no_grad()
def run_rows(
    teacher: TeacherModel,
    rows: Rows,
    index: np.ndarray,
    *,
    candidates: np.ndarray,
    work: Work,
    extra_tokens: np.ndarray,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Do `work` for rows in batches of at most `teacher.export.batch_tokens`, similar lengths together.

    Args:
        index: row numbers int64 [N]; candidates: int64 [N, C] in the prompts.
        work: from prompts, gates float [B, num_experts] and candidates [B, C] to arrays of length B.
        extra_tokens: int [N], what `work` lets the LLM read besides a row's prompt.
        advance: called with the number of rows done.

    Returns:
        The arrays of `work`, N long, in the order of `index`.

    Raises:
        UserError: the GPU's memory is too small for a batch.
    """
    results, places = [], []
    for chunk in _chunks(np.arange(len(index))):
        prompts = _prompts(teacher, rows, index[chunk], candidates[chunk])
        gates = teacher.lm.lora.router(teacher.recommender.users(rows, index[chunk]))
        lengths = np.array([len(prompt.ids) for prompt in prompts]) + extra_tokens[chunk]
        for batch in token_batches(lengths, teacher.config.export.batch_tokens):
            prompt_batch = teacher.builder.batch([prompts[i] for i in batch]).to(gates.device)
            try:
                results.append(work(prompt_batch, gates[torch.from_numpy(batch)], candidates[chunk[batch]]))
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(
                    f"teacher.export.batch_tokens={teacher.config.export.batch_tokens}: {len(batch)} rows of up to "
                    f"{lengths[batch].max()} tokens do not fit into the GPU's memory; lower it (rows already exported "
                    "are kept)"
                ) from error
            places.append(chunk[batch])
            advance(len(batch))
    order = np.argsort(np.concatenate(places))
    return {name: np.concatenate([result[name] for result in results])[order] for name in results[0]}


def _prompts(teacher: TeacherModel, rows: Rows, index: np.ndarray, candidates: np.ndarray) -> list[Prompt]:
    last, embed = teacher.config.max_history, teacher.config.reads_items
    return [
        teacher.builder.prompt(rows.history(i)[-last:], offered, template=EVALUATION_TEMPLATE, embed=embed)
        for i, offered in zip(index, candidates, strict=True)
    ]


def answer_tokens(teacher: TeacherModel, candidates: np.ndarray) -> np.ndarray:
    """Tokens of all candidates' answers together, int64 [N]."""
    return np.array([sum(len(teacher.builder.answer(item)) for item in row) for row in candidates.tolist()], dtype=int)


def candidate_log_probs(
    teacher: TeacherModel, batch: PromptBatch, gates: Tensor, *, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and mean of the log-probabilities of the candidates' answer tokens: float32 [B, C] each."""
    answers = [[teacher.builder.answer(item) for item in row] for row in candidates.tolist()]
    total, mean = teacher.lm.candidate_log_probs(batch, gates, answers)
    return total.cpu().numpy(), mean.cpu().numpy()


def _chunks(index: np.ndarray, most: int = CHUNK_ROWS) -> list[np.ndarray]:
    step = min(most, CHUNK_ROWS)
    return [index[begin : begin + step] for begin in range(0, len(index), step)]

"""The teacher's learning-rate schedule and curriculum."""

import math

_WARMUP = 0.05
_FLOOR = 0.01


def learning_rate_factor(step: int, total_steps: int) -> float:
    """Linear warm-up over 5 % of the steps from 1/100, then a cosine down to 1/100 (iLoRA@28e4737).

    >>> learning_rate_factor(0, 100), learning_rate_factor(5, 100), round(learning_rate_factor(100, 100), 6)
    (0.01, 1.0, 0.01)
    """
    warmup = max(1, int(total_steps * _WARMUP))
    if step < warmup:
        return _FLOOR + (1 - _FLOOR) * step / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def embedding_probability(step: int, total_steps: int) -> float:
    """Curriculum: how likely a batch's markers carry item embeddings, from 0 at the start to 1 at the end.

    Counted over the whole training (upstream restarts the count in every epoch and data worker).
    """
    return (step + 1) / total_steps

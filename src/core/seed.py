"""One place that fixes every random state."""

import random
from typing import Any

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seed Python, numpy and PyTorch (CPU and every GPU).

    Results repeat bit for bit on one CPU with one thread count. On a GPU some kernels add in a varying
    order; runs then agree to rounding only.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def random_state() -> dict[str, Any]:
    """The states of all that `set_seed` seeds, as tensors and plain values."""
    numpy = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": (numpy["bit_generator"], keys, numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Go on from `random_state`; GPUs only where there are as many as then."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for one purpose.

    What draws from it (a projection's start values, say) leaves the global stream untouched, so that a run
    with it and a run without it see the same shuffles and the same dropout.
    """
    offset = sum(ord(char) * 31**i for i, char in enumerate(purpose)) % 2**31
    return torch.Generator().manual_seed(seed * 2**31 + offset)

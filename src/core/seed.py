"""One place that fixes every random state."""

import random

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


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for one purpose.

    What draws from it (a projection's start values, say) leaves the global stream untouched, so that a run
    with it and a run without it see the same shuffles and the same dropout.
    """
    offset = sum(ord(char) * 31**i for i, char in enumerate(purpose)) % 2**31
    return torch.Generator().manual_seed(seed * 2**31 + offset)

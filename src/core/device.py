"""Which device a run computes on."""

import logging
import os

import torch

from src.core.errors import UserError


def resolve_device(name: str, logger: logging.Logger) -> torch.device:
    """The device behind `general.device`; CUDA falls back to the CPU where there is none.

    Raises:
        UserError: the name is no device, or a CUDA index that this machine does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"general.device={name}: not a device; use cpu, cuda or cuda:<index>") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"general.device={name}: only cpu and cuda:<index> are supported")
    if not torch.cuda.is_available():
        logger.warning("general.device=%s, but PyTorch sees no CUDA here: running on the CPU", name)
        return torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # `accelerate launch`: a GPU for each process
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(
            f"general.device={name}: this machine has {count} CUDA device(s); "
            f"use an index from 0 to {count - 1}, or cpu"
        )
    return device

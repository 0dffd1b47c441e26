"""Which device a run computes on."""

import ctypes
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from src.core.errors import UserError

_CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # flags of a processor that multiplies it
_CPU_INFO = Path("/proc/cpuinfo")
# Of PyTorch on a GPU and on a CPU, and of NumPy.
_ASKED_FOR = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)", re.I)


def resolve_device(name: str, logger: logging.Logger) -> torch.device:
    """The device behind `general.device`; CUDA falls back to the CPU where there is none.

    On a CPU this process keeps the memory that it frees, see below.

    Raises:
        UserError: the name is no device, or a CUDA index that this machine does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"general.device={name}: not a device; use cpu, cuda or cuda:<index>") from error
    if device.type == "cpu":
        keep_freed_memory()
        return device
    if device.type != "cuda":
        raise UserError(f"general.device={name}: only cpu and cuda:<index> are supported")
    if not torch.cuda.is_available():
        logger.warning("general.device=%s, but PyTorch sees no CUDA here: running on the CPU", name)
        return resolve_device("cpu", logger)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # `accelerate launch`: a GPU for each process
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(
            f"general.device={name}: this machine has {count} CUDA device(s); "
            f"use an index from 0 to {count - 1}, or cpu"
        )
    return device


# mallopt's numbers of its parameters, as malloc.h has them
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let freed memory, up to 1 GiB of it, wait for the next step; returns whether this C library can.

    glibc gives blocks above 32 MB back to the system at once, which hands out zeroed pages, one fault for each 4 kB,
    when the next step asks for as much: half the time of a cross-entropy over 12,101 items went there. A GPU's memory
    is cached by PyTorch itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it; a processor without them takes ten times as long as for float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = _CPU_INFO.read_text(encoding="utf-8", errors="replace").split() if _CPU_INFO.is_file() else []
    return not _CPU_BFLOAT16.isdisjoint(flags)


@contextmanager
def within_memory(what: str, advice: str) -> Iterator[None]:
    """What is done in the block needs memory, of a GPU or of the machine.

    Args:
        what: the settings and sizes that decide how much; advice: what to lower.

    Raises:
        UserError: there is not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # a GPU's OutOfMemoryError is a RuntimeError, as that of a CPU
        asked = _ASKED_FOR.search(str(error))
        if asked is None and not isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
            raise
        more = f" ({_size(*asked.groups())} more were asked for)" if asked else ""
        raise UserError(f"{what}: the memory does not suffice{more}; {advice}") from error


def _size(number: str, unit: str) -> str:
    return f"{int(number) / 2**30:,.2f} GiB" if unit == "bytes" else f"{number} {unit}"

"""Arrays of strangers (`.npy`, `.npz`): what a header announces is compared with the file before memory is taken."""

import io
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from src.core.errors import UserError
from src.core.foreign.archives import open_archive

_MAX_HEADER: Final = 10_000  # numpy's own bound
_MAX_WIDTH: Final = 1 << 20  # of an array without rows
_HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _DamagedArray(ValueError):
    """The bytes are no array of numbers or text, or of another size than their header announces."""


def read_array(path: Path, *, max_bytes: int, advice: str) -> np.ndarray:
    """Read a `.npy`.

    Args:
        max_bytes: what the array may take; the caller knows how many rows there are.
        advice: what to do where the file is damaged.

    Raises:
        UserError: missing, damaged, an array of Python objects, or larger than `max_bytes`.
    """
    with _damage_named(path, advice), path.open("rb") as file:
        return _array(file.read(max_bytes + _MAX_HEADER), max_bytes)


def read_arrays(
    path: Path, names: Iterable[str] | None = None, *, max_bytes: int | None, advice: str
) -> dict[str, np.ndarray]:
    """Read a `.npz`.

    Args:
        names: the arrays to read; None for all that are there.
        max_bytes: what they may take together; None for a file of `np.savez`, which is not compressed and so no
            smaller than its arrays.
        advice: what to do where the file is damaged.

    Raises:
        UserError: missing, damaged, without one of `names`, arrays of Python objects, or larger than `max_bytes`.
    """
    arrays: dict[str, np.ndarray] = {}
    with _damage_named(path, advice), open_archive(path, compressed=max_bytes is not None) as archive:
        left = path.stat().st_size if max_bytes is None else max_bytes
        for name in [member.removesuffix(".npy") for member in archive.sizes] if names is None else names:
            if f"{name}.npy" not in archive.sizes:
                raise UserError(f"{path}: holds no array {name}; {advice}")
            arrays[name] = _array(archive.read(f"{name}.npy", left + _MAX_HEADER), left)
            left -= arrays[name].nbytes
    return arrays


def map_array(path: Path, *, advice: str) -> np.ndarray:
    """A `.npy` of numbers that stays in its file: what is read of it lies in memory as long as there is room.

    What is written into it changes memory only.

    Args:
        advice: what to do where the file is damaged.

    Raises:
        UserError: missing, damaged, or no array of numbers.
    """
    with _damage_named(path, advice):
        with path.open("rb") as file:
            shape, fortran, dtype, start = _header(file.read(_MAX_HEADER + 20))
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biuf" or fortran or min(shape, default=0) < 0 or size != path.stat().st_size - start:
            raise _DamagedArray(f"it announces an array of {dtype} of shape {shape}, which the file does not hold")
        return np.asarray(np.memmap(path, dtype, "c", start, shape))


@contextmanager
def _damage_named(path: Path, advice: str) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path}: missing file; {advice}")
    try:
        yield
    except (OSError, ValueError) as error:  # those of this folder, and numpy's
        raise UserError(f"{path}: not an array file, or a damaged one ({error}); {advice}") from error


def _array(content: bytes | bytearray, max_bytes: int) -> np.ndarray:
    """The array in the bytes of a `.npy`, in memory of its own."""
    shape, fortran, dtype, start = _header(content)
    if dtype.hasobject or dtype.itemsize == 0:
        raise _DamagedArray(f"it holds {dtype}, numbers and text are read")
    size = math.prod(shape) * dtype.itemsize
    if not all(0 <= length <= max(max_bytes, _MAX_WIDTH) for length in shape) or size > max_bytes:
        raise _DamagedArray(f"it announces an array of shape {shape}, at most {max_bytes} bytes are expected")
    if size != len(content) - start:
        raise _DamagedArray(f"it announces {size} bytes of numbers and has {len(content) - start}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C").copy("K")


def _header(content: bytes | bytearray) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, dtype, and where the numbers begin."""
    stream = io.BytesIO(content[: _MAX_HEADER + 20])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            read = _HEADERS[np.lib.format.read_magic(stream)]
            shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)  # type: ignore[call-arg]  # not in the stubs
    except Exception as error:  # the header is a Python literal: a damaged one raises nearly anything
        raise _DamagedArray(f"no header of an array: {error}"[:200]) from None
    return shape, fortran, dtype, stream.tell()

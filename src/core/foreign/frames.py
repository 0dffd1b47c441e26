"""Pickled pandas tables, as their lists and arrays lie in the pickle: neither pandas nor numpy restores an object."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from src.core.errors import UserError
from src.core.foreign.pickles import MAX_BYTES, DamagedPickle, Record, RefusedName, load_pickle
from src.core.foreign.text import DAMAGED, open_unzipped

_MAX_CELLS: Final = 10_000_000
_NUMBERS: Final = re.compile(r"[biuf][1248]")

# What pandas 1.0 to 3.0 write for tables of numbers, text and lists, with numpy 1 (`core`) and 2 (`_core`).
_NAMES: Final = frozenset(
    {
        "builtins.slice",
        "__builtin__.slice",
        "functools.partial",
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
        *(f"{module}.DataFrame" for module in ("pandas", "pandas.core.frame")),
        *(f"{module}.Index" for module in ("pandas", "pandas.core.indexes.base")),
        *(f"{module}.RangeIndex" for module in ("pandas", "pandas.core.indexes.range")),
        "pandas.core.indexes.base._new_Index",
        "pandas.core.indexes.numeric.Int64Index",
        "pandas.core.internals.managers.BlockManager",
        "pandas.core.internals.blocks.new_block",
        "pandas._libs.internals._unpickle_block",
        "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked",
        "pandas.StringDtype",
        "pandas.arrays.StringArray",
        "pandas.arrays.ArrowStringArray",
        "pyarrow.lib._restore_array",
        "pyarrow.lib.py_buffer",
        "pyarrow.lib.type_for_alias",
    }
)


def read_pickled_frame(path: Path) -> dict[str, list]:
    """Read a pickled pandas DataFrame without executing anything that the file names.

    Returns:
        Column name -> values, as Python lists.

    Raises:
        UserError: not a pickle (protocol 2 to 5) of such a table, or one of more than ten million cells.
    """
    try:
        with open_unzipped(path) as file:
            data = file.read(MAX_BYTES + 1)
        return _columns(load_pickle(data, _NAMES.__contains__).value)
    except RefusedName as error:
        raise UserError(
            f"{path}: the pickle names {error.name}, which a table of windows does not need; it was not executed: get "
            "the file from its original source"
        ) from None
    except DamagedPickle as error:
        raise UserError(f"{path}: not a readable pickle of a pandas table ({error})") from None
    except DAMAGED as error:
        raise UserError(f"{path}: damaged ({error}); replace it by a complete copy") from None
    except (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise UserError(f"{path}: not a readable pickle of a pandas table ({reason})") from None


def _columns(frame: Any) -> dict[str, list]:
    """Values by column; every block holds some columns, `positions` are theirs in the list of names."""
    if type(frame) is not Record or not frame.name.endswith(".DataFrame"):
        raise DamagedPickle(f"it holds {frame.name if type(frame) is Record else type(frame).__name__}")
    names, blocks = _names_and_blocks(frame.state)
    columns: dict[str, list] = {}
    cells = 0
    for values, positions in blocks:
        rows = _rows(values)
        cells += len(rows) * max((len(row) for row in rows), default=0)
        if len(rows) != len(positions) or cells > _MAX_CELLS:
            raise DamagedPickle(f"a block of {len(rows)} columns at {len(positions)} places, {cells} cells so far")
        columns.update(zip((names[position] for position in positions), rows, strict=True))
    return {name: columns[name] for name in names}


def _names_and_blocks(state: dict[str, Any]) -> tuple[list[str], Iterator[tuple[Record, Sequence[int]]]]:
    manager = state["_mgr"] if "_mgr" in state else state["_data"]  # the latter before pandas 1.1
    if manager.args:
        blocks, axes = manager.args[:2]
        parts = [block.args[:2] for block in blocks]
    else:  # before pandas 1.3
        saved = manager.state[3]["0.14.1"]
        axes, parts = saved["axes"], [(block["values"], block["mgr_locs"]) for block in saved["blocks"]]
    names = _values(axes[0].args[1]["data"])
    if not all(type(name) is str for name in names):
        raise DamagedPickle("a column whose name is no text")
    return names, ((values, _positions(place, len(names))) for values, place in parts)


def _positions(place: Record, count: int) -> Sequence[int]:
    if not place.name.endswith(".slice"):
        return _values(place)
    positions = range(*place.args)
    if len(positions) > count:
        raise DamagedPickle(f"a block of {len(positions)} columns, the table has {count}")
    return positions


def _rows(array: Record) -> list[list]:
    """The values of an array [k, n], or of one that is pandas' own and has one column."""
    shape, values = _shape_and_values(array)
    if len(shape) == 1:
        return [values]
    rows, columns = shape
    return [values[i * columns : (i + 1) * columns] for i in range(rows)]


def _values(array: Record) -> list:
    return _shape_and_values(array)[1]


def _shape_and_values(array: Record) -> tuple[tuple[int, ...], list]:
    """Shape, and the values in C order."""
    if array.name.endswith("__pyx_unpickle_NDArrayBacked"):  # text in pandas 3: dtype and numpy array
        return _shape_and_values(next(part for part in array.state if part.name.endswith("._reconstruct")))
    if array.name.endswith(".ArrowStringArray"):
        texts = _arrow_texts(array.state["_pa_array"])
        return (len(texts),), texts
    if array.name.endswith("._frombuffer"):
        data, dtype, shape, order = array.args
    else:
        _, shape, dtype, fortran, data = array.state
        order = "F" if fortran else "C"
    _check_shape(shape, data, dtype)
    if type(data) is list:  # an array of Python objects
        return shape, _in_c_order(data, shape, order)
    return shape, np.frombuffer(data, _number_type(dtype)).reshape(shape, order=order).ravel("C").tolist()


def _check_shape(shape: tuple[int, ...], data: list | bytes, dtype: Record) -> None:
    if type(shape) is not tuple or len(shape) not in (1, 2) or not all(type(n) is int and n >= 0 for n in shape):
        raise DamagedPickle("an array whose shape is none")
    if max(shape) > _MAX_CELLS or math.prod(shape) > _MAX_CELLS:
        raise DamagedPickle(f"an array of shape {shape}, at most {_MAX_CELLS} cells are read")
    held = len(data) if type(data) is list else len(data) // _number_type(dtype).itemsize
    if held != math.prod(shape):
        raise DamagedPickle(f"an array of shape {shape} that holds {held} values")


def _number_type(dtype: Record) -> np.dtype:
    """Booleans, integers and floats, in the byte order that the dtype's state has behind its version."""
    kind = dtype.args[0]
    if not _NUMBERS.fullmatch(kind):
        raise DamagedPickle(f"an array of {kind[:20]!r}; numbers, text and lists are read")
    order = dtype.state[1] if dtype.state else "="
    return np.dtype(("=" if order == "|" else order) + kind)


def _in_c_order(data: list, shape: tuple[int, ...], order: str) -> list:
    if order == "C" or len(shape) == 1:
        return data
    rows = shape[0]
    return [value for row in range(rows) for value in data[row::rows]]


def _arrow_texts(array: Record) -> list[str]:
    """Text as Arrow has it: offsets into one buffer of UTF-8."""
    kind, length, nulls, skipped, (_, offsets, data), *_ = array.args[0]
    width = {"string": "<i4", "large_string": "<i8"}[kind.args[0]]
    if nulls or skipped or not 0 <= length <= _MAX_CELLS:
        raise DamagedPickle("text with gaps")
    ends = np.frombuffer(offsets.args[0], width)[: length + 1].tolist()
    text = data.args[0]
    if len(ends) != length + 1 or ends != sorted(ends) or ends[0] < 0 or ends[-1] > len(text):
        raise DamagedPickle("text whose offsets lie outside of it")
    return [text[start:end].decode() for start, end in itertools.pairwise(ends)]

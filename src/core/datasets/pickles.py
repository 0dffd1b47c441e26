"""A safe reader of pickled pandas tables: nothing that a file names is executed."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from src.core.datasets.base import shorten
from src.core.errors import UserError

# Unpickling a file runs whatever code the file names. The frames are therefore read into these inert records:
# no class or function of pandas or numpy is reached, and a name that is not in the table is an error.


class _Record:
    """Stands for any object of a pickle: remembers what it was built from and does nothing."""

    def __new__(cls, *args: Any) -> "_Record":
        record = super().__new__(cls)
        record.args = args
        record.state = None
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_in(name: str) -> type[_Record]:
    return type(name, (_Record,), {})


_Frame, _Manager, _Block = _stand_in("DataFrame"), _stand_in("BlockManager"), _stand_in("_unpickle_block")
_NewIndex, _Index, _RangeIndex = _stand_in("_new_Index"), _stand_in("Index"), _stand_in("RangeIndex")
_Reconstruct, _FromBuffer = _stand_in("_reconstruct"), _stand_in("_frombuffer")
_Ndarray, _Dtype, _Slice = _stand_in("ndarray"), _stand_in("dtype"), _stand_in("slice")

_ADMITTED = {
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.indexes.base", "_new_Index"): _NewIndex,
    ("pandas.core.indexes.base", "Index"): _Index,
    ("pandas.core.indexes.range", "RangeIndex"): _RangeIndex,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("builtins", "slice"): _Slice,
}


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, path: Path, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"{self._path}: the pickle names {module}.{name}, which a table of windows does not need; "
                "it was not executed: get the file from its original source"
            )
        return _ADMITTED[module, name]


def read_pickled_frame(path: Path) -> dict[str, list]:
    """Reads a pickled pandas DataFrame without executing anything that the file names.

    Returns:
        Column name -> values, as Python lists.
    """
    try:
        with path.open("rb") as file:
            frame = _InertUnpickler(path, file).load()
        return _frame_columns(frame)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        kind = type(error).__name__
        raise UserError(f"{path}: not a readable pickle of a pandas table ({kind}: {shorten(str(error))})") from None


def _frame_columns(frame: _Record) -> dict[str, list]:
    """Values by column. A frame holds _mgr = (blocks, [columns, rows]), each block with some columns."""
    blocks, axes = frame.state["_mgr"].args[:2]
    names = _array_rows(axes[0].args[1]["data"])
    columns: dict[str, list] = {}
    for block in blocks:
        values, placement = block.args[:2]
        by_slice = isinstance(placement, _Slice)
        positions = range(*placement.args) if by_slice else _array_rows(placement)
        columns.update(zip((names[i] for i in positions), _array_rows(values), strict=True))
    return {name: columns[name] for name in names}


def _array_rows(array: _Record) -> list:
    """The first axis of a pickled ndarray as lists, for shapes [n] and [k, n]."""
    if isinstance(array, _FromBuffer):
        data, dtype, shape, order = array.args
    else:
        _, shape, dtype, fortran, data = array.state
        order = "F" if fortran else "C"
    if isinstance(data, list):  # an array of Python objects
        return data if len(shape) == 1 else _unflatten(data, shape, order)
    byte_order = dtype.state[1] if dtype.state else "|"
    kind = np.dtype(byte_order.replace("|", "=") + dtype.args[0])
    return np.frombuffer(data, dtype=kind).reshape(shape, order=order).tolist()


def _unflatten(data: list, shape: tuple[int, int], order: str) -> list:
    rows, columns = shape
    if order == "F":
        return [data[i::rows] for i in range(rows)]
    return [data[i * columns : (i + 1) * columns] for i in range(rows)]

"""Files of `torch.save`, read without torch's own loader: plain containers and tensors, nothing else.

`torch.load(..., weights_only=True)` (torch 2.3) hands an archive that holds `constants.pkl` to TorchScript, and
allocates what a tensor announces. Here both layouts, the zip archive and the one before torch 1.6, are taken apart by
hand: the pickle becomes containers and records (`pickles`), the numbers are copied from the file, and a tensor that
does not lie within its numbers is refused.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.foreign.archives import open_archive
from src.core.foreign.pickles import MAX_BYTES, DamagedPickle, Loaded, Name, Record, Reference, RefusedName, load_pickle

_STORAGES: Final = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
_DTYPES: Final = {str(dtype): dtype for dtype in _STORAGES.values()}
_DICTIONARY, _SIZE = "collections.OrderedDict", "torch.Size"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_NAMES: Final = frozenset({*_STORAGES, *_DTYPES, _DICTIONARY, _SIZE, _TENSOR, _PARAMETER})

_ZIP, _LFS = b"PK\x03\x04", b"version https://git-lfs"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the layout before torch 1.6
_MAX_TENSORS: Final = 100_000
_MAX_DIMENSIONS: Final = 32
_MAX_WIDTH: Final = 1 << 20  # of a tensor that is empty, such as [0, 768]
_ADVICE: Final = "get the file from its original source"
_OTHERWISE: Final = (  # what people save under these names, and how to save it so that it can be read
    (r"torch\._utils\._rebuild_sparse", "a sparse tensor; save it with .to_dense()"),
    (r"torch\._utils\._rebuild_qtensor", "a quantised tensor; save it with .dequantize()"),
    (r"numpy\.", "a numpy array or number; save torch.from_numpy(array), or numbers of Python"),
    (r"torch\.nn\.|__main__\.", "a module, that is a class with code; save its state_dict()"),
)


class _DamagedFile(ValueError):
    """Not a file of `torch.save`, or one that no sound program would write."""


def check_fits(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], advice: str) -> None:
    """Compare names and shapes of weights that were read from `path` with those of a model.

    Raises:
        UserError: naming the first that differs, and `advice`.
    """
    for name in sorted(wanted.keys() | state.keys()):
        have = tuple(state[name].shape) if name in state else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != want:
            raise UserError(f"{path}: {name} holds {have}, this model wants {want}; {advice}")


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote: tensors, on the CPU, in dictionaries, lists and tuples, with numbers, text and bytes.

    Tensors that shared memory do so again, parameters are parameters, and `OrderedDict`, `torch.Size` and dtypes are
    what they were.

    Raises:
        UserError: missing or damaged, or it holds anything else; nothing that the file names was executed.
    """
    return read_saved(path, lambda _: False)


def read_saved(path: Path, admits: Callable[[str], bool]) -> Any:
    """As `read_tensors`, where `admits` says which other `module.name` may occur; they stay `Name` and `Record`."""
    if not path.is_file():
        raise UserError(f"{path}: missing file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
        if start == _LFS:
            raise UserError(f"{path}: a Git LFS pointer instead of the file; run `git lfs pull` where it comes from")
        return (_read_zip if start.startswith(_ZIP) else _read_legacy)(path, lambda n: n in _NAMES or admits(n))
    except RefusedName as error:
        raise UserError(f"{path}: {_refusal(error.name)}") from None
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # of calls: their arguments
        raise UserError(f"{path}: a damaged file, or not a file written by torch.save ({error}); {_ADVICE}") from None


def _refusal(name: str) -> str:
    for pattern, what in _OTHERWISE:
        if re.match(pattern, name):
            return f"holds {what} (the pickle names {name}; it was not executed)"
    return f"the pickle names {name}, which tensors do not need; it was not executed: {_ADVICE}"


# --- the two layouts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of some tensors lie: what a persistent id of torch says."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def size(self) -> int:
        return self.length * self.dtype.itemsize


def _read_zip(path: Path, admits: Callable[[str], bool]) -> Any:
    """`<name>/data.pkl` and a stored member `<name>/data/<key>` per storage."""
    with open_archive(path, compressed=False) as archive:
        pickles = [name for name in archive.sizes if re.fullmatch("[^/]+/data.pkl", name)]
        if len(pickles) != 1:
            raise _DamagedFile(f"an archive with {len(pickles)} data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in archive.sizes:
            raise _DamagedFile("a TorchScript archive, which is a program; save the module's state_dict()")
        order = archive.read(f"{root}byteorder", 10) if f"{root}byteorder" in archive.sizes else b"little"
        if order != b"little":
            raise _DamagedFile("numbers in another byte order")
        loaded = load_pickle(archive.read(pickles[0], MAX_BYTES), admits)
        storages = _declared(loaded, path.stat().st_size)
        for storage in storages.values():  # all are looked at before memory is taken for one
            archive.size(f"{root}data/{storage.key}", storage.size)
        numbers = {key: _memory(storage) for key, storage in storages.items()}
        for key, (_, target) in numbers.items():
            archive.read_into(f"{root}data/{key}", target)
    return _Builder(numbers).build(loaded.value)


def _read_legacy(path: Path, admits: Callable[[str], bool]) -> Any:
    """Five pickles (magic number, version, machine, value, order of storages), then each storage behind its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(MAX_BYTES)
        try:
            magic = load_pickle(head[:100], lambda _: False)
            version = load_pickle(head[:200], lambda _: False, magic.end)
        except (DamagedPickle, RefusedName):
            raise _DamagedFile("neither a zip archive nor the layout before torch 1.6") from None
        if magic.value != _MAGIC or version.value != _PROTOCOL:
            raise _DamagedFile("a pickle, but not one of torch.save")
        machine = load_pickle(head, lambda _: False, version.end)
        if type(machine.value) is not dict or machine.value.get("little_endian") is not True:
            raise _DamagedFile("numbers in another byte order")
        loaded = load_pickle(head, admits, machine.end)
        order = load_pickle(head, lambda _: False, loaded.end)
        storages = _declared(loaded, size)
        keys = order.value if type(order.value) is list else []
        if len(keys) != len(storages) or not all(type(key) is str for key in keys) or set(keys) != set(storages):
            raise _DamagedFile("its list of storages is not that of its tensors")
        file.seek(order.end)
        numbers = {key: _memory(storages[key]) for key in keys}
        for key, (flat, target) in numbers.items():
            if int.from_bytes(file.read(8), "little") != len(flat) or file.readinto(target) != len(target):
                raise _DamagedFile(f"storage {key} is not as long as announced")
    return _Builder(numbers).build(loaded.value)


def _declared(loaded: Loaded, file_size: int) -> dict[str, _Storage]:
    """The storages that a pickle refers to; together they are no larger than the file."""
    storages: dict[str, _Storage] = {}
    total = 0
    for reference in loaded.references:
        storage = _storage(reference)
        if storage.key not in storages:
            total += storage.size
        if storages.setdefault(storage.key, storage) != storage or total > file_size:
            raise _DamagedFile(f"storage {storage.key} of {storage.size} bytes, announced otherwise or not in the file")
    return storages


def _storage(reference: Reference) -> _Storage:
    """From torch's persistent id: "storage", class, key, device, length; before torch 1.6 also a view, always None."""
    parts = reference.id
    if type(parts) is not tuple or len(parts) not in (5, 6) or parts[0] != "storage" or parts[5:] not in ((), (None,)):
        raise _DamagedFile("a persistent id that is no storage")
    _, kind, key, _, length, *_ = parts
    dtype = _STORAGES.get(kind.path) if type(kind) is Name else None
    if dtype is None or type(key) is not str or type(length) is not int or length < 0:
        raise _DamagedFile("a persistent id that is no storage of a known kind")
    return _Storage(key, dtype, length)


def _memory(storage: _Storage) -> tuple[Tensor, memoryview]:
    """Memory for a storage as a tensor [length] and as bytes: torch's own, because sums depend on its alignment."""
    raw = torch.empty(storage.size, dtype=torch.uint8)
    return raw.view(storage.dtype), memoryview(raw.numpy())


# --- records to values ---------------------------------------------------------------------------------------


class _Builder:
    """Puts tensors where the pickle has records; what the pickle has once is built once."""

    def __init__(self, numbers: Mapping[str, tuple[Tensor, memoryview]]) -> None:
        self.numbers = numbers
        self.built: dict[int, tuple[Any, Any]] = {}  # by id: what was there (kept, or its id would go to another)
        self.num_tensors = 0

    def build(self, value: Any) -> Any:
        """`value` with its records replaced, lists and dictionaries in place. No deeper than `pickles` allows."""
        if type(value) not in (list, tuple, dict, Record, Name, Reference):
            return value
        if id(value) not in self.built:
            self.built[id(value)] = value, self._build(value)
        return self.built[id(value)][1]

    def _build(self, value: Any) -> Any:
        if type(value) is list:
            value[:] = map(self.build, value)
            return value
        if type(value) is tuple:
            return tuple(map(self.build, value))
        if type(value) is dict:
            value.update([(key, self.build(part)) for key, part in value.items()])
            return value
        if type(value) is Record:
            return self._record(value)
        path = value.path if type(value) is Name else "a storage"
        if type(value) is Reference or path in _NAMES - _DTYPES.keys():
            raise _DamagedFile(f"{path} where a tensor or a plain value is expected")
        return _DTYPES.get(path, value)

    def _record(self, record: Record) -> Any:
        if record.name == _TENSOR:
            return self._tensor(*record.args)
        record.args, record.state, record.entries = map(self.build, (record.args, record.state, record.entries))
        if record.name == _PARAMETER:
            return _parameter(*record.args)
        if record.name == _SIZE:
            return torch.Size(*map(_whole_numbers, record.args))
        if record.name == _DICTIONARY:
            return _ordered(record)
        if record.name.removesuffix("()") in _NAMES:
            raise _DamagedFile(f"a call of {record.name}")
        return record

    def _tensor(
        self, storage: Reference, offset: int, sizes: tuple, strides: tuple, gradient: bool, _: Record, *more: dict
    ) -> Tensor:
        """A view of a storage that lies within it and has no more values than it."""
        self.num_tensors += 1
        if self.num_tensors > _MAX_TENSORS or any(more):
            raise _DamagedFile(f"more than {_MAX_TENSORS} tensors, or one of a kind of its own")
        flat, _data = self.numbers[_storage(storage).key]
        sizes, strides, (offset,) = map(_whole_numbers, (sizes, strides, (offset,)))
        if len(sizes) != len(strides):
            raise _DamagedFile(f"a tensor of {len(sizes)} dimensions and {len(strides)} strides")
        if not _lies_within(len(flat), offset, sizes, strides):
            raise _DamagedFile(f"a tensor of shape {sizes}, strides {strides} does not lie in its {len(flat)} numbers")
        return _with_gradient(flat.as_strided(sizes, strides, offset), gradient)


def _lies_within(length: int, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a view has no more values than there are, and none beyond the last; an empty one may have some width."""
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True) if size)
    if 0 in sizes:
        return offset <= length and math.prod(size or 1 for size in sizes) <= max(length, _MAX_WIDTH)
    return math.prod(sizes) <= length - offset and last < length


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > _MAX_DIMENSIONS:
        raise _DamagedFile("a shape or a stride that is none, or of too many dimensions")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in values):
        raise _DamagedFile("a shape or a stride that is none")  # unquoted: a text may stand in it a million times
    return tuple(values)


def _with_gradient(tensor: Tensor, wanted: Any) -> Tensor:
    if wanted and not (tensor.is_floating_point() or tensor.is_complex()):
        raise _DamagedFile(f"a tensor of {tensor.dtype} with gradients")
    return tensor.requires_grad_(bool(wanted))


def _parameter(tensor: Tensor, gradient: bool, _: Any) -> torch.nn.Parameter:
    if not isinstance(tensor, Tensor):
        raise _DamagedFile("a parameter that is no tensor")
    return torch.nn.Parameter(_with_gradient(tensor.detach(), gradient), requires_grad=bool(gradient))


def _ordered(record: Record) -> OrderedDict:
    """With the versions of its modules, which a `state_dict` carries as an attribute."""
    result = OrderedDict(record.entries)
    state = {} if record.state is None else record.state
    sound = type(state) is dict and state.keys() <= {"_metadata"} and isinstance(state.get("_metadata", {}), dict)
    if record.args or not sound:
        raise _DamagedFile("an OrderedDict that holds more than a dictionary")
    vars(result).update(state)
    return result

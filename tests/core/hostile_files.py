"""Files that nobody sound writes: what runs something, asks for gigabytes, or never ends, each as small as it gets."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SENTINEL = "executed"  # what a pickle here makes in the working directory if it is executed
_MANY = 1 << 30


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return self.call


class Storage:
    """Pickles as a storage of torch: a persistent id."""

    def __init__(self, length: int, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.id = ("storage", kind, key, "cpu", length)


def tensor(length: int, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, key: str = "0") -> Call:
    """Pickles as a tensor of a storage, whatever the numbers."""
    storage = Storage(length, key)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, sizes, strides, False, OrderedDict())


def dumps(value: Any, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.id if isinstance(obj, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def saved(content: bytes, **members: bytes) -> bytes:
    """A file of torch.save with this pickle, and one storage of four numbers."""
    numbers = np.arange(4, dtype=np.float32).tobytes()
    return archive({"archive/data.pkl": content, "archive/data/0": numbers, "archive/version": b"3\n"} | members)


def legacy(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def bomb(name: str, megabytes: int, head: bytes = b"") -> bytes:
    """An archive with a member of `head` and zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file, file.open(name, "w", force_zip64=True) as member:
        member.write(head)
        for _ in range(megabytes):
            member.write(bytes(1 << 20))
    return stream.getvalue()


def npy_header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class Script(torch.nn.Module):
    """A TorchScript module that writes a file where it is loaded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        torch.save(state[0], "executed")
        self.training = state[1]


def script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(Script()), stream)
    return stream.getvalue()


def laughs(width: int = 10, depth: int = 40) -> bytes:
    """Each list holds the one before `width` times: width ** depth items for who walks through them."""
    get = [b"h" + bytes([i]) for i in range(depth)]
    return b"\x80\x04]\x94" + b"".join(b"](" + get[i] * width + b"e\x94" for i in range(depth - 1)) + b"."


def hash_bomb(depth: int = 60) -> bytes:
    """A dictionary whose key is a tuple of two that are one, and so on: 2 ** depth steps for its hash."""
    pairs = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(depth))
    return b"\x80\x04K\x01\x94" + pairs + b"}" + b"h" + bytes([depth]) + b"Ns."


def colliding_keys(count: int = 200_000) -> bytes:
    """Integers whose hashes fall on each other."""
    step = (1 << 61) - 1
    items = b"".join(b"\x8a\x10" + (i * step).to_bytes(16, "little") + b"N" for i in range(count))
    return b"\x80\x02}(" + items + b"u."


def directory_of(size: int) -> bytes:
    """An archive whose end announces a list of members of `size` bytes."""
    content = bytearray(saved(dumps(1)))
    content[-10:-6] = struct.pack("<I", size)
    return bytes(content)


def overlapping() -> bytes:
    """One stored member under a thousand names."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", dumps(1))
        file.writestr("archive/data/0", bytes(1 << 16))
        first = file.infolist()[1]
        for number in range(1, 1000):
            other = zipfile.ZipInfo(f"archive/data/{number}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, name, getattr(first, name))
            file.filelist.append(other)
    return stream.getvalue()


RUN = Call(os.system, f"touch {SENTINEL}")

# Pickles by themselves: the readers of tensors and of tables refuse them all.
PICKLES: dict[str, bytes] = {
    "a call of os.system": dumps(RUN),
    "a call of os.system in protocol 5": dumps(RUN, 5),
    "a call of eval": dumps(Call(eval, f"open('{SENTINEL}', 'w')")),
    "a call by an old class": b"(S'touch executed'\nios\nsystem\n.",
    "a call of what a call gave": b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93\x8c\x01a\x8c\x06latin1\x86R)R.",
    "a place of 2 GB in the memo": b"\x80\x02Nr\xff\xff\xff\x7f0.",
    "an integer of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "bytes of an exabyte": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "a frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "lists in lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "a list of lists of lists, ten times each": laughs(),
    "a key that is never hashed": hash_bomb(),
    "keys that collide": colliding_keys(),
    "eleven million dictionaries": b"\x80\x02(" + b"}" * 11_000_000 + b"t.",
    "eleven million places in the memo": b"\x80\x04N" + b"\x94" * 11_000_000 + b".",
    "a name of a million letters, a thousand times": b"\x80\x04\x8c\x01a\x94X"
    + struct.pack("<I", 1 << 20)
    + b"a" * (1 << 20)
    + b"\x94("
    + b"h\x00h\x01\x93" * 1000
    + b"t.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id as text": b"\x80\x02Pstorage\n.",
    "a state for a list": b"\x80\x02]}b.",
    "an unknown protocol": b"\x80\xffN.",
    "an empty stack": b"\x80\x02.",
    "nothing": b"",
    "no pickle": b"not a pickle at all",
    "half a pickle": dumps(list(range(100)))[:60],
}

# Files for `read_tensors`.
TENSORS: dict[str, Callable[[], bytes]] = {
    **{f"torch.save: {name}": lambda content=content: saved(content) for name, content in PICKLES.items()},
    "a call in the old layout": lambda: legacy(RUN),
    "a TorchScript archive": script,
    "a TorchScript archive in disguise": lambda: saved(dumps(1), **{"archive/constants.pkl": dumps(RUN)}),
    "a deflated pickle of zeros": lambda: bomb("archive/data.pkl", 64),
    "deflated numbers": lambda: archive(
        {"archive/data.pkl": dumps(tensor(_MANY // 64, (1,), (1,))), "archive/data/0": bytes(_MANY // 16)},
        zipfile.ZIP_DEFLATED,
    ),
    "one number, a billion times": lambda: saved(dumps(tensor(4, (_MANY,), (0,)))),
    "a shape beyond the numbers": lambda: saved(dumps(tensor(4, (_MANY, 1024), (1024, 1)))),
    "a view that begins before them": lambda: saved(dumps(tensor(4, (4,), (1,), -1))),
    "a view that begins behind them": lambda: saved(dumps(tensor(4, (1,), (1,), 4))),
    "strides that leave them": lambda: saved(dumps(tensor(4, (2,), (4,)))),
    "strides that go back": lambda: saved(dumps(tensor(4, (4,), (-1,), 3))),
    "an empty tensor of great width": lambda: saved(dumps(tensor(4, (0, 1 << 40), (1, 1)))),
    "a dimension that no integer holds": lambda: saved(dumps(tensor(4, (1, 1), (1 << 200, 1)))),
    "a storage longer than the file": lambda: saved(dumps(tensor(_MANY, (1,), (1,)))),
    "a storage shorter than announced": lambda: saved(dumps(tensor(5, (1,), (1,)))),
    "a storage that is not there": lambda: saved(dumps(tensor(4, (1,), (1,), key="1"))),
    "a storage outside of the archive": lambda: saved(dumps(tensor(4, (1,), (1,), key="../../../etc/passwd"))),
    "a storage of two kinds": lambda: saved(dumps([tensor(4, (1,), (1,)), Storage(4, kind=torch.IntStorage)])),
    "a shape of a million long texts": lambda: saved(dumps(tensor(4, ("a" * (1 << 20),) * (1 << 20), (1,)))),
    "a shape of a million numbers": lambda: saved(dumps(tensor(4, (1,) * (1 << 20), (1,) * (1 << 20)))),
    "a call of a call of a call, and so on": lambda: saved(
        b"\x80\x02ccollections\nOrderedDict\n" + b")R" * 300_000 + b"."
    ),
    "a storage alone": lambda: saved(dumps(Storage(4))),
    "a class that is called": lambda: saved(dumps(Call(torch.FloatStorage, 1 << 40))),
    "a class alone": lambda: saved(dumps(torch.FloatStorage)),
    "a tensor of three arguments": lambda: saved(dumps(Call(torch._utils._rebuild_tensor_v2, 1, 2, 3))),
    "a tensor of a number": lambda: saved(
        dumps(Call(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,), False, OrderedDict()))
    ),
    "versions that are a number": lambda: saved(b"\x80\x02ccollections\nOrderedDict\n)R}U\x09_metadataK\x01sb."),
    "a parameter of text": lambda: saved(dumps(Call(torch._utils._rebuild_parameter, "a", True, OrderedDict()))),
    "an array of numpy": lambda: saved(dumps(np.arange(3))),
    "a list of members of 4 GB": lambda: directory_of(0xF0000000),
    "a member under a thousand names": overlapping,
    "two pickles": lambda: saved(dumps(1), **{"other/data.pkl": dumps(2)}),
    "numbers in another byte order": lambda: saved(dumps(1), **{"archive/byteorder": b"big"}),
    "an archive of nothing": lambda: archive({}),
    "half an archive": lambda: saved(dumps(1))[:100],
    "the old layout with another magic number": lambda: dumps(1) + legacy(1)[15:],
    "the old layout, cut off": lambda: legacy(torch.zeros(100))[:-50],
    "the old layout without its storages": lambda: legacy(torch.zeros(100))[:-408],
    "a pointer of Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "text": lambda: b"text",
    "an empty file": lambda: b"",
}

# Files for `read_arrays`, whose array `a` is expected to be small.
ARRAYS: dict[str, Callable[[], bytes]] = {
    "half a gigabyte of zeros": lambda: bomb("a.npy", 512, npy_header(f"({1 << 26},)")),
    "zeros that are announced as few": lambda: bomb("a.npy", 256, npy_header("(1,)")),
    "few that are announced as many": lambda: archive({"a.npy": npy_header(f"({1 << 40},)") + bytes(64)}),
    "many of nothing": lambda: archive({"a.npy": npy_header(f"({1 << 40},)", "'|V0'")}),
    "a width without rows": lambda: archive({"a.npy": npy_header(f"(0, {1 << 40})")}),
    "a negative shape": lambda: archive({"a.npy": npy_header("(-1, -8)") + bytes(64)}),
    "a call in an array of objects": lambda: archive({"a.npy": npy_header("(1,)", "'|O'") + pickle.dumps(RUN)}),
    "a call as header": lambda: archive({"a.npy": npy_header("(1,)", f"open('{SENTINEL}', 'w')")}),
    "a header of brackets": lambda: archive({"a.npy": npy_header("(" * 5000)}),
    "a shape that is none": lambda: archive({"a.npy": npy_header("'text'")}),
    "half an array": lambda: archive({"a.npy": npy_header("(8,)") + bytes(63)}),
    "no array": lambda: archive({"a.npy": b"no array"}),
    "an array of another name": lambda: archive({"b.npy": npy_header("(1,)") + bytes(8)}),
    "no archive": lambda: b"no archive",
    "an empty file": lambda: b"",
}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / (name.replace("/", " ")[:80] + ".bin")
    path.write_bytes(content)
    return path

"""Damaged files: a sound one changed at random, as bytes or, where its format is known, as what it holds."""

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors import torch as safetensors

TOKENS = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "-1", "0", "1.5", "1e3", "0x1", "1_0"),
    *("[" * 5000, "{" * 5000, '{"a":' * 5000, "(" * 200, "null", "None", "true", "~", '""', "''", '"', "'", "\\", ","),
    *("\0", "\ufeff", "\u2028", "\x1b[31m", "<script>", "[/b]", "é", "😀", "\\ud800", "\\u0000", "\r", "\n", "\n\n"),
    *("::", "\t", "|", "${oc.env:HOME}", "${a}", "*a", "&a ", "!!python/name:os.system ", "- ", ": ", "# ", "../../x"),
    *("2001-13-45", "inf", "1e", "+", "18446744073709551616", "9223372036854775808", "1" * 17, " ", "\u3000"),
]
_BYTES = [b"\xff", b"\xe9", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"PK\x03\x04", b"\0" * 64]
_RAW = "@raw@"  # in a structure: stands for a token that no value is written as


def mutate(name: str, content: bytes, random: Random) -> bytes:
    """A damaged file of this name: what it holds is changed, or its bytes are, or both."""
    structural = _FORMATS.get(PurePath(name).suffix)
    if structural is not None and random.random() < 0.6:
        try:
            content = structural(content, random)
        except Exception:  # damaged already, or changed into what its format cannot hold
            content = _flip(content, random)
        if random.random() < 0.9:
            return content
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        content = random.choice(_OF_BYTES)(content, random)
    return content


# --- bytes --------------------------------------------------------------------------------------------------


def _place(content: bytes, random: Random) -> tuple[int, int]:
    """A stretch of the content, mostly a short one."""
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + int(2 ** (random.random() * 10)))


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 3, 20]) if content else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.choice([0, 1, random.randrange(len(content) + 1), len(content) - 1])]


def _delete(content: bytes, random: Random) -> bytes:
    start, end = _place(content, random)
    return content[:start] + content[end:]


def _duplicate(content: bytes, random: Random) -> bytes:
    start, end = _place(content, random)
    return content[:end] + content[start:end] * random.choice([1, 2, 50]) + content[end:]


def _insert(content: bytes, random: Random) -> bytes:
    start, _ = _place(content, random)
    return content[:start] + random.randbytes(random.choice([1, 4, 100])) + content[start:]


def _splice(content: bytes, random: Random) -> bytes:
    start, end = _place(content, random)
    token = random.choice([*_BYTES, *(token.encode() for token in TOKENS)])
    return content[:start] + token + content[random.choice([start, end]) :]


def _number(content: bytes, random: Random) -> bytes:
    """Another token where a number or a word stands."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?|\w+", content[:100_000]))
    if not found:
        return _insert(content, random)
    place = random.choice(found)
    return content[: place.start()] + random.choice(TOKENS).encode() + content[place.end() :]


def _wrap(content: bytes, random: Random) -> bytes:
    return random.choice(
        [
            b"\xef\xbb\xbf" + content,
            content.replace(b"\n", b"\r\n"),
            content.replace(b"\n", b"\r"),
            content.rstrip(b"\n"),
            content + b"\n\n \n",
            b"\n" + content,
            content + content,
            content.decode("latin-1").encode("utf-16"),
            content.swapcase(),
        ]
    )


_OF_BYTES = [_flip, _cut, _delete, _duplicate, _insert, _splice, _number, _number, _wrap]


# --- JSON and YAML ------------------------------------------------------------------------------------------


def _odd(random: Random) -> Any:
    """A value that is rarely the one that is expected."""
    return random.choice(
        [
            *(None, True, False, 0, -1, 1.5, 10**30, -(2**63) - 1, 2**31, "", "x", "a\0b", "\ud800", "\x1b[2J"),
            *([], {}, [[]], [None], {"": None}, ["a", 1], [{}], "x" * 300, {"a": {"b": 1}}, "../../x", "/", 10**9),
            *(f"{_RAW}{i}" for i in range(len(TOKENS))),
        ]
    )


def _changed(value: Any, random: Random) -> Any:
    """A structure with one of its nodes replaced, removed, renamed or repeated."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key, part in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(part, dict | list):
                collect(part)

    if isinstance(value, dict | list):
        collect(value)
    if not places or random.random() < 0.05:
        return _odd(random)
    node, key = random.choice(places)
    how = random.randrange(6)
    if how < 3:
        node[key] = _odd(random)
    elif how == 3:
        del node[key]
    elif how == 4 and isinstance(node, dict):
        node[random.choice(["", "x", f"{key} ", str(key).upper()])] = node.pop(key)
    else:
        other, place = random.choice(places)
        node[key] = other[place] if other[place] is not node and not isinstance(other[place], dict | list) else [1]
    return value


def _with_raw(text: str) -> bytes:
    text = re.sub(rf"[\"']?{_RAW}(\d+)[\"']?", lambda found: TOKENS[int(found[1]) % len(TOKENS)], text)
    return text.encode("utf-8", "surrogatepass")


def _json(content: bytes, random: Random) -> bytes:
    if content.count(b"\n{"):
        return _json_lines(content, random)
    return _with_raw(json.dumps(_changed(json.loads(content), random), ensure_ascii=random.random() < 0.5))


def _json_lines(content: bytes, random: Random) -> bytes:
    lines = content.splitlines()
    number = random.randrange(len(lines))
    lines[number] = _with_raw(json.dumps(_changed(json.loads(lines[number]), random)))
    return b"\n".join(lines) + b"\n"


def _yaml(content: bytes, random: Random) -> bytes:
    bomb = "a: &a [x]\n" + "\n".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)
    )
    if random.random() < 0.03:
        return content + bomb.encode()
    return _with_raw(yaml.safe_dump(_changed(yaml.safe_load(content), random), allow_unicode=True))


# --- arrays and tensors -------------------------------------------------------------------------------------


def _odd_array(array: np.ndarray, random: Random) -> np.ndarray:
    """An array of another type or shape, or with another number in it."""
    numbers = array if array.dtype.kind in "iufb" else np.arange(3)
    if random.random() < 0.5 and numbers.size:
        changed = np.array(numbers, dtype=random.choice([numbers.dtype, np.dtype(float)]))
        odd = random.choice([-1, 2**31 - 1, 10**6, 0, 0.5, np.nan, np.inf] if changed.dtype.kind == "f" else [-1, 99])
        changed.reshape(-1)[random.randrange(changed.size)] = odd
        return changed
    with np.errstate(all="ignore"):
        return random.choice(
            [
                lambda: array.astype(str),
                lambda: numbers.astype(random.choice(["<f2", ">i4", "u8", "c8", "?", "i1", "<M8[s]", "S3", "V4"])),
                lambda: array[:0],
                lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
                lambda: array[None],
                lambda: np.concatenate([array, array]) if array.ndim else array,
                lambda: np.zeros((0, 5)),
                lambda: np.zeros((3, 0)),
                lambda: np.zeros((2, 2, 2), dtype=np.float32),
                lambda: np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
                lambda: -array if array.dtype.kind in "if" else array,
                lambda: np.full_like(numbers, np.iinfo(np.int64).max) if numbers.dtype == np.int64 else array,
            ]
        )()


def _npy(content: bytes, random: Random) -> bytes:
    array = np.load(io.BytesIO(content))
    if random.random() < 0.4:  # the header's text
        end = content.index(b"\n") if b"\n" in content else 64
        head = _number(content[10:end], random)[: 2**16 - 1]
        return content[:8] + struct.pack("<H", len(head)) + head + content[end:]
    stream = io.BytesIO()
    np.save(stream, _odd_array(array, random))
    return stream.getvalue()


def _zip(content: bytes, random: Random) -> bytes:
    """An archive with a member that is damaged, missing, renamed or repeated, and sound checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
        kind = archive.infolist()[0].compress_type
    name = random.choice(list(members))
    how = random.randrange(8)
    if how == 0:
        del members[name]
    elif how == 1:
        members[random.choice(["x.npy", f"{name}x", name.upper(), "archive/constants.pkl"])] = members.pop(name)
    elif how < 6:
        members[name] = mutate(name, members[name], random)
    else:
        members[name] = random.choice(_OF_BYTES)(members[name], random)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", random.choice([kind, kind, kind, zipfile.ZIP_DEFLATED])) as archive:
        for member, value in members.items():
            archive.writestr(member, value)
    return stream.getvalue()


def _odd_tensor(tensor: torch.Tensor, random: Random) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: tensor.to(random.choice([torch.int64, torch.float16, torch.bool, torch.complex64, torch.float64])),
        lambda: tensor[:0] if tensor.dim() else tensor[None],
        lambda: tensor[None],
        lambda: tensor.reshape(-1),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else -tensor,
        lambda: tensor.t() if tensor.dim() == 2 else tensor,
        lambda: tensor.to_sparse(),
        lambda: tensor.numpy(),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: _odd(random),
    ]
    return random.choice(kinds)()


def _pt(content: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return _zip(content, random)
    try:
        value = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # damaged already, or it holds more than tensors
        return _zip(content, random)
    holder = {"": value}
    place: tuple[Any, Any] = (holder, "")
    while random.random() < 0.8:  # a way down
        inner = place[0][place[1]]
        if not isinstance(inner, dict | list) or not inner:
            break
        place = inner, random.choice(list(inner)) if isinstance(inner, dict) else random.randrange(len(inner))
    node, key = place
    if random.random() < 0.15 and node is not holder:
        del node[key]
    else:
        node[key] = _odd_tensor(node[key], random) if isinstance(node[key], torch.Tensor) else _odd(random)
    stream = io.BytesIO()
    torch.save(holder[""], stream, _use_new_zipfile_serialization=random.random() < 0.7)
    return stream.getvalue()


def _safetensors(content: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        tensors = safetensors.load(content)
        name = random.choice(list(tensors))
        odd = _odd_tensor(tensors[name], random)
        tensors[name] = (odd if isinstance(odd, torch.Tensor) and not odd.is_sparse else torch.ones(2)).contiguous()
        if random.random() < 0.3:
            tensors[random.choice(["x", f"{name}.x"])] = tensors.pop(name)
        return safetensors.save(tensors)
    length = int.from_bytes(content[:8], "little")
    head = _json(content[8 : 8 + length], random)
    return len(head).to_bytes(8, "little") + head + content[8 + length :]


# --- tables -------------------------------------------------------------------------------------------------


def _odd_column(frame: pd.DataFrame, random: Random) -> pd.DataFrame:
    """A table with a column of something else, without one, or with one under another name."""
    name, count = random.choice(list(frame)), len(frame)
    how = random.randrange(5)
    if how == 0:
        return frame.drop(columns=name)
    if how == 1:
        return frame.rename(columns={name: random.choice(["x", "", "user", 5])})
    if how == 2:
        return frame.iloc[: random.choice([0, 1])]
    values: list[Callable[[], Any]] = [
        lambda: np.arange(count) * 1.5,
        lambda: [None] * count,
        lambda: [str(i) for i in range(count)],
        lambda: [[i] * (i % 3) for i in range(count)],
        lambda: [b"\xff\xfe"] * count,
        lambda: pd.date_range("2020-01-01", periods=count),
        lambda: [float("nan")] * count,
        lambda: np.arange(count, dtype=np.uint64) + 2**63,
        lambda: [True] * count,
        lambda: pd.Categorical(["a\0b"] * count),
        lambda: [-1] * count,
        lambda: [{"a": 1}] * count,
        lambda: [10**6] * count,
    ]
    return frame.assign(**{str(name): random.choice(values)()})


def _parquet(content: bytes, random: Random) -> bytes:
    stream = io.BytesIO()
    _odd_column(pd.read_parquet(io.BytesIO(content)), random).to_parquet(stream)
    return stream.getvalue()


def _frame(content: bytes, random: Random) -> bytes:
    return pickle.dumps(_odd_column(pickle.loads(content), random), protocol=random.choice([2, 4, 5]))


def _gz(content: bytes, random: Random) -> bytes:
    return gzip.compress(random.choice(_OF_BYTES)(gzip.decompress(content), random), compresslevel=1)


_FORMATS: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".npy": _npy,
    ".npz": _zip,
    ".pt": _pt,
    ".ckpt": _pt,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".df": _frame,
    ".gz": _gz,
}

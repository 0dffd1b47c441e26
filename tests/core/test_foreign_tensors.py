"""What torch.save writes comes back equal; what it never writes ends in one line, runs nothing and takes no memory."""

import io
import json
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import hostile_files as hostile
import pytest
import torch
from torch import nn

from src.core.errors import UserError
from src.core.foreign.tensors import read_tensors

LAYOUTS = pytest.mark.parametrize("layout", [True, False], ids=["zip", "before 1.6"])
ROOT = Path(__file__).parents[2]


def round_trip(value, folder: Path, layout: bool):
    torch.save(value, folder / "file.pt", _use_new_zipfile_serialization=layout)
    return read_tensors(folder / "file.pt")


# --- sound files ---------------------------------------------------------------------------------------------

TABLE = torch.arange(12.0).reshape(3, 4)
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
]
DTYPES += [torch.uint8, torch.bool, torch.complex64, torch.complex128]


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path, layout, dtype):
    read = round_trip(TABLE.to(dtype), tmp_path, layout)
    assert read.dtype == dtype and torch.equal(read, TABLE.to(dtype))


@LAYOUTS
@pytest.mark.parametrize(
    "view",
    [TABLE.t(), TABLE[1:, ::2], TABLE[2, 3], TABLE[:0], torch.empty(0), torch.empty(0, 768), TABLE.unfold(0, 2, 2)],
    ids=["transposed", "slices", "a number", "no rows", "nothing", "nothing, wide", "windows"],
)
def test_views(tmp_path, layout, view):
    read = round_trip(view, tmp_path, layout)
    assert read.shape == view.shape and read.stride() == view.stride() and torch.equal(read, view)


@LAYOUTS
def test_tensors_that_share_memory_do_so_again(tmp_path, layout):
    table = TABLE.clone()
    whole, row, again = round_trip([table, table[1], table], tmp_path, layout)
    assert again is whole
    whole[1, 0] = 99
    assert row.tolist() == [99, 5, 6, 7]


@LAYOUTS
def test_containers_and_values(tmp_path, layout):
    value = {
        "numbers": [1, -5, 2**40, 2**100, 2.5, float("inf"), True, None],
        "text": ("", "naïve 日本", b"", b"\x00\xff"),
        ("a", 1): {2: {3.5: [[], {}, ()]}},
        "ordered": OrderedDict(b=1, a=2),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
    }
    read = round_trip(value, tmp_path, layout)
    assert read == value
    assert type(read["ordered"]) is OrderedDict and type(read["size"]) is torch.Size


@LAYOUTS
def test_parameters_and_gradients(tmp_path, layout):
    weight, frozen = nn.Parameter(TABLE.clone()), nn.Parameter(TABLE.clone(), requires_grad=False)
    read = round_trip([weight, frozen, torch.zeros(1, requires_grad=True), weight], tmp_path, layout)
    assert [type(value) for value in read] == [nn.Parameter, nn.Parameter, torch.Tensor, nn.Parameter]
    assert [value.requires_grad for value in read] == [True, False, True, True]
    assert torch.equal(read[0], weight) and read[3] is read[0]


@LAYOUTS
def test_a_state_dict_keeps_its_versions(tmp_path, layout):
    state = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    read = round_trip(state, tmp_path, layout)
    assert list(read) == list(state) and read._metadata == state._metadata
    assert all(torch.equal(read[name], state[name]) for name in state)


@LAYOUTS
def test_an_optimizer_goes_on_as_if_undisturbed(tmp_path, layout):
    def two_steps(optimizer, weight):
        for _ in range(2):
            weight.grad = weight.detach().cos()
            optimizer.step()
        return weight.detach().clone()

    weight = nn.Parameter(TABLE.clone())
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.5, 0.6))
    two_steps(optimizer, weight)
    copy = nn.Parameter(weight.detach().clone())
    other = torch.optim.AdamW([copy])
    other.load_state_dict(round_trip(optimizer.state_dict(), tmp_path, layout))
    assert torch.equal(two_steps(other, copy), two_steps(optimizer, weight))


@LAYOUTS
def test_a_generator_goes_on_where_it_was(tmp_path, layout):
    generator = torch.Generator().manual_seed(3)
    state = round_trip(generator.get_state(), tmp_path, layout)
    assert torch.equal(torch.rand(4, generator=torch.Generator().set_state(state)), torch.rand(4, generator=generator))


def test_memory_is_aligned_as_torchs_own(tmp_path):
    """Sums of some libraries depend on it."""
    read = round_trip([torch.zeros(n) for n in (1, 7, 100)], tmp_path, True)
    assert [tensor.data_ptr() % 64 for tensor in read] == [0, 0, 0]


# --- hostile files -------------------------------------------------------------------------------------------


READ_ALL = """
import json, sys, time, resource, pathlib
sys.path[:0] = sys.argv[2:]
import torch
import hostile_files as hostile
from src.core.errors import UserError
from src.core.foreign.arrays import read_arrays
from src.core.foreign.frames import read_pickled_frame
from src.core.foreign.tensors import read_tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.load = None
start, messages = peak(), {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    read = {"t": read_tensors, "f": read_pickled_frame}.get(path.name[0])
    begin = time.process_time()
    try:
        read(path) if read else read_arrays(path, ["a"], max_bytes=1000, advice="")
        raise SystemExit(f"{path.name} was read")
    except UserError as error:
        if time.process_time() - begin > 20 or peak() - start > 1024:
            raise SystemExit(f"{path.name}: {time.process_time() - begin:.1f} s, {peak() - start:.0f} MB")
        messages[path.name] = str(error)
    if pathlib.Path(hostile.SENTINEL).exists():
        raise SystemExit(f"{path.name} was executed")
print(json.dumps(messages))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[Path, str]:
    """What reading each hostile file of any kind ends in.

    In a process of its own, whose peak of memory is that of reading and not of making the files: none takes a gigabyte,
    hangs or runs something.
    """
    folder = tmp_path_factory.mktemp("hostile")
    kinds = {
        "t": hostile.TENSORS,
        "a": hostile.ARRAYS,
        "f": {name: lambda c=c: c for name, c in hostile.PICKLES.items()},
    }
    paths = [
        hostile.write(folder, f"{kind} {name}", make()) for kind, files in kinds.items() for name, make in files.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder), str(ROOT), str(ROOT / "tests" / "core")],
        cwd=tmp_path_factory.mktemp("executed"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout)
    return {path: messages[path.name] for path in paths}


def test_no_hostile_file_takes_a_gigabyte_hangs_or_runs_something(refusals):
    assert len(refusals) == len(hostile.TENSORS) + len(hostile.ARRAYS) + len(hostile.PICKLES)


def test_hostile_files_end_in_one_line(refusals):
    for path, message in refusals.items():
        assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1, (path, message)


def test_the_traps_do_spring_with_other_loaders(tmp_path, monkeypatch):
    """Else the tests above could not fail: torch 2.3 runs a TorchScript archive even with `weights_only=True`."""
    monkeypatch.chdir(tmp_path)
    for spring in (
        lambda: torch.load(io.BytesIO(hostile.script()), weights_only=True),
        lambda: pickle.loads(hostile.PICKLES["a call of os.system"]),
    ):
        spring()
        (tmp_path / hostile.SENTINEL).unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            torch.eye(2).to_sparse(),
            r"pt: holds a sparse tensor; save it with \.to_dense\(\) \(the pickle .* not executed\)",
        ),
        (
            nn.Linear(1, 1),
            r"pt: holds a module, .* save its state_dict\(\) \(.* names torch\.nn\.modules\.linear\.Linear;",
        ),
        (
            torch.eye(2).numpy(),
            r"pt: holds a numpy array or number; save torch\.from_numpy\(array\), .* names numpy\.core",
        ),
    ],
)
def test_what_people_save_instead_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        round_trip(content, tmp_path, True)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="none.pt: missing file"):
        read_tensors(tmp_path / "none.pt")


@LAYOUTS
def test_every_beginning_of_a_file_is_refused(tmp_path, layout):
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": [1, "x"]}, stream, _use_new_zipfile_serialization=layout)
    content, path = stream.getvalue(), tmp_path / "cut.pt"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(UserError):
            read_tensors(path)


def test_changed_pickles_end_in_a_value_or_one_line(tmp_path):
    """In archives that are sound otherwise: their checksums hold."""
    value = [hostile.tensor(4, (2, 2), (2, 1)), {"a": (1, None, 2.5)}, OrderedDict(b="x"), torch.Size([2])]
    content, path, draw = hostile.dumps([*value, value[0]]), tmp_path / "changed.pt", random.Random(0)
    path.write_bytes(hostile.saved(content))
    assert read_tensors(path)[0].tolist() == [[0, 1], [2, 3]]
    refused = 0
    for _ in range(3000):
        path.write_bytes(hostile.saved(bytes(changed(content, draw))))
        try:
            read_tensors(path)
        except UserError:
            refused += 1
    assert 1500 < refused < 3000


def changed(content: bytes, draw: random.Random) -> bytearray:
    result = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        result[draw.randrange(len(result))] = draw.randrange(256)
    return result


@LAYOUTS
def test_changed_files_end_in_a_value_or_one_line(tmp_path, layout):
    """The old layout has no checksum: what is changed there may well be read."""
    stream = io.BytesIO()
    module = nn.BatchNorm1d(2)
    torch.save(
        {"state": module.state_dict(), "n": [1, 2.5, (None, "x")]}, stream, _use_new_zipfile_serialization=layout
    )
    content, path, draw = stream.getvalue(), tmp_path / "changed.pt", random.Random(0)
    refused = 0
    for _ in range(2000):
        path.write_bytes(changed(content, draw))
        try:
            read_tensors(path)
        except UserError:
            refused += 1
    assert refused > 500

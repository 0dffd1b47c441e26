"""Arrays come back equal; a header that announces more than there is, or than is expected, ends in one line."""

import random

import hostile_files as hostile
import numpy as np
import pytest

from src.core.errors import UserError
from src.core.foreign.arrays import map_array, read_array, read_arrays

SOUND = {
    "numbers": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "flags": np.array([True, False]),
    "text": np.array(["a", "bcd"]),
    "none": np.zeros((0, 3), np.float32),
    "one": np.array(7, np.int8),
    "swapped": np.arange(3, dtype=">i4"),
}
BYTES = sum(array.nbytes for array in SOUND.values())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path, save):
    save(tmp_path / "a.npz", **SOUND)
    read = read_arrays(tmp_path / "a.npz", max_bytes=BYTES, advice="")
    assert read.keys() == SOUND.keys()
    for name, array in SOUND.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array) and read[name].flags.writeable


@pytest.mark.parametrize("name", SOUND)
def test_single_arrays(tmp_path, name):
    np.save(tmp_path / "a.npy", SOUND[name])
    read = read_array(tmp_path / "a.npy", max_bytes=SOUND[name].nbytes, advice="")
    assert read.dtype == SOUND[name].dtype and np.array_equal(read, SOUND[name])


@pytest.mark.parametrize("name", SOUND)
def test_arrays_of_numbers_that_stay_in_their_file(tmp_path, name):
    path, array = tmp_path / "a.npy", SOUND[name]
    np.save(path, array)
    if name in ("columns", "text"):
        with pytest.raises(UserError, match=r"a\.npy: not an array file, or a damaged one .*; make it again"):
            map_array(path, advice="make it again")
        return
    content = path.read_bytes()
    read = map_array(path, advice="")
    assert read.dtype == array.dtype and np.array_equal(read, array)
    read[...] = 1
    assert path.read_bytes() == content
    path.write_bytes(content + b"0")
    with pytest.raises(UserError, match="which the file does not hold"):
        map_array(path, advice="")
    path.unlink()
    with pytest.raises(UserError, match="missing file"):
        map_array(path, advice="")


def test_the_bound_is_that_of_all_arrays_together(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(5000), b=np.zeros(5000))
    assert len(read_arrays(tmp_path / "a.npz", max_bytes=80_000, advice="")) == 2
    for names in (None, ["a", "b"]):
        with pytest.raises(UserError, match="at most"):
            read_arrays(tmp_path / "a.npz", names, max_bytes=79_999, advice="")
    assert list(read_arrays(tmp_path / "a.npz", ["b"], max_bytes=40_000, advice="")) == ["b"]


def test_without_a_bound_nothing_may_be_compressed(tmp_path):
    np.savez(tmp_path / "plain.npz", a=np.zeros(5000))
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros(5000))
    assert read_arrays(tmp_path / "plain.npz", max_bytes=None, advice="")["a"].shape == (5000,)
    with pytest.raises(UserError, match="packed in a way that is not expected here"):
        read_arrays(tmp_path / "packed.npz", max_bytes=None, advice="")


def test_the_message_names_the_file_the_reason_and_the_way_out(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    for path, names, reason in (
        (tmp_path / "a.npz", ["b"], "holds no array b"),
        (tmp_path / "b.npz", None, "missing file"),
    ):
        with pytest.raises(UserError, match=f"{path.name}: {reason}; export again"):
            read_arrays(path, names, max_bytes=100, advice="export again")


@pytest.mark.parametrize("name", hostile.ARRAYS)
def test_hostile_files_end_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = hostile.write(tmp_path, "hostile", hostile.ARRAYS[name]())
    with pytest.raises(UserError) as error:
        read_arrays(path, ["a"], max_bytes=1000, advice="make it again")
    assert str(error.value).startswith(f"{path}: ") and str(error.value).endswith("; make it again")
    assert not (tmp_path / hostile.SENTINEL).exists()


@pytest.mark.parametrize("header", ["({0},)", "(0, {0})", "(-1, -{0})"])
def test_hostile_single_arrays(tmp_path, header):
    (tmp_path / "a.npy").write_bytes(hostile.npy_header(header.format(1 << 40)) + bytes(64))
    with pytest.raises(UserError, match="it announces an array of shape"):
        read_array(tmp_path / "a.npy", max_bytes=1000, advice="")
    with pytest.raises(UserError, match=r"it announces an array of float64 of shape .*, which the file does not hold"):
        map_array(tmp_path / "a.npy", advice="")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_changed_bytes_end_in_a_value_or_one_line(tmp_path, kind):
    path, draw, refused = tmp_path / f"a.{kind}", random.Random(0), 0
    if kind == "npy":
        np.save(path, SOUND["numbers"])
    else:
        np.savez_compressed(path, a=SOUND["numbers"], b=SOUND["text"])
    content = path.read_bytes()
    for _ in range(1500):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            read_array(path, max_bytes=100, advice="") if kind == "npy" else read_arrays(path, max_bytes=100, advice="")
        except UserError:
            refused += 1
    assert 200 < refused < 1500

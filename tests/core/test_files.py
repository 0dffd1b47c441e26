"""Files appear whole or not at all."""

import errno
import gc
import hashlib
import json
import os

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.files import (
    Sighting,
    read_json,
    sha256_file,
    write_atomic,
    write_hashed,
    write_json,
    write_text,
    writing,
)


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"

    write_text(path, "old é")
    write_text(path, "new é")

    assert path.read_text(encoding="utf-8") == "new é"
    assert [entry.name for entry in path.parent.iterdir()] == ["text.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "text.txt"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(UserError, match=r"text.txt: cannot be written \(disk full\); files written before are whole"):
        write_atomic(path, half)

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["text.txt"]


def test_the_writer_never_sees_the_final_path(tmp_path):
    path = tmp_path / "text.txt"

    def write(temporary):
        assert temporary.parent == path.parent  # the same file system, or the move would copy
        assert temporary != path
        temporary.write_text("x")
        assert not path.exists()

    write_atomic(path, write)
    assert path.read_text() == "x"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    """Whatever a library thinks of it: safetensors makes files for their owner alone."""

    def write(path):
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", write)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True], "name": "Amélie"}
    write_json(tmp_path / "value.json", value)

    assert read_json(tmp_path / "value.json") == value
    assert "Amélie" in (tmp_path / "value.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_the_format_lacks(tmp_path, number):
    path = tmp_path / "value.json"
    write_json(path, {"ndcg@10": 0.5})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"ndcg@10": number})

    assert json.loads(path.read_text()) == {"ndcg@10": 0.5}


def test_read_json_errors(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: missing file"):
        read_json(tmp_path / "none.json")

    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"half\.json: not a JSON file .*delete it and make it again"):
        read_json(tmp_path / "half.json")

    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json: not a JSON file"):
        read_json(tmp_path / "binary.json")


@pytest.mark.parametrize(
    "content",
    ["NaN", "[1, -Infinity]", "1e999", "9" * 5000, "[" * 100_000, "[" * 51 + "]" * 51, '{"a": "\\ud83d"}', '"\\ud83d"'],
)
def test_what_write_json_could_not_have_written_is_not_read(tmp_path, content):
    """What is read may be written again, and whatever walks through it comes to an end."""
    (tmp_path / "value.json").write_text(content)
    with pytest.raises(UserError, match=r"value\.json: not a JSON file \(.*\); delete it and make it again"):
        read_json(tmp_path / "value.json")


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(UserError, match="not a JSON file"):
        read_json(tmp_path)


def test_sha256_of_a_file_larger_than_one_read(tmp_path):
    content = bytes(range(256)) * 5000  # 1.28 MB, read in pieces of 1 MiB
    (tmp_path / "file").write_bytes(content)

    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_hash_is_of_what_was_written_not_of_what_lies_there_afterwards(tmp_path, monkeypatch):
    path, move = tmp_path / "file", os.replace

    def move_and_be_late(source, target):
        move(source, target)
        path.write_bytes(b"another process's")

    monkeypatch.setattr(os, "replace", move_and_be_late)
    assert write_hashed(path, lambda temporary: temporary.write_bytes(b"ours")) == hashlib.sha256(b"ours").hexdigest()


@pytest.mark.parametrize(
    "words", ["I/O error: No space left on device (os error 28)", 'IoError(Os { code: 28, message: "No space" })']
)
def test_a_full_disk_is_known_by_the_words_of_rust(tmp_path, words):
    with pytest.raises(UserError, match=r"a: cannot be written \(No space left on device\)"), writing(tmp_path / "a"):
        raise RuntimeError(words)


def test_a_library_that_does_not_say_why_it_cannot_write_has_the_disk_asked(tmp_path, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    failure = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    with pytest.raises(RuntimeError, match="file write failed"), writing(tmp_path / "a"):
        raise failure
    monkeypatch.setattr("src.core.files.tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=r"a: cannot be written \(No space left on device\)"), writing(tmp_path / "a"):
        raise failure


def test_an_archive_that_was_half_written_complains_of_nothing(tmp_path, capsys):
    """`zipfile` does, when the archive is dropped after its file was closed."""

    def write(path):
        with open("/dev/full", "wb") as full:
            np.savez(full, a=np.zeros(100_000))

    with pytest.raises(UserError, match="No space left on device"):
        write_atomic(tmp_path / "a.npz", write)
    gc.collect()
    assert capsys.readouterr().err == "" and list(tmp_path.iterdir()) == []


def test_what_is_read_until_it_is_asked_again_is_of_one_time(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    for path in (folder / "a", file):
        path.write_text("old")
    before = Sighting.of(folder, file, tmp_path / "absent", None)
    (folder / ".lock").write_text("no content")
    before.require_same()

    write_text(folder / "a", "new")  # as long as the old
    with pytest.raises(UserError, match=r"folder/a: was changed while it was read; start the same command again"):
        before.require_same()
    before = Sighting.of(folder, file)
    file.unlink()
    with pytest.raises(UserError, match=r"file: was changed while it was read"):
        before.require_same()
    before = Sighting.of(folder)
    (folder / "b").write_text("one more")
    with pytest.raises(UserError, match=r"folder/b: was changed while it was read"):
        before.require_same()

"""The record of what was made, its one `status`, and the lock under which it is written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.core.artefacts import Artefact, State, differences, locked, unlike
from src.core.errors import UserError
from src.core.files import LOCK_FILE, sha256_file

FROM = {"student.lr": 0.1, "general.seed": 1}


@pytest.fixture
def thing(tmp_path) -> Artefact:
    return Artefact(name="thing", record_file=tmp_path / "records" / "thing.json", base=tmp_path)


def made(thing: Artefact, text: str = "content") -> None:
    thing.begin(FROM)
    (thing.base / "file").write_text(text)
    thing.complete(0.5, {"file": sha256_file(thing.base / "file")})


def test_what_was_never_begun_is_absent(thing) -> None:
    status = thing.status(FROM)
    assert status.state is State.ABSENT and status.record is None and not status.is_current


def test_what_is_whole_and_made_from_what_is_wanted_is_current(thing) -> None:
    made(thing)
    status = thing.status(FROM, verify=True)
    assert status.is_current and status.record.value == 0.5 and status.changes == ""
    assert status.record.completed >= status.record.owner.since


def test_what_was_made_from_something_else_says_from_what(thing) -> None:
    made(thing)
    status = thing.status({"student.lr": 0.2, "general.seed": 1, "distill.alpha": 3})
    assert status.state is State.COMPLETE and not status.is_current
    assert status.changed == ("student.lr", "distill.alpha")
    assert status.changes == "student.lr changed from 0.1 to 0.2; distill.alpha changed from nothing to 3"


def test_a_making_without_an_end_and_without_an_owner_was_interrupted(thing) -> None:
    thing.begin(FROM)
    assert thing.status(FROM).state is State.INTERRUPTED
    thing.note_error("out of memory")
    assert thing.status(FROM).why == "out of memory"
    made(thing)
    assert thing.status(FROM).is_current


def test_a_file_that_is_gone_or_was_replaced_makes_it_absent(thing) -> None:
    made(thing)
    (thing.base / "file").write_text("other")
    assert thing.status(FROM).is_current  # not looked at
    status = thing.status(FROM, verify=True)
    assert status.state is State.ABSENT and "file is no longer what was written" in status.why
    (thing.base / "file").unlink()
    assert "file is gone" in thing.status(FROM).why


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"artefact": "thing"}', '{"made_from": 3}', "\udcff", "[" * 100_000, "9" * 5000, "NaN"],
)
def test_a_damaged_record_is_a_thing_to_make_again(thing, damage) -> None:
    made(thing)
    thing.record_file.write_bytes(damage.encode("utf-8", "surrogateescape"))
    status = thing.status(FROM)
    assert status.state is State.ABSENT and status.record is None and "is damaged" in status.why


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 17) for key in ("artefact", "made_from", "commit", "owner", "completed", "files", "error")),
        ("value", "0.5"),
        ("value", True),
        ("files", {"a": 1}),
        ("owner", {"pid": 1.5, "host": "a", "since": "b"}),
        ("completed", "yesterday"),
        ("commit", None),
        ("another", 1),
    ],
)
def test_a_record_of_wrong_types_is_damaged_too(thing, key, value) -> None:
    made(thing)
    content = json.loads(thing.record_file.read_text())
    thing.record_file.write_text(json.dumps({**content, key: value}))
    assert "is damaged" in thing.status(FROM).why


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "", "../x"])
def test_a_file_that_cannot_be_is_gone(thing, name) -> None:
    made(thing)
    content = json.loads(thing.record_file.read_text())
    thing.record_file.write_text(json.dumps({**content, "files": {name: "0"}}))
    assert "is gone" in thing.status(FROM).why


def test_many_differences_are_counted_and_hashes_are_short() -> None:
    before = {str(i): i for i in range(7)} | {"files": "a" * 64}
    told = differences(before, {"files": "b" * 64})
    assert told.startswith("0 changed from 0 to nothing; 1 changed") and told.endswith("; 3 more changed")
    assert differences({"files": "a" * 64}, {"files": "b" * 64}) == f"files changed from {'a' * 12} to {'b' * 12}"
    assert (
        unlike({"student.name": "caser", "x": 1}, {"student.name": "sasrec", "x": 1}) == "student.name caser / sasrec"
    )


# --- locks: between processes -------------------------------------------------------------------------------


def hold(folder: Path) -> subprocess.Popen:
    """Another process that holds a folder's lock until it is killed."""
    script = (
        "import sys, time; from pathlib import Path; from src.core.artefacts import locked\n"
        f"with locked(Path({str(folder)!r})): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_by_whom_and_a_killed_owners_lock_is_taken_over(thing) -> None:
    thing.begin(FROM)
    other = hold(thing.base)
    try:
        with pytest.raises(UserError, match=rf"in use by process {other.pid} on \S+ since 20\d\d-"), locked(thing.base):
            raise AssertionError("not reached")
        status = thing.status(FROM)
        assert status.state is State.BEING_MADE and f"process {other.pid} on " in status.why
    finally:
        other.kill()
        other.wait()
    (thing.base / ".half.99.part").write_text("left behind")
    with locked(thing.base):
        assert not (thing.base / ".half.99.part").exists()
    assert thing.status(FROM).state is State.INTERRUPTED


def test_waiting_says_for_whom_and_goes_on_when_the_lock_is_free(tmp_path) -> None:
    other, told = hold(tmp_path), []

    def kill(message: str) -> None:
        told.append(message)
        other.kill()

    begin = time.monotonic()
    with locked(tmp_path, notify=kill):
        assert time.monotonic() - begin < 30
    other.wait()
    assert len(told) == 1 and told[0].endswith(": waiting") and f"process {other.pid}" in told[0]


def test_the_same_process_may_take_a_lock_again_and_leaves_inner_folders_alone(tmp_path) -> None:
    inner = tmp_path / "runs" / "one"
    inner.mkdir(parents=True)
    (inner / LOCK_FILE).touch()
    (inner / ".x.1.part").touch()
    with locked(tmp_path), locked(tmp_path):
        assert (inner / ".x.1.part").exists()  # somebody else may be writing there
    with locked(tmp_path):
        pass

"""A disk that is full or may only be read: one line that names the file, and the same command goes on later."""

import errno
import os
import subprocess
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from harness import TINY_STUDENT, close_log, places, read, run_here, snapshot

from src.core.logging import LoggingConfig, open_log, start_logging
from src.exp import run_student_baseline
from src.exp.stage.entry import _fail
from src.exp.stage.messages import one_line

RESULTS = ("models/", "metrics/eval_", "metrics/history_")
TRACES = ("Traceback", "Logging error", "Exception ignored")


@pytest.fixture
def baseline(data_dir, capfd):
    """A small baseline in a run folder: exit code, and what it printed as an error."""

    def run(folder: Path, *overrides: str) -> tuple[int, list[str]]:
        code = run_here(run_student_baseline.run, *TINY_STUDENT, *places(data_dir, folder.parent, folder), *overrides)
        printed = capfd.readouterr().err
        assert not [trace for trace in TRACES if trace in printed], printed
        return code, [line for line in printed.splitlines() if line.startswith("error: ")]

    return run


def results(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in snapshot(folder).items() if name.startswith(RESULTS)}


def failing(patch: pytest.MonkeyPatch, folder: Path, name: str | None, number: int) -> list[str]:
    """Let a file below `folder` not be put in place; the files that were, as they come."""
    replace, seen = os.replace, []

    def put(source, target) -> None:
        if Path(target).is_relative_to(folder):
            seen.append(str(Path(target).relative_to(folder)))
            if seen[-1] == name:
                raise OSError(number, os.strerror(number))
        replace(source, target)

    patch.setattr("src.core.files.os.replace", put)
    return seen


def test_whatever_file_cannot_be_written_is_named_and_the_stage_goes_on(baseline, tmp_path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written = failing(patch, tmp_path / "undisturbed", None, 0)
        assert baseline(tmp_path / "undisturbed") == (0, [])
    numbers = cycle((errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT))
    folder = tmp_path / "run"
    chosen = [name for name in dict.fromkeys(written) if not name.startswith((".hydra/b", ".hydra/h", ".hydra/o"))]
    for name, number in zip(chosen, numbers, strict=False):
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, folder, name, number)
            code, (error,) = baseline(folder)
        assert (
            code == 1
            and f"{folder / name}: cannot be written ({os.strerror(number)}); files written before are" in error
        )
        assert list(folder.rglob("*.part")) == []
    assert baseline(folder) == (0, [])
    assert results(folder) == results(tmp_path / "undisturbed") != {}
    assert {"models/baseline/last_state.pt", "records/baseline.json", "metrics/time.json"} < set(written)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of its own; `mount -o remount,...` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("needs root, to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_stage_on_a_disk_that_is_full_goes_on_once_there_is_room(baseline, small_disk, tmp_path) -> None:
    assert baseline(tmp_path / "undisturbed") == (0, [])
    folder, named = small_disk / "run", []
    for pages in (4, 16, 28, 40):
        remount(small_disk, f"size={4 * pages}k")
        code, (error,) = baseline(folder)
        assert code == 1 and f"error: {folder}" in error and "cannot be written" in error and "make room" in error
        named.append(error.split(":")[1])
        remount(small_disk, "size=8m")
    assert len(set(named)) > 2, named
    assert baseline(folder) == (0, [])
    assert results(folder) == results(tmp_path / "undisturbed")
    assert list(folder.rglob("*.part")) == [] and read(folder / "records" / "baseline.json")["error"] is None

    before = snapshot(folder)
    remount(small_disk, "ro")
    code, (error,) = baseline(folder, "student.lr=1e-2", "general.overwrite=true")
    assert code == 1 and error.startswith(f"error: {folder}: cannot be written to (Read-only file system)")
    code, (error,) = baseline(small_disk / "other")
    assert code == 1 and str(small_disk / "other") in error and "Read-only file system" in error
    assert snapshot(folder) == before


def test_an_error_is_shown_although_the_log_cannot_take_it(tmp_path, capsys) -> None:
    (tmp_path / "a.log").symlink_to("/dev/full")
    start_logging(LoggingConfig())
    open_log(tmp_path / "a.log")
    with pytest.raises(SystemExit):
        _fail("models/a: cannot be written", 1)
    close_log()
    assert capsys.readouterr().err == "error: models/a: cannot be written\n"


def test_what_others_write_is_named_too() -> None:
    """Hydra makes the run folder, and a sweep's `multirun.yaml`."""
    error = OSError(errno.ENOSPC, "No space left on device", "/r/multirun.yaml")
    start_again = "make room, mend it or choose another folder, and start the same command again"
    assert one_line(error) == f"/r/multirun.yaml: No space left on device; {start_again}"
    assert one_line(OSError(errno.EROFS, "Read-only file system")) == f"Read-only file system; {start_again}"

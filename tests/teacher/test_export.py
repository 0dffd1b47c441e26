"""The whole export: killed, resumed, or meeting what is not its own, another export at the same time included."""

import logging
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.artefacts import locked
from src.core.errors import UserError
from src.core.files import LOCK_FILE
from src.core.paths import RunFolder
from src.core.teacher_files import (
    CONFIDENCE_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    RANKING_FILE,
    ROW_STATS_FILE,
    find_damage,
    read_manifest,
    write_teacher_files,
)
from src.teacher.ilora_backend import ILoRATeacher
from src.teacher.model import TeacherModel
from src.teacher.scoring.export import require_free_export
from src.teacher.scoring.shards import shard_folder, wait_for_parts, working_on

LOGGER = logging.getLogger("tests")
CPU = torch.device("cpu")
FILES = {EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE, ROW_STATS_FILE, MANIFEST_FILE}
ROWS = 24


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("src.teacher.scoring.shards.SHARD_ROWS", 10)


@pytest.fixture
def make_backend(dataset, tmp_path) -> Callable[[str, TeacherModel], ILoRATeacher]:
    """A teacher in a run folder of its own, trained by assertion."""

    def make(name: str, teacher: TeacherModel) -> ILoRATeacher:
        backend = ILoRATeacher(teacher.config, dataset=dataset, folder=RunFolder(tmp_path / name), device=CPU)
        teacher.lm.lora.save(backend.paths.adapter)
        backend._model = teacher
        return backend

    return make


@pytest.fixture
def settings_of(make_settings):
    """The program's settings of a teacher that exports to the folder `outputs`."""

    def make(teacher: TeacherModel, outputs: str = "outputs", overwrite: bool = False):
        return replace(make_settings(outputs=outputs, overwrite=overwrite), teacher=teacher.config)

    return make


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK_FILE}


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_a_killed_export_resumes_and_writes_the_same_bytes(
    make_backend, settings_of, teacher, with_export, method, monkeypatch, tmp_path
):
    monkeypatch.setattr("src.teacher.adapter.prompted_lm._MAX_ANSWER_TOKENS", 4)  # an untrained LM never stops
    teacher = with_export(teacher, method=method)
    make_backend("run_whole", teacher).export_for_dllm2rec(settings_of(teacher, "whole"), LOGGER)

    resumed, settings = make_backend("run_resumed", teacher), settings_of(teacher, "resumed")
    name = {"likelihood": "candidate_log_probs", "generate": "generate"}[method]
    original, calls = getattr(teacher.lm, name), []

    def counted(batch, *args, **options):
        calls.append(len(batch.ids))
        if limit is not None and sum(calls) > limit:
            raise Killed
        return original(batch, *args, **options)

    monkeypatch.setattr(teacher.lm, name, counted)
    limit = 15  # rows: within the second shard
    with pytest.raises(Killed):
        resumed.export_for_dllm2rec(settings, LOGGER)
    assert written(tmp_path / "resumed") == {}
    assert len(list(resumed.paths.shards.glob("*/*.npz"))) == 1
    limit, calls[:] = None, []
    resumed.export_for_dllm2rec(settings, LOGGER)

    assert sum(calls) == ROWS - 10  # the first shard was kept
    whole = written(tmp_path / "whole")
    assert whole == written(tmp_path / "resumed")
    assert whole.keys() == FILES
    assert not resumed.paths.shards.exists()


def test_what_a_killed_writer_has_left_is_removed(make_backend, settings_of, teacher, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / f".{RANKING_FILE}.4711.part").write_text("1 2")
    make_backend("run", teacher).export_for_dllm2rec(settings_of(teacher), LOGGER)
    assert written(tmp_path / "outputs").keys() == FILES


def test_the_manifest_tells_how_the_files_were_made(make_backend, settings_of, teacher, with_export, tmp_path):
    teacher = with_export(teacher, candidates="sampled")
    teacher = replace(teacher, config=replace(teacher.config, max_train_rows=5))
    backend, settings = make_backend("run", teacher), settings_of(teacher)
    backend.export_for_dllm2rec(settings, LOGGER)

    manifest = read_manifest(tmp_path / "outputs")
    assert (manifest.candidates, manifest.leaks_target, manifest.in_sample_rows) == ("sampled", True, 5)
    assert manifest.made_with == backend.made_from("export", settings)
    assert manifest.made_with["teacher.num_candidates"] == 5
    assert manifest.made_with["the adapter"] == manifest.adapter_sha256
    assert np.load(tmp_path / "outputs" / ROW_STATS_FILE)["in_sample"].sum() == 5


def test_a_finished_export_is_not_made_again_and_a_damaged_one_is(
    make_backend, settings_of, teacher, tmp_path, monkeypatch, caplog
):
    outputs, backend, settings = tmp_path / "outputs", make_backend("run", teacher), settings_of(teacher)
    backend.export_for_dllm2rec(settings, LOGGER)
    before = written(outputs)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_loaded", None)  # any call would fail
        backend.export_for_dllm2rec(settings, LOGGER)
    assert written(outputs) == before
    (outputs / RANKING_FILE).write_text("0 1 2 3\n")
    backend.export_for_dllm2rec(settings, LOGGER)
    assert written(outputs) == before
    assert "differs from what manifest.json describes: exporting again" in caplog.text


def test_the_export_of_another_adapter_is_refused(make_backend, settings_of, teacher, tmp_path):
    outputs, backend = tmp_path / "outputs", make_backend("run", teacher)
    backend.export_for_dllm2rec(settings_of(teacher), LOGGER)
    adapter = backend.paths.adapter_weights
    require_free_export(outputs, False, adapter)
    require_free_export(tmp_path / "nothing", False, tmp_path / "not yet trained")
    (tmp_path / "other").write_bytes(adapter.read_bytes() + b"0")
    for other in (tmp_path / "other", tmp_path / "not yet trained"):
        with pytest.raises(UserError, match=r"holds the export of another teacher .* general\.overwrite=true"):
            require_free_export(outputs, False, other)
        require_free_export(outputs, True, other)


# --- several jobs that share an export ----------------------------------------------------------------------


def test_parts_of_several_jobs_are_joined_to_the_bytes_of_one(
    make_backend, settings_of, teacher, with_export, tmp_path, monkeypatch, caplog
):
    """Three shards, two jobs; the first shard is lost, and whoever joins makes it again."""
    make_backend("alone", teacher).export_for_dllm2rec(settings_of(teacher, "whole"), LOGGER)
    jobs = [with_export(teacher, part=f"{number}/2") for number in (1, 0)]
    for job in jobs:
        make_backend("shared", job).export_for_dllm2rec(settings_of(job, "joined"), LOGGER)
    assert not (tmp_path / "joined").exists()
    joining, settings = make_backend("shared", teacher), settings_of(teacher, "joined")
    shards = sorted(path.name for path in joining.paths.shards.glob("*/*.npz"))
    assert shards == ["00000.npz", "00001.npz", "00002.npz"]
    next(joining.paths.shards.glob("*/00000.npz")).unlink()
    asked: list[int] = []
    original = teacher.lm.candidate_log_probs
    counted = lambda batch, *rest: (asked.append(len(batch.ids)), original(batch, *rest))[1]  # noqa: E731
    monkeypatch.setattr(teacher.lm, "candidate_log_probs", counted)
    with caplog.at_level(logging.INFO, LOGGER.name):
        joining.export_for_dllm2rec(settings, LOGGER)
    assert sum(asked) == 10 and "14 of 24 rows are there already" in caplog.text
    assert written(tmp_path / "joined") == written(tmp_path / "whole")
    assert not joining.paths.shards.exists()


def test_two_jobs_do_not_make_one_part_and_who_joins_waits(make_backend, settings_of, teacher, with_export, tmp_path):
    job = with_export(teacher, part="0/2")
    backend, settings = make_backend("shared", job), settings_of(job)
    folder = shard_folder(backend.paths.shards, backend.made_from("export", settings))
    fork = multiprocessing.get_context("fork")
    is_held, may_go = fork.Event(), fork.Event()
    other = fork.Process(target=work_on, args=(folder, is_held, may_go))
    other.start()
    assert is_held.wait(60)
    try:
        with pytest.raises(UserError, match=f"part_0_of_2: in use by process {other.pid}"):
            backend.export_for_dllm2rec(settings, LOGGER)
        with locked(backend.folder.root):  # which clears away what killed processes have left
            assert (folder / ".00000.npz.1.part").exists()
        heard: list[str] = []
        wait_for_parts(folder, lambda words: (heard.append(words), may_go.set())[0])
    finally:
        may_go.set()
        other.join()
    assert len(heard) == 1 and heard[0].endswith(": waiting")


def work_on(folder: Path, is_held: Event, may_go: Event) -> None:
    with working_on(folder, "0/2"):
        (folder / ".00000.npz.1.part").touch()
        is_held.set()
        may_go.wait()


# --- two exports into one folder ----------------------------------------------------------------------------


def hold(folder: Path, is_held, may_go) -> None:
    with locked(folder):
        is_held.set()
        may_go.wait()
        write_one(folder, 9)


def write_one(folder: Path, teacher: int) -> None:
    """A small export in which every number is the teacher's."""
    about = dict.fromkeys(("method", "candidates", "confidence", "base_model", "git_commit", "dataset"), "any")
    about |= {"dataset_fingerprint": "f", "engine": "native", "in_sample_rows": 0, "seed": teacher}
    write_teacher_files(
        folder,
        embeddings=torch.full((50, 4), float(teacher)),
        ranking=np.full((200, 3), teacher),
        distances=np.full((200, 3), float(teacher)),
        row_stats={"log_prob": np.full(200, float(teacher))},
        about=about | {"adapter_sha256": str(teacher)},
    )


def write_until(stop: Event, folder: Path, teacher: int) -> None:
    while not stop.is_set():
        with locked(folder, notify=lambda text: None):
            write_one(folder, teacher)


def test_whoever_reads_under_the_lock_sees_one_whole_export(tmp_path):
    """Two processes that replace each other's files over and over, while this one reads."""
    fork, folder, seen = multiprocessing.get_context("fork"), tmp_path / "outputs", set()
    stop, reads = fork.Event(), 0
    writers = [fork.Process(target=write_until, args=(stop, folder, teacher)) for teacher in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        while (seen != {1, 2} or reads < 40) and all(writer.is_alive() for writer in writers):
            with locked(folder, notify=lambda text: None):
                manifest = read_manifest(folder)
                if manifest is None:  # nobody has begun
                    assert written(folder) == {}
                    continue
                assert find_damage(folder, manifest) is None
                stats = np.load(folder / ROW_STATS_FILE)["log_prob"]
                assert set(stats.tolist()) == {float(manifest.seed)} == set(np.loadtxt(folder / RANKING_FILE).flat)
                assert not list(folder.glob("*.part")) + list(folder.glob(".*.part"))
                seen.add(manifest.seed)
                reads += 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen == {1, 2}


def test_an_export_waits_for_another_and_then_looks_again(make_backend, settings_of, teacher, tmp_path, caplog):
    """The folder was free before the wait, and another teacher's afterwards."""
    fork, folder = multiprocessing.get_context("fork"), tmp_path / "outputs"
    is_held, may_go = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(folder, is_held, may_go))
    other.start()
    assert is_held.wait(60)
    backend = make_backend("run", teacher)
    require_free_export(folder, False, backend.paths.adapter_weights)

    class WhenWaiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if ": waiting" in record.getMessage():
                may_go.set()

    LOGGER.addHandler(handler := WhenWaiting())
    try:
        with pytest.raises(UserError, match=r"holds the export of another teacher \(any, seed 9, 200 rows\)"):
            backend.export_for_dllm2rec(settings_of(teacher), LOGGER)
    finally:
        may_go.set()
        LOGGER.removeHandler(handler)
        other.join()
    assert f"in use by process {other.pid}" in caplog.text
    assert read_manifest(folder).seed == 9

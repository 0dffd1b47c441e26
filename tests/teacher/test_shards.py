"""An export that is killed, resumed, shared between processes, or meets what is not its own."""

import errno
import logging

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from src.core.errors import UserError
from src.core.paths import RunFolder
from src.core.teacher_files import read_manifest
from src.teacher import shards
from src.teacher.ilora_backend import ILoRATeacher, require_free_export
from src.teacher.shards import read_shards, shard_folder, write_shards

LOGGER = logging.getLogger("tests")
FILES = ("all_embeddings.pt", "myrank_train.txt", "confidence_train.txt", "row_stats.npz", "manifest.json")
ROWS = 24


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)


def double(rows: np.ndarray, advance) -> dict[str, np.ndarray]:
    advance(len(rows))
    return {"twice": 2 * rows, "text": np.array([f"row {i}" for i in rows])}


def test_shards_hold_every_row_in_order(tmp_path):
    write_shards(tmp_path, ROWS, double, LOGGER)
    whole = read_shards(tmp_path, ROWS)
    assert whole["twice"].tolist() == [2 * i for i in range(ROWS)]
    assert whole["text"][-1] == "row 23"
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_processes_share_the_shards(tmp_path):
    asked: list[list[int]] = [[], []]
    for process in (1, 0):
        write_shards(
            tmp_path, ROWS, lambda r, a, p=process: asked[p].append(int(r[0])) or double(r, a), LOGGER, process, 2
        )
    assert asked == [[0, 20], [10]]
    assert read_shards(tmp_path, ROWS)["twice"].tolist() == [2 * i for i in range(ROWS)]


def test_a_missing_or_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, ROWS, double, LOGGER, 0, 2)
    with pytest.raises(UserError, match="00001.npz: missing part of the export; start the stage again"):
        read_shards(tmp_path, ROWS)
    (tmp_path / "00001.npz").write_bytes(b"PK")
    with pytest.raises(
        UserError, match="00001.npz: not an array file, or a damaged one .* delete it and start the stage again"
    ):
        read_shards(tmp_path, ROWS)


def test_other_settings_have_another_folder(tmp_path):
    one, other = shard_folder(tmp_path, {"seed": 1}), shard_folder(tmp_path, {"seed": 2})
    assert one != other
    assert shard_folder(tmp_path, {"seed": 1}) == one
    assert '"seed": 1' in (one / "settings.json").read_text()


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_shards(tmp_path, 10, double, LOGGER)
    before = (tmp_path / "00000.npz").read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"00001.npz: cannot be written \(No space left on device\); .* make room"):
        write_shards(tmp_path, ROWS, double, LOGGER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.npz"]
    assert (tmp_path / "00000.npz").read_bytes() == before


# --- the whole export ---------------------------------------------------------------------------------------


@pytest.fixture
def make_teacher(parts, dataset, tmp_path):
    """A teacher in a run folder of its own, trained by assertion."""

    def make(name: str) -> tuple[ILoRATeacher, DictConfig]:
        folder = RunFolder(tmp_path / name)
        teacher = ILoRATeacher(parts.config, dataset, folder, torch.device("cpu"))
        parts.engine.lora.model.save_pretrained(str(folder.model_dir("teacher") / "adapter"))
        teacher._parts = parts
        outputs = str(tmp_path / name / "outputs")
        cfg = {"general": {"seed": 7, "overwrite": False}, "paths": {"teacher_outputs_dir": outputs}}
        return teacher, OmegaConf.create(cfg)

    return make


def written(cfg: DictConfig) -> dict[str, bytes]:
    folder = cfg.paths.teacher_outputs_dir
    return {name: open(f"{folder}/{name}", "rb").read() for name in FILES}


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_a_killed_export_resumes_and_writes_the_same_bytes(make_teacher, parts, method, monkeypatch):
    parts.config.export.method = method
    monkeypatch.setattr("src.teacher.engine._MAX_ANSWER_TOKENS", 4)  # an untrained LM never stops
    whole, cfg = make_teacher("whole")
    whole.export_for_dllm2rec(cfg, LOGGER)

    resumed, other = make_teacher("resumed")
    engine, name = parts.engine, {"likelihood": "candidate_log_probs", "generate": "generate"}[method]
    original, calls = getattr(engine, name), []

    def counted(*args):
        calls.append(len(args[0].ids))
        if limit is not None and sum(calls) > limit:
            raise Killed
        return original(*args)

    monkeypatch.setattr(engine, name, counted)
    limit = 15  # rows: within the second shard
    with pytest.raises(Killed):
        resumed.export_for_dllm2rec(other, LOGGER)
    assert not (resumed.folder.root / "outputs").exists()
    limit, calls[:] = None, []
    resumed.export_for_dllm2rec(other, LOGGER)

    assert sum(calls) == ROWS - 10  # the first shard was kept
    assert written(cfg) == written(other)
    assert not list((resumed.folder.model_dir("teacher") / "shards").iterdir())


def test_the_manifest_tells_how_the_files_were_made(make_teacher, parts):
    parts.config.export.candidates, parts.config.max_train_rows = "sampled", 5
    teacher, cfg = make_teacher("run")
    teacher.export_for_dllm2rec(cfg, LOGGER)

    manifest = read_manifest(teacher.folder.root / "outputs")
    assert (manifest.candidates, manifest.leaks_target, manifest.in_sample_rows) == ("sampled", True, 5)
    assert manifest.made_with["num_candidates"] == 5
    assert manifest.made_with["adapter_sha256"] == manifest.adapter_sha256
    assert np.load(teacher.folder.root / "outputs" / "row_stats.npz")["in_sample"].sum() == 5


def test_a_finished_export_is_not_made_again_and_another_one_is_refused(make_teacher, parts, monkeypatch):
    teacher, cfg = make_teacher("run")
    teacher.export_for_dllm2rec(cfg, LOGGER)
    before = written(cfg)
    monkeypatch.setattr(parts.engine, "candidate_log_probs", None)  # any call would fail

    teacher.export_for_dllm2rec(cfg, LOGGER)
    assert written(cfg) == before
    outputs, models = teacher.folder.root / "outputs", teacher.folder.model_dir("teacher")
    require_free_export(outputs, False, models)
    (models / "manifest.json").unlink()
    require_free_export(outputs, False, models)  # by the adapter
    elsewhere = models.parent / "another_run"
    with pytest.raises(UserError, match="holds the export of another teacher .* general.overwrite=true"):
        require_free_export(outputs, False, elsewhere)
    require_free_export(outputs, True, elsewhere)

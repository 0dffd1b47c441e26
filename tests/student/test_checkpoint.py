"""Student checkpoints: the same numbers back, or an error that says what is wrong."""

import json

import pytest
import torch

from src.core.errors import UserError
from src.student import checkpoint
from src.student.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointInfo,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from src.student.config import ModelConfig
from src.student.models import build_model

CONFIG = ModelConfig("sasrec", 6, 4, 8, 3, 0.1)
INFO = CheckpointInfo("tiny", "f" * 64, 7, "c" * 40, 3, "ndcg@10", 0.25)


@pytest.fixture
def folder(tmp_path, fill_with_ramp):
    model = fill_with_ramp(build_model(CONFIG))
    save_checkpoint(tmp_path / "model", model, model.state_dict(), INFO)
    return tmp_path / "model"


def test_round_trip(folder, fill_with_ramp):
    model, info = load_checkpoint(folder)

    expected = fill_with_ramp(build_model(CONFIG)).state_dict()
    assert (model.config, info) == (CONFIG, INFO)
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_the_hash_of_the_teacher_is_kept(tmp_path):
    model = build_model(CONFIG)
    info = CheckpointInfo("tiny", "f" * 64, 7, "c" * 40, 3, "ndcg@10", 0.25, "a" * 64)
    save_checkpoint(tmp_path, model, model.state_dict(), info)

    assert load_checkpoint(tmp_path)[1].teacher_manifest_sha256 == "a" * 64


def test_what_is_saved_is_the_state_not_the_model(tmp_path):
    model = build_model(CONFIG)
    state = {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path, model, state, INFO)

    assert all((value == 2.0).all() for value in load_checkpoint(tmp_path)[0].state_dict().values())


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    [{}, [], {"model": {"name": "sasrec"}, "info": {}}, {"model": 3, "info": {}}, {"model": {"layers": 2}, "info": {}}],
)
def test_not_a_checkpoint(folder, content):
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json: not a student checkpoint"):
        load_checkpoint(folder)


def test_description_of_an_unknown_model(folder):
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["model"]["name"] = "bert"
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="student.name=bert: unknown"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_damaged_weights(folder, keep):
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged file"):
        load_checkpoint(folder)


def test_weights_that_are_something_else(folder):
    (folder / WEIGHTS_FILE).write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged file"):
        load_checkpoint(folder)


def test_other_shape(folder):
    model = build_model(ModelConfig("sasrec", 7, 4, 8, 3, 0.1))
    message = (
        r"item_embeddings\.weight holds \(7, 4\), this model wants \(8, 4\); use the student settings and the dataset"
    )
    with pytest.raises(UserError, match=message):
        load_weights(model, folder)


def test_a_description_that_asks_for_gigabytes_gets_none(folder, monkeypatch):
    """The file decides: no memory is taken for a model that its weights do not fill."""
    description = json.loads((folder / "config.json").read_text())
    description["model"]["num_items"] = 10**9
    (folder / "config.json").write_text(json.dumps(description))
    devices = []
    monkeypatch.setattr(
        "src.student.checkpoint.build_model",
        lambda config: devices.append(torch.empty(0).device.type) or build_model(config),
    )
    with pytest.raises(UserError, match=r"item_embeddings\.weight holds \(\d+, \d+\), this model wants \(1000000001, "):
        load_checkpoint(folder)
    assert devices == ["meta"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_blocks", 10**8),
        ("num_blocks", "1"),
        ("num_heads", 0),
        ("num_heads", -1),
        ("num_heads", 3),
        ("norm", "x"),
        ("num_blocks", -1),
        ("scores", "l2"),
        ("temperature", 0.0),
        ("temperature", "1"),
        ("hidden_size", 2**62),
        ("emb_size", -1),
        ("num_items", 1.5),
        ("dropout", "much"),
        ("dropout", 2),
        ("name", ["sasrec"]),
    ],
)
def test_a_description_of_no_student(folder, key, value):
    """Refused before anything is built of it: blocks by the million would take minutes even without memory."""
    description = json.loads((folder / "config.json").read_text())
    description["model"][key] = value
    (folder / "config.json").write_text(json.dumps(description))
    said = rf"config\.json: (describes no student \(|not a student checkpoint: model\.{key} is .*, must be )"
    with pytest.raises(UserError, match=said):
        load_checkpoint(folder)


def test_other_names(folder):
    model = build_model(CONFIG)
    del model.input_map
    with pytest.raises(UserError, match=r"input_map\.weight holds \(8, 4\), this model wants nothing"):
        load_weights(model, folder)


def test_a_refused_checkpoint_changes_no_weight(folder):
    model = build_model(ModelConfig("sasrec", 6, 4, 8, 4, 0.1))  # one position more
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(UserError, match=r"position_embeddings\.weight holds \(3, 8\), this model wants \(4, 8\)"):
        load_weights(model, folder)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_replaced_while_they_are_read_are_not_taken_for_those_of_the_description(folder, monkeypatch):
    read = checkpoint._read_weights

    def read_and_replace(path):
        weights = read(path)
        (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text().replace("tiny", "another"))
        return weights

    monkeypatch.setattr(checkpoint, "_read_weights", read_and_replace)
    with pytest.raises(UserError, match=r"config\.json: was changed while it was read; start the same command again"):
        load_checkpoint(folder)

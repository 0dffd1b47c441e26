"""`teacher.llm_path` as the id of a model on the hub: found in the cache, or what is in the way said."""

import shutil
from pathlib import Path

import pytest
import requests
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from src.core.errors import UserError
from src.core.foreign import hub
from src.teacher.llm.folder import llm_digest, llm_name
from src.teacher.llm.hub import find_llm

MODEL, COMMIT, OLDER = "acme/small-llama", "a" * 40, "b" * 40


@pytest.fixture
def cache(llm_folder, tmp_path, monkeypatch) -> Path:
    """The hub's cache without network: two commits of a model, the main branch at the first."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "hub" / "models--acme--small-llama"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for commit in (COMMIT, OLDER):
        shutil.copytree(llm_folder, model / "snapshots" / commit)
    return model


def refusal(model: str = MODEL, revision: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        find_llm(model, revision)
    return str(caught.value)


def test_a_cached_model_is_found_without_network(cache):
    assert find_llm(MODEL, None) == cache / "snapshots" / COMMIT
    assert find_llm(MODEL, OLDER) == cache / "snapshots" / OLDER
    assert llm_name(cache / "snapshots" / COMMIT) == MODEL


def test_a_folder_comes_before_a_model_of_that_name(cache, llm_folder):
    here = shutil.copytree(llm_folder, Path.cwd() / MODEL)
    assert find_llm(MODEL, None) == here
    message = refusal(revision="main")
    assert message.startswith(
        f"teacher.llm_revision=main: must be null with teacher.llm_path={MODEL}, which is a folder"
    )


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nowhere", "./a/b", "~/llama", "a/b/c"])
def test_what_can_be_no_id_is_a_folder_that_is_missing(cache, monkeypatch, path):
    monkeypatch.setattr(hub, "snapshot_download", None)  # the hub is not asked
    assert ": no such folder; expected a local Hugging Face folder" in refusal(path)


def test_a_model_that_is_not_cached_offline(cache):
    message = refusal("acme/other")
    assert message.startswith("teacher.llm_path=acme/other: no folder of that name, the cache (")
    assert "HF_HUB_OFFLINE is set" in message and "`huggingface-cli download acme/other`" in message
    assert "does not hold acme/small-llama in revision v2" in refusal(revision="v2")


def test_a_copy_that_is_not_whole(cache):
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    message = refusal()
    assert message.startswith(f"teacher.llm_path={MODEL}: what the cache holds of it is not whole")
    assert f"`huggingface-cli download {MODEL}`" in message


def failing(error: type[Exception], status: int | None = None):
    def download(*args, **options):
        if status is None:
            raise error("nothing\nto be had")
        response = requests.Response()
        response.status_code = status
        raise error("nothing\nto be had", response=response)

    return download


@pytest.mark.parametrize(
    "error, status, parts",
    [
        (GatedRepoError, 403, ("a gated model; accept its licence on https://", f"/{MODEL}", "HF_TOKEN")),
        (HfHubHTTPError, 403, ("a gated model",)),
        (RepositoryNotFoundError, 401, ("no such model on the hub, or a private one", "HF_TOKEN")),
        (HfHubHTTPError, 401, ("no such model on the hub, or a private one",)),
        (HfHubHTTPError, 503, ("cannot be fetched from the hub (nothing)", "try again later")),
        (
            LocalEntryNotFoundError,
            None,
            ("the hub cannot be reached", f"`huggingface-cli download {MODEL}", "a folder"),
        ),
        (OfflineModeIsEnabled, None, ("the hub cannot be reached",)),
        (requests.exceptions.ProxyError, None, ("cannot be fetched from the hub (nothing)",)),
        (HFValidationError, None, ("cannot be fetched from the hub (nothing)",)),
    ],
)
def test_what_is_in_the_way_is_said_with_what_to_do(cache, monkeypatch, error, status, parts):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "snapshot_download", failing(error, status))
    message = refusal()
    assert message.startswith(f"teacher.llm_path={MODEL}: ") and all(part in message for part in parts)


def test_an_unknown_revision(cache, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", failing(RevisionNotFoundError, 404))
    assert refusal(revision="v9").startswith(f"teacher.llm_revision=v9: {MODEL} has no such branch, tag or commit")


@pytest.mark.parametrize("safe", [True, False])
def test_pickled_weights_are_fetched_where_there_are_no_others(llm_folder, tmp_path, monkeypatch, safe):
    """Of a model's other files, such as what it says of generation, none."""
    there = {
        "config.json",
        "tokenizer.model",
        "generation_config.json",
        "onnx/model.safetensors",
        "consolidated.00.pth",
    }
    there |= {"pytorch_model.bin", "flax_model.msgpack"} | ({"model.safetensors"} if safe else set())
    fetched: set[str] = set()

    def download(model, *, revision, allow_patterns):
        wanted = set(filter_repo_objects(sorted(there), allow_patterns=allow_patterns))
        fetched.update(wanted)
        for name in wanted:
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    find_llm(MODEL, None)
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    assert fetched == {"config.json", "tokenizer.model", weights}


def test_content_decides_and_not_the_place(llm_folder, tmp_path):
    moved = shutil.copytree(llm_folder, tmp_path / "elsewhere")
    digest = llm_digest(llm_folder)
    assert digest == llm_digest(moved)
    (moved / "generation_config.json").write_text('{"do_sample": true}')
    assert llm_digest(moved) == digest
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    changed = llm_digest(moved)
    assert changed != digest
    config = (moved / "config.json").read_text()
    (moved / "config.json").write_text(config.replace('"hidden_act": "silu"', '"hidden_act": "gelu"'))
    assert llm_digest(moved) not in (digest, changed)
    assert llm_digest(tmp_path / "nothing") is None

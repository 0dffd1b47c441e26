"""Upstream's pickled recommenders: read without executing them, equal to upstream's own module."""

import logging
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import upstream_ilora as upstream
from torch import nn

from src.core.errors import UserError
from src.core.logging import LOGGER_NAME
from src.teacher.adapter.upstream_recommender import read_pickled_sasrec
from src.teacher.recommender import load_recommender

CPU = torch.device("cpu")
NUM_ITEMS, HIDDEN = 24, 8


@pytest.fixture(scope="module")
def program(ilora_folder):
    return upstream.load_program(ilora_folder)


# --- the structure by hand, so that the reader is tested without a checkout ------------------------------------


def hand_made(num_heads: int = 1) -> nn.Module:
    """The parts of upstream's SASRec by their names and shapes, with known weights."""
    model, attention, feed_forward = nn.Module(), nn.Module(), nn.Module()
    model.item_embeddings = nn.Embedding(NUM_ITEMS + 1, HIDDEN)
    model.positional_embeddings = nn.Embedding(upstream.WINDOW, HIDDEN)
    for name in ("ln_1", "ln_2", "ln_3"):
        setattr(model, name, nn.LayerNorm(HIDDEN))
    for name in ("linear_q", "linear_k", "linear_v"):
        setattr(attention, name, nn.Linear(HIDDEN, HIDDEN))
    attention.num_heads = num_heads
    feed_forward.w_1, feed_forward.w_2 = (nn.Conv1d(HIDDEN, HIDDEN, 1) for _ in range(2))
    feed_forward.layer_norm = nn.LayerNorm(HIDDEN)
    model.mh_attn, model.feed_forward, model.s_fc = attention, feed_forward, nn.Linear(HIDDEN, NUM_ITEMS)
    upstream.give_known_weights(model)
    return model


def save_as(kind: str, model: nn.Module, path: Path, monkeypatch, module: str = "__main__") -> Path:
    """Pickle a module as an instance of a class of that name in `module`."""
    made = type(kind, (nn.Module,), {"__module__": module})
    monkeypatch.setattr(f"{module}.{kind}", made, raising=False)
    model.__class__ = made
    torch.save(model, path)
    return path


def test_every_weight_arrives(tmp_path, monkeypatch):
    theirs = hand_made()
    read = read_pickled_sasrec(save_as("SASRec", theirs, tmp_path / "rec.pt", monkeypatch))

    assert (read.config.num_items, read.config.hidden_size, read.config.max_seq_len) == (NUM_ITEMS, HIDDEN, 10)
    state = read.state_dict()
    assert len(state) == len(theirs.state_dict())
    for ours, name in (
        ("item_embeddings.weight", "item_embeddings.weight"),
        ("blocks.0.attention.key.bias", "mh_attn.linear_k.bias"),
        ("blocks.0.norm_feed_forward.weight", "ln_2.weight"),
        ("output.weight", "s_fc.weight"),
    ):
        assert torch.equal(state[ours], theirs.state_dict()[name])
    assert torch.equal(state["blocks.0.outer.weight"], theirs.feed_forward.w_2.weight[..., 0])


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made-by-the-pickle",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Malicious(), "rec.pt")
    with pytest.raises(UserError, match=r"rec\.pt: the pickle names posix\.mkdir, .* it was not executed"):
        read_pickled_sasrec(Path("rec.pt"))
    assert not Path("made-by-the-pickle").exists()


def test_an_instance_runs_nothing(tmp_path, monkeypatch):
    """Not even the constructor or `__setstate__` of a class that is admitted by name."""
    path = save_as("SASRec", hand_made(), tmp_path / "rec.pt", monkeypatch)

    def fail(*args):
        raise AssertionError("executed")

    monkeypatch.setattr("__main__.SASRec.__setstate__", fail, raising=False)
    monkeypatch.setattr("__main__.SASRec.__new__", fail, raising=False)
    read_pickled_sasrec(path)


def test_other_content_is_refused(tmp_path, monkeypatch):
    def message(path: Path) -> str:
        with pytest.raises(UserError) as error:
            read_pickled_sasrec(path)
        return str(error.value)

    path = tmp_path / "rec.pt"
    path.write_text("text")
    assert "not a file written by torch.save" in message(path)
    assert "holds __main__.GRU; only a pickled SASRec" in message(save_as("GRU", hand_made(), path, monkeypatch))
    torch.save({"weight": torch.zeros(2), "bias": torch.zeros(2)}, path)
    assert "holds a state_dict (2 entries) without its class; only a pickled SASRec" in message(path)
    other = hand_made()
    del other.ln_3
    assert "not a SASRec as iLoRA has it ('ln_3.weight')" in message(save_as("SASRec", other, path, monkeypatch))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1)[:-2])
    assert "damaged file" in message(path)


def test_a_small_file_cannot_ask_for_a_huge_model(tmp_path, monkeypatch):
    """One row of a million columns is 4 MB; a square of them would be 4 TB."""
    wide = hand_made()
    wide.s_fc = nn.Linear(1_000_000, 1)
    path = save_as("SASRec", wide, tmp_path / "rec.pt", monkeypatch)
    monkeypatch.setattr(f"{read_pickled_sasrec.__module__}.build_model", None)
    with pytest.raises(UserError, match="not a SASRec as iLoRA has it .mh_attn.linear_q is not of 1000000 by 1000000"):
        read_pickled_sasrec(path)


@pytest.mark.parametrize("layout", [True, False])
def test_both_layouts_of_torch_are_read(tmp_path, monkeypatch, layout):
    theirs = hand_made()
    save_as("SASRec", theirs, tmp_path / "rec.pt", monkeypatch)
    torch.save(theirs, tmp_path / "rec.pt", _use_new_zipfile_serialization=layout)
    assert torch.equal(read_pickled_sasrec(tmp_path / "rec.pt").output.weight, theirs.s_fc.weight)


def test_it_serves_as_frozen_recommender(tmp_path, monkeypatch, dataset, make_dataset, caplog):
    path = save_as("SASRec", hand_made(), tmp_path / "rec.pt", monkeypatch)
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)  # a stage before it turned that off

    recommender = load_recommender(path, dataset, CPU)

    assert recommender.item_table.shape == (24, HIDDEN)
    assert recommender.users(dataset.test, np.arange(3)).shape == (3, HIDDEN)
    assert "whether dataset toy does so cannot be verified" in caplog.text
    other = make_dataset([[0, 1, 2, 3]], num_items=5)
    with pytest.raises(UserError, match="a recommender of 24 items, dataset tiny has 5"):
        load_recommender(path, other, CPU)


# --- against upstream's own module -----------------------------------------------------------------------------


def histories() -> tuple[torch.Tensor, torch.Tensor]:
    length = torch.tensor([1, 4, 10, 7])
    history = (5 * torch.arange(40).reshape(4, 10)) % NUM_ITEMS
    return history.masked_fill(torch.arange(10) >= length[:, None], NUM_ITEMS), length


@pytest.mark.parametrize("as_main", [True, False], ids=["__main__", "its module"])
@torch.no_grad()
def test_hidden_states_and_items_are_upstreams(program, tmp_path, monkeypatch, as_main):
    theirs = upstream.build_sasrec(program, NUM_ITEMS, 64)
    if as_main:  # as most of upstream's files are
        monkeypatch.setattr("__main__.SASRec", type(theirs), raising=False)
        monkeypatch.setattr(type(theirs), "__module__", "__main__")
    upstream.save_pickled(program, theirs, tmp_path / "rec.pt")

    ours = read_pickled_sasrec(tmp_path / "rec.pt").eval()

    history, length = histories()
    torch.testing.assert_close(
        ours.encode(history, length), theirs.cacul_h(history, length)[:, 0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours(history, length), theirs(history, length), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.item_embeddings.weight, theirs.cacu_x(torch.arange(NUM_ITEMS + 1)))


def test_upstreams_own_files(ilora_folder):
    files = sorted((ilora_folder / "rec_model").glob("*.pt"))
    if not files:
        pytest.skip("the checkout has no rec_model/*.pt")
    read = {}
    for path in files:
        try:
            read[path.name] = read_pickled_sasrec(path).config.num_items
        except UserError as error:
            assert "only a pickled SASRec" in str(error)
    assert {"lastfm.pt": 4606, "movielens.pt": 1682, "steam.pt": 3581}.items() <= read.items()
    assert not {name for name in read if name.startswith(("GRU", "Caser"))}

"""Settings of each kind of student: what it has, what is refused, where it arrives."""

from dataclasses import FrozenInstanceError, fields

import pytest

from src.core.errors import UserError
from src.core.settings import flat_settings, parse_choice
from src.student.config import (
    BATCHINGS,
    SCHEMAS,
    CaserConfig,
    FitSettings,
    GRU4RecConfig,
    LossSettings,
    ModelConfig,
    SASRecConfig,
    fit_window,
)
from src.student.datamodule import LOADERS
from src.student.models import MODELS


def parse(name="sasrec", **values):
    return parse_choice(SCHEMAS, {"name": name, **values}, "student")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "bert"}, "student.name='bert': must be one of sasrec, sasrec_plus, gru4rec, caser"),
        ({"num_filters": 8}, "student.num_filters: unknown key"),
        ({"name": "caser", "num_filters": 0}, "student.num_filters=0: must be an integer >= 1"),
        ({"name": "caser", "filter_sizes": [2, 51]}, r"student.filter_sizes=\[2, 51\]: must be one or more integers"),
        ({"name": "caser", "filter_sizes": []}, r"student.filter_sizes=\[\]: must be one or more integers"),
        ({"name": "caser", "batching": "packed"}, "student.batching: unknown key"),
        ({"name": "caser", "num_blocks": 2}, "student.num_blocks: unknown key"),
        ({"name": "caser", "tied_output": True}, "student.tied_output: unknown key"),
        ({"name": "gru4rec", "num_heads": 2}, "student.num_heads: unknown key"),
        ({"name": "gru4rec", "norm": "pre"}, "student.norm: unknown key"),
        ({"norm": "batch"}, "student.norm='batch': must be one of dllm2rec, pre, post"),
        ({"batching": "user"}, "student.batching='user': must be one of rows, packed"),
        ({"num_heads": 5}, "student.num_heads=5: must be a divisor of student.hidden_size=64"),
        ({"num_heads": 0}, "student.num_heads=0: must be an integer >= 1"),
        ({"num_blocks": -1}, "student.num_blocks=-1: must be an integer >= 0"),
        ({"scores": "l2"}, "student.scores='l2': must be one of dot, cosine"),
        ({"scores": "cosine", "temperature": 0.0}, "student.temperature=0.0: must be a number > 0"),
        ({"temperature": 0.07}, "student.temperature=0.07: must be 1 with student.scores=dot"),
        ({"negatives": "hard"}, "student.negatives='hard': must be one of uniform, popular"),
        ({"name": "gru4rec", "scores": "cosine"}, "student.scores: unknown key"),
        ({"name": "gru4rec", "num_blocks": 0}, "student.num_blocks=0: must be an integer >= 1"),
        (
            {"emb_size": 32, "tied_output": True},
            "student.tied_output=True: must be false where student.emb_size=32 and",
        ),
        ({"emb_size": 0}, "student.emb_size=0: must be an integer >= 1"),
        ({"hidden_size": 0}, "student.hidden_size=0"),
        ({"max_seq_len": 0}, "student.max_seq_len=0"),
        ({"batch_size": 0}, "student.batch_size=0"),
        ({"num_epochs": 0}, "student.num_epochs=0"),
        ({"patience": 0}, "student.patience=0"),
        ({"dropout": 1.0}, r"student.dropout=1.0: must be a number in \[0, 1\)"),
        ({"dropout": -0.1}, "student.dropout=-0.1"),
        ({"lr": 0.0}, "student.lr=0.0: must be a number > 0"),
        ({"lr": float("nan")}, "student.lr=nan"),
        ({"lr_schedule": "cosine"}, "student.lr_schedule='cosine': must be one of constant, linear"),
        ({"weight_decay": -1.0}, "student.weight_decay=-1.0: must be a number >= 0"),
        ({"grad_clip": -1.0}, r"student.grad_clip=-1.0: must be a number >= 0 \(0 is off\)"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parse(**changes)


def test_a_kind_takes_its_own_names_only():
    with pytest.raises(UserError, match="student.name='caser': must be one of sasrec, sasrec_plus"):
        SASRecConfig(name="caser")


def test_every_model_has_its_settings():
    assert SCHEMAS.keys() == MODELS.keys()
    assert tuple(LOADERS) == BATCHINGS
    assert [type(parse(name)) for name in ("sasrec", "sasrec_plus")] == [SASRecConfig] * 2


def test_a_window_is_cut_to_the_data_sets_in_a_copy():
    student = SASRecConfig(name="sasrec", max_seq_len=50)

    assert fit_window(student, 20).max_seq_len == 20 and student.max_seq_len == 50
    assert fit_window(student, 50) == fit_window(student, 70) == student
    with pytest.raises(FrozenInstanceError):
        student.max_seq_len = 20


def test_filters_have_to_fit_a_window_that_is_cut():
    with pytest.raises(UserError, match=r"student.filter_sizes=\[2, 3, 4\]: must be one or more integers from 1 to"):
        fit_window(CaserConfig(name="caser"), 3)


def test_how_often_the_state_is_saved_and_what_is_held_in_memory_decide_nothing():
    decided = flat_settings(GRU4RecConfig(name="gru4rec"), "student")
    undecided = {f"student.{entry.name}" for entry in fields(GRU4RecConfig)} - decided.keys()
    assert undecided == {"student.save_interval", "student.loss_chunk"}


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("key, meaning", [("loss_chunk", "by the number of items"), ("max_valid_rows", "all")])
def test_chunks_and_samples_are_of_one_at_least(key, meaning, value):
    message = rf"student\.{key}={value}: must be null \({meaning}\) or an integer >= 1"
    with pytest.raises(UserError, match=message):
        parse("caser", **{key: value})


def test_what_validation_numbers_are_of():
    student = GRU4RecConfig(name="gru4rec", max_valid_rows=2000)
    assert student.valid_sample(22363) == "a fixed sample of 2,000 of 22,363 rows"
    assert student.valid_sample(2000) == GRU4RecConfig(name="gru4rec").valid_sample(22363) == ""


COMMON = {
    "emb_size": 4,
    "hidden_size": 4,
    "max_seq_len": 5,
    "dropout": 0.25,
    "batch_size": 6,
    "lr": 0.5,
    "lr_schedule": "linear",
    "num_epochs": 7,
    "weight_decay": 0.125,
    "grad_clip": 2.0,
    "patience": 8,
    "mixed_precision": True,
    "loss": "bce_dros",
    "dros_weight": 0.75,
    "dros_beta": 1.5,
    "num_negatives": 3,
    "negatives": "popular",
    "loss_chunk": 11,
    "max_valid_rows": 13,
    "save_interval": 9,
}
COSINE = {"scores": "cosine", "temperature": 0.25}
FIT = {
    "batch_size": 6,
    "lr": 0.5,
    "lr_schedule": "linear",
    "num_epochs": 7,
    "weight_decay": 0.125,
    "grad_clip": 2.0,
    "patience": 8,
    "mixed_precision": True,
    "save_interval": 9,
}


@pytest.mark.parametrize(
    "name, own, model, batching",
    [
        (
            "sasrec_plus",
            {"num_blocks": 3, "tied_output": True, "batching": "packed", "num_heads": 2, "norm": "post"} | COSINE,
            {"num_blocks": 3, "tied_output": True, "num_heads": 2, "norm": "post"} | COSINE,
            "packed",
        ),
        (
            "gru4rec",
            {"num_blocks": 2, "tied_output": True, "batching": "packed"},
            {"num_blocks": 2, "tied_output": True},
            "packed",
        ),
        ("caser", {"num_filters": 2, "filter_sizes": [5]}, {"num_filters": 2, "filter_sizes": (5,)}, "rows"),
    ],
)
def test_every_value_arrives_where_it_is_used(name, own, model, batching):
    config = parse(name, **COMMON, **own)

    assert {entry.name for entry in fields(config)} == {"name", *COMMON, *own}
    assert config.model_config(num_items=9) == ModelConfig(name, 9, 4, 4, 5, 0.25, **model)
    assert config.fit_settings() == FitSettings(**FIT, batching=batching)
    assert config.loss_settings() == LossSettings("bce_dros", 0.75, 1.5, 3, "popular", 11)

"""Ranges of the student's settings."""

import pytest

from src.core.errors import UserError
from src.student.config import FitSettings, StudentConfig
from src.student.models import ModelConfig


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_filters": 8}, "student.num_filters=8: must be left out: only caser has filters"),
        ({"filter_sizes": [2]}, r"student.filter_sizes=\[2\]: must be left out"),
        ({"name": "caser", "num_filters": 0}, "student.num_filters=0: must be an integer >= 1"),
        ({"name": "caser", "filter_sizes": [2, 51]}, r"student.filter_sizes=\[2, 51\]: must be one or more integers"),
        ({"name": "caser", "filter_sizes": []}, r"student.filter_sizes=\[\]: must be one or more integers"),
        ({"name": "bert"}, "student.name='bert': must be one of sasrec, gru4rec, caser"),
        ({"norm": "batch"}, "student.norm='batch': must be one of dllm2rec, pre, post"),
        ({"batching": "user"}, "student.batching='user': must be one of rows, packed"),
        ({"num_heads": 5}, "student.num_heads=5: must be a divisor of student.hidden_size=64"),
        ({"num_heads": 0}, "student.num_heads=0: must be an integer >= 1"),
        ({"num_blocks": 0}, "student.num_blocks=0: must be an integer >= 1"),
        (
            {"emb_size": 32, "tied_output": True},
            "student.tied_output=True: must be false where student.emb_size=32 and",
        ),
        ({"name": "caser", "batching": "packed"}, "student.batching='packed': must be rows with student.name=caser"),
        ({"name": "caser", "num_blocks": 2}, "student.num_blocks=2: must be 1 with student.name=caser"),
        ({"name": "caser", "tied_output": True}, "student.tied_output=True: must be false with student.name=caser"),
        ({"name": "gru4rec", "num_heads": 2}, "student.num_heads=2: must be 1 with student.name=gru4rec"),
        ({"name": "gru4rec", "norm": "pre"}, "student.norm='pre': must be dllm2rec with student.name=gru4rec"),
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
        ({"weight_decay": -1.0}, "student.weight_decay=-1.0: must be a number >= 0"),
        ({"grad_clip": -1.0}, r"student.grad_clip=-1.0: must be a number >= 0 \(0 is off\)"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        StudentConfig(**{"name": "sasrec", **changes})


def test_filters_have_to_fit_a_window_that_was_cut():
    config = StudentConfig("caser")
    config.max_seq_len = 3
    with pytest.raises(UserError, match=r"student.filter_sizes=\[2, 3, 4\]: must be one or more integers from 1 to"):
        config.model_config(num_items=9)


def test_every_value_arrives_where_it_is_used():
    config = StudentConfig("sasrec", 3, 4, 5, 0.25, 6, 0.5, 7, 0.125, 2.0, 8)

    assert config.model_config(num_items=9) == ModelConfig("sasrec", 9, 3, 4, 5, 0.25)
    assert config.fit_settings() == FitSettings(6, 0.5, 7, 0.125, 2.0, 8)

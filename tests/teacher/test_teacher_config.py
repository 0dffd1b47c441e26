"""Settings of `conf/teacher` that are refused."""

import pytest

from src.core.errors import UserError
from src.teacher.config import ExportSettings, LoraSettings, TeacherConfig, TinySettings
from src.teacher.prompt.wording import PromptConfig


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"prompt_template": "x"},
            "teacher.prompt_template='x': must be one of artist, default, game, movie, or a .yaml",
        ),
        ({"prompt": PromptConfig(verb="")}, "teacher.prompt.verb='': must be a text in one line"),
        ({"dtype": "int8"}, "teacher.dtype='int8': must be one of auto, float32, bfloat16"),
        ({"max_history": 0}, "teacher.max_history=0: must be an integer >= 1"),
        ({"batch_size": 0}, "teacher.batch_size=0"),
        ({"micro_batch_size": 3}, "teacher.micro_batch_size=3: must be a divisor of teacher.batch_size=64"),
        ({"num_epochs": -1}, "teacher.num_epochs=-1: must be an integer >= 0"),
        ({"attn_implementation": "x"}, "teacher.attn_implementation='x': must be one of auto, eager, sdpa$"),
        (
            {"attn_implementation": "flash_attention_2"},
            "one of auto, eager, sdpa; flash_attention_2 does not take the mask",
        ),
        ({"load_in_4bit": True}, "teacher.engine='auto': must be native with teacher.load_in_4bit=true"),
        ({"save_interval": 0}, "teacher.save_interval=0"),
        ({"save_steps": 0}, "teacher.save_steps=0"),
        ({"max_train_rows": 0}, r"teacher.max_train_rows=0: must be null \(all\) or an integer >= 1"),
        ({"max_valid_rows": 0}, "teacher.max_valid_rows=0"),
        ({"max_eval_rows": 0}, "teacher.max_eval_rows=0"),
        ({"num_candidates": 1}, "teacher.num_candidates=1: must be an integer >= 2"),
        ({"num_candidates": 9}, "teacher.export.top_n=10: must be at most teacher.num_candidates=9"),
        ({"lr": 0.0}, "teacher.lr=0.0: must be a number > 0"),
        ({"weight_decay": -1.0}, "teacher.weight_decay=-1.0: must be a number >= 0"),
    ],
)
def test_refused_teacher(changes, message):
    with pytest.raises(UserError, match=message):
        TeacherConfig(**{"name": "ilora", **changes})


def test_generation_may_export_more_than_it_shows():
    assert (
        TeacherConfig(name="ilora", num_candidates=5, export=ExportSettings(method="generate", top_n=10)).export.top_n
        == 10
    )


@pytest.mark.parametrize(
    "schema, changes, message",
    [
        (LoraSettings, {"r": 0}, "teacher.lora.r=0: must be an integer >= 1"),
        (LoraSettings, {"num_experts": 3}, "teacher.lora.num_experts=3: must be a divisor of teacher.lora.r=8"),
        (LoraSettings, {"dropout": 1.0}, r"teacher.lora.dropout=1.0: must be a number in \[0, 1\)"),
        (ExportSettings, {"method": "x"}, "teacher.export.method='x': must be one of likelihood, generate"),
        (ExportSettings, {"confidence": "x"}, "teacher.export.confidence='x': must be one of minmax, raw"),
        (ExportSettings, {"top_n": 0}, "teacher.export.top_n=0"),
        (ExportSettings, {"batch_tokens": 0}, "teacher.export.batch_tokens=0"),
        (ExportSettings, {"max_rows": 0}, r"teacher.export.max_rows=0: must be null \(all\) or an integer >= 1"),
        *(
            (ExportSettings, {"part": part}, f"teacher.export.part='{part}': must be null, or k/n for part k of n")
            for part in ("2/2", "1", "-1/2", "0/0", "a/b", "1/2/3")
        ),
        (
            ExportSettings,
            {"part": "0/2", "rankings": False},
            "teacher.export.part='0/2': must be null with teacher.export.rankings=false",
        ),
        (
            ExportSettings,
            {"embedding_pooling": "max"},
            "teacher.export.embedding_pooling='max': must be one of last, mean",
        ),
        (
            ExportSettings,
            {"embedding_text": "title"},
            "teacher.export.embedding_text='title': must be a text with {title}",
        ),
        (ExportSettings, {"embedding_text": "{title} {title}"}, "must be a text with {title} in one place"),
        (TinySettings, {"vocab_size": 100}, "teacher.tiny.vocab_size=100: must be an integer >= 300"),
        (TinySettings, {"num_heads": 3}, "teacher.tiny.num_heads=3: must be a number whose fourfold divides"),
        (TinySettings, {"num_layers": 2}, "teacher.tiny.num_layers=2: must be an integer >= 3"),
        (TinySettings, {"pretrain_lr": 0.0}, "teacher.tiny.pretrain_lr=0.0: must be a number > 0"),
    ],
)
def test_refused_sections(schema, changes, message):
    with pytest.raises(UserError, match=message):
        schema(**changes)

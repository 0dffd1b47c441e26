"""Readers of what belongs to a teacher: its files, adapter, language model and wording, and foreign checkpoints."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.fuzzing.data_readers import LOGGER
from benchmarks.fuzzing.reader import Reader
from benchmarks.fuzzing.run_readers import CPU, NUM_ITEMS, dataset
from src.core.teacher_files import (
    CONFIDENCE_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    RANKING_FILE,
    ROW_STATS_FILE,
    ROWS_FILE,
    ChosenRows,
    write_teacher_files,
)
from src.distill.config import DistillConfig
from src.distill.data_bridge import load_teacher_outputs
from src.distill.dllm2rec_wrapper import read_teacher, read_windows
from src.teacher.adapter import adapter_file
from src.teacher.adapter.implementation import load_adapter
from src.teacher.adapter.moe_lora import add_gated_lora
from src.teacher.adapter.upstream_recommender import read_pickled_sasrec
from src.teacher.adapter.upstream_weights import from_adapter, read_checkpoint
from src.teacher.config import LoraSettings, TinySettings
from src.teacher.llm.folder import llm_digest, num_layers
from src.teacher.llm.load import load_llm
from src.teacher.prompt.wording import Wording, read_wording
from src.teacher.scoring.shards import read_shards
from src.teacher.tiny.build import _llama_config

# --- files for students -------------------------------------------------------------------------------------

_ROWS = np.arange(0, 18, 2)


def _make_teacher(folder: Path) -> None:
    ranking = (np.arange(len(_ROWS))[:, None] + np.arange(3)) % NUM_ITEMS
    distances = np.tile(np.array([0.0, 0.5, 1.0]), (len(_ROWS), 1))
    texts = ("engine", "method", "candidates", "confidence", "base_model", "adapter_sha256", "git_commit")
    write_teacher_files(
        folder,
        embeddings=torch.arange(NUM_ITEMS * 4, dtype=torch.float32).reshape(NUM_ITEMS, 4),
        ranking=ranking,
        distances=distances,
        row_stats={"raw_best_distance": np.ones(len(_ROWS), dtype=np.float32)},
        rows=ChosenRows(_ROWS, "every other"),
        about={
            **{"dataset": "toy", "dataset_fingerprint": "f" * 64, "in_sample_rows": 0, "seed": 1},
            **{name: "x" for name in texts},
        },
    )


def _make_bare(folder: Path) -> None:
    _make_teacher(folder)
    (folder / MANIFEST_FILE).unlink()


def _make_own(folder: Path) -> None:
    np.save(folder / "own.npy", np.ones((NUM_ITEMS, 4), dtype=np.float32))
    torch.save(torch.ones(NUM_ITEMS, 4), folder / "own.pt")


def _read_own(folder: Path) -> Any:
    settings = [
        DistillConfig(name="dllm2rec", embeddings_file=str(f), kd_weight=0.0) for f in sorted(folder.glob("own.*"))
    ]
    return [load_teacher_outputs(folder, dataset(), s, logger=LOGGER).embeddings for s in settings]


def _read_teacher(folder: Path) -> Any:
    settings = DistillConfig(name="dllm2rec", top_k=2, confidence="per_sequence")  # reads every file
    return load_teacher_outputs(folder, dataset(), settings, logger=LOGGER)


def _make_shards(folder: Path) -> None:
    for number, rows in enumerate((1024, 100)):
        arrays = {"items": np.zeros((rows, 2), dtype=np.int64), "log_prob": np.zeros(rows, dtype=np.float32)}
        np.savez(folder / f"{number:05d}.npz", **arrays)


# --- the original program's files ---------------------------------------------------------------------------


def _make_program(folder: Path) -> None:
    windows = pd.DataFrame({"seq": [[1, 2, 3], [4, 5, 6]], "len_seq": [3, 1], "next": [4, 5]})
    windows.to_pickle(folder / "train.df")
    windows.to_csv(folder / "test.csv", index=False)
    teacher = folder / "tocf" / "ours"
    teacher.mkdir(parents=True)
    _make_bare(teacher)


def _read_program(folder: Path) -> Any:
    return read_windows(folder / "train.df"), read_windows(folder / "test.csv"), read_teacher(folder)


# --- language model and adapter -----------------------------------------------------------------------------

_SETTINGS = LoraSettings(r=4, num_experts=2)
_REC_SIZE = 4
_LLM_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_WEIGHTS, _INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"


def _make_llm(folder: Path) -> None:
    """Two shards with their index, and a fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ti", "tl"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("T", "i"), ("t", "l")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(_llama_config(TinySettings(hidden_size=16), len(pieces)))
    model.save_pretrained(folder, max_shard_size="30KB")


def _read_llm(folder: Path) -> Any:
    tokenizer, model = load_llm(folder, "float32", CPU)
    model(torch.tensor([tokenizer("Title 1").input_ids]))
    return num_layers(folder), llm_digest(folder)


def _llm() -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(_llama_config(TinySettings(hidden_size=16, num_heads=2), 40))


def _make_adapter(folder: Path) -> None:
    add_gated_lora(_llm(), _SETTINGS, _REC_SIZE).save(folder)


def _read_adapter(folder: Path) -> Any:
    return load_adapter("native", _llm(), folder=folder, num_experts=_SETTINGS.num_experts, rec_size=_REC_SIZE)


@cache
def _adapter_state() -> dict[str, torch.Tensor]:
    return add_gated_lora(_llm(), _SETTINGS, _REC_SIZE).state()


def _make_checkpoint(folder: Path) -> None:
    torch.save({"state_dict": from_adapter(_adapter_state()), "epoch": 1}, folder / "last.ckpt")


def _read_checkpoint(folder: Path) -> Any:
    return read_checkpoint(folder / "last.ckpt", _adapter_state(), LOGGER)


class SASRec(nn.Module):
    """The parts of iLoRA's recommender, by their names and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.item_embeddings, self.positional_embeddings = nn.Embedding(NUM_ITEMS + 1, 8), nn.Embedding(10, 8)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(8) for _ in range(3))
        self.mh_attn, self.feed_forward = nn.Module(), nn.Module()
        for name in ("linear_q", "linear_k", "linear_v"):
            setattr(self.mh_attn, name, nn.Linear(8, 8))
        self.mh_attn.num_heads = 1
        self.feed_forward.w_1, self.feed_forward.w_2 = (nn.Conv1d(8, 8, 1) for _ in range(2))
        self.feed_forward.layer_norm, self.s_fc = nn.LayerNorm(8), nn.Linear(8, NUM_ITEMS)


def _make_recommender(folder: Path) -> None:
    import __main__

    before = getattr(__main__, "SASRec", None)
    SASRec.__module__, __main__.SASRec = "__main__", SASRec  # type: ignore[attr-defined]  # as upstream's file has it
    torch.save(SASRec(), folder / "rec.pt")
    SASRec.__module__ = __name__
    if before is None:
        del __main__.SASRec  # type: ignore[attr-defined]


# --- wording ------------------------------------------------------------------------------------------------


def _make_wording(folder: Path) -> None:
    (folder / "own.yaml").write_text(
        "item_noun: film\nverb: watched\nquestions:\n  - 'They {verb} {history}. What next of {candidates}?'\n"
        "open_question: 'They {verb} {history}. What next?'\n"
    )


def _read_wording(folder: Path) -> Wording:
    return read_wording(str(folder / "own.yaml"))


def _of(make: Callable[[Path], None], read: Callable[[Path], Any], *files: str) -> Reader:
    return Reader(make, files, read)


READERS = {
    "teacher_files": _of(_make_teacher, _read_teacher, MANIFEST_FILE, ROW_STATS_FILE, ROWS_FILE, RANKING_FILE),
    "teacher_embeddings": _of(_make_bare, _read_teacher, EMBEDDINGS_FILE),
    "teacher_ranking": _of(_make_bare, _read_teacher, RANKING_FILE),
    "teacher_confidence": _of(_make_bare, _read_teacher, CONFIDENCE_FILE),
    "teacher_rows": _of(_make_bare, _read_teacher, ROWS_FILE),
    "teacher_row_stats": _of(_make_bare, _read_teacher, ROW_STATS_FILE),
    "own_embeddings": _of(_make_own, _read_own, "own.npy", "own.pt"),
    "shards": _of(_make_shards, lambda folder: read_shards(folder, 1124), "00000.npz", "00001.npz"),
    "dllm2rec_files": _of(
        _make_program,
        _read_program,
        *("train.df", "test.csv"),
        *(f"tocf/ours/{name}" for name in (EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE)),
    ),
    "adapter": _of(_make_adapter, _read_adapter, adapter_file.CONFIG_FILE, adapter_file.WEIGHTS_FILE),
    "upstream_checkpoint": _of(_make_checkpoint, _read_checkpoint, "last.ckpt"),
    "upstream_recommender": _of(_make_recommender, lambda folder: read_pickled_sasrec(folder / "rec.pt"), "rec.pt"),
    "llm": _of(_make_llm, _read_llm, *_LLM_FILES, _WEIGHTS, _INDEX, "generation_config.json"),
    "wording": _of(_make_wording, _read_wording, "own.yaml"),
}

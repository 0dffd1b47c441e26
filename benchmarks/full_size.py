"""The teacher at full size on whatever device there is: a LLaMA with random weights; prints one JSON line.

    python -m benchmarks.full_size [--shape 7b] [--folder <where the weights may lie>] [--peak_tflops <of the device>]

Builds the LLaMA (`7b`: LLaMA-2-7B's shape, 13.5 GB in bfloat16, in shards of 2 GB, taken away afterwards), loads it,
trains the adapter on `--train_rows`, exports `--rows` by likelihood, and ranks `--plain_rows` of them the plain way:
one sequence of prompt and answer for each candidate, stock peft layers, full logits. ILORA_DIR=<checkout of
AkaliKong/iLoRA@28e4737> trains through iLoRA's own code, too. On a GPU, or with `--students`, follow an epoch of the
student and one of a distillation, on an invented log of MovieLens-1M's size and a teacher 4,096 wide.

The LLM computes in `--dtype`: `auto` is bfloat16 where the device multiplies it natively, else float32.

`flops_share` is model FLOP utilisation: 2 FLOPs a weight and token forward and, as the LLM is frozen, 2 backward, and
attention's products over what a token sees, half the square; what gradient checkpointing computes again counts as
nothing. By the peak that makers give for dense bfloat16, where it is known, or `--peak_tflops`. Random weights rank
nearly at random, so that rounding swaps neighbours: `equal_first` counts equal best items, `largest_difference` is that
of the mean log-probabilities.
"""

import argparse
import gc
import json
import logging
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.data_processing import write_ml_1m
from benchmarks.teacher_export import peft_layers
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.datasets.movielens import MovielensConfig
from src.core.datasets.sample import SampleConfig
from src.core.metrics import MetricsConfig
from src.core.tracking.base import Untracked
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.trainer_distill import Distillation, train_distilled
from src.student.config import SASRecConfig
from src.student.context import RunContext
from src.student.models import build_model
from src.student.trainer_baseline import train_baseline
from src.teacher.adapter.ilora_submodule import find_code
from src.teacher.adapter.implementation import add_adapter
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import DTYPES, ExportSettings, TeacherConfig, TinySettings
from src.teacher.llm.load import load_llm, native_dtype
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.recommender import FrozenRecommender
from src.teacher.scoring.answer_tree import build_trees
from src.teacher.scoring.inference import candidate_items, candidate_log_probs, run_rows
from src.teacher.tiny.build import build_tiny_llm
from src.teacher.training import train_adapter, training_rows

LOGGER = logging.getLogger("benchmark")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "raw" / "sample"
SEED, SHARD_BYTES, STUDENT_WIDTH, TEACHER_WIDTH, TOP_K = 42, 2 << 30, 64, 4096, 10
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}  # TFLOP/s, dense bfloat16


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a LLaMA: width, feed-forward width, layers, heads, heads of keys and values, tokens (0: its tokenizer's)."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 32000

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            torch_dtype="bfloat16",
        )


SHAPES = {
    "7b": Shape(width=4096, inner=11008, layers=32, heads=32, kv_heads=32),
    "1b": Shape(width=2048, inner=5632, layers=22, heads=32, kv_heads=4),
    "tiny": Shape(width=64, inner=128, layers=3, heads=4, kv_heads=2, vocab=0),
}


# --- the LLaMA ----------------------------------------------------------------------------------------------


def build_llm(folder: Path, shape: Shape, dataset: SequenceDataset, config: TeacherConfig) -> None:
    """A Hugging Face folder: a tokenizer that spells titles word by word, and random weights in shards."""
    words = sorted({word for title in dataset.titles for word in title.split()})
    words_only = replace(dataset, titles=[words[i % len(words)] for i in range(dataset.num_items)])
    small = replace(config, tiny=TinySettings(hidden_size=16, pretrain_steps=1, pretrain_batch_size=1))
    build_tiny_llm(small, words_only, folder=folder, context=quiet(torch.device("cpu")))
    (folder / "model.safetensors").unlink()
    shape = replace(shape, vocab=shape.vocab or LlamaConfig.from_pretrained(folder).vocab_size)
    shape.config().save_pretrained(folder)
    sizes = _sizes(shape)
    torch.manual_seed(SEED)
    places: dict[str, str] = {}
    for number, names in enumerate(_shards(sizes)):
        tensors = {name: _weights(name, sizes[name]) for name in names}
        places |= dict.fromkeys(names, f"model-{number:05d}.safetensors")
        save_file(tensors, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
    total = 2 * sum(size.numel() for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(sizes: dict[str, torch.Size]) -> Iterator[list[str]]:
    names: list[str] = []
    for name in sizes:
        if names and 2 * sum(sizes[other].numel() for other in [*names, name]) > SHARD_BYTES:
            yield names
            names = []
        names.append(name)
    yield names


def _weights(name: str, size: torch.Size) -> torch.Tensor:
    is_norm = len(size) == 1
    return torch.ones(size, dtype=torch.bfloat16) if is_norm else torch.randn(size, dtype=torch.bfloat16) * 0.02


def quiet(device: torch.device) -> RunContext:
    return RunContext(seed=SEED, device=device, logger=LOGGER, writer=Untracked())


def build_teacher(
    folder: Path, dataset: SequenceDataset, config: TeacherConfig, device: torch.device, engine: str
) -> TeacherModel:
    """Around a frozen recommender that has learnt nothing, which costs and computes what one would that has."""
    tokenizer, llm = load_llm(folder, config.dtype, device)
    if config.gradient_checkpointing:
        llm.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(SEED)
    student = SASRecConfig(name="sasrec").model_config(dataset.num_items)
    recommender = FrozenRecommender(build_model(student), dataset, device)
    lora = add_adapter(engine, llm, config=config, rec_size=student.emb_size, logger=LOGGER)
    return TeacherModel(
        lm=PromptedLM(lora, recommender.item_table),
        builder=PromptBuilder(tokenizer, dataset.titles, config.wording),
        recommender=recommender,
        dataset=dataset,
        config=config,
    )


# --- what is measured ---------------------------------------------------------------------------------------


class Speeds:
    """A TensorBoard writer that keeps the tokens a second of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        if tag.endswith("tokens_per_s"):
            self.values.append(scalar_value)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def train(teacher: TeacherModel, num_rows: int, device: torch.device) -> float:
    """Tokens a second, padding aside: the median of the steps, the first left out where there are several."""
    speeds = Speeds()
    rows = training_rows(teacher.dataset, num_rows, SEED)
    context = replace(quiet(device), writer=speeds)  # type: ignore[arg-type]
    train_adapter(teacher, rows, validate=lambda: 0.0, save_best=lambda: None, context=context)
    return statistics.median(speeds.values[1:] or speeds.values)


def export(teacher: TeacherModel, index: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds; the items that the prompts offer and their mean log-probabilities, [N, C] each."""
    rows = teacher.dataset.train
    offered = candidate_items(teacher, rows, index, seed=SEED, kind="retrieval")
    begin = time.perf_counter()
    scores = run_rows(
        teacher,
        rows,
        index,
        candidates=offered,
        work=lambda batch, gates, c: {"mean": candidate_log_probs(teacher, batch, gates, candidates=c)[1]},
        extra_tokens=np.array([sum(map(len, answers(teacher, row))) for row in offered]),
        advance=lambda count: None,
    )
    return time.perf_counter() - begin, offered, scores["mean"]


def answers(teacher: TeacherModel, offered: np.ndarray) -> list[list[int]]:
    return [teacher.builder.answer(item) for item in offered.tolist()]


@torch.no_grad()
def score_plainly(teacher: TeacherModel, index: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """The mean log-probabilities [N, C], every candidate in a sequence of its own."""
    lora, builder, rows = teacher.lm.lora, teacher.builder, teacher.dataset.train
    found = np.empty(offered.shape, dtype=np.float32)
    for place, row in enumerate(index):
        history = rows.history(row)[-teacher.config.max_history :]
        prompt = builder.prompt(history, offered[place], template=0, embed=True)
        gates = lora.router(teacher.recommender.users(rows, index[place : place + 1]))
        for column, answer in enumerate(answers(teacher, offered[place])):
            batch = builder.batch([prompt], [answer]).to(lora.llm.device)
            with lora.gated(gates), peft_layers(lora):
                logits = lora.llm(inputs_embeds=teacher.lm.inputs_embeds(batch)).logits[0, -len(answer) - 1 : -1]
            wanted = torch.tensor(answer, device=logits.device)[:, None]
            found[place, column] = logits.float().log_softmax(-1).gather(1, wanted).mean().item()
    return found


def flops_a_token(shape: Shape, length: float) -> float:
    """Of a forward pass: 2 a weight that multiplies (embeddings do not), and attention over half of `length`."""
    kv = shape.width * shape.kv_heads // shape.heads
    layer = 2 * shape.width**2 + 2 * shape.width * kv + 3 * shape.width * shape.inner
    return 2 * shape.layers * layer + 4 * shape.layers * shape.width * length / 2


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def peak_of(device: torch.device) -> float | None:
    """TFLOP/s of a device that is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(peak) for key, peak in PEAKS.items() if key in name), None)


# --- the students -------------------------------------------------------------------------------------------


def student_epochs(folder: Path, device: torch.device, interactions: int) -> dict[str, float]:
    """Seconds of an epoch alone and one with a teacher, each with its validation, after one that warms up."""
    write_ml_1m(folder, interactions, num_users=interactions // 165)  # as many for each as there
    dataset = load_dataset(MovielensConfig(version="1m", raw_dir=str(folder)), folder / "data", LOGGER)
    student = SASRecConfig(name="sasrec", num_blocks=2, batching="packed", batch_size=1024, num_epochs=1)
    rows_student = replace(student, batching="rows", batch_size=256)
    random = torch.Generator().manual_seed(SEED)
    shape = (len(dataset.train), TOP_K)
    outputs = TeacherOutputs(
        embeddings=torch.randn(dataset.num_items, TEACHER_WIDTH, generator=random) * 0.1,
        ranking=torch.randint(dataset.num_items, shape, generator=random),
        confidence=torch.rand(shape, generator=random).sort(1).values,
    )
    distillation = Distillation(settings=DistillConfig(name="dllm2rec", top_k=TOP_K), outputs=outputs)
    common = {"metrics": MetricsConfig(), "folder": folder / "student", "context": quiet(device)}
    seconds: dict[str, list[float]] = {"student_epoch_s": [], "student_rows_epoch_s": [], "kd_epoch_s": []}
    for _ in range(2):
        for name, action in (
            ("student_epoch_s", lambda: train_baseline(student, dataset, **common)),
            ("student_rows_epoch_s", lambda: train_baseline(rows_student, dataset, **common)),
            ("kd_epoch_s", lambda: train_distilled(rows_student, dataset, distillation=distillation, **common)),
        ):
            begin = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - begin)
    steps = -(-len(dataset.train) // rows_student.batch_size)
    result = {name: round(taken[-1], 2) for name, taken in seconds.items()}
    return {
        **result,
        "student_train_rows": len(dataset.train),
        "kd_step_ms": round(1e3 * result["kd_epoch_s"] / steps, 2),
    }


# --- all of it ----------------------------------------------------------------------------------------------


@contextmanager
def a_folder(given: Path | None) -> Iterator[Path]:
    """A folder below the given one, or a temporary one, that is taken away with the weights, on SIGTERM, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(dir=given) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def measure(arguments: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, object]:
    shape = SHAPES[arguments.shape]
    need = 2.2 * sum(size.numel() for size in _sizes(shape).values()) / 2**30
    if shutil.disk_usage(folder).free / 2**30 < need:
        raise SystemExit(f"{folder}: the weights want {need:.0f} GiB; give --folder where there are, or --shape 1b")
    dataset = load_dataset(SampleConfig(max_seq_len=50, raw_dir=str(SAMPLE)), folder / "data", LOGGER)
    config = TeacherConfig(
        name="ilora_tiny",
        batch_size=arguments.micro_batch,
        micro_batch_size=arguments.micro_batch,
        num_epochs=1,
        max_history=arguments.max_history,
        num_candidates=arguments.num_candidates,
        export=ExportSettings(batch_tokens=arguments.batch_tokens, top_n=1),
        dtype=native_dtype(arguments.dtype, device),
        gradient_checkpointing=device.type == "cuda",
    )
    build_llm(folder / "llm", shape, dataset, config)
    result: dict[str, object] = {"shape": arguments.shape, "device": _name(device), "dtype": config.dtype}
    begin = time.perf_counter()
    teacher = build_teacher(folder / "llm", dataset, config, device, "native")
    result["load_s"] = round(time.perf_counter() - begin, 1)
    trained = train(teacher, arguments.train_rows, device)
    result |= {"train_rows": arguments.train_rows, "train_tokens_s": round(trained, 1), "train_gib": peak_gib(device)}
    result |= _exported(teacher, arguments)
    length, peak = float(result["prompt_tokens"]), arguments.peak_tflops or peak_of(device)  # type: ignore[arg-type]
    per_token = flops_a_token(shape, length) / 1e12
    result["train_tflops"] = round(2 * per_token * trained, 3)
    result["export_tflops"] = round(per_token * float(result["export_tokens_s"]), 3)  # type: ignore[arg-type]
    if peak:
        for step in ("train", "export"):
            result[f"{step}_flops_share"] = round(float(result[f"{step}_tflops"]) / peak, 3)  # type: ignore[arg-type]
    if find_code() is not None:
        del teacher
        gc.collect()
        theirs = train(
            build_teacher(folder / "llm", dataset, config, device, "submodule"), arguments.train_rows, device
        )
        result |= {"submodule_train_tokens_s": round(theirs, 1), "native_over_submodule": round(trained / theirs, 2)}
    return {**result, "peak_gib": peak_gib(device)}


def _exported(teacher: TeacherModel, arguments: argparse.Namespace) -> dict[str, object]:
    index = np.random.default_rng(SEED).choice(len(teacher.dataset.train), arguments.rows, replace=False)
    if arguments.rows > arguments.plain_rows:
        export(teacher, index[:1])  # warms up
    seconds, offered, mean = export(teacher, index)
    builder, rows, last = teacher.builder, teacher.dataset.train, teacher.config.max_history
    lengths = [
        len(builder.prompt(rows.history(i)[-last:], c, template=0, embed=True).ids)
        for i, c in zip(index, offered, strict=True)
    ]
    trees = build_trees([answers(teacher, row) for row in offered])
    tokens = sum(lengths) + int((trees.end > 0).sum())
    plain = score_plainly(teacher, index[: arguments.plain_rows], offered[: arguments.plain_rows])
    ours = mean[: arguments.plain_rows]
    return {
        "prompt_tokens": round(float(np.mean(lengths)), 1),
        "export_rows": len(index),
        "export_rows_s": round(len(index) / seconds, 3),
        "export_tokens_s": round(tokens / seconds, 1),
        "plain_rows": len(plain),
        "equal_rankings": int((np.argsort(-plain, 1, "stable") == np.argsort(-ours, 1, "stable")).all(1).sum()),
        "equal_first": int((plain.argmax(1) == ours.argmax(1)).sum()),
        "largest_difference": float(f"{np.abs(plain - ours).max():.1e}") if len(plain) else 0.0,
    }


def _sizes(shape: Shape) -> dict[str, torch.Size]:
    with init_empty_weights():
        return {name: value.shape for name, value in LlamaForCausalLM(shape.config()).named_parameters()}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--peak_tflops", type=float)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--train_rows", type=int, default=256 if on_gpu else 4)
    parser.add_argument("--micro_batch", type=int, default=16 if on_gpu else 2)
    parser.add_argument("--rows", type=int, default=512 if on_gpu else 6)
    parser.add_argument("--plain_rows", type=int, default=16 if on_gpu else 1)
    parser.add_argument("--batch_tokens", type=int, default=32768 if on_gpu else 4096)
    parser.add_argument("--max_history", type=int, default=20)
    parser.add_argument("--num_candidates", type=int, default=40)
    parser.add_argument("--students", action="store_true")
    parser.add_argument("--interactions", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"--device {arguments.device}: PyTorch sees no GPU here; --device cpu --shape 1b takes minutes"
        )
    device = torch.device(arguments.device)
    with a_folder(arguments.folder) as folder:
        result = measure(arguments, folder, device)
        if device.type == "cuda" or arguments.students:
            (folder / "log").mkdir()
            result |= student_epochs(folder / "log", device, arguments.interactions)
    print(json.dumps({**result, "threads": torch.get_num_threads(), "ilora": os.environ.get("ILORA_DIR") is not None}))


if __name__ == "__main__":
    main()

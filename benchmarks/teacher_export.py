"""The teacher's export beside the plain way, on a small LLaMA built from the sample data; prints one JSON line.

    python -m benchmarks.teacher_export [--rows 256] [--rounds 3] [--candidates retrieval]

Plain: batches of 8 rows in row order, left-padded, Hugging Face's `generate` with full logits, every answer encoded,
distances to all items. As iLoRA calls it, `generate` ends at EOS or after 64 tokens, what follows a newline is cut off;
`plain_newline` ends at the newline, too. All sides rank the same rows in turns; a side's time is its fastest round, the
ratios are medians over the rounds. The benchmark fails if one row is ranked differently. `likelihood` is the export's
other method, `prompts_only` runs the prompts through the LLM and stops: what no side can do without. On the CPU, and on
the GPU where there is one.

The LLaMA spells a title word by word, as a real one does in several tokens, and answers with titles.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.datasets.sample import SampleConfig
from src.core.metrics import MetricsConfig
from src.core.tracking.base import Untracked
from src.student.config import SASRecConfig
from src.student.context import RunContext
from src.teacher.adapter.moe_lora import GatedLora, add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import ExportSettings, TeacherConfig, TinySettings
from src.teacher.llm.load import load_llm
from src.teacher.llm.texts import positions
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBatch, PromptBuilder
from src.teacher.recommender import load_recommender, recommender_config, train_recommender
from src.teacher.scoring.inference import EVALUATION_TEMPLATE, candidate_items, run_rows
from src.teacher.scoring.ranking import base_embeddings, rank_rows
from src.teacher.tiny.build import build_tiny_llm, pretrain
from src.teacher.training import train_adapter, training_rows

LOGGER = logging.getLogger("benchmark")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "raw" / "sample"
SEED, TOP_N, PLAIN_BATCH, MAX_NEW_TOKENS, TRAIN_ROWS, PRETRAIN_STEPS = 42, 10, 8, 64, 1600, 450


def build_teacher(folder: Path, candidates: str) -> TeacherModel:
    """The quickstart's teacher: it answers with titles, as one does that is worth exporting."""
    dataset = load_dataset(SampleConfig(max_seq_len=50, raw_dir=str(SAMPLE)), folder / "data", LOGGER)
    config = TeacherConfig(
        name="ilora_tiny",
        batch_size=32,
        micro_batch_size=32,
        lr=2e-3,
        num_epochs=1,
        dtype="float32",
        recommender=SASRecConfig(name="sasrec", norm="pre", tied_output=True, dropout=0.3, num_epochs=5),
        export=ExportSettings(method="generate", candidates=candidates),
        tiny=TinySettings(hidden_size=96, pretrain_steps=PRETRAIN_STEPS),
    )
    context = RunContext(seed=SEED, device=torch.device("cpu"), logger=LOGGER, writer=Untracked())
    student = recommender_config(config, dataset)
    train_recommender(student, dataset, MetricsConfig(), folder=folder / "recommender", context=context)
    recommender = load_recommender(folder / "recommender", dataset, context.device)
    words = sorted({word for title in dataset.titles for word in title.split()})
    words_only = replace(dataset, titles=[words[i % len(words)] for i in range(dataset.num_items)])
    untrained = replace(config, tiny=replace(config.tiny, pretrain_steps=1))
    build_tiny_llm(untrained, words_only, folder=folder / "llm", context=context)
    tokenizer, llm = load_llm(folder / "llm", "float32", context.device)
    builder = PromptBuilder(tokenizer, dataset.titles, config.wording)
    pretrain(llm, builder, dataset, config=config, context=context)
    lora = add_gated_lora(llm, config.lora, recommender.model.config.emb_size)
    lm = PromptedLM(lora, recommender.item_table)
    teacher = TeacherModel(lm=lm, builder=builder, recommender=recommender, dataset=dataset, config=config)
    rows = training_rows(dataset, TRAIN_ROWS, SEED)
    train_adapter(teacher, rows, validate=lambda: 0.0, save_best=lambda: None, context=context)
    return teacher


def rank_plainly(teacher: TeacherModel, index: np.ndarray, embeddings: Tensor, stops: list[int]) -> np.ndarray:
    """Items int64 [N, TOP_N], the straightforward way; `stops` are the tokens that end an answer."""
    with peft_layers(teacher.lm.lora), torch.no_grad():
        return _rank_plainly(teacher, index, embeddings, stops)


@contextmanager
def peft_layers(lora: GatedLora) -> Iterator[None]:
    """The adapter's layers as stock peft computes them, without the inference path of `GatedLora`."""
    layers = [module for module in lora.model.modules() if isinstance(module, LoraLinear)]
    fast = [layer.forward for layer in layers]
    for layer in layers:
        del layer.forward  # what GatedLora put in front of the class's own
    try:
        yield
    finally:
        for layer, forward in zip(layers, fast, strict=True):
            layer.forward = forward


def _rank_plainly(teacher: TeacherModel, index: np.ndarray, embeddings: Tensor, stops: list[int]) -> np.ndarray:
    rows, ranked = teacher.dataset.train, []
    tokenizer, lora = teacher.builder.tokenizer, teacher.lm.lora
    for begin in range(0, len(index), PLAIN_BATCH):
        batch = index[begin : begin + PLAIN_BATCH]
        offered = candidate_items(teacher, rows, batch, seed=SEED, kind=teacher.config.export.candidates)
        prompts = teacher.builder.batch(
            [
                teacher.builder.prompt(
                    rows.history(i)[-teacher.config.max_history :], c, template=EVALUATION_TEMPLATE, embed=True
                )
                for i, c in zip(batch, offered, strict=True)
            ]
        ).to(lora.llm.device)
        with lora.gated(lora.router(teacher.recommender.users(rows, batch))):
            tokens = lora.model.generate(
                inputs_embeds=teacher.lm.inputs_embeds(prompts),
                attention_mask=prompts.mask.long(),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers = [text.strip().split("\n")[0].strip("\"' ") for text in texts]
        distance = torch.cdist(base_embeddings(teacher, answers), embeddings)
        ranked.append(distance.topk(TOP_N, largest=False).indices.numpy())
    return np.concatenate(ranked)


def run_prompts(teacher: TeacherModel, index: np.ndarray) -> np.ndarray:
    """The prompts' last hidden states, in the export's batches."""
    lora = teacher.lm.lora

    def work(batch: PromptBatch, gates: Tensor, offered: np.ndarray) -> dict[str, np.ndarray]:
        with lora.gated(gates):
            hidden = lora.llm.model(
                inputs_embeds=teacher.lm.inputs_embeds(batch),
                attention_mask=batch.mask.long(),
                position_ids=positions(batch.mask),
                use_cache=False,
            ).last_hidden_state
        return {"hidden": hidden[:, -1].cpu().numpy()}

    offered = candidate_items(teacher, teacher.dataset.train, index, seed=SEED, kind=teacher.config.export.candidates)
    done = run_rows(
        teacher,
        teacher.dataset.train,
        index,
        candidates=offered,
        work=work,
        extra_tokens=np.zeros(len(index), dtype=int),
        advance=lambda count: None,
    )
    return done["hidden"]


def seconds(action: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def compare(teacher: TeacherModel, index: np.ndarray, rounds: int) -> dict[str, float]:
    rows, kind = teacher.dataset.train, teacher.config.export.candidates
    embeddings = base_embeddings(teacher, teacher.dataset.titles)
    scoring = replace(teacher, config=replace(teacher.config, export=ExportSettings(candidates="retrieval")))

    def ranked_by(teacher: TeacherModel, candidates: str) -> np.ndarray:
        made = rank_rows(teacher, rows, index, embeddings=embeddings, seed=SEED, candidates=candidates, count=TOP_N)
        return made.items

    eos, newline = teacher.builder.tokenizer.eos_token_id, teacher.builder.newline_id
    sides: dict[str, Callable[[], np.ndarray]] = {
        "plain": lambda: rank_plainly(teacher, index, embeddings, [eos]),
        "plain_newline": lambda: rank_plainly(teacher, index, embeddings, [eos, newline]),
        "generate": lambda: ranked_by(teacher, kind),
        "likelihood": lambda: ranked_by(scoring, "retrieval"),
        "prompts_only": lambda: run_prompts(teacher, index),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        items = {}
        for name, action in sides.items():
            taken, items[name] = seconds(action)
            times[name].append(taken)
        for plain in ("plain", "plain_newline"):
            different = int((items[plain] != items["generate"]).any(1).sum())
            if different:
                raise SystemExit(f"{plain}: {different} of {len(index)} rows are ranked differently")
    result = {f"{name}_rows_s": round(len(index) / min(taken), 1) for name, taken in times.items()}
    for plain, name in (("plain", "ratio"), ("plain_newline", "ratio_newline")):
        ratios = [theirs / ours for theirs, ours in zip(times[plain], times["generate"], strict=True)]
        result[name] = round(statistics.median(ratios), 2)
    return {**result, "equal_rows": len(index)}


def moved(teacher: TeacherModel, device: torch.device) -> TeacherModel:
    """The same teacher on another device."""
    teacher.lm.lora.model.to(device)
    teacher.recommender.model.to(device)
    teacher.recommender.device = device
    return replace(teacher, lm=PromptedLM(teacher.lm.lora, teacher.recommender.item_table))


def prompt_tokens(teacher: TeacherModel, dataset: SequenceDataset, index: np.ndarray) -> float:
    offered = candidate_items(teacher, dataset.train, index, seed=SEED, kind=teacher.config.export.candidates)
    last = teacher.config.max_history
    lengths = [
        len(teacher.builder.prompt(dataset.train.history(i)[-last:], c, template=EVALUATION_TEMPLATE, embed=True).ids)
        for i, c in zip(index, offered, strict=True)
    ]
    return round(float(np.mean(lengths)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", choices=("retrieval", "none"), default="retrieval")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = build_teacher(Path(folder), arguments.candidates)
        index = np.random.default_rng(SEED).choice(len(teacher.dataset.train), arguments.rows, replace=False)
        result: dict[str, object] = {"prompt_tokens": prompt_tokens(teacher, teacher.dataset, index)}
        result["cpu"] = compare(teacher, index, arguments.rounds)
        if torch.cuda.is_available():
            result["cuda"] = compare(moved(teacher, torch.device("cuda")), index, arguments.rounds)
    print(json.dumps({**result, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

"""The teacher's export beside the plain way, on a small LLaMA; prints one JSON line.

    python -m benchmarks.teacher_export [--rows 256] [--rounds 3] [--candidates retrieval] [--llm <folder>]

Plain: batches of 8 rows in row order, left-padded, Hugging Face's `generate` with full logits, every answer encoded,
distances to all items. As iLoRA calls it, `generate` ends at EOS or after 64 tokens, what follows a newline is cut off;
`plain_newline` ends at the newline, too. All sides rank the same rows in turns; a side's time is its fastest round, the
ratios are medians over the rounds. The benchmark fails if one row is ranked differently. `likelihood` is the export's
other method, `prompts_only` runs the prompts through the LLM and stops: what no side can do without. On the CPU, and on
the GPU where there is one.

The LLaMA is built from the sample data. It spells a title word by word, as a real one does in several tokens, and
answers with titles. With `--llm` it is that of a folder, in what `teacher.dtype=auto` is here, after `--train_rows` of
training, and the one plain side is `careful`: batches of `--plain_batch` rows, sorted by length, that end at the
newline. In bfloat16 the sides round otherwise where their batches differ: `equal_rows` counts, and nothing fails.
`of_prompts` is a side's speed as a share of `prompts_only`, `of_tokens` the likelihood's where the candidates' tokens,
which it has to read, too, count as if they were the prompts'.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.datasets.sample import SampleConfig
from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.core.tracking.base import Untracked
from src.student.config import SASRecConfig
from src.student.context import RunContext
from src.teacher.adapter.moe_lora import GatedLora, add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import ExportSettings, TeacherConfig, TinySettings
from src.teacher.llm.load import load_llm, native_dtype
from src.teacher.llm.texts import positions
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBatch, PromptBuilder
from src.teacher.recommender import load_recommender, recommender_config, train_recommender
from src.teacher.scoring.answer_tree import build_trees
from src.teacher.scoring.inference import EVALUATION_TEMPLATE, candidate_items, run_rows
from src.teacher.scoring.ranking import base_embeddings, rank_rows
from src.teacher.tiny.build import build_tiny_llm, pretrain
from src.teacher.training import train_adapter, training_rows

LOGGER = logging.getLogger("benchmark")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "raw" / "sample"
CPU = torch.device("cpu")
SEED, TOP_N, PLAIN_BATCH, MAX_NEW_TOKENS, TRAIN_ROWS, PRETRAIN_STEPS = 42, 10, 8, 64, 1600, 450


def build_teacher(folder: Path, candidates: str, llm: Path | None = None, train_rows: int = 0) -> TeacherModel:
    """A teacher that answers with titles, as one does that is worth exporting: the quickstart's, or around an LLM."""
    dataset = load_dataset(SampleConfig(max_seq_len=50, raw_dir=str(SAMPLE)), folder / "data", LOGGER)
    step = 32 if llm is None else 4
    config = TeacherConfig(
        name="ilora_tiny",
        batch_size=step,
        micro_batch_size=step,
        lr=2e-3,
        num_epochs=1,
        recommender=SASRecConfig(name="sasrec", norm="pre", tied_output=True, dropout=0.3, num_epochs=5),
        export=ExportSettings(method="generate", candidates=candidates),
        tiny=TinySettings(hidden_size=96, pretrain_steps=PRETRAIN_STEPS),
    )
    context = RunContext(seed=SEED, device=torch.device("cpu"), logger=LOGGER, writer=Untracked())
    student = recommender_config(config, dataset)
    train_recommender(student, dataset, MetricsConfig(), folder=folder / "recommender", context=context)
    recommender = load_recommender(folder / "recommender", dataset, context.device)
    if llm is None:
        tokenizer, model = _pretrained(config, dataset, folder / "llm", context)
    else:
        try:
            tokenizer, model = load_llm(llm, native_dtype("auto", CPU), context.device)
        except UserError as error:
            raise SystemExit(f"--llm {llm}: {error}") from None
    builder = PromptBuilder(tokenizer, dataset.titles, config.wording)
    lora = add_gated_lora(model, config.lora, recommender.model.config.emb_size)
    lm = PromptedLM(lora, recommender.item_table)
    teacher = TeacherModel(lm=lm, builder=builder, recommender=recommender, dataset=dataset, config=config)
    rows = training_rows(dataset, train_rows or TRAIN_ROWS, SEED)
    train_adapter(teacher, rows, validate=lambda: 0.0, save_best=lambda: None, context=context)
    return teacher


def _pretrained(
    config: TeacherConfig, dataset: SequenceDataset, folder: Path, context: RunContext
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The quickstart's LLaMA, but for its titles, which it spells in words."""
    assert config.tiny is not None
    words = sorted({word for title in dataset.titles for word in title.split()})
    words_only = replace(dataset, titles=[words[i % len(words)] for i in range(dataset.num_items)])
    untrained = replace(config, tiny=replace(config.tiny, pretrain_steps=1))
    build_tiny_llm(untrained, words_only, folder=folder, context=context)
    tokenizer, llm = load_llm(folder, "float32", context.device)
    pretrain(llm, PromptBuilder(tokenizer, dataset.titles, config.wording), dataset, config=config, context=context)
    return tokenizer, llm


def rank_plainly(
    teacher: TeacherModel, index: np.ndarray, embeddings: Tensor, stops: list[int], batch_size: int = PLAIN_BATCH
) -> np.ndarray:
    """Items int64 [N, TOP_N], the straightforward way; `stops` are the tokens that end an answer."""
    with peft_layers(teacher.lm.lora), torch.no_grad():
        return _rank_plainly(teacher, index, embeddings, stops, batch_size)


def rank_carefully(
    teacher: TeacherModel, index: np.ndarray, embeddings: Tensor, stops: list[int], batch_size: int
) -> np.ndarray:
    """`rank_plainly` of rows sorted by the length of their prompts, in the order of `index`."""
    order = np.argsort(prompt_lengths(teacher, index), kind="stable")
    return rank_plainly(teacher, index[order], embeddings, stops, batch_size)[np.argsort(order)]


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


def _rank_plainly(
    teacher: TeacherModel, index: np.ndarray, embeddings: Tensor, stops: list[int], batch_size: int
) -> np.ndarray:
    rows, ranked = teacher.dataset.train, []
    tokenizer, lora = teacher.builder.tokenizer, teacher.lm.lora
    for begin in range(0, len(index), batch_size):
        batch = index[begin : begin + batch_size]
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
        return {"hidden": hidden[:, -1].float().cpu().numpy()}

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


def compare(teacher: TeacherModel, index: np.ndarray, rounds: int, plain_batch: int | None = None) -> dict[str, object]:
    """Times of all sides and what they say; `plain_batch`: of the careful side, None: of the plain ones."""
    rows, kind = teacher.dataset.train, teacher.config.export.candidates
    embeddings = base_embeddings(teacher, teacher.dataset.titles)
    scoring = replace(teacher, config=replace(teacher.config, export=ExportSettings(candidates="retrieval")))

    def ranked_by(teacher: TeacherModel, candidates: str) -> np.ndarray:
        made = rank_rows(teacher, rows, index, embeddings=embeddings, seed=SEED, candidates=candidates, count=TOP_N)
        return made.items

    eos, newline = teacher.builder.tokenizer.eos_token_id, teacher.builder.newline_id
    plain: dict[str, Callable[[], np.ndarray]] = {
        "plain": lambda: rank_plainly(teacher, index, embeddings, [eos]),
        "plain_newline": lambda: rank_plainly(teacher, index, embeddings, [eos, newline]),
    }
    if plain_batch is not None:
        plain = {"careful": lambda: rank_carefully(teacher, index, embeddings, [eos, newline], plain_batch)}
    sides = plain | {
        "generate": lambda: ranked_by(teacher, kind),
        "likelihood": lambda: ranked_by(scoring, "retrieval"),
        "prompts_only": lambda: run_prompts(teacher, index),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    equal = len(index)
    for _ in range(rounds):
        items = {}
        for name, action in sides.items():
            taken, items[name] = seconds(action)
            times[name].append(taken)
        for name in plain:
            different = int((items[name] != items["generate"]).any(1).sum())
            equal = min(equal, len(index) - different)
            if different and teacher.lm.lora.llm.dtype == torch.float32:
                raise SystemExit(f"{name}: {different} of {len(index)} rows are ranked differently")
    return {**_ratios(times, plain, len(index), tokens_share(teacher, index)), "equal_rows": equal}


def _ratios(
    times: dict[str, list[float]], plain: Collection[str], num_rows: int, tokens_share: float
) -> dict[str, object]:
    """Rows a second, and medians of ratios within the rounds."""

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)

    result: dict[str, object] = {f"{name}_rows_s": round(num_rows / min(taken), 2) for name, taken in times.items()}
    names = {"plain": "ratio", "plain_newline": "ratio_newline", "careful": "ratio_careful"}
    result |= {names[name]: ratio(name, "generate") for name in plain}
    result["of_prompts"] = {name: ratio("prompts_only", name) for name in ("generate", "likelihood")}
    return {**result, "of_tokens": round(ratio("prompts_only", "likelihood") / tokens_share, 3)}


def moved(teacher: TeacherModel, device: torch.device) -> TeacherModel:
    """The same teacher on another device."""
    teacher.lm.lora.model.to(device)
    teacher.recommender.model.to(device)
    teacher.recommender.device = device
    return replace(teacher, lm=PromptedLM(teacher.lm.lora, teacher.recommender.item_table))


def prompt_lengths(teacher: TeacherModel, index: np.ndarray) -> np.ndarray:
    """Tokens of each row's prompt, int64 [N]."""
    rows, last = teacher.dataset.train, teacher.config.max_history
    offered = candidate_items(teacher, rows, index, seed=SEED, kind=teacher.config.export.candidates)
    return np.array(
        [
            len(teacher.builder.prompt(rows.history(i)[-last:], c, template=EVALUATION_TEMPLATE, embed=True).ids)
            for i, c in zip(index, offered, strict=True)
        ]
    )


def tokens_share(teacher: TeacherModel, index: np.ndarray) -> float:
    """Tokens of the prompts as a share of those that the likelihood reads: the candidates' trees, too."""
    offered = candidate_items(teacher, teacher.dataset.train, index, seed=SEED, kind="retrieval")
    trees = build_trees([[teacher.builder.answer(item) for item in row] for row in offered.tolist()])
    prompts = prompt_lengths(teacher, index).sum()
    return float(prompts / (prompts + (trees.end > 0).sum().item()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", choices=("retrieval", "none"), default="retrieval")
    parser.add_argument("--llm", type=Path)
    parser.add_argument("--train_rows", type=int, default=32)
    parser.add_argument("--plain_batch", type=int, default=PLAIN_BATCH)
    arguments = parser.parse_args()
    train_rows, plain_batch = (0, None) if arguments.llm is None else (arguments.train_rows, arguments.plain_batch)
    with tempfile.TemporaryDirectory() as folder:
        teacher = build_teacher(Path(folder), arguments.candidates, arguments.llm, train_rows)
        index = np.random.default_rng(SEED).choice(len(teacher.dataset.train), arguments.rows, replace=False)
        lengths = prompt_lengths(teacher, index)
        result: dict[str, object] = {"prompt_tokens": round(float(lengths.mean()), 1)}
        if arguments.llm is not None:
            result |= {"llm": arguments.llm.name, "dtype": str(teacher.lm.lora.llm.dtype).removeprefix("torch.")}
        result["cpu"] = compare(teacher, index, arguments.rounds, plain_batch)
        if torch.cuda.is_available():
            result["cuda"] = compare(moved(teacher, torch.device("cuda")), index, arguments.rounds, plain_batch)
    print(json.dumps({**result, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

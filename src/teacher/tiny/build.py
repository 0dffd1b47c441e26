"""A small LLaMA and its tokenizer, made from a dataset's titles and training histories.

For trying the whole program on a CPU: the folder has the ordinary Hugging Face layout, and what follows
treats it like any other LLaMA. It starts with what the training part says about titles (start.py) and is
pretrained on answered prompts without item embeddings, so that the adapter has something to adapt.
"""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import write_atomic, writing
from src.core.logging import progress_bar
from src.student.context import RunContext
from src.teacher.config import TeacherConfig, TinySettings
from src.teacher.llm.load import load_llm
from src.teacher.llm.texts import positions
from src.teacher.prompt.builder import IGNORED, PromptBatch, PromptBuilder
from src.teacher.prompt.candidates import sample_candidates
from src.teacher.schedule import learning_rate_factor
from src.teacher.tiny.start import ROPE_THETA, start_from_association

_LOG_EVERY = 50
_NUM_BASE_PIECES = 256 + 3  # bytes; unknown, BOS, EOS
_BLANK = "\u2581"  # SentencePiece's blank
_WHOLE_SCORE = -1e-3  # a log-probability above that of any two pieces


def build_tiny_llm(config: TeacherConfig, dataset: SequenceDataset, *, folder: Path, context: RunContext) -> None:
    """Train the tokenizer, pretrain the model, and save both in `folder` (Hugging Face layout, float32).

    Args:
        config: with `tiny`.
    """
    tiny = config.tiny
    assert tiny is not None
    _train_tokenizer(dataset.titles, config.wording.templates, tiny.vocab_size, folder)
    # add_prefix_space concerns decoding only: with it, a leading piece loses its blank and is not found again.
    tokenizer = LlamaTokenizer(str(folder / "tokenizer.model"), legacy=True, add_prefix_space=False)
    with writing(folder):
        tokenizer.save_pretrained(folder)
    torch.manual_seed(context.seed)
    # Saved and read back once, so that the pretraining sees the markers as the adapter's training will.
    with writing(folder):
        LlamaForCausalLM(_llama_config(tiny, len(tokenizer))).save_pretrained(folder)
    tokenizer, model = load_llm(folder, "float32", context.device)
    builder = PromptBuilder(tokenizer, dataset.titles, config.wording)
    start_from_association(model, builder, dataset, config.max_history)
    context.logger.info(
        "tiny LLaMA: %.2f M parameters, %d tokens, %d pretraining steps",
        sum(p.numel() for p in model.parameters()) / 1e6,
        len(tokenizer),
        tiny.pretrain_steps,
    )
    pretrain(model, builder, dataset, config=config, context=context)
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _train_tokenizer(titles: list[str], templates: list[str], vocab_size: int, folder: Path) -> None:
    """A SentencePiece unigram model with byte fallback, to which every title and every word of a prompt is added.

    So a title is one token, which is read, predicted and copied as a whole. Other texts are spelt in `vocab_size`
    pieces at most, characters among them up to a half, the most frequent first; rarer ones are spelt in bytes.
    """
    words = [word for text in templates for word in text.replace("{", " ").replace("}", " ").split()]
    counts = Counter("".join([*titles, *words]))
    kept = {character for character, _ in counts.most_common((vocab_size - _NUM_BASE_PIECES) // 2)}
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(c for c in text if c in kept) for text in [*titles, *words]),
        model_writer=trained,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        num_threads=1,
        minloglevel=2,
    )
    model = _with_whole_pieces(ModelProto.FromString(trained.getvalue()), [*titles, *words])
    write_atomic(folder / "tokenizer.model", lambda path: path.write_bytes(model.SerializeToString()))


def _with_whole_pieces(model: ModelProto, texts: list[str]) -> ModelProto:
    """Add each text as one piece, so likely that it is never cut."""
    pieces = {piece.piece: piece for piece in model.pieces}
    for text in dict.fromkeys(_BLANK + text.replace(" ", _BLANK) for text in texts):
        piece = pieces[text] if text in pieces else model.pieces.add(piece=text)
        piece.score = _WHOLE_SCORE
    return model


def _llama_config(tiny: TinySettings, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=2 * tiny.hidden_size,
        num_hidden_layers=tiny.num_layers,
        num_attention_heads=tiny.num_heads,
        max_position_embeddings=4096,
        rope_theta=ROPE_THETA,
        tie_word_embeddings=True,
        initializer_range=0.02,
    )


def pretrain(
    model: LlamaForCausalLM,
    builder: PromptBuilder,
    dataset: SequenceDataset,
    *,
    config: TeacherConfig,
    context: RunContext,
) -> None:
    """Train all weights to answer prompts made from the training part."""
    tiny, rng = config.tiny, np.random.default_rng(context.seed)
    assert tiny is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=tiny.pretrain_lr, weight_decay=0.01)
    model.train()
    with progress_bar() as bar:
        task = bar.add_task("pretraining", total=tiny.pretrain_steps, info="")
        for step in range(1, tiny.pretrain_steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = tiny.pretrain_lr * learning_rate_factor(step - 1, tiny.pretrain_steps)
            prompts = _answered_prompts(builder, dataset, config, tiny.pretrain_batch_size, rng)
            loss = _answer_loss(model, prompts.to(model.device))
            _require_finite(loss.isfinite(), step, tiny)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(task, advance=1)
            if step % _LOG_EVERY == 0:
                bar.update(task, info=f"loss {loss.item():.3f}")
                context.writer.add_scalar("loss", loss.item(), step)
            if step % (2 * _LOG_EVERY) == 0:
                context.logger.info("pretraining step %d/%d: loss %.3f", step, tiny.pretrain_steps, loss.item())
    for weights in model.parameters():  # the last step's are in no loss
        _require_finite(weights.isfinite().all(), tiny.pretrain_steps, tiny)
    model.eval()


def _require_finite(finite: torch.Tensor, step: int, tiny: TinySettings) -> None:
    if not finite:
        raise UserError(
            f"teacher.tiny.pretrain_lr={tiny.pretrain_lr:g}: loss or weights of the tiny LLaMA are not finite in step "
            f"{step} of {tiny.pretrain_steps}; lower it"
        )


def _answer_loss(model: LlamaForCausalLM, batch: PromptBatch) -> torch.Tensor:
    """Mean next-token loss over the answers' tokens."""
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=positions(batch.mask),
        use_cache=False,
    ).last_hidden_state
    labels = batch.labels[:, 1:]
    scored = labels != IGNORED
    return F.cross_entropy(model.lm_head(hidden[:, :-1][scored]), labels[scored])


def _answered_prompts(
    builder: PromptBuilder, dataset: SequenceDataset, config: TeacherConfig, count: int, rng: np.random.Generator
) -> PromptBatch:
    """Prompts for `count` random training rows, among new candidates each, with placeholders for the items."""
    prompts, answers = [], []
    for row in rng.integers(len(dataset.train), size=count):
        history, target = dataset.train.history(row), dataset.train.target(row)
        candidates = sample_candidates(
            rng, num_items=dataset.num_items, count=config.num_candidates, history=history, target=target
        )
        template = int(rng.integers(len(builder.templates)))
        prompts.append(builder.prompt(history[-config.max_history :], candidates, template=template, embed=False))
        answers.append(builder.answer(target))
    return builder.batch(prompts, answers)

"""A small LLaMA and its tokenizer, made from a dataset's titles and training histories.

For trying the whole program on a CPU: the folder has the ordinary Hugging Face layout, and what follows
treats it like any other LLaMA. Pretraining teaches it the titles, which titles follow one another, and to
answer in the prompts' form, so that the adapter has something to adapt.
"""

import io
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerBase

from src.core.data_utils import SequenceDataset
from src.core.files import write_atomic
from src.core.logging import TensorBoardWriter, progress_bar
from src.teacher.config import TeacherConfig, TinySettings
from src.teacher.llm import load_llm, positions
from src.teacher.prompts import IGNORED, PromptBuilder
from src.teacher.sampling import sample_candidates
from src.teacher.schedule import learning_rate_factor
from src.teacher.templates import TEMPLATES

_LOG_EVERY = 50
_NUM_BASE_PIECES = 256 + 3  # bytes; unknown, BOS, EOS
_KIND_SHARES = (0.6, 0.1, 0.3)  # histories, repeated lists, answered prompts
_EMBEDDING_STD = 0.1
_PREVIOUS_GAIN, _MATCH_GAIN, _PREVIOUS_SCALE, _OTHER_SCALE = 2.0, 2.5, 0.2, 0.1
# Radians per token: RoPE pairs above _NEAR tell neighbours apart, those below _FAR hardly notice a prompt's length.
_NEAR, _FAR = 0.03, 0.003


def build_tiny_llm(
    config: TeacherConfig,
    dataset: SequenceDataset,
    folder: Path,
    seed: int,
    device: torch.device,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
) -> None:
    """Train the tokenizer, pretrain the model, and save both in `folder` (Hugging Face layout, float32)."""
    assert config.tiny is not None
    _train_tokenizer(dataset.titles, config, folder)
    tokenizer = LlamaTokenizer(str(folder / "tokenizer.model"), legacy=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    # Saved and read back once, so that the pretraining sees the markers as the adapter's training will.
    LlamaForCausalLM(_llama_config(config.tiny, len(tokenizer))).save_pretrained(folder)
    tokenizer, model = load_llm(folder, "float32", device)
    _initialize(model, tokenizer)
    logger.info(
        "tiny LLaMA: %.2f M parameters, %d tokens, %d pretraining steps",
        sum(p.numel() for p in model.parameters()) / 1e6,
        len(tokenizer),
        config.tiny.pretrain_steps,
    )
    _pretrain(model, tokenizer, config, dataset, seed, logger, tb_writer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(titles: list[str], config: TeacherConfig, folder: Path) -> None:
    """A SentencePiece BPE model over titles and prompt words, with byte fallback as LLaMA has it.

    Characters get at most half of the pieces, the most frequent first; rarer ones are spelt in bytes.
    """
    sentences = [
        *titles,
        *(t.replace("{", " ").replace("}", " ") for t in TEMPLATES[config.prompt_template] * 50),
    ]
    counts = Counter("".join(sentences))
    kept = {character for character, _ in counts.most_common((config.tiny.vocab_size - _NUM_BASE_PIECES) // 2)}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(c for c in text if c in kept) for text in sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=config.tiny.vocab_size,
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
    write_atomic(folder / "tokenizer.model", lambda path: path.write_bytes(model.getvalue()))


def _llama_config(tiny: TinySettings, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=2 * tiny.hidden_size,
        num_hidden_layers=tiny.num_layers,
        num_attention_heads=tiny.num_heads,
        max_position_embeddings=4096,
        rope_theta=1e6,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )


@torch.no_grad()
def _initialize(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Start with working induction heads (Olsson et al., arXiv 2209.11895), in half of the heads of two layers.

    In layer 0 they look at the previous token and write it into the upper half of a random basis; in layer 1 they
    compare the token at hand (lower half) with that, so they look at what followed it earlier in the text, and
    copy it. From random weights the circuit took hundreds of steps to emerge. BOS starts as the comma: titles begin
    behind a comma in the prompt and behind BOS in the answer.
    """
    embeddings, config = model.get_input_embeddings().weight, model.config
    embeddings.normal_(0.0, _EMBEDDING_STD)
    size, width = config.hidden_size, config.hidden_size // config.num_attention_heads
    basis = torch.linalg.qr(torch.randn(size, size))[0].T.to(embeddings.device)  # orthonormal rows
    constant = basis[0]
    embeddings += _EMBEDDING_STD * size**0.5 * constant  # so that positions can be looked at whatever the token is
    embeddings[tokenizer.bos_token_id] = embeddings[tokenizer(",", add_special_tokens=False).input_ids[-1]]
    layers = model.model.layers
    for layer in layers:
        layer.self_attn.o_proj.weight *= _OTHER_SCALE
        layer.mlp.down_proj.weight *= _OTHER_SCALE
    if len(layers) < 2:
        return
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2, device=embeddings.device) / width)
    near = (frequencies > _NEAR).float()
    here = torch.cat([near, torch.zeros_like(near)])
    one_back = torch.cat([near * frequencies.cos(), near * frequencies.sin()])  # `here`, turned by one position
    far = (frequencies < _FAR).repeat(2).nonzero().flatten()
    previous, match = layers[0].self_attn, layers[1].self_attn
    for head in range(config.num_attention_heads // 2):
        rows = slice(head * width, (head + 1) * width)
        own, before = basis[rows].clone(), basis[size // 2 :][rows]
        if head == 0:
            own[0] = 0.0  # the constant is no part of a token's identity
            own = own.roll(-1, 0)
        previous.q_proj.weight[rows] = _PREVIOUS_GAIN * torch.outer(here, constant)
        previous.k_proj.weight[rows] = _PREVIOUS_GAIN * torch.outer(one_back, constant)
        previous.v_proj.weight[rows] = own
        previous.o_proj.weight[:, rows] = _PREVIOUS_SCALE * before.T
        query, key = torch.zeros(2, width, size, device=embeddings.device)
        query[far], key[far] = own[: len(far)], before[: len(far)]
        match.q_proj.weight[rows] = _MATCH_GAIN * query
        match.k_proj.weight[rows] = _MATCH_GAIN * key
        match.v_proj.weight[rows] = own
        match.o_proj.weight[:, rows] = own.T


def _pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    config: TeacherConfig,
    dataset: SequenceDataset,
    seed: int,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
) -> None:
    """Next-token training of all weights on documents made from the training part."""
    tiny = config.tiny
    builder = PromptBuilder(tokenizer, dataset.titles, config.prompt_template)
    optimizer = torch.optim.AdamW(model.parameters(), lr=tiny.pretrain_lr, weight_decay=0.01)
    batches = _document_batches(builder, config, dataset, np.random.default_rng(seed))
    model.train()
    with progress_bar() as bar:
        task = bar.add_task("pretraining", total=tiny.pretrain_steps, info="")
        for step in range(tiny.pretrain_steps):
            for group in optimizer.param_groups:
                group["lr"] = tiny.pretrain_lr * learning_rate_factor(step, tiny.pretrain_steps)
            loss = _document_loss(model, next(batches), tokenizer.pad_token_id)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(task, advance=1)
            if (step + 1) % _LOG_EVERY == 0:
                bar.update(task, info=f"loss {loss.item():.3f}")
                tb_writer.add_scalar("pretrain/loss", loss.item(), step + 1)
            if (step + 1) % (10 * _LOG_EVERY) == 0:
                logger.info("pretraining step %d/%d: loss %.3f", step + 1, tiny.pretrain_steps, loss.item())
    model.eval()


@dataclass(frozen=True)
class _Document:
    """Token ids, of which the first `context` are given: nothing is learnt from them."""

    ids: list[int]
    context: int


def _document_loss(model: LlamaForCausalLM, batch: list[_Document], pad: int) -> torch.Tensor:
    """Mean next-token loss over what is not context."""
    width = max(len(document.ids) for document in batch)
    ids = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), IGNORED)
    for i, document in enumerate(batch):
        ids[i, : len(document.ids)] = labels[i, : len(document.ids)] = torch.tensor(document.ids)
        labels[i, : document.context] = IGNORED
    mask = ids != pad
    hidden = model.model(
        input_ids=ids.to(model.device),
        attention_mask=mask.long().to(model.device),
        position_ids=positions(mask).to(model.device),
        use_cache=False,
    ).last_hidden_state
    scored = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][scored.to(model.device)])
    return F.cross_entropy(logits, labels[:, 1:][scored].to(model.device))


def _document_batches(
    builder: PromptBuilder, config: TeacherConfig, dataset: SequenceDataset, rng: np.random.Generator
) -> Iterator[list[_Document]]:
    """Endless batches of documents, one kind a batch.

    Histories teach which titles follow one another, lists that are told twice teach to repeat a title, and
    answered prompts put both together. One kind a batch, because their lengths differ and padding costs; histories
    are short, so a batch has four times as many.
    """
    kinds = ((_history_document, 4), (_repeated_document, 1), (_prompt_document, 1))
    while True:
        kind, times = kinds[rng.choice(len(kinds), p=_KIND_SHARES)]
        yield [kind(builder, config, dataset, rng) for _ in range(times * config.tiny.pretrain_batch_size)]


def _history_document(
    builder: PromptBuilder, config: TeacherConfig, dataset: SequenceDataset, rng: np.random.Generator
) -> _Document:
    """A prompt as far as its history goes."""
    row = int(rng.integers(len(dataset.train)))
    items = np.append(dataset.train.history(row)[-config.max_history :], dataset.train.targets[row])
    ids = builder.prompt(items, items[:0], int(rng.integers(len(builder.templates))), embed=False).ids
    length = len(ids) - ids[::-1].index(builder.placeholder_id)
    return _Document(ids[:length], 1)  # BOS first


def _repeated_document(
    builder: PromptBuilder, config: TeacherConfig, dataset: SequenceDataset, rng: np.random.Generator
) -> _Document:
    count = min(config.num_candidates, dataset.num_items)
    items = rng.choice(dataset.num_items, size=int(rng.integers(2, count + 1)), replace=False)
    prompt = builder.prompt(items[:0], items, int(rng.integers(len(builder.templates))), embed=False)
    answers = [token for item in rng.permutation(items) for token in builder.answer(int(item))]
    return _Document(prompt.ids + answers, len(prompt.ids))


def _prompt_document(
    builder: PromptBuilder, config: TeacherConfig, dataset: SequenceDataset, rng: np.random.Generator
) -> _Document:
    row = int(rng.integers(len(dataset.train)))
    history, target = dataset.train.history(row), int(dataset.train.targets[row])
    candidates = sample_candidates(rng, dataset.num_items, config.num_candidates, history, target)
    template = int(rng.integers(len(builder.templates)))
    prompt = builder.prompt(history[-config.max_history :], candidates, template, embed=False)
    return _Document(prompt.ids + builder.answer(target), len(prompt.ids))

"""Embeddings of texts by the base LM."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.teacher.config import TITLE, ExportSettings
from src.teacher.prompt.batching import token_batches
from src.teacher.prompt.builder import spell


@torch.no_grad()
def encode_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], settings: ExportSettings
) -> Tensor:
    """Embed each text within the wording of `settings`, BOS first: float32 [len(texts), llm_dim] on the CPU.

    `last` takes the hidden state at the last token (BIGRec's item embedding), `mean` averages those at the text's own
    tokens, neither BOS nor wording among them. `model` must be the base LM, adapter off.
    """
    wording = settings.embedding_text
    ids = [torch.tensor(spell(tokenizer, wording.replace(TITLE, text), with_bos=True)) for text in texts]
    is_mean = settings.embedding_pooling == "mean"
    spans = own_tokens(tokenizer, wording, ids) if is_mean else [(len(row) - 1, len(row)) for row in ids]
    result = torch.empty(len(texts), model.config.hidden_size)
    for batch in token_batches(np.array([len(row) for row in ids], dtype=int), settings.batch_tokens):
        rows = [ids[i].flip(0) for i in batch]  # flipped twice: padding on the left
        padded = pad_sequence(rows, batch_first=True, padding_value=-1).flip(1)
        hidden = _hidden(model, padded, settings.embedding_layer)
        pooled = []
        for i, states in zip(batch, hidden, strict=True):
            begin, end = (padded.shape[1] - len(ids[i]) + place for place in spans[i])
            pooled.append(states[begin:end].float().mean(0))
        result[torch.from_numpy(batch)] = torch.stack(pooled).cpu()
    return result


def _hidden(model: PreTrainedModel, padded: Tensor, layer: int) -> Tensor:
    """Hidden states [B, S, llm_dim] of one layer, -1 being the last behind its norm; padding is negative."""
    mask = padded >= 0
    with _first_layers(model, layer % (model.config.num_hidden_layers + 1)):
        hidden: Tensor = model.model(
            input_ids=padded.clamp(min=0).to(model.device),
            attention_mask=mask.long().to(model.device),
            position_ids=positions(mask).to(model.device),
            use_cache=False,
        ).last_hidden_state
    return hidden


@contextmanager
def _first_layers(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Let the LM end behind its first layers, before its norm: nothing behind them is computed, nothing else kept."""
    body, every, norm = model.model, model.model.layers, model.model.norm
    if count < len(every):
        body.layers, body.norm = every[:count], nn.Identity()
    try:
        yield
    finally:
        body.layers, body.norm = every, norm


def own_tokens(tokenizer: PreTrainedTokenizerBase, wording: str, ids: list[Tensor]) -> list[tuple[int, int]]:
    """Where the text's own tokens are within the tokens of the wording around it, BOS first: [begin, end) of each.

    The wording's are told by comparison, as not every tokenizer says which characters a token stands for. One that is
    made of both, such as a blank and a title's first letters, is the text's. An empty text has the token before it.
    """
    before, after = wording.split(TITLE)
    head = torch.tensor(spell(tokenizer, before.rstrip(), with_bos=True))
    # Behind a letter, because some tokenizers begin a text of its own with a blank.
    alone, tail = (torch.tensor(spell(tokenizer, text, with_bos=True)) for text in ("x", f"x{after}"))
    spans = []
    for row in ids:
        begin = max(1, _common(row, head))
        end = max(1, len(row) - min(len(tail) - len(alone), _common(row.flip(0), tail.flip(0))))
        spans.append((min(begin, end - 1), end))
    return spans


def _common(one: Tensor, other: Tensor) -> int:
    """How many numbers two rows begin with alike."""
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length


def positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens: bool [B, S] -> int64 [B, S], 0 on padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)

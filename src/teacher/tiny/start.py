"""The tiny LLaMA's initial weights: it starts out answering with the candidate that goes best with the history.

Learnt from random weights, choosing and copying among thousands of titles took more steps than a CPU has in an hour.
So the embeddings start as association vectors of the titles, from the training part only, and some heads of the first
three layers start as a circuit that uses them:

0. words that stand only between history and candidates (separators) gather the vectors of the titles before them,
   the latest most; and every token notes whether a separator came before it, as the candidates do;
1. the answer's BOS fetches what the separators gathered: the vector that is expected next;
2. it attends to the candidate whose vector agrees most, and copies it into the output (a pointer, Vinyals et al.,
   arXiv 1506.03134; the embeddings are tied, so a copied vector is the vote for its title).

All of it is trained afterwards like any other weight; the remaining heads and the MLPs start small and random.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import eigsh
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from src.core.data_utils import SequenceDataset
from src.teacher.prompt.builder import PromptBuilder

ROPE_THETA = 1e8
# Radians a token: RoPE pairs below _FAR hardly notice a prompt's length, the one nearest to _NEAR tells late from
# early.
_FAR, _NEAR, _NEAR_PHASE = 1e-3, 0.03, 0.5
_SWITCH, _LATENESS, _AGREEMENT = 12.0, 8.0, 15.0  # attention scores of a full match
_GATHER_SCALE, _COPY_SCALE, _OTHER_SCALE = 2.0, 3.0, 0.1
_NUM_FLAGS = 5
_ROWS = 1 << 20  # training rows that are counted at once


@torch.no_grad()
def start_from_association(
    model: LlamaForCausalLM, builder: PromptBuilder, dataset: SequenceDataset, window: int
) -> None:
    """Overwrite the embeddings and the heads of the circuit; scale the other weights' contributions down.

    Args:
        model: at least three layers of at least two heads; its other weights stay as they are.
        window: items of a history that count, as many as a prompt shows.
    """
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= _OTHER_SCALE
        layer.mlp.down_proj.weight *= _OTHER_SCALE
    rank = min(len(_far_dimensions(model.config)) - 1, model.config.hidden_size // 3, dataset.num_items - 1)
    space = _Space(model.config.hidden_size, rank)
    _embed(model.get_input_embeddings().weight, space, builder, association_vectors(dataset, window, rank))
    _wire(model, space)


def association_vectors(dataset: SequenceDataset, window: int, rank: int) -> Tensor:
    """Vectors whose products are high for items that follow one another in the training part.

    The positive pointwise mutual information of a target and the `window` items before it, made symmetric and
    factorised (Levy and Goldberg, NeurIPS 2014).

    Returns:
        float32 [num_items, rank], rows of length 1; 0 for items without training rows.
    """
    shape = (dataset.num_items, dataset.num_items)
    counts = csr_matrix(shape)
    for rows in dataset.train.parts(_ROWS):
        histories, lengths, targets = rows.windows(window, dataset.pad_id)
        before = histories[np.arange(window) < lengths[:, None]]
        counts += csr_matrix((np.ones(len(before)), (before, np.repeat(targets, lengths))), shape)
    counts = (counts + counts.T).tocoo()
    total = np.bincount(counts.row, counts.data, dataset.num_items)
    information = np.log(counts.data * total.sum() / (total[counts.row] * total[counts.col])).clip(min=0)
    matrix = csr_matrix((information, (counts.row, counts.col)), shape)
    values, vectors = eigsh(matrix, rank, which="LA", v0=np.ones(dataset.num_items))  # fixed start: repeatable
    return F.normalize(torch.from_numpy(vectors * np.sqrt(values.clip(min=0))).float())


class _Space:
    """Which coordinates of the residual stream hold what."""

    def __init__(self, size: int, rank: int) -> None:
        self.title = range(rank)  # association vector of the title at hand
        self.expected = range(rank, 2 * rank)  # ... of the title to come
        flags = range(2 * rank, 2 * rank + _NUM_FLAGS)
        self.constant, self.is_title, self.separates, self.is_bos, self.offered = (range(i, i + 1) for i in flags)
        self.identity = range(flags.stop, size)  # a random vector per token


def _embed(table: Tensor, space: _Space, builder: PromptBuilder, association: Tensor) -> None:
    """Write the token embeddings; each part of a title's has length 1: association, identity, two flags."""
    titles = [builder.tokens(title)[0] for title in builder.titles]
    table.zero_()
    table[:, space.identity] = F.normalize(torch.randn(len(table), len(space.identity))).to(table.device)
    table[:, space.constant] = 1.0
    table[builder.bos_id, space.is_bos] = 1.0
    for token in _separators(builder):
        table[token, space.separates] = 1.0
    for token, vector in zip(titles, association.to(table.device), strict=True):
        table[token, space.title] = vector
        table[token, space.is_title] = 1.0


def _separators(builder: PromptBuilder) -> set[int]:
    """Tokens that stand between history and candidates, and nowhere else in a prompt."""
    between, elsewhere = set(), set(builder.tokens(","))
    for template in builder.templates:
        before, rest = template.split("{history}")
        middle, after = rest.split("{candidates}")
        between.update(builder.tokens(middle.strip()))
        elsewhere.update(builder.tokens(before.strip()) + builder.tokens(after.strip()))
    return between - elsewhere


def _wire(model: LlamaForCausalLM, space: _Space) -> None:
    """Write the circuit's heads. A second match in a head is what it attends to where the first finds nothing."""
    gather = _Head(model, 0, 0)
    gather.match(space.separates, space.is_title, _SWITCH)
    gather.prefer_late(space.separates, space.is_title, _LATENESS)
    gather.match(space.constant, space.is_bos, _SWITCH / 2)
    gather.copy(space.title, space.expected, _GATHER_SCALE)
    note = _Head(model, 0, 1)
    note.match(space.constant, space.separates, _SWITCH)
    note.match(space.constant, space.is_bos, _SWITCH / 2)
    note.copy(space.separates, space.offered, 1.0)
    fetch = _Head(model, 1, 0)
    fetch.match(space.is_bos, space.separates, _SWITCH)
    fetch.copy(space.expected, space.expected, _GATHER_SCALE)
    for number, part in enumerate((space.title, space.identity)):  # two heads, because one is too narrow for both
        point = _Head(model, 2, number)
        point.match(space.expected, space.title, _AGREEMENT)
        point.match(space.constant, space.offered, _SWITCH)
        point.copy(part, part, _COPY_SCALE)


class _Head:
    """One attention head, cleared, to be written by hand."""

    def __init__(self, model: LlamaForCausalLM, layer: int, number: int) -> None:
        attention, self.config = model.model.layers[layer].self_attn, model.config
        self.width = model.config.hidden_size // model.config.num_attention_heads
        rows = slice(number * self.width, (number + 1) * self.width)
        self.query, self.key, self.value = (
            projection.weight[rows] for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        self.output = attention.o_proj.weight[:, rows]
        for weight in (self.query, self.key, self.value, self.output):
            weight.zero_()
        self.part = model.config.hidden_size**0.5 / 2  # length of each of a title's four parts behind RMSNorm
        self.free = _far_dimensions(model.config)

    def _gain(self, score: float) -> float:
        return (score * self.width**0.5) ** 0.5 / self.part

    def match(self, queried: range, keyed: range, score: float) -> None:
        """Attend where `keyed` agrees with `queried` here, wherever it stands."""
        dimensions = [self.free.pop(0) for _ in queried]
        self.query[dimensions, list(queried)] = self._gain(score)
        self.key[dimensions, list(keyed)] = self._gain(score)

    def prefer_late(self, queried: range, keyed: range, score: float) -> None:
        """Let the score of the tokens flagged by `keyed` fall with their distance, as a cosine of it."""
        pair = int((_frequencies(self.config).log() - np.log(_NEAR)).abs().argmin())
        self.query[pair, queried] = self._gain(score)
        self.key[pair, keyed] = self._gain(score) * float(np.cos(_NEAR_PHASE))
        self.key[pair + self.width // 2, keyed] = -self._gain(score) * float(np.sin(_NEAR_PHASE))

    def copy(self, source: range, target: range, scale: float) -> None:
        """Write `source` of what is attended to into `target`; what goes beyond the head's width is left out."""
        count = min(len(source), self.width)
        self.value[range(count), source[:count]] = 1 / self.part
        self.output[target[:count], range(count)] = scale


def _frequencies(config: LlamaConfig) -> Tensor:
    """RoPE's turn of each pair of a head's dimensions (i, i + width / 2), in radians a token: float32 [width / 2]."""
    width = config.hidden_size // config.num_attention_heads
    return ROPE_THETA ** (-torch.arange(0, width, 2) / width)


def _far_dimensions(config: LlamaConfig) -> list[int]:
    """Dimensions of a head in which a product hardly depends on the distance."""
    return (_frequencies(config) < _FAR).repeat(2).nonzero().flatten().tolist()

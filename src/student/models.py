"""Student architectures: small models that score every item from a history of item ids."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.errors import UserError
from src.student.config import ModelConfig

Shapes = Sequence[tuple[int, int]]  # of histories one behind the other: so many, so wide, then so many of another width


class ItemEmbedding(nn.Embedding):
    """Item table float [num_items + 1, emb_size]; the last row is the padding id. Start N(0, std)."""

    def __init__(self, num_items: int, emb_size: int, std: float = 0.01) -> None:
        super().__init__(num_items + 1, emb_size)
        nn.init.normal_(self.weight, 0.0, std)

    def table(self) -> Tensor:
        return self.weight


class TiedOutput(nn.Module):
    """What remains of the output layer where items are scored by their input embeddings: a bias per item."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_items))


class Student(nn.Module):
    """What all students share: an item table, an encoder of histories and a linear output layer.

    A subclass sets `output` and says in `encode` how a history becomes a user representation. With a tied
    output the item table is needed twice in a step; `shared_table` makes it once, and what takes a `table` uses it.

    With `scores=cosine` items are directions: the table in use has rows of unit length, on both sides where it is tied,
    the representation has length 1 / temperature, and there is no bias.
    """

    output: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # A table that also scores starts at the scale of a linear layer, upstream's start is too small for that.
        std = config.emb_size**-0.5 if config.tied_output else 0.01
        self.item_embeddings: nn.Module = ItemEmbedding(config.num_items, config.emb_size, std)
        same = config.emb_size == config.hidden_size
        self.input_map = nn.Identity() if same else nn.Linear(config.emb_size, config.hidden_size, bias=False)

    def _make_output(self, width: int) -> nn.Module:
        if self.config.tied_output:
            return nn.Identity() if self._is_cosine else TiedOutput(self.config.num_items)
        return nn.Linear(width, self.config.num_items, bias=self.has_output_bias)

    @property
    def _is_cosine(self) -> bool:
        return self.config.scores == "cosine"

    @property
    def has_output_bias(self) -> bool:
        """Whether a learnt bias of each item is added to its scores."""
        return not self._is_cosine

    def shared_table(self) -> Tensor | None:
        """The item table float [num_items + 1, emb_size] of a step with a tied output, else None."""
        if not self.config.tied_output:
            return None
        table = self.item_embeddings.table()
        return F.normalize(table, dim=1) if self._is_cosine else table

    def embed(self, history: Tensor, table: Tensor | None = None) -> Tensor:
        """Item ids int64 [...] -> inputs float [..., hidden_size]."""
        return self.input_map(self.item_embeddings(history) if table is None else F.embedding(history, table))

    def encode(self, history: Tensor, length: Tensor, table: Tensor | None = None) -> Tensor:
        """The user representation after the last item.

        Args:
            history: int64 [B, max_seq_len], right-padded with `num_items`.
            length: int64 [B], at least 1.

        Returns:
            float [B, width].
        """
        raise NotImplementedError

    def encode_all(self, history: Tensor, shapes: Shapes, table: Tensor | None = None) -> Tensor:
        """The user representation after every item, each from what precedes it in its history.

        Histories of different widths need no padding then. What is done to each item is done to all of them at once;
        only what joins those of a history takes one width after the other. (Several histories in one row, told apart by
        a mask, would do as well, but a recurrent network knows no mask.)

        Args:
            history: int64 [T], histories one behind the other; shapes: of them, none wider than max_seq_len. Places
                count from the left, so a padded history may be cut.

        Returns:
            float [T, width].
        """
        raise NotImplementedError

    def output_layer(self, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight float [num_items, width] and bias float [num_items] that make scores of a representation."""
        if self._is_cosine:
            weight = F.normalize(self.output.weight, dim=1) if table is None else table[:-1]
            return weight, weight.new_zeros(len(weight))
        if table is None:
            return self.output.weight, self.output.bias
        return table[:-1], self.output.bias

    def score(self, hidden: Tensor, table: Tensor | None = None) -> Tensor:
        """User representations float [B, width] -> scores of every item float [B, num_items]."""
        return F.linear(hidden, *self.output_layer(table)).float()  # losses in float32 under mixed precision, too

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores of every item: float [B, num_items]."""
        table = self.shared_table()
        return self.score(self.encode(history, length, table), table)


class Attention(nn.Module):
    """Causal attention of DLLM2Rec's SASRec: scores are divided by sqrt(hidden_size), whatever the number of heads."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, hidden_size**-0.5
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, inputs: Tensor, shapes: Shapes) -> Tensor:
        """queries [T, d], inputs [T, d] -> [T, d]; position l of a history sees the inputs up to l."""
        parts = (_split(part, shapes) for part in (self.query(queries), self.key(inputs), self.value(inputs)))
        return _joined([self._mixed(*windows) for windows in zip(*parts, strict=True)])

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of histories of one width: [B, L, d] each -> [B, L, d]."""

        def heads(values: Tensor) -> Tensor:  # [B, H, L, d / H]
            return values.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(query),
            heads(key),
            heads(value),
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=True,
            scale=self.scale,
        )
        return mixed.transpose(1, 2).flatten(2)

    def last(self, query: Tensor, inputs: Tensor, length: Tensor) -> Tensor:
        """The same for the last position alone: query [B, d], inputs [B, L, d], length int64 [B] -> [B, d].

        With a single query the key and value maps need not be applied to the history: q . (W_k x + b_k) =
        (W_k^T q) . x + q . b_k, and sum_l w_l (W_v x_l + b_v) = W_v sum_l w_l x_l + b_v sum_l w_l, head by head. That
        saves two [B, L, d] x [d, d] products.
        """
        batch, size = query.shape
        mapped = self.query(query).view(batch, self.num_heads, -1)  # [B, H, d / H]
        key, value = (w.view(self.num_heads, -1, size) for w in (self.key.weight, self.value.weight))  # [H, d / H, d]
        keyed = torch.einsum("bhe,hed->bhd", mapped, key)
        shift = (mapped * self.key.bias.view(self.num_heads, -1)).sum(-1, keepdim=True)  # [B, H, 1]
        scores = (keyed @ inputs.transpose(1, 2) + shift) / size**0.5  # [B, H, L]
        visible = torch.arange(inputs.shape[1], device=length.device) < length[:, None]  # [B, L]
        weights = self.dropout(scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1))
        mixed = torch.einsum("bhd,hed->bhe", weights @ inputs, value)
        mixed = mixed + weights.sum(-1, keepdim=True) * self.value.bias.view(self.num_heads, -1)
        return mixed.reshape(batch, size)


class Block(nn.Module):
    """One block of SASRec: attention and a two-layer ReLU network, each with a residual and LayerNorms.

    `norm` says where the LayerNorms stand. `dllm2rec` (istarryn/DLLM2Rec@b78cc65): queries come from the normalised
    input, keys and values don't, and the first residual goes to the query; the network's input is normalised, too, the
    second residual goes to that, and the sum is normalised. `pre` and `post`: before or behind each half.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.norm = config.norm
        self.norm_attention = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, config.num_heads, config.dropout)
        self.norm_feed_forward = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.norm_block = nn.LayerNorm(hidden) if config.norm == "dllm2rec" else nn.Identity()

    def forward(self, inputs: Tensor, shapes: Shapes) -> Tensor:
        """[T, d] -> [T, d], of histories of these shapes."""
        query, keys = self._query(inputs), self._keys(inputs)
        return self._rest(inputs, query, self.attention(query, keys, shapes))

    def last(self, inputs: Tensor, length: Tensor) -> Tensor:
        """Each row's last position alone: [B, L, d], length int64 [B] -> [B, d]."""
        own = _at_last(inputs, length)
        query = self._query(own)
        return self._rest(own, query, self.attention.last(query, self._keys(inputs), length))

    def _query(self, own: Tensor) -> Tensor:
        return own if self.norm == "post" else self.norm_attention(own)

    def _keys(self, inputs: Tensor) -> Tensor:
        return self.norm_attention(inputs) if self.norm == "pre" else inputs

    def _rest(self, own: Tensor, query: Tensor, mixed: Tensor) -> Tensor:
        """What comes after the attention: float [..., d] each -> [..., d]."""
        if self.norm == "dllm2rec":
            attended = self.norm_feed_forward(mixed + query)
            return self.norm_block(self._feed_forward(attended) + attended)
        attended = self.dropout(mixed) + own
        if self.norm == "pre":
            return self._feed_forward(self.norm_feed_forward(attended)) + attended
        attended = self.norm_attention(attended)
        return self.norm_feed_forward(self._feed_forward(attended) + attended)

    def _feed_forward(self, inputs: Tensor) -> Tensor:
        return self.dropout(self.outer(self.inner(inputs).relu()))


class RecencyMixing(nn.Module):
    """What SASRec has in place of blocks with `num_blocks=0`: a learnt weight for each distance, and one linear map.

    A history becomes the sum of its items, each weighted by how many steps ago it was, as a Markov chain over the last
    items has it. Start: 0.7 a step, and the identity.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.7 ** torch.arange(config.max_seq_len, dtype=torch.float32))
        self.map = nn.Linear(config.hidden_size, config.hidden_size)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, inputs: Tensor, shapes: Shapes) -> Tensor:
        """[T, d] -> [T, d], of histories of these shapes."""
        mixed = []
        for windows in _split(inputs, shapes):  # [B, L, d]
            place = torch.arange(windows.shape[1], device=inputs.device)
            mixed.append(self._weights(place[:, None], place) @ windows)
        return self.map(_joined(mixed))

    def last(self, inputs: Tensor, length: Tensor) -> Tensor:
        """Each row's last position alone: [B, L, d], length int64 [B] -> [B, d]."""
        place = torch.arange(inputs.shape[1], device=inputs.device)
        weights = self._weights(length[:, None] - 1, place)  # [B, L]
        return self.map((weights[:, None] @ inputs)[:, 0])

    def _weights(self, last: Tensor, place: Tensor) -> Tensor:
        """Of each place seen from position `last`, 0 behind it."""
        steps = last - place
        return torch.where(steps >= 0, self.weight[steps.clamp(min=0)], 0.0)


class SASRec(Student):
    """SASRec; by default as DLLM2Rec has it (istarryn/DLLM2Rec@b78cc65): one block, one head, an untied output layer.

    `encode` reads out the last position only, so the last block computes only its query: the same numbers as
    the full [L, L] attention at a fraction of its cost. Histories are right-padded and the attention is causal, so
    nothing real sees the padding. Upstream also drops real queries whose normalised input happens to sum to
    zero, which we don't.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        if config.num_blocks > 0:
            self.position_embeddings = nn.Embedding(config.max_seq_len, hidden)  # start N(0, 1), as upstream
            if config.norm != "dllm2rec":
                nn.init.normal_(self.position_embeddings.weight, 0.0, 0.02)
        self.dropout = nn.Dropout(config.dropout)
        blocks = [Block(config) for _ in range(config.num_blocks)]
        self.blocks = nn.ModuleList(blocks or [RecencyMixing(config)])
        has_norm = config.num_blocks > 0 and config.norm != "post"
        self.norm_output = nn.LayerNorm(hidden) if has_norm else nn.Identity()
        self.output = self._make_output(hidden)

    def encode(self, history: Tensor, length: Tensor, table: Tensor | None = None) -> Tensor:
        shape = history.shape
        inputs = self._before_last_block(history.flatten(), [(shape[0], shape[1])], table)
        return self._represent(self.blocks[-1].last(inputs.unflatten(0, shape), length))

    def encode_all(self, history: Tensor, shapes: Shapes, table: Tensor | None = None) -> Tensor:
        return self._represent(self.blocks[-1](self._before_last_block(history, shapes, table), shapes))

    def _before_last_block(self, history: Tensor, shapes: Shapes, table: Tensor | None) -> Tensor:
        inputs = self.embed(history, table)  # [T, d]
        if self.config.num_blocks > 0:
            positions = self.position_embeddings.weight
            inputs = inputs + _joined([positions[:width].expand(number, -1, -1) for number, width in shapes])
        inputs = self.dropout(inputs)
        for block in self.blocks[:-1]:
            inputs = block(inputs, shapes)
        return inputs

    def _represent(self, hidden: Tensor) -> Tensor:
        hidden = self.norm_output(hidden)
        return F.normalize(hidden, dim=-1) / self.config.temperature if self._is_cosine else hidden


class GRU4Rec(Student):
    """GRU4Rec as DLLM2Rec has it (istarryn/DLLM2Rec@b78cc65): one GRU layer, its state after the last item.

    The state there does not depend on the padding behind it, so no lengths are passed. Upstream has no dropout;
    here it is on the inputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, config.num_blocks, batch_first=True)
        self.output = self._make_output(config.hidden_size)

    def encode(self, history: Tensor, length: Tensor, table: Tensor | None = None) -> Tensor:
        return _at_last(self._states(self.dropout(self.embed(history, table))), length)

    def encode_all(self, history: Tensor, shapes: Shapes, table: Tensor | None = None) -> Tensor:
        inputs = self.dropout(self.embed(history, table))
        return _joined([self._states(windows) for windows in _split(inputs, shapes)])

    def _states(self, inputs: Tensor) -> Tensor:
        """[B, L, hidden_size] -> [B, L, hidden_size]."""
        # In autocast a GPU would run it in float16, whatever dtype was asked for.
        with torch.autocast(inputs.device.type, enabled=False):
            return self.gru(inputs.float())[0]


class Caser(Student):
    """Caser as DLLM2Rec has it (istarryn/DLLM2Rec@b78cc65): convolutions over the window of item embeddings.

    Horizontal filters look at a few successive items and keep their largest response; one vertical filter
    weighs the places of the window. Dropout comes before the output layer only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(config.hidden_size, config.num_filters, size) for size in config.filter_sizes
        )
        self.vertical = nn.Linear(config.max_seq_len, 1)
        window = config.max_seq_len
        for layer in self.horizontal:  # Xavier for upstream's 2-d filters, each as wide as an item embedding
            size = layer.kernel_size[0] * config.hidden_size
            nn.init.normal_(layer.weight, 0.0, (2 / (size + size * config.num_filters)) ** 0.5)
        nn.init.normal_(self.vertical.weight, 0.0, (2 / (window + window)) ** 0.5)
        for layer in (*self.horizontal, self.vertical):
            nn.init.constant_(layer.bias, 0.1)
        self.dropout = nn.Dropout(config.dropout)
        self.output = self._make_output(config.hidden_size + config.num_filters * len(config.filter_sizes))

    def encode(self, history: Tensor, length: Tensor, table: Tensor | None = None) -> Tensor:
        real = history != self.config.num_items  # [B, L]
        inputs = (self.embed(history, table) * real[..., None]).transpose(1, 2)  # [B, d, L]
        pooled = [filters(inputs).relu().amax(-1) for filters in self.horizontal]  # each [B, num_filters]
        return self.dropout(torch.cat([*pooled, self.vertical(inputs)[..., 0].relu()], 1))


def _split(values: Tensor, shapes: Shapes) -> list[Tensor]:
    """Values of histories one behind the other, [T, d], by width: [B, L, d] each."""
    if len(shapes) == 1:
        return [values.unflatten(0, shapes[0])]
    parts = values.split([number * width for number, width in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `_split`."""
    return parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])


def _at_last(values: Tensor, length: Tensor) -> Tensor:
    """[B, L, d] -> [B, d], at each row's last item. By `gather`: a traced model keeps the number of rows open."""
    last = (length - 1).clamp(min=0)[:, None, None].expand(-1, 1, values.shape[2])
    return values.gather(1, last)[:, 0]


MODELS: dict[str, type[Student]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "caser": Caser, "sasrec_plus": SASRec}


def build_model(config: ModelConfig) -> Student:
    """The model that `config.name` names, freshly initialised.

    Raises:
        UserError: unknown name.
    """
    if config.name not in MODELS:
        raise UserError(f"student.name={config.name}: unknown; available: {', '.join(MODELS)}")
    return MODELS[config.name](config)

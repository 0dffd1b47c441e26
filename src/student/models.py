"""Student architectures: small models that score every item from a history of item ids."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from src.core.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint needs to rebuild its model.

    `emb_size` is the width of the item table, `hidden_size` the width inside the model; a linear map joins
    them where they differ. `max_seq_len` is the number of last items that the model looks at. The last two are
    Caser's: horizontal filters of each height, and the heights.
    """

    name: str
    num_items: int
    emb_size: int
    hidden_size: int
    max_seq_len: int
    dropout: float
    num_filters: int = 16
    filter_sizes: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "filter_sizes", tuple(self.filter_sizes))  # JSON makes lists of tuples

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class ItemEmbedding(nn.Embedding):
    """Item table float [num_items + 1, emb_size]; the last row is the padding id. Start N(0, 0.01)."""

    def __init__(self, num_items: int, emb_size: int) -> None:
        super().__init__(num_items + 1, emb_size)
        nn.init.normal_(self.weight, 0.0, 0.01)


class Student(nn.Module):
    """What all students share: an item table, an encoder of histories and a linear output layer.

    A subclass sets `output` and says in `encode` how a history becomes a user representation.
    """

    output: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embeddings: nn.Module = ItemEmbedding(config.num_items, config.emb_size)
        same = config.emb_size == config.hidden_size
        self.input_map = nn.Identity() if same else nn.Linear(config.emb_size, config.hidden_size, bias=False)

    def embed(self, history: Tensor) -> Tensor:
        """Item ids int64 [B, L] -> inputs float [B, L, hidden_size]."""
        return self.input_map(self.item_embeddings(history))

    def encode(self, history: Tensor, length: Tensor) -> Tensor:
        """The user representation after the last item.

        Args:
            history: int64 [B, max_seq_len], right-padded with `num_items`.
            length: int64 [B], at least 1.

        Returns:
            float [B, output.in_features].
        """
        raise NotImplementedError

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores of every item: float [B, num_items]."""
        return self.output(self.encode(history, length))


class LastQueryAttention(nn.Module):
    """Attention of DLLM2Rec's SASRec for one query: it comes from the normalised input, keys and values don't.

    Differs from the textbook in two ways that the pinned code has: scores are divided by sqrt(hidden_size)
    and the residual goes to the query. With a single query the key and value maps need not be applied to the
    history: q . (W_k x + b_k) = (W_k^T q) . x + q . b_k, and sum_l w_l (W_v x_l + b_v) = W_v sum_l w_l x_l +
    b_v sum_l w_l. That saves two [B, L, d] x [d, d] products.
    """

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, inputs: Tensor, visible: Tensor) -> Tensor:
        """query [B, d], inputs [B, L, d], visible bool [B, L] -> [B, d]."""
        mapped = self.query(query)
        scores = (inputs @ (mapped @ self.key.weight)[..., None])[..., 0]  # [B, L]
        scores = (scores + (mapped @ self.key.bias)[:, None]) / inputs.shape[-1] ** 0.5
        weights = self.dropout(scores.masked_fill(~visible, float("-inf")).softmax(-1))  # [B, L]
        mixed = (weights[:, None] @ inputs)[:, 0]  # [B, d]
        return mixed @ self.value.weight.T + weights.sum(1, keepdim=True) * self.value.bias + query


class FeedForward(nn.Module):
    """Position-wise two-layer ReLU block with a residual and a LayerNorm of its own."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.dropout(self.outer(self.inner(inputs).relu())) + inputs)


class SASRec(Student):
    """SASRec as DLLM2Rec has it (istarryn/DLLM2Rec@b78cc65): one block, one head, an untied output layer.

    Only the last position is read out and there is one block, so only its query is computed: the same
    numbers as the full [L, L] attention at a fraction of its cost. Padded positions are masked as keys;
    upstream also drops real queries whose normalised input happens to sum to zero, which we don't.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.position_embeddings = nn.Embedding(config.max_seq_len, hidden)  # start N(0, 1), as upstream
        self.dropout = nn.Dropout(config.dropout)
        self.norm_attention = nn.LayerNorm(hidden)
        self.attention = LastQueryAttention(hidden, config.dropout)
        self.norm_feed_forward = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden, config.dropout)
        self.norm_output = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, config.num_items)

    def encode(self, history: Tensor, length: Tensor) -> Tensor:
        inputs = self.embed(history) + self.position_embeddings.weight  # [B, L, d]
        real = history != self.config.num_items  # [B, L]
        inputs = self.dropout(inputs) * real[..., None]
        attended = self.attention(self.norm_attention(_at_last(inputs, length)), inputs, real)  # [B, d]
        return self.norm_output(self.feed_forward(self.norm_feed_forward(attended)))


class GRU4Rec(Student):
    """GRU4Rec as DLLM2Rec has it (istarryn/DLLM2Rec@b78cc65): one GRU layer, its state after the last item.

    The state there does not depend on the padding behind it, so nothing is packed. Upstream has no dropout; here it
    is on the inputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.output = nn.Linear(config.hidden_size, config.num_items)

    def encode(self, history: Tensor, length: Tensor) -> Tensor:
        return _at_last(self.gru(self.dropout(self.embed(history)))[0], length)


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
        width = config.hidden_size + config.num_filters * len(config.filter_sizes)
        self.output = nn.Linear(width, config.num_items)

    def encode(self, history: Tensor, length: Tensor) -> Tensor:
        real = history != self.config.num_items  # [B, L]
        inputs = (self.embed(history) * real[..., None]).transpose(1, 2)  # [B, d, L]
        pooled = [filters(inputs).relu().amax(-1) for filters in self.horizontal]  # each [B, num_filters]
        return self.dropout(torch.cat([*pooled, self.vertical(inputs)[..., 0].relu()], 1))


def _at_last(values: Tensor, length: Tensor) -> Tensor:
    """[B, L, d] -> [B, d], at each row's last item."""
    return values[torch.arange(len(length), device=length.device), (length - 1).clamp(min=0)]


MODELS: dict[str, type[Student]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "caser": Caser}


def build_model(config: ModelConfig) -> Student:
    """The model that `config.name` names, freshly initialised.

    Raises:
        UserError: unknown name.
    """
    if config.name not in MODELS:
        raise UserError(f"student.name={config.name}: unknown; available: {', '.join(MODELS)}")
    return MODELS[config.name](config)

"""SASRec against a plain full-attention reference and against the unmodified upstream modules."""

import math

import numpy as np
import pytest
import torch
from upstream import STUDENTS, build_upstream, copy_weights

from src.core.errors import UserError
from src.student.config import ModelConfig
from src.student.models import Attention, ItemEmbedding, SASRec, Student, build_model

NUM_ITEMS, MAX_LEN = 9, 6


def make_model(fill, emb_size: int = 8, hidden_size: int = 8, dropout: float = 0.0, name: str = "sasrec") -> Student:
    config = ModelConfig(name, NUM_ITEMS, emb_size, hidden_size, MAX_LEN, dropout)
    return fill(build_model(config)).eval()


def pad(history: list[int]) -> list[int]:
    return history + [NUM_ITEMS] * (MAX_LEN - len(history))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def reference_scores(model: SASRec, history: list[int]) -> np.ndarray:
    """The formulas of DLLM2Rec's SASRec for one row, every position computed, in float64."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    length, hidden = len(history), model.config.hidden_size
    real = np.arange(MAX_LEN) < length
    seq = w["item_embeddings.weight"][pad(history)]  # [L, emb_size]
    if "input_map.weight" in w:
        seq = seq @ w["input_map.weight"].T
    seq = (seq + w["position_embeddings.weight"]) * real[:, None]  # [L, d]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = norm(seq, "blocks.0.norm_attention")
    scores = (
        linear(x, "blocks.0.attention.query") @ linear(seq, "blocks.0.attention.key").T / math.sqrt(hidden)
    )  # [L, L]
    allowed = np.tril(np.ones((MAX_LEN, MAX_LEN), dtype=bool)) & real[None, :]
    weights = np.exp(scores - scores.max()) * allowed
    weights /= weights.sum(-1, keepdims=True)
    attended = weights @ linear(seq, "blocks.0.attention.value") + x
    y = norm(attended, "blocks.0.norm_feed_forward")
    inner = np.maximum(linear(y, "blocks.0.inner"), 0)
    y = norm(linear(inner, "blocks.0.outer") + y, "blocks.0.norm_block") * real[:, None]
    return linear(norm(y, "norm_output"), "output")[length - 1]


@pytest.mark.parametrize("emb_size, hidden_size", [(8, 8), (6, 8)])
@pytest.mark.parametrize("length", range(1, MAX_LEN + 1))
def test_agrees_with_full_attention_at_every_length(fill_with_ramp, emb_size, hidden_size, length):
    model = make_model(fill_with_ramp, emb_size, hidden_size)
    history = [(5 * place + 2) % NUM_ITEMS for place in range(length)]

    scores = model(torch.tensor([pad(history)]), torch.tensor([length]))

    assert scores.shape == (1, NUM_ITEMS)
    torch.testing.assert_close(
        scores[0].double(), torch.from_numpy(reference_scores(model, history)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", STUDENTS)
def test_rows_of_a_batch_do_not_touch_each_other(fill_with_ramp, name):
    model = make_model(fill_with_ramp, name=name)
    rows = [[0], [3, 1, 4], [8, 7, 6, 5, 4, 3]]

    together = model(torch.tensor([pad(row) for row in rows]), torch.tensor([len(row) for row in rows]))

    for row, scores in zip(rows, together, strict=True):
        alone = model(torch.tensor([pad(row)]), torch.tensor([len(row)]))[0]
        torch.testing.assert_close(scores, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", STUDENTS)
def test_order_and_every_item_of_the_history_count(fill_with_ramp, name):
    model = make_model(fill_with_ramp, name=name)

    def score(history: list[int]) -> torch.Tensor:
        return model(torch.tensor([pad(history)]), torch.tensor([len(history)]))

    base = score([1, 2, 3])
    for other in ([2, 1, 3], [0, 2, 3], [1, 0, 3], [1, 2, 0]):
        assert (score(other) - base).abs().max() > 1e-4


@pytest.mark.parametrize("name", STUDENTS)
def test_the_padding_row_of_the_table_does_not_matter(fill_with_ramp, name):
    model = make_model(fill_with_ramp, name=name)
    history, length = torch.tensor([pad([1, 2])]), torch.tensor([2])
    before = model(history, length)

    with torch.no_grad():
        model.item_embeddings.weight[NUM_ITEMS] = 1e6

    assert torch.equal(model(history, length), before)


@pytest.mark.parametrize("name", STUDENTS)
def test_padding_gets_no_gradient(fill_with_ramp, name):
    model = make_model(fill_with_ramp, name=name)

    model(torch.tensor([pad([1, 2])]), torch.tensor([2])).square().sum().backward()

    gradient = model.item_embeddings.weight.grad.abs().sum(1)
    assert [item for item in range(NUM_ITEMS + 1) if gradient[item] > 0] == [1, 2]


def test_scores_are_the_output_layer_of_the_encoding(fill_with_ramp):
    model = make_model(fill_with_ramp)
    history, length = torch.tensor([pad([4, 2, 0])]), torch.tensor([3])

    encoded = model.encode(history, length)

    assert encoded.shape == (1, 8)
    assert torch.equal(model(history, length), encoded @ model.output.weight.T + model.output.bias)


def test_attention_by_hand():
    # d = 1, all weights 1: score = q k, no division; two visible keys, the third hidden.
    attention = Attention(1, 1, 0.0)
    with torch.no_grad():
        for layer in (attention.query, attention.key, attention.value):
            layer.weight.fill_(1.0)
            layer.bias.fill_(0.0)
    inputs = torch.tensor([[[1.0], [3.0], [9.0]]])
    alone = attention.last(torch.tensor([[2.0]]), inputs, torch.tensor([2]))
    among = attention(torch.tensor([[7.0], [2.0], [7.0]]), inputs[0], [(1, 3)])

    first = math.exp(2 * 1) / (math.exp(2 * 1) + math.exp(2 * 3))
    assert alone.item() == pytest.approx(first * 1 + (1 - first) * 3, rel=1e-6)
    assert among[1].item() == pytest.approx(first * 1 + (1 - first) * 3, rel=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_dropout_acts_in_training_only(fill_with_ramp, name):
    model = make_model(fill_with_ramp, dropout=0.5, name=name)
    row = torch.tensor([pad([1, 2, 3])]), torch.tensor([3])

    assert torch.equal(model(*row), model(*row))
    model.train()
    assert not torch.equal(model(*row), model(*row))


# --- without blocks, and with cosines -----------------------------------------------------------------------


def of(fill, **settings) -> Student:
    config = ModelConfig("sasrec", NUM_ITEMS, 8, 8, MAX_LEN, 0.0, norm="pre", **settings)
    return fill(build_model(config)).eval()


def test_without_blocks_a_history_is_its_items_weighted_by_how_long_ago_they_were(fill_with_ramp):
    model = of(fill_with_ramp, num_blocks=0, scores="cosine", temperature=0.5, tied_output=True)
    with torch.no_grad():
        model.blocks[0].weight.copy_(torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0, 0.0]))
    history = [4, 2, 0]

    scores = model(torch.tensor([pad(history)]), torch.tensor([3]))[0]

    table = model.item_embeddings.weight / model.item_embeddings.weight.norm(dim=1, keepdim=True)
    user = model.blocks[0].map(table[0] + 0.5 * table[2] + 0.25 * table[4])
    torch.testing.assert_close(scores, 2 * table[:-1] @ (user / user.norm()), rtol=1e-5, atol=1e-6)


def test_without_blocks_it_starts_as_a_decay_of_items():
    model = build_model(ModelConfig("sasrec", NUM_ITEMS, 8, 8, MAX_LEN, 0.0, num_blocks=0))
    table = model.item_embeddings.weight

    torch.testing.assert_close(
        model.encode(torch.tensor([pad([4, 2])]), torch.tensor([2]))[0], table[2] + 0.7 * table[4]
    )
    assert "position_embeddings.weight" not in model.state_dict()


@pytest.mark.parametrize("num_blocks", [0, 2])
@pytest.mark.parametrize("tied_output", [False, True])
def test_cosine_scores_are_those_of_every_position_and_within_the_temperature(fill_with_ramp, num_blocks, tied_output):
    model = of(fill_with_ramp, num_blocks=num_blocks, scores="cosine", temperature=0.2, tied_output=tied_output)
    history, lengths = torch.tensor([pad([4, 2, 0, 7])] * 4), torch.arange(1, 5)
    table = model.shared_table()

    scores = model(history, lengths)

    torch.testing.assert_close(model.score(model.encode_all(history[0, :4], [(1, 4)], table), table), scores)
    assert 0.1 < scores.abs().max() <= 5 + 1e-5
    with torch.no_grad():  # only directions count
        model.item_embeddings.weight.mul_(3 if tied_output else 1)
        if not tied_output:
            model.output.weight.mul_(3)
    torch.testing.assert_close(model(history, lengths), scores)


def test_shapes_of_the_parameters():
    shapes = {
        name: tuple(value.shape)
        for name, value in build_model(ModelConfig("sasrec", 9, 4, 8, 6, 0.1)).state_dict().items()
    }

    assert shapes["item_embeddings.weight"] == (9 + 1, 4)
    assert shapes["input_map.weight"] == (8, 4)
    assert shapes["position_embeddings.weight"] == (6, 8)
    assert (shapes["output.weight"], shapes["output.bias"]) == ((9, 8), (9,))
    # Joined by no map where the widths agree.
    assert "input_map.weight" not in build_model(ModelConfig("sasrec", 9, 8, 8, 6, 0.1)).state_dict()


def test_item_table_starts_narrow():
    torch.manual_seed(0)
    weight = ItemEmbedding(999, 100).weight  # 100,000 draws of N(0, 0.01): the deviation is known to 0.3 %

    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(weight.mean().item()) < 5 * 0.01 / math.sqrt(weight.numel())


def test_unknown_name():
    with pytest.raises(UserError, match="student.name=bert: unknown; available: sasrec, gru4rec, caser"):
        build_model(ModelConfig("bert", 9, 8, 8, 6, 0.1))


# --- parity with the unmodified upstream program ------------------------------------------------------------


@pytest.mark.parametrize("hidden_size", [8, 16])
@pytest.mark.parametrize("name", STUDENTS)
def test_parity_with_upstream(fill_with_ramp, upstream_dllm2rec, name, hidden_size):
    # Biases of LayerNorm included: at bias 0 upstream drops queries whose normalised sum is rounding noise.
    upstream = build_upstream(upstream_dllm2rec, name, hidden_size, NUM_ITEMS, MAX_LEN)
    fill_with_ramp(upstream).eval()
    model = copy_weights(upstream, name, NUM_ITEMS, MAX_LEN)
    rows = [[(5 * place + length) % NUM_ITEMS for place in range(length)] for length in range(1, MAX_LEN + 1)]
    history, length = torch.tensor([pad(row) for row in rows]), torch.tensor([len(row) for row in rows])

    with torch.no_grad():
        expected = upstream(history, length.numpy())  # [B, num_items]
        torch.testing.assert_close(model(history, length), expected, atol=1e-5, rtol=0)
    assert (expected[1:] - expected[:-1]).abs().amax(1).min() > 1e-3  # histories do matter

"""Embedding distillation inside the model, and its removal."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from upstream import STUDENTS, build_upstream, copy_weights

from src.core.errors import UserError
from src.core.seed import generator, set_seed
from src.distill import fusion
from src.distill.fusion import (
    FusedItemEmbedding,
    TeacherTable,
    add_ids_to_text,
    folded_state,
    fuse_teacher,
    make_projection,
    start_from_text,
    whiten,
)
from src.student.config import ModelConfig
from src.student.models import ItemEmbedding, build_model

NUM_ITEMS, LLM_DIM, MAX_LEN = 7, 6, 4


CPU = torch.device("cpu")


def teacher_embeddings(num_items: int = NUM_ITEMS, llm_dim: int = LLM_DIM) -> torch.Tensor:
    return torch.cos(2.3 * torch.arange(num_items * llm_dim)).reshape(num_items, llm_dim)


def teacher_table(kind: str = "float32") -> TeacherTable:
    return TeacherTable(teacher_embeddings(), kind, CPU)


def make_model(fill, emb_size: int = 4, hidden_size: int = 8):
    return fill(build_model(ModelConfig("sasrec", NUM_ITEMS, emb_size, hidden_size, MAX_LEN, 0.1))).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[0, 3, 6, 1], [2, 7, 7, 7], [5, 5, 7, 7]]), torch.tensor([4, 1, 2])


def test_table_by_arithmetic(fill_with_ramp):
    items = fill_with_ramp(ItemEmbedding(NUM_ITEMS, 4))
    projection = fill_with_ramp(torch.nn.Linear(LLM_DIM, 4))

    fused = FusedItemEmbedding(items, teacher_table(), projection, ed_weight=0.3)

    projected = teacher_embeddings() @ projection.weight.T + projection.bias
    expected = torch.cat([items.weight[:-1] + 0.3 * projected, items.weight[-1:] + 0.3 * projection.bias])
    torch.testing.assert_close(fused.table(), expected, atol=1e-6, rtol=0)
    ids = torch.tensor([[3, 7], [0, 3]])
    torch.testing.assert_close(fused(ids), expected[ids], atol=1e-6, rtol=0)


@pytest.mark.parametrize("ids", [[[3, 7], [0, 3]], [[3, 7, 1, 6, 2, 5, 4] * 3, [0, 3, 7, 2, 7, 1, 1] * 3]])
def test_where_the_table_lies_changes_rounding_only(fill_with_ramp, ids, monkeypatch):
    monkeypatch.setattr(fusion, "_CHUNK", 3)  # several chunks for 7 items
    items, projection = fill_with_ramp(ItemEmbedding(NUM_ITEMS, 4)), fill_with_ramp(torch.nn.Linear(LLM_DIM, 4))
    ids = torch.tensor(ids)

    def run(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fused = FusedItemEmbedding(items, teacher_table(kind), projection, ed_weight=0.3)
        projection.zero_grad()
        out = fused(ids)
        out.square().sum().backward()
        return out, projection.weight.grad.clone(), fused.table()

    full, half, far = run("float32"), run("bfloat16"), run("cpu")

    for a, b, c in zip(full, half, far, strict=True):
        torch.testing.assert_close(c, a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(b, a, rtol=2e-2, atol=2e-2 * float(a.abs().max()))
        assert not torch.equal(b, a)
    assert teacher_table("bfloat16").embeddings.dtype == torch.bfloat16


def test_a_table_far_from_the_device_is_read_row_by_row(fill_with_ramp, monkeypatch):
    table = teacher_table("cpu")
    table.device = torch.device("meta")  # a device that is not where the table lies
    rows = table.rows(torch.zeros(3, dtype=torch.int64, device="cpu"))
    assert (table.near, rows.device.type, rows.shape) == (False, "meta", (3, LLM_DIM))


@pytest.mark.parametrize("emb_size, hidden_size", [(4, 8), (8, 8)])
def test_a_folded_student_scores_as_the_fused_one(fill_with_ramp, emb_size, hidden_size):
    model = make_model(fill_with_ramp, emb_size, hidden_size)
    before = model(*batch())
    fuse_teacher(model, teacher_table(), fill_with_ramp(torch.nn.Linear(LLM_DIM, emb_size), 0.7), 0.5)
    plain = build_model(model.config).eval()

    plain.load_state_dict(folded_state(model))  # strict: exactly the baseline's names

    torch.testing.assert_close(plain(*batch()), model(*batch()), atol=1e-6, rtol=0)
    assert (model(*batch()) - before).abs().max() > 1e-3  # the teacher does change the scores


# --- whitened text ------------------------------------------------------------------------------------------


def test_whitened_embeddings_are_uncorrelated_directions():
    raw = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(10.0 ** -torch.arange(12.0))
    raw = raw + 50  # the one direction that all states of an LLM share

    full = whiten(raw, 4)

    # Before the rows get length 1: the four largest directions, each scaled to variance 1.
    centred = raw.double() - raw.double().mean(0)
    left, _, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = F.normalize(left[:, :4], dim=1).float()
    sign = (full * expected).sum(0).sign()
    torch.testing.assert_close(full, expected * sign, atol=2e-4, rtol=0)
    assert full.dtype == torch.float32
    torch.testing.assert_close(full.norm(dim=1), torch.ones(400))


@pytest.mark.parametrize(
    "raw, dims, message",
    [
        (
            torch.ones(20, 8) * 3.7,
            1,
            "distill.embedding_dims=1: the teacher's embeddings of 20 items vary in 0 .*equal",
        ),
        (torch.cos(torch.arange(40.0) ** 2).reshape(5, 8), 5, "of 5 items vary in 4 directions only; at most 4"),
        (torch.cos(torch.arange(160.0) ** 2).reshape(20, 8), 9, "vary in 8 directions only; at most 8 dimensions"),
    ],
)
def test_what_varies_in_fewer_directions_is_refused(raw, dims, message):
    with pytest.raises(UserError, match=message):
        whiten(raw, dims)


def test_zeros_stand_where_nothing_varies_if_they_may():
    raw = torch.cos(torch.arange(160.0) ** 2).reshape(20, 8)
    filled = whiten(raw, 12, fill=True)
    assert torch.equal(filled[:, :8], whiten(raw, 8)) and not filled[:, 8:].any()
    assert torch.equal(whiten(raw, 3, fill=True), whiten(raw, 3))
    with pytest.raises(UserError, match="vary in 0 directions only"):
        whiten(torch.ones(20, 8), 3, fill=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_ids_added_to_text_are_folded_into_a_plain_student(fill_with_ramp, tied, scores):
    config = ModelConfig("sasrec", NUM_ITEMS, 4, 4, MAX_LEN, 0.1, tied_output=tied, scores=scores)
    plain, model = build_model(config).eval(), fill_with_ramp(build_model(config)).eval()
    text = whiten(torch.cos(torch.arange(42.0) ** 2).reshape(NUM_ITEMS, 6), 4)
    add_ids_to_text(model, text, 0.5, torch.Generator().manual_seed(1))

    start = model.item_embeddings.table()
    torch.testing.assert_close(start[:-1], 0.5 * text, atol=6e-3, rtol=0)  # IDs start near 0
    assert (start[:-1] - 0.5 * text).abs().max() > 0
    model(*batch()).square().sum().backward()
    assert model.item_embeddings.items.weight.grad.abs().sum() > 0
    assert "item_embeddings.text" not in dict(model.named_parameters()) and "item_embeddings.text" not in folded_state(
        model
    )
    plain.load_state_dict(folded_state(model))
    torch.testing.assert_close(plain(*batch()), model(*batch()))


@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_start_from_text_are_trained_as_any(fill_with_ramp, tied):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", NUM_ITEMS, 4, 4, MAX_LEN, 0.1, tied_output=tied)))
    names, text = set(model.state_dict()), whiten(torch.cos(torch.arange(42.0) ** 2).reshape(NUM_ITEMS, 6), 4)

    start_from_text(model, text, 2.0)

    assert set(model.state_dict()) == names
    assert torch.equal(model.item_embeddings.weight[:-1], 2 * text)
    if not tied:
        assert torch.equal(model.output.weight, 2 * text)


def test_the_folded_state_has_the_baselines_names_and_shapes(fill_with_ramp):
    plain = make_model(fill_with_ramp)
    wanted = {name: value.shape for name, value in plain.state_dict().items()}
    model = make_model(fill_with_ramp)
    fuse_teacher(model, teacher_table(), torch.nn.Linear(LLM_DIM, 4), 0.5)

    state = folded_state(model)

    assert {name: value.shape for name, value in state.items()} == wanted
    assert not any(value.requires_grad for value in state.values())
    assert folded_state(plain).keys() == wanted.keys()  # nothing to fold


def test_the_teacher_is_not_trained_nor_saved(fill_with_ramp):
    model = make_model(fill_with_ramp)
    fuse_teacher(model, teacher_table(), torch.nn.Linear(LLM_DIM, 4), 0.5)

    added = {name for name, _ in model.named_parameters() if name.startswith("item_embeddings.")}
    assert added == {f"item_embeddings.{part}" for part in ("items.weight", "projection.weight", "projection.bias")}
    assert not any("teacher" in name for name in model.state_dict())


def test_both_parts_learn(fill_with_ramp):
    model = make_model(fill_with_ramp)
    fuse_teacher(model, teacher_table(), fill_with_ramp(torch.nn.Linear(LLM_DIM, 4)), 0.5)

    F.cross_entropy(model(*batch()), torch.tensor([1, 2, 3])).backward()

    embedding = model.item_embeddings
    assert embedding.items.weight.grad.abs().sum() > 0
    assert embedding.projection.weight.grad.abs().sum() > 0
    # The padding's row is masked in the model: it learns nothing.
    assert embedding.items.weight.grad[NUM_ITEMS].abs().sum() == 0


def test_a_projection_that_starts_at_zero_changes_nothing(fill_with_ramp):
    model = make_model(fill_with_ramp)
    before = model(*batch())

    fuse_teacher(model, teacher_table(), make_projection(LLM_DIM, 4, generator(1, "projection"), zero=True), 0.5)

    assert torch.equal(model(*batch()), before)
    F.cross_entropy(model(*batch()), torch.tensor([1, 2, 3])).backward()
    assert model.item_embeddings.projection.weight.grad.abs().sum() > 0  # but it can leave zero


def test_projection_draws_from_its_own_generator():
    set_seed(5)
    expected = torch.rand(4)

    set_seed(5)
    first = make_projection(LLM_DIM, 4, generator(5, "projection"))
    assert torch.equal(torch.rand(4), expected)

    again = make_projection(LLM_DIM, 4, generator(5, "projection"))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, make_projection(LLM_DIM, 4, generator(6, "projection")).weight)


def test_projection_has_the_bounds_of_a_linear_layer():
    projection = make_projection(100, 64, generator(5, "projection"))  # U(-0.1, 0.1), deviation 0.1 / sqrt 3

    assert projection.weight.shape == (64, 100)
    for part in (projection.weight, projection.bias):
        assert part.abs().max() <= 0.1
        assert part.requires_grad
    assert projection.weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", STUDENTS)
def test_parity_with_upstream(fill_with_ramp, upstream_dllm2rec, monkeypatch, name):
    """Upstream's scores with teacher embeddings (widths 4096 and 64 are hard-coded there), its weights copied."""
    monkeypatch.setattr(upstream_dllm2rec, "args", argparse.Namespace(ed_weight=0.3), raising=False)
    upstream = fill_with_ramp(build_upstream(upstream_dllm2rec, name, 64, NUM_ITEMS, 6)).eval()
    with torch.no_grad():
        upstream.fc_4096_64.weight.mul_(0.1)
    teacher = teacher_embeddings(NUM_ITEMS, 4096)
    history = torch.tensor([[0, *[7] * 5], [2, 5, *[7] * 4], [5, 5, 1, 0, 7, 7], [0, 3, 6, 1, 4, 2]])
    length = torch.tensor([1, 2, 4, 6])
    llm_emb = torch.zeros(*history.shape, 4096)
    llm_emb[history < NUM_ITEMS] = teacher[history[history < NUM_ITEMS]]

    model = copy_weights(upstream, name, NUM_ITEMS, 6)
    with torch.no_grad():
        alone = model(history, length)
        fuse_teacher(model, TeacherTable(teacher, "float32", CPU), upstream.fc_4096_64, 0.3)
        torch.testing.assert_close(
            model(history, length), upstream(history, length.numpy(), llm_emb), atol=1e-5, rtol=0
        )
        assert (model(history, length) - alone).abs().max() > 1e-3

"""Gated LoRA against its formula, and the adapter file."""

import pytest
import torch
import torch.nn.functional as F

from src.student.cost import parameter_counts
from src.teacher.adapter.implementation import load_adapter
from src.teacher.adapter.moe_lora import Projector, Router
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import LoraSettings
from src.teacher.llm.load import TARGET_MODULES, load_llm
from src.teacher.prompt.builder import IGNORED, PromptBatch

CPU = torch.device("cpu")
GATES = torch.tensor([[0.1, 0.9], [0.7, 0.3]])


def layers_of(lora) -> dict[str, torch.nn.Module]:
    """One adapted layer of each kind."""
    block = lora.llm.model.layers[1]
    return {
        name: getattr(block.self_attn if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj")) else block.mlp, name)
        for name in TARGET_MODULES
    }


def inputs_of(layer) -> torch.Tensor:
    return torch.sin(0.9 * torch.arange(2 * 3 * layer.in_features)).reshape(2, 3, layer.in_features)


def expert_by_expert(layer, x: torch.Tensor, gates: torch.Tensor, alpha: float) -> torch.Tensor:
    """y = W x + s sum_e g_e B_e A_e x with s = alpha / (r / n), one expert and one row at a time."""
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight  # [r, in], [out, r]
    num_experts, per_expert = gates.shape[1], a.shape[0] // gates.shape[1]
    rows = []
    for i, row in enumerate(x):
        y = row @ layer.base_layer.weight.T
        for e in range(num_experts):
            mine = slice(e * per_expert, (e + 1) * per_expert)
            y = y + alpha / per_expert * gates[i, e] * (row @ a[mine].T @ b[:, mine].T)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("r, experts", [(4, 2), (4, 4), (6, 2), (4, 1)])
@torch.no_grad()
def test_every_kind_of_layer_follows_the_formula(make_lora, r, experts):
    lora = make_lora(LoraSettings(r=r, alpha=6, dropout=0.0, num_experts=experts))
    gates = torch.linspace(0.1, 0.9, 2 * experts).reshape(2, experts)

    for name, layer in layers_of(lora).items():
        x = inputs_of(layer)
        with lora.gated(gates):
            y = layer(x)
        torch.testing.assert_close(y, expert_by_expert(layer, x, gates, alpha=6), atol=1e-5, rtol=1e-5, msg=name)
        assert (y - layer.base_layer(x)).abs().max() > 1e-3  # the adapter does something


def test_inference_is_what_peft_computes(lora):
    """With gradients peft's own layer runs."""
    for name, layer in layers_of(lora).items():
        x = inputs_of(layer)
        with lora.gated(GATES):
            plain = layer(x)
            with torch.no_grad():
                fast = layer(x)
        torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-6, msg=name)
        with torch.no_grad(), lora.model.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))


def test_inference_in_bfloat16_is_as_exact_as_peft(lora):
    for name, layer in layers_of(lora).items():
        x = inputs_of(layer)
        with torch.no_grad(), lora.gated(GATES):
            exact = layer(x)
        layer.base_layer.to(torch.bfloat16)
        with lora.gated(GATES):
            plain = layer(x.bfloat16())
            with torch.no_grad():
                fast = layer(x.bfloat16())
        assert plain.dtype == fast.dtype == torch.bfloat16
        assert (fast - exact).abs().max() <= 2 * (plain - exact).abs().max(), name


def test_dropout_stays_on_in_training_without_gradients(make_lora):
    """Reentrant checkpointing runs the first forward under `no_grad`."""
    lora = make_lora(LoraSettings(r=4, alpha=6, dropout=0.5, num_experts=2))
    layer = layers_of(lora)["q_proj"].train()
    x = inputs_of(layer)
    with torch.no_grad(), lora.gated(GATES):
        assert not torch.equal(layer(x), layer(x))


@torch.no_grad()
def test_gates_of_one_are_a_plain_lora(lora):
    layer = layers_of(lora)["q_proj"]
    x = inputs_of(layer)
    with lora.gated(torch.ones(2, 2)):
        y = layer(x)

    delta = 6 / (4 / 2) * layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(y, x @ (layer.base_layer.weight + delta).T, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(make_lora):
    lora = make_lora(ramp=False)
    for layer in layers_of(lora).values():
        x = inputs_of(layer)
        with lora.gated(GATES):
            assert torch.equal(layer(x), layer.base_layer(x))


def test_a_layer_outside_the_context_raises(lora):
    layer = layers_of(lora)["q_proj"]
    with pytest.raises(RuntimeError, match="a gated LoRA layer ran outside"):
        layer(inputs_of(layer))
    with lora.gated(GATES):
        layer(inputs_of(layer))
    with pytest.raises(RuntimeError, match="a gated LoRA layer ran outside"):
        layer(inputs_of(layer))


def test_contexts_nest_and_end_with_an_error(lora):
    layer = layers_of(lora)["q_proj"]
    x = inputs_of(layer)
    with lora.gated(GATES):
        expected = layer(x)
        with lora.gated(torch.zeros(2, 2)):
            torch.testing.assert_close(layer(x), layer.base_layer(x))
        assert torch.equal(layer(x), expected)
    with pytest.raises(KeyError), lora.gated(GATES):
        raise KeyError
    with pytest.raises(RuntimeError, match="outside"):
        layer(x)


def test_what_is_trained(lora):
    """Adapter, router and projector, each in one group; the LM is frozen."""
    groups = lora.parameter_groups(lr=0.5, weight_decay=0.25)

    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.5, 0.25), (0.3 * 0.5, 0.25), (0.5, 0.0)]
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p): name for name, p in lora.model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)  # each once
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    assert sizes[0] == sum(p.numel() for p in Projector(8, 16).parameters())
    assert sizes[1] == sum(p.numel() for p in Router(2).parameters())
    assert sizes[2] == 3 * 4 * sum(layer.in_features + layer.out_features for layer in layers_of(lora).values())


def test_gates_are_a_distribution_and_differ_by_user(lora):
    users = torch.sin(torch.arange(3 * 8.0)).reshape(3, 8)
    with torch.no_grad():
        gates = lora.router(users)

    assert gates.shape == (3, 2)
    torch.testing.assert_close(gates.sum(1), torch.ones(3))
    assert (gates > 0).all()
    assert not torch.allclose(gates[0], gates[1])
    torch.testing.assert_close(lora.router(users[1:2])[0], gates[1])  # rows are independent in evaluation


@pytest.mark.parametrize("width, inner", [(64, 16), (8, 2), (10, 3)])
def test_router_sizes(width, inner):
    router = Router(4).eval()
    assert sum(p.numel() for p in router.gate.parameters()) == 64 * 4 + 4
    hidden = router.blocks(router.bn(router.conv(torch.zeros(2, 1, width))))
    assert hidden.shape == (2, 64, inner)
    assert router(torch.zeros(2, width)).shape == (2, 4)


# --- gradients ----------------------------------------------------------------------------------------------


def make_batch() -> PromptBatch:
    """Two rows of 6 tokens, the last two scored; the first padded by one; a marker in each."""
    ids = torch.tensor([[0, 1, 9, 20, 21, 22], [1, 30, 31, 32, 33, 34]])
    labels = torch.full((2, 6), IGNORED)
    labels[:, -2:] = ids[:, -2:]
    is_marker = torch.zeros(2, 6, dtype=torch.bool)
    is_marker[:, 2] = True
    mask = torch.tensor([[False] + [True] * 5, [True] * 6])
    return PromptBatch(ids, mask, is_marker, torch.tensor([1, 3]), labels)


def item_table() -> torch.Tensor:
    return torch.cos(torch.arange(24 * 8.0)).reshape(24, 8)


def gradients(lora, users: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    gates = lora.router(users)
    with lora.gated(gates):
        loss = PromptedLM(lora, item_table()).loss(make_batch(), gates)
        loss.backward()
    return loss.item(), {n: p.grad for n, p in lora.model.named_parameters() if p.requires_grad}


def test_gradient_checkpointing_changes_no_gradient(make_lora):
    users = torch.sin(torch.arange(2 * 8.0)).reshape(2, 8)
    plain, checkpointed = make_lora(), make_lora()
    checkpointed.llm.gradient_checkpointing_enable({"use_reentrant": False})
    runs = []
    layers_of(checkpointed)["q_proj"].lora_A.default.register_forward_hook(lambda *args: runs.append(1))
    for lora in (plain, checkpointed):
        lora.model.train()

    loss, wanted = gradients(plain, users)
    again, got = gradients(checkpointed, users)

    assert len(runs) == 2  # once forward, once more in the backward pass
    assert again == pytest.approx(loss, abs=1e-6)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert all(gradient.abs().max() > 0 for gradient in wanted.values())  # everything is reached


def test_a_backward_outside_the_context_raises_under_checkpointing(lora):
    lora.llm.gradient_checkpointing_enable({"use_reentrant": False})
    lora.model.train()
    loss = PromptedLM(lora, item_table()).loss(make_batch(), GATES)
    with pytest.raises(RuntimeError, match="a gated LoRA layer ran outside"):
        loss.backward()


def test_gradients_agree_with_the_formula(lora):
    """Of A, B and the gates through one layer, against autograd over the formula written out per expert."""
    layer = layers_of(lora)["v_proj"]
    x, gates = inputs_of(layer), GATES.clone().requires_grad_()
    trained = [layer.lora_A.default.weight, layer.lora_B.default.weight, gates]

    with lora.gated(gates):
        got = torch.autograd.grad(layer(x).square().sum(), trained)

    wanted = torch.autograd.grad(expert_by_expert(layer, x, gates, alpha=6).square().sum(), trained)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# --- the adapter file ---------------------------------------------------------------------------------------


def in_use(wrapper) -> dict[str, torch.Tensor]:
    """State of what `peft` trains and saves, without the original module that it keeps aside."""
    return {name: value for name, value in wrapper.state_dict().items() if name.startswith("modules_to_save.")}


def test_round_trip_of_the_adapter(lora, llm_folder, tmp_path):
    users = torch.sin(torch.arange(4 * 8.0)).reshape(4, 8)
    lora.router.train()
    for step in range(3):
        lora.router(users + step)  # moves the running statistics
    lora.model.eval()
    lora.save(tmp_path / "adapter")

    loaded = load_adapter(
        "native", load_llm(llm_folder, "float32", CPU)[1], folder=tmp_path / "adapter", num_experts=2, rec_size=8
    )

    assert parameter_counts(loaded.model) == parameter_counts(lora.model)  # of the report, in whatever process
    batch = make_batch()
    with torch.no_grad():
        gates, again = lora.router(users[:2]), loaded.router(users[:2])
        assert torch.equal(gates, again)
        for one, two in ((lora.router, loaded.router), (lora.projector, loaded.projector)):
            first, second = in_use(one), in_use(two)
            assert list(first) == list(second)
            assert all(torch.equal(first[name], second[name]) for name in first)
        statistics = [value for name, value in in_use(loaded.router).items() if name.endswith("running_mean")]
        assert len(statistics) == 1 + 9 * 2
        assert all(value.abs().max() > 0 for value in statistics)
        logits = []
        for each in (lora, loaded):
            with each.gated(gates):
                embeds = PromptedLM(each, item_table()).inputs_embeds(batch)
                logits.append(each.llm(inputs_embeds=embeds, attention_mask=batch.mask.long()).logits)
        assert torch.equal(*logits)
    assert not loaded.model.training


def test_projector_by_formula(lora):
    x = torch.sin(torch.arange(3 * 8.0)).reshape(3, 8)
    weights = {name.rsplit("modules_to_save.default.", 1)[-1]: p for name, p in lora.projector.named_parameters()}
    inner = F.gelu(x @ weights["inner.weight"].T + weights["inner.bias"])
    expected = inner @ weights["outer.weight"].T + weights["outer.bias"]
    torch.testing.assert_close(lora.projector(x), expected)

"""iLoRA on stock `peft`: instance-wise gated LoRA experts, their router and the item projector.

Computes what AkaliKong/iLoRA@28e4737 computes, in a cheaper exact form. There, y = W x + s * sum_e g_e B_e
A_e dropout(x) with r/n rows of A and columns of B per expert. Here A and B stay whole (a plain LoRA of rank
r), and a hook multiplies the r numbers between them by the gates, each repeated r/n times.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.core.errors import UserError
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.adapter.adapter_file import CONFIG_FILE, BaseModel, describe_base, read_config, write_adapter
from src.teacher.config import LoraSettings
from src.teacher.llm.load import TARGET_MODULES


class _ResidualBlock(nn.Module):
    """Two 3-wide convolutions with BatchNorm; the shortcut subsamples and pads channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)
        self.stride, self.added = stride, channels - channels_in

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, channels_in, W] -> [B, channels, ceil(W / stride)]."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(inputs)).relu()))
        before = self.added // 2
        shortcut = nn.functional.pad(inputs[:, :, :: self.stride], (0, 0, before, self.added - before))
        return (out + shortcut).relu()


class Router(nn.Module):
    """Gates over the experts from the user representation: a small 1-D ResNet, a linear layer, softmax."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm1d(16)
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*[_ResidualBlock(*width) for width in widths])
        self.gate = nn.Linear(64, num_experts)

    def forward(self, user: Tensor) -> Tensor:
        """User representations float [B, W] -> gates float [B, num_experts] that sum to 1."""
        hidden = self.blocks(self.bn(self.conv(user[:, None])).relu())  # [B, 64, W / 4]
        return self.gate(hidden.mean(-1)).softmax(-1)


class Projector(nn.Module):
    """From the recommender's item embeddings [..., rec_size] into the LLM's input space [..., llm_dim]."""

    def __init__(self, rec_size: int, llm_dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(rec_size, llm_dim)
        self.outer = nn.Linear(llm_dim, llm_dim)

    def forward(self, items: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(items)))


class GatedLora(AdaptedLM):
    """iLoRA on stock `peft`, which saves router and projector in its adapter file (`modules_to_save`)."""

    name = "native"

    def __init__(self, model: PeftModel, num_experts: int, base: BaseModel) -> None:
        super().__init__(model, num_experts, base)
        self._gates: Tensor | None = None
        for name, module in model.named_modules():
            if name.endswith(".lora_A.default"):
                module.register_forward_hook(self._scale_rank)
            if isinstance(module, LoraLinear):
                layer: Any = module  # whose forward is replaced, not overridden
                layer.forward = functools.partial(self._layer, layer, layer.forward)

    def _layer(self, layer: LoraLinear, forward: Callable[..., Tensor], inputs: Tensor) -> Tensor:
        """A layer's output [B, S, out]; at inference the adapter's part is added within its last product.

        `forward`, peft's own, makes four passes over [B, S, out] for that, in float32 whatever the LM's type is. Told
        by the mode, because reentrant checkpointing trains under `no_grad`, too.
        """
        if layer.training or torch.is_grad_enabled() or layer.disable_adapters:
            return forward(inputs)
        output = layer.base_layer(inputs)
        down, up = (module["default"].weight.to(output.dtype) for module in (layer.lora_A, layer.lora_B))
        inner = self._scale_rank(layer, (), nn.functional.linear(inputs, down))  # [B, S, r]
        output.view(-1, output.shape[-1]).addmm_(inner.flatten(0, 1), up.T, alpha=layer.scaling["default"])
        return output

    def _scale_rank(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._gates is None:
            raise RuntimeError("a gated LoRA layer ran outside GatedLora.gated(...)")
        repeats = output.shape[-1] // self.num_experts
        return output * self._gates.repeat_interleave(repeats, -1)[:, None].to(output.dtype)  # [B, S, r]

    @contextmanager
    def gated(self, gates: Tensor) -> Iterator[None]:
        previous, self._gates = self._gates, gates
        try:
            yield
        finally:
            self._gates = previous

    def state(self) -> dict[str, Tensor]:
        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    def load_state(self, state: dict[str, Tensor]) -> None:
        set_peft_model_state_dict(self.model, state)

    def save(self, folder: Path) -> None:
        write_adapter(folder, self.state(), self.model.peft_config["default"], self.base)


def lora_config(settings: LoraSettings) -> LoraConfig:
    """The adapter in terms of `peft`. It scales by alpha / r, iLoRA by alpha / (r / num_experts): hence the product."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.num_experts * settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=TARGET_MODULES,
        modules_to_save=["router", "projector"],
    )


def saved_settings(folder: Path, num_experts: int) -> LoraSettings:
    """The settings that `lora_config` turned into the adapter saved in `folder`."""
    config = read_config(folder)
    alpha, dropout = config["lora_alpha"] // num_experts, config["lora_dropout"]
    try:
        return LoraSettings(r=config["r"], alpha=alpha, dropout=dropout, num_experts=num_experts)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: not an adapter of iLoRA ({error})") from None


def add_gated_lora(llm: PreTrainedModel, settings: LoraSettings, rec_size: int) -> GatedLora:
    """Freeze `llm` and give it a fresh adapter, router and projector."""
    base = describe_base(llm)
    llm.router = Router(settings.num_experts).to(llm.device)  # where `peft` finds them; in float32
    llm.projector = Projector(rec_size, llm.config.hidden_size).to(llm.device)
    return GatedLora(get_peft_model(llm, lora_config(settings)), settings.num_experts, base)

"""An LM with iLoRA's adapter, as training and scoring use it, whichever implementation made it."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from src.teacher.adapter.adapter_file import BaseModel


class AdaptedLM(ABC):
    """A causal LM with gated LoRA experts, a router and a projector.

    Attributes:
        name: `native` or `submodule`.
        model: the `PeftModel`, with router and projector hung on the LM inside: all that is trained. Its
            `disable_adapter()` gives the base LM.
        base: the LM without adapter.
    """

    name: str

    def __init__(self, model: nn.Module, num_experts: int, base: BaseModel) -> None:
        self.model, self.num_experts, self.base = model, num_experts, base

    @property
    def llm(self) -> PreTrainedModel:
        """The causal LM inside, its layers carrying the adapter."""
        return self.model.base_model.model

    @property
    def router(self) -> nn.Module:
        """User representations float [B, W] -> gates float [B, num_experts] that sum to 1."""
        return self.llm.router

    @property
    def projector(self) -> nn.Module:
        """Item embeddings [..., rec_size] -> the LLM's input space [..., llm_dim]."""
        return self.llm.projector

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """Adam's groups: projector, router at 0.3 of the rate, LoRA without weight decay (iLoRA@28e4737)."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        lora = [p for name, p in named if "lora_" in name]
        projector = [p for name, p in named if ".projector." in name]
        router = [p for name, p in named if ".router." in name]
        return [
            {"params": projector, "lr": lr, "weight_decay": weight_decay},
            {"params": router, "lr": 0.3 * lr, "weight_decay": weight_decay},
            {"params": lora, "lr": lr, "weight_decay": 0.0},
        ]

    @abstractmethod
    def gated(self, gates: Tensor) -> AbstractContextManager[None]:
        """Use `gates` float [B, num_experts] in every forward, and in the backward that belongs to it.

        The context has to span the backward pass too: gradient checkpointing runs the layers again there.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Adapter, router (BatchNorm statistics included) and projector under the names of the adapter file."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy what `state` returned, here or in the other implementation."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the adapter's folder, readable by both implementations."""

"""What training and scoring ask of an LM with iLoRA's adapter, whichever implementation made it."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.teacher.adapter.adapter_file import BaseModel


class AdaptedLM(Protocol):
    """A causal LM with gated experts, a router and a projector: `GatedLora` or `SubmoduleLora`.

    Attributes:
        name: `native` or `submodule`; base: the LM without adapter.
        model: everything that is trained is inside; its `disable_adapter()` gives the base LM.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def base(self) -> BaseModel: ...

    @property
    def llm(self) -> PreTrainedModel:
        """The causal LM inside, its layers carrying the adapter."""

    @property
    def router(self) -> torch.nn.Module:
        """User representations float [B, W] -> gates float [B, num_experts] that sum to 1."""

    @property
    def projector(self) -> torch.nn.Module:
        """Item embeddings [..., rec_size] -> the LLM's input space [..., llm_dim]."""

    def gated(self, gates: Tensor) -> AbstractContextManager[None]:
        """Use `gates` float [B, num_experts] in every forward, and in the backward that belongs to it."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """What an optimizer takes."""

    def state(self) -> dict[str, Tensor]:
        """Adapter, router (BatchNorm statistics included) and projector under the names of the adapter file."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy what `state` returned, here or in the other implementation."""

    def save(self, folder: Path) -> None:
        """Write the adapter's folder, readable by both implementations."""

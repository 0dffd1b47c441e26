"""iLoRA's program beside ours: its Lightning module computes, from prompts that its collater made.

Both run as they are. What they need under our pins besides the shims of `ilora_submodule` is here: a stand-in for
Lightning's two base classes, a LLaMA that takes (and ignores) the arguments upstream passes through, the recommender on
the CPU, and one column of `token_type_ids`.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from src.teacher.adapter.ilora_submodule import raise_swallowed_errors, scoped_imports, stock_peft_with_config_module
from src.teacher.adapter.upstream_weights import from_adapter
from src.teacher.config import LoraSettings
from src.teacher.llm.load import TARGET_MODULES

_TOP_NAMES = ("model", "data", "optims", "recommender", "SASRecModules_ori", "pytorch_lightning")
_MODULES = {
    "interface": "model.model_interface",
    "projector": "model.mlp_projector",
    "layers": "model.peft.tuners.moelora",
    "data": "data.data_interface",
    "recommender": "recommender.A_SASRec_final_bce_llm",
    "recommender_layers": "SASRecModules_ori",
}
WINDOW = 10  # upstream's


class Llama(LlamaForCausalLM):
    """Upstream overwrites a file of transformers 4.28 for these two arguments."""

    def forward(self, *args, user_embeds=None, gate_weights=None, **options):
        return super().forward(*args, **options)


def load_program(folder: Path) -> SimpleNamespace:
    """Upstream's modules, under the names of `_MODULES`."""
    with scoped_imports(folder, *_TOP_NAMES), stock_peft_with_config_module():
        lightning = ModuleType("pytorch_lightning")
        lightning.LightningModule, lightning.LightningDataModule = nn.Module, object
        sys.modules["pytorch_lightning"] = lightning
        program = SimpleNamespace(**{name: importlib.import_module(path) for name, path in _MODULES.items()})
    raise_swallowed_errors(program.layers)
    return program


@torch.no_grad()
def give_known_weights(module: nn.Module, scale: float = 0.3) -> None:
    """scale * sin(1.7 i + length of the name), plus 1 for the weights of norms, whose biases are positive.

    With LayerNorm biases of 0 upstream's SASRec drops positions at random (UPSTREAM: rounding noise).
    """
    for name, parameter in module.named_parameters():
        ramp = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
        values = scale * torch.sin(1.7 * ramp + len(name))
        if parameter.ndim == 1:
            values = values + 1 if name.endswith("weight") else values.abs() + 0.05
        parameter.copy_(values.reshape(parameter.shape))


def build_sasrec(program: SimpleNamespace, num_items: int, hidden: int) -> nn.Module:
    """Upstream's recommender with known weights, on the CPU."""
    model = program.recommender.SASRec(hidden, num_items, WINDOW, 0.1, torch.device("cpu"))
    give_known_weights(model)
    return model.eval().requires_grad_(False)


def save_pickled(program: SimpleNamespace, model: nn.Module, path: Path) -> None:
    """`torch.save(model)` as upstream does it; its modules have to be found by name for that."""
    modules = [ModuleType("recommender"), program.recommender, program.recommender_layers]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module.__name__, module)
        torch.save(model, path)


def build_interface(
    program: SimpleNamespace,
    llm: Llama,
    tokenizer: object,
    recommender: nn.Module,
    settings: LoraSettings,
    adapter: dict[str, Tensor],
) -> nn.Module:
    """Upstream's Lightning module with our adapter's weights.

    Its constructor would read everything from files, in bfloat16; its parts are built here by the same calls.
    """
    interface = program.interface
    module = interface.MInterface.__new__(interface.MInterface)
    nn.Module.__init__(module)
    module.hparams = SimpleNamespace(router="share", rec_embed="SASRec")
    module.llama_tokenizer, module.rec_model = tokenizer, recommender
    config = interface.MoeLoraConfig(
        task_type=interface.TaskType.CAUSAL_LM,
        inference_mode=False,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=TARGET_MODULES,
        num_moe=settings.num_experts,
        gating="Dense",
    )
    module.llama_model = interface.get_peft_model(llm, config)
    module.router = interface.build_router()
    module.projector = program.projector.MlpProjector(recommender.hidden_size, llm.config.hidden_size)
    wrong = module.load_state_dict(from_adapter(adapter), strict=False)
    assert not wrong.unexpected_keys
    assert not [name for name in wrong.missing_keys if "lora_" in name or name.startswith(("router.", "projector."))]
    return module


@dataclass(frozen=True)
class PromptRows:
    """Item ids behind some prompts: history int64 [B, 10], right-padded; length [B]; candidates [B, C]; target [B]."""

    history: Tensor
    length: Tensor
    candidates: Tensor
    target: Tensor

    def items(self, row: int) -> list[int]:
        return self.history[row, : self.length[row]].tolist()


def collate(
    program: SimpleNamespace,
    tokenizer: object,
    rows: PromptRows,
    titles: list[str],
    prompt: str,
    embed: bool,
    train: bool,
) -> dict[str, object]:
    """The batch of upstream's collater; `prompt` has [HistoryHere] and [CansHere], the tokenizer's side is padded."""
    collater = program.data.TrainCollater(
        [prompt],
        tokenizer,
        train=train,
        max_step=1 if embed else 10**12,  # markers from the first, or never
    )
    samples = [
        {
            "seq": rows.history[i].tolist(),
            "seq_name": [titles[item] for item in rows.items(i)],
            "len_seq": int(rows.length[i]),
            "cans": rows.candidates[i].tolist(),
            "cans_name": [titles[item] for item in rows.candidates[i]],
            "len_cans": rows.candidates.shape[1],
            "item_id": int(rows.target[i]),
            "correct_answer": titles[rows.target[i]],
        }
        for i in range(len(rows.length))
    ]
    batch = collater(samples)
    if train:
        batch["tokens"]["token_type_ids"] = with_first_column(batch["tokens"].token_type_ids)
    return batch


def with_first_column(token_type_ids: Tensor) -> Tensor:
    """transformers 4.43 gives a pair one column less than 4.28, upstream cuts the first one off: put a zero there."""
    return nn.functional.pad(token_type_ids, (1, 0))

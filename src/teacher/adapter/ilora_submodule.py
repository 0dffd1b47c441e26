"""iLoRA's own modelling code (AkaliKong/iLoRA@28e4737), unmodified, where `moe_lora` has ours.

What is driven: its fork of `peft` with the MoE-LoRA layers, its router and its projector, from the submodule or the
folder that `ILORA_DIR` names. Prompts, training loop, checkpoints, export and evaluation are ours. Each shim below is a
function with its cause and when it can go; all are applied when the code is loaded or the adapter built, never at
import. The other shims that the original *program* needs under our pins do not arise here: its tokenizer set-up, its
Lightning module, its loaders and its pickled recommenders are not used.
"""

import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from peft import PeftConfig, PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.core.errors import UserError
from src.core.git_info import PROJECT_ROOT
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.adapter.adapter_file import BaseModel, describe_base, write_adapter
from src.teacher.adapter.moe_lora import lora_config
from src.teacher.adapter.upstream_weights import from_adapter, to_adapter
from src.teacher.config import LoraSettings
from src.teacher.llm.load import TARGET_MODULES

FOLDER_VARIABLE = "ILORA_DIR"
COMMIT = "28e4737"
_DIGEST = "35948f1f937cd5d4f5399dff9c3b7b73ba1e020f07c8f87beb2f0cdb5cca9dc2"
_PACKAGES = ("model.peft", "model.router.nlpr", "model.mlp_projector")


@dataclass(frozen=True)
class ILoRACode:
    """The loaded modules."""

    peft: ModuleType
    router: ModuleType
    projector: ModuleType


def find_code() -> Path | None:
    """The folder of iLoRA's checkout: `ILORA_DIR`, else the submodule; None where it is not checked out."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, PROJECT_ROOT / "src" / "third_party" / "ilora"))
    return folder if all(folder.joinpath(*_path(name)).exists() for name in _PACKAGES) else None


def _path(package: str) -> tuple[str, ...]:
    *parents, last = package.split(".")
    return (*parents, last if last == "peft" else f"{last}.py")


def code_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the checkout's Python files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def is_pinned(folder: Path) -> bool:
    """Whether the checkout holds the code that this module was tested with."""
    return code_digest(folder) == _DIGEST


@functools.cache
def load_code(folder: Path) -> ILoRACode:
    """Import the modelling code from `folder`; nothing of it stays in `sys.path` or `sys.modules`."""
    with scoped_imports(folder, "model"), stock_peft_with_config_module():
        code = ILoRACode(*map(importlib.import_module, _PACKAGES))
        layers = importlib.import_module("model.peft.tuners.moelora")
    raise_swallowed_errors(layers)
    return code


# --- shims --------------------------------------------------------------------------------------------------


@contextmanager
def scoped_imports(folder: Path, *names: str) -> Iterator[None]:
    """Let top-level `names` be imported from `folder`, and only here.

    Cause: its packages have names (`model`, `data`, ...) that any other code may use. It can go when upstream is an
    installable package.
    """
    path, written, before = list(sys.path), sys.dont_write_bytecode, _modules_named(names)
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # the checkout stays as it is
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, written
        for name in _modules_named(names):
            del sys.modules[name]
        sys.modules.update(before)


def _modules_named(tops: tuple[str, ...]) -> dict[str, ModuleType]:
    return {name: module for name, module in list(sys.modules.items()) if name.split(".")[0] in tops}


@contextmanager
def stock_peft_with_config_module() -> Iterator[None]:
    """Offer `peft.utils.config` while the fork is imported.

    Cause: one file of the fork (`tuners/adaption_prompt.py`) imports PeftConfig and PeftType from the *stock* `peft`,
    where that module no longer exists. It can go when that import is relative.
    """
    name = "peft.utils.config"
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(PeftConfig=PeftConfig, PeftType=PeftType)
    try:
        yield
    finally:
        del sys.modules[name]


def raise_swallowed_errors(layers: ModuleType) -> None:
    """Let errors of a MoE-LoRA layer pass.

    Cause: its `forward` catches every exception, prints it and returns zeros of its *input's* shape, so a wrong number
    of experts trains a model of noise, and gradient checkpointing, which ends a recomputation by an exception, does not
    end it. The `print` that it calls there becomes one that raises the exception again. It can go when upstream lets
    errors pass.
    """

    def pass_on(message: str) -> None:
        error = sys.exception()
        assert error is not None
        error.add_note(f"in a MoE-LoRA layer of iLoRA: {message}")
        raise error

    vars(layers)["print"] = pass_on


def freeze_layer_gating(model: nn.Module) -> None:
    """Exclude the per-layer gating modules from training.

    Cause: each MoE-LoRA layer has a gating module of its own, marked trainable, that nothing calls with the shared
    router: an optimizer or a data-parallel wrapper would wait for gradients that never come. It can go when upstream
    makes them with `router=unshare` only.
    """
    for name, parameter in model.named_parameters():
        if ".gating." in name:
            parameter.requires_grad_(False)


def restore_generate(llm: PreTrainedModel) -> None:
    """Give the LM its own `generate` back.

    Cause: the fork replaces it on the instance by one that demands gates as arguments, which transformers 4.43 refuses
    to pass on; `SubmoduleLora.gated` sets them instead. It can go when the fork leaves the LM alone.
    """
    del llm.generate


class _FlatRouter(nn.Module):
    """Users float [B, W] -> gates float [B, num_experts].

    Cause: upstream's router takes and returns a middle axis of 1. It can go when our code keeps that axis.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, user: Tensor) -> Tensor:
        return self.inner(user[:, None])[:, 0]


# --- the adapted LM -----------------------------------------------------------------------------------------


class SubmoduleLora(AdaptedLM):
    """iLoRA's own layers, in the `PeftModel` of its fork."""

    name = "submodule"

    def __init__(self, model: nn.Module, settings: LoraSettings, base: BaseModel) -> None:
        super().__init__(model, settings.num_experts, base)
        self._settings = settings
        # The list that all layers read their gates from. Without gates they must fail, unless the adapter is off.
        self._gates: list[Tensor | None] = model.base_model.gate_weights
        self._gates[:] = [None]

    @contextmanager
    def gated(self, gates: Tensor) -> Iterator[None]:
        previous = list(self._gates)
        self._gates[:] = [gates[:, None]]
        try:
            yield
        finally:
            self._gates[:] = previous

    def upstream_state(self) -> dict[str, Tensor]:
        """LoRA, router and projector under the names of upstream's checkpoints, the tensors themselves."""
        lora = {f"llama_model.{name}": value for name, value in self.model.state_dict().items() if "lora_" in name}
        router = {f"router.{name}": value for name, value in self.router.inner.state_dict().items()}
        return lora | router | {f"projector.{name}": value for name, value in self.projector.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        return to_adapter(self.upstream_state())

    def load_state(self, state: dict[str, Tensor]) -> None:
        given = from_adapter(state)
        for name, tensor in self.upstream_state().items():
            tensor.copy_(given[name])

    def save(self, folder: Path) -> None:
        write_adapter(folder, self.state(), lora_config(self._settings), self.base)


def add_submodule_lora(llm: PreTrainedModel, settings: LoraSettings, rec_size: int) -> SubmoduleLora:
    """Freeze `llm` and give it iLoRA's layers, router and projector, fresh."""
    folder = find_code()
    if folder is None:
        raise UserError(f"{FOLDER_VARIABLE}: iLoRA's code is gone; it was there when the teacher was built")
    code, base = load_code(folder), describe_base(llm)
    config = code.peft.MoeLoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=TARGET_MODULES,
        num_moe=settings.num_experts,
        gating="Dense",
    )
    model = code.peft.get_peft_model(llm, config)
    freeze_layer_gating(model)
    restore_generate(llm)
    # Upstream's `build_router` fixes four experts; the class does not.
    router = code.router.NLPRecommendationRouter(code.router.ResidualBlock, [3, 3, 3], 64, settings.num_experts)
    llm.router = _FlatRouter(router).to(llm.device)
    llm.projector = code.projector.MlpProjector(rec_size, llm.config.hidden_size).to(llm.device)
    return SubmoduleLora(model, settings, base)

"""One training step of the teacher, native implementation against iLoRA's own code, in one run; prints one JSON line.

    ILORA_DIR=<checkout of AkaliKong/iLoRA@28e4737> python -m benchmarks.teacher_step [--llm <folder>] [--steps 30]

Both adapt the same LLaMA with random weights (2 layers; on the CPU 256 wide in float32, on a GPU LLaMA-2-7B's 4,096 in
bfloat16) with equal adapter weights (r 8, 4 experts, alpha 32, dropout .1), batches of 4 x 256 tokens, no gradient
checkpointing. With `--llm` it is the LLaMA of that folder, in what `teacher.dtype=auto` is here. A step is router,
forward, backward and Adam; steps alternate, medians are compared. Memory is what the adapted layers keep for the
backward pass: bytes of distinct tensors saved in their forward passes, weights aside. `most_possible` is the ratio that
the LLM alone would reach, its adapter switched off, forward and back to its inputs: what nobody can leave out.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from src.core.errors import UserError
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.adapter.ilora_submodule import add_submodule_lora, find_code
from src.teacher.adapter.moe_lora import add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import LoraSettings
from src.teacher.llm.load import TARGET_MODULES, load_llm, native_dtype
from src.teacher.prompt.builder import IGNORED, PromptBatch

BATCH_SIZE, LENGTH, ANSWER, REC_SIZE, VOCAB, NUM_LAYERS = 4, 256, 12, 64, 2000, 2
STEPS, WARM_UP = 30, 4  # by default
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTHS = {"cpu": (256, 688, 4), "cuda": (4096, 11008, 32)}[DEVICE.type]


def make_llm() -> PreTrainedModel:
    torch.manual_seed(0)
    width, inner, heads = WIDTHS
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
    llm = LlamaForCausalLM(LlamaConfig(VOCAB, **sizes, num_hidden_layers=NUM_LAYERS))
    return llm.to(DEVICE, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)


def load(folder: Path) -> PreTrainedModel:
    try:
        return load_llm(folder, native_dtype("auto", DEVICE), DEVICE)[1]
    except UserError as error:
        raise SystemExit(f"--llm {folder}: {error}") from None


def make_batch(batch_size: int, vocab: int) -> PromptBatch:
    ids = torch.randint(vocab, (batch_size, LENGTH))
    labels = torch.full_like(ids, IGNORED)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    is_marker = torch.zeros_like(ids, dtype=torch.bool)
    is_marker[:, 20:200:6] = True
    markers = torch.randint(100, (int(is_marker.sum()),))
    return PromptBatch(ids, torch.ones_like(is_marker), is_marker, markers, labels).to(DEVICE)


class Step:
    """A training step of one implementation."""

    def __init__(self, lora: AdaptedLM, batch: PromptBatch, users: Tensor, items: Tensor) -> None:
        self.lm, self.batch, self.users = PromptedLM(lora, items), batch, users
        self.optimizer = torch.optim.Adam(lora.parameter_groups(1e-4, 1e-5))
        lora.model.train()

    def loss(self) -> float:
        lora = self.lm.lora
        self.optimizer.zero_grad(set_to_none=True)
        gates = lora.router(self.users)
        with lora.gated(gates):
            loss = self.lm.loss(self.batch, gates)
            loss.backward()
        self.optimizer.step()
        return loss.item()  # waits for the GPU

    def seconds(self) -> float:
        begin = time.perf_counter()
        self.loss()
        return time.perf_counter() - begin

    def saved_bytes(self) -> int:
        """What the adapted layers keep for the backward pass of one step."""
        with counted(adapted_layers(self.lm.lora.llm), self.lm.lora.model) as sizes:
            self.loss()
        return sum(sizes.values())


class FrozenStep(Step):
    """What every implementation has in common: the LLM's own products, forward and back to its inputs."""

    def loss(self) -> float:
        lm = self.lm
        embeds = lm.inputs_embeds(self.batch).detach().requires_grad_()
        frozen = PromptedLM(lm.lora, lm.item_table)
        frozen.inputs_embeds = lambda batch: embeds  # type: ignore[method-assign]
        with lm.lora.model.disable_adapter():
            loss = frozen.loss(self.batch, lm.lora.router(self.users).detach())
            loss.backward()
        return loss.item()


def adapted_layers(llm: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in llm.named_modules() if name.split(".")[-1] in TARGET_MODULES]


@contextmanager
def counted(layers: list[nn.Module], model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by storage of the tensors that autograd saves while one of `layers` runs forward, parameters aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    inside = [False]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside[0] and storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    def enter(*args: object) -> None:
        inside[0] = True

    def leave(*args: object) -> None:
        inside[0] = False

    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
    for handle in handles:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    arguments = parser.parse_args()
    if find_code() is None:
        raise SystemExit("set ILORA_DIR to a checkout of AkaliKong/iLoRA@28e4737")
    llm = make_llm() if arguments.llm is None else load(arguments.llm)
    size, settings = arguments.batch_size, LoraSettings(r=8, alpha=32, dropout=0.1, num_experts=4)
    batch = make_batch(size, min(VOCAB, llm.config.vocab_size))
    users, items = torch.randn(size, REC_SIZE, device=DEVICE), torch.randn(100, REC_SIZE, device=DEVICE)
    native = add_gated_lora(copy.deepcopy(llm), settings, REC_SIZE)
    submodule = add_submodule_lora(llm, settings, REC_SIZE)
    submodule.load_state(native.state())
    steps = {"native": Step(native, batch, users, items), "submodule": Step(submodule, batch, users, items)}

    losses = {}
    for name, step in steps.items():
        torch.manual_seed(1)  # equal dropout
        losses[name] = step.loss()
    saved = {name: step.saved_bytes() / 2**20 for name, step in steps.items()}
    sides = {**steps, "frozen": FrozenStep(native, batch, users, items)}
    seconds = {name: [] for name in sides}
    for _ in range(arguments.steps):
        for name, step in sides.items():
            seconds[name].append(step.seconds())
    speed = {
        name: size * LENGTH / statistics.median(times[min(WARM_UP, len(times) // 2) :])
        for name, times in seconds.items()
    }
    result = {
        "native_tokens_per_s": round(speed["native"], 1),
        "submodule_tokens_per_s": round(speed["submodule"], 1),
        "speed_ratio": round(speed["native"] / speed["submodule"], 2),
        "most_possible": round(speed["frozen"] / speed["submodule"], 2),
        "native_adapter_mib": round(saved["native"], 1),
        "submodule_adapter_mib": round(saved["submodule"], 1),
        "memory_ratio": round(saved["native"] / saved["submodule"], 2),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "loss_difference": float(f"{abs(losses['native'] - losses['submodule']) / losses['submodule']:.1e}"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

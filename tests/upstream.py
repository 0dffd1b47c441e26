"""DLLM2Rec's models beside ours: their weights copied into our parameters."""

from types import ModuleType

import torch

from src.student.models import ModelConfig, Student, build_model

STUDENTS = ("sasrec", "gru4rec", "caser")
_NAMES = {
    "position_embeddings": "positional_embeddings",
    "norm_attention": "ln_1",
    "norm_feed_forward": "ln_2",
    "norm_output": "ln_3",
    "attention.query": "mh_attn.linear_q",
    "attention.key": "mh_attn.linear_k",
    "attention.value": "mh_attn.linear_v",
    "feed_forward.inner": "feed_forward.w_1",
    "feed_forward.outer": "feed_forward.w_2",
    "feed_forward.norm": "feed_forward.layer_norm",
    "vertical": "vertical_cnn",
    "output": "s_fc",
    "item_embeddings.items": "item_embeddings",
    "item_embeddings.projection": "fc_4096_64",
}


def build_upstream(program: ModuleType, name: str, hidden: int, num_items: int, window: int) -> torch.nn.Module:
    """Upstream's model of that name; `window` is its state_size."""
    if name == "sasrec":
        return program.SASRec(hidden, num_items, window, 0.1, torch.device("cpu"))
    if name == "gru4rec":
        return program.GRU(hidden, num_items, window)
    return program.Caser(hidden, num_items, window, 16, "[2, 3, 4]", 0.1)


def in_upstream(state: dict[str, torch.Tensor], ours: str, shape: torch.Size) -> torch.Tensor:
    """What upstream holds (a weight, a gradient) under our parameter's name, in our shape."""
    module, leaf = ours.rsplit(".", 1)
    module = _NAMES.get(module, module.replace("horizontal", "horizontal_cnn"))
    source = state[f"{module}.{leaf}"]
    if module.startswith("horizontal_cnn") and leaf == "weight":
        source = source[:, 0].transpose(1, 2)  # [filters, 1, size, d]: theirs are 2-d filters of full width
    return source.reshape(shape)  # their linear maps are convolutions


@torch.no_grad()
def copy_weights(upstream: torch.nn.Module, name: str, num_items: int, window: int) -> Student:
    """Our model with upstream's weights, dropout off."""
    hidden = upstream.hidden_size
    model = build_model(ModelConfig(name, num_items, hidden, hidden, window, 0.1)).eval()
    for ours, parameter in model.named_parameters():
        parameter.copy_(in_upstream(upstream.state_dict(), ours, parameter.shape))
    return model

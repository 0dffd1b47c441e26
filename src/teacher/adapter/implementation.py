"""Which code adapts the LM, `teacher.engine`: ours on stock `peft` (`native`) or iLoRA's own (`submodule`)."""

import logging
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from src.core.errors import UserError
from src.core.paths import project_path
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.adapter.adapter_file import CONFIG_FILE, WEIGHTS_FILE, check_fits_model, describe_base, read_adapter
from src.teacher.adapter.ilora_submodule import (
    COMMIT,
    FOLDER_VARIABLE,
    add_submodule_lora,
    find_code,
    is_pinned,
)
from src.teacher.adapter.moe_lora import add_gated_lora, saved_settings
from src.teacher.adapter.upstream_weights import read_checkpoint
from src.teacher.config import LoraSettings, TeacherConfig

_IMPLEMENTATIONS: dict[str, Callable[[PreTrainedModel, LoraSettings, int], AdaptedLM]] = {
    "native": add_gated_lora,
    "submodule": add_submodule_lora,
}


def choose_implementation(wanted: str, logger: logging.Logger) -> str:
    """`native` or `submodule`, from `teacher.engine`; `auto` takes the submodule where it is checked out.

    Raises:
        UserError: `submodule` is wanted and not there.
    """
    folder = find_code() if wanted != "native" else None
    if wanted == "submodule" and folder is None:
        raise UserError(
            "teacher.engine=submodule: iLoRA's code is not checked out; run `git submodule update --init "
            f"src/third_party/ilora`, or point {FOLDER_VARIABLE} at a checkout of AkaliKong/iLoRA@{COMMIT}"
        )
    chosen = "native" if folder is None else "submodule"
    logger.info("teacher engine: %s (teacher.engine=%s)", chosen, wanted)
    if folder is not None and not is_pinned(folder):
        logger.warning("%s: not the code of AkaliKong/iLoRA@%s, which was tested; results may differ", folder, COMMIT)
    return chosen


def add_adapter(
    implementation: str, llm: PreTrainedModel, *, config: TeacherConfig, rec_size: int, logger: logging.Logger
) -> AdaptedLM:
    """A trainable adapter: fresh, or with the weights that `teacher.init_adapter` names.

    Args:
        rec_size: width of the frozen recommender's item embeddings.

    Raises:
        UserError: those weights do not fit.
    """
    lora = _IMPLEMENTATIONS[implementation](llm, config.lora, rec_size)
    if config.init_adapter is not None:
        _start_from(project_path(config.init_adapter), lora, config, logger)
    return lora


def _start_from(path: Path, lora: AdaptedLM, config: TeacherConfig, logger: logging.Logger) -> None:
    """Copy the weights of an adapter's folder, or of a checkpoint of iLoRA's training."""
    state = read_adapter(path, lora.base) if path.is_dir() else read_checkpoint(path, lora.state(), logger)
    check_fits_model(path, state, lora.state())
    if path.is_dir():
        _check_scale(path, config)
    lora.load_state(state)
    logger.info("the adapter starts from %s", path)


def _check_scale(folder: Path, config: TeacherConfig) -> None:
    """The scale is no weight; an adapter that is continued at another one starts as another adapter."""
    alpha = saved_settings(folder, config.lora.num_experts).alpha
    if alpha != config.lora.alpha:
        raise UserError(
            f"teacher.lora.alpha={config.lora.alpha}: the adapter that teacher.init_adapter={folder} names was "
            f"trained with {alpha}; set teacher.lora.alpha={alpha}"
        )


def load_adapter(
    implementation: str, llm: PreTrainedModel, *, folder: Path, num_experts: int, rec_size: int
) -> AdaptedLM:
    """A saved adapter, for inference.

    Raises:
        UserError: it is damaged, or of another base model, or of other settings.
    """
    state = read_adapter(folder, describe_base(llm))
    settings = saved_settings(folder, num_experts)
    if settings.r not in (len(weight) for name, weight in state.items() if ".lora_A." in name):
        raise UserError(f"{folder}: {CONFIG_FILE} has r={settings.r}, {WEIGHTS_FILE} another rank; copy both again")
    lora = _IMPLEMENTATIONS[implementation](llm, settings, rec_size)
    check_fits_model(folder, state, lora.state())
    lora.load_state(state)
    lora.model.eval()
    return lora

"""Which code adapts the LM: ours on stock `peft` (`native`) or iLoRA's own (`submodule`)."""

import logging
from pathlib import Path

from transformers import PreTrainedModel

from src.core.errors import UserError
from src.core.paths import project_path
from src.teacher.adapter_file import check_fits, read_adapter
from src.teacher.config import TeacherConfig
from src.teacher.engine import AdaptedLM
from src.teacher.ilora_submodule import (
    COMMIT,
    FOLDER_VARIABLE,
    add_submodule_lora,
    find_code,
    is_pinned,
    load_submodule_lora,
)
from src.teacher.moe_lora import add_gated_lora, load_gated_lora, saved_settings
from src.teacher.upstream_weights import read_checkpoint

_ADD = {"native": add_gated_lora, "submodule": add_submodule_lora}
_LOAD = {"native": load_gated_lora, "submodule": load_submodule_lora}


def choose_engine(wanted: str, logger: logging.Logger) -> str:
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
    engine: str, llm: PreTrainedModel, settings: TeacherConfig, rec_size: int, logger: logging.Logger
) -> AdaptedLM:
    """A trainable adapter: fresh, or with the weights that `teacher.init_adapter` names.

    Raises:
        UserError: those weights do not fit.
    """
    lora = _ADD[engine](llm, settings.lora, rec_size)
    if settings.init_adapter is not None:
        path = project_path(settings.init_adapter)
        state = read_adapter(path, lora.base) if path.is_dir() else read_checkpoint(path, lora.state(), logger)
        check_fits(path, state, lora.state())
        if path.is_dir():
            _check_scale(path, settings)
        lora.load_state(state)
        logger.info("the adapter starts from %s", path)
    return lora


def _check_scale(folder: Path, settings: TeacherConfig) -> None:
    """The scale is no weight; an adapter that is continued at another one starts as another adapter."""
    alpha = saved_settings(folder, settings.lora.num_experts).alpha
    if alpha != settings.lora.alpha:
        raise UserError(
            f"teacher.lora.alpha={settings.lora.alpha}: the adapter that teacher.init_adapter={folder} names was "
            f"trained with {alpha}; set teacher.lora.alpha={alpha}"
        )


def load_adapter(engine: str, llm: PreTrainedModel, folder: Path, settings: TeacherConfig, rec_size: int) -> AdaptedLM:
    """A saved adapter, for inference.

    Raises:
        UserError: it is damaged or belongs to another base model.
    """
    return _LOAD[engine](llm, str(folder), settings.lora.num_experts, rec_size)

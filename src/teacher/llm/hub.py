"""`teacher.llm_path`: a local folder, or a model of the Hugging Face hub."""

from pathlib import Path

from src.core.errors import UserError
from src.core.foreign.hub import HubModel, is_hub_id
from src.core.paths import CARD_FILE, project_path
from src.teacher.llm.folder import EXPECTED, SMALL_FILES, WEIGHT_FILES, check_llm_folder

_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def find_llm(given: str, revision: str | None) -> Path:
    """The folder that `teacher.llm_path` means: itself, or where the hub's model lies in the cache, fetched if need be.

    Of a model only what is read here is fetched: pickled weights where there are no others.

    Args:
        revision: branch, tag or commit of the hub's model; None: its main branch.

    Raises:
        UserError: no such folder or model, one that may not be read, or no way to the hub; or no LLaMA-family folder.
    """
    folder = project_path(given)
    if folder.exists() or not is_hub_id(given):
        if revision is not None:
            raise UserError(
                f"teacher.llm_revision={revision}: must be null with teacher.llm_path={given}, which is a folder; "
                "revisions are of models on the hub"
            )
        check_llm_folder(folder)
        return folder
    model = HubModel(
        id=given, revision=revision, key="teacher.llm_path", revision_key="teacher.llm_revision", instead=EXPECTED
    )
    snapshot = model.fetch([*SMALL_FILES, CARD_FILE, *_SAFETENSORS])
    if not any((snapshot / name).is_file() for name in WEIGHT_FILES):
        snapshot = model.fetch(_PICKLED)
    try:
        check_llm_folder(snapshot)
    except UserError as error:
        raise UserError(
            f"teacher.llm_path={given}: what the cache holds of it is not whole, or no LLaMA-family model ({error}); "
            f"`{model.download_command}` on a machine with a network completes it"
        ) from error
    return snapshot

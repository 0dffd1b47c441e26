"""`teacher.llm_path`: a local folder, or a model of the Hugging Face hub, which huggingface_hub fetches and caches."""

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from src.core.errors import UserError
from src.core.paths import project_path
from src.teacher.llm.folder import EXPECTED, SMALL_FILES, WEIGHT_FILES, check_llm_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def find_llm(given: str, revision: str | None) -> Path:
    """The folder that `teacher.llm_path` means: itself, or where the hub's model lies in the cache, fetched if need be.

    Where the cache is, the token and whether the hub may be asked are as huggingface_hub has them (`HF_HOME`,
    `HF_TOKEN`, `HF_HUB_OFFLINE`). Of a model only what is read here is fetched: pickled weights where there are no
    others.

    Args:
        revision: branch, tag or commit of the hub's model; None: its main branch.

    Raises:
        UserError: no such folder or model, one that may not be read, or no way to the hub; or no LLaMA-family folder.
    """
    folder = project_path(given)
    if folder.exists() or not _HUB_ID.fullmatch(given):
        if revision is not None:
            raise UserError(
                f"teacher.llm_revision={revision}: must be null with teacher.llm_path={given}, which is a folder; "
                "revisions are of models on the hub"
            )
        check_llm_folder(folder)
        return folder
    snapshot = _snapshot(given, revision)
    try:
        check_llm_folder(snapshot)
    except UserError as error:
        raise UserError(
            f"teacher.llm_path={given}: what the cache holds of it is not whole, or no LLaMA-family model ({error}); "
            f"`{_download_command(given, revision)}` on a machine with a network completes it"
        ) from error
    return snapshot


def _snapshot(model: str, revision: str | None) -> Path:
    try:
        found = Path(snapshot_download(model, revision=revision, allow_patterns=[*SMALL_FILES, *_SAFETENSORS]))
        if not any((found / name).is_file() for name in WEIGHT_FILES):
            found = Path(snapshot_download(model, revision=revision, allow_patterns=list(_PICKLED)))
    except (OSError, ValueError) as error:  # what huggingface_hub raises is one of the two
        raise UserError(_why(error, model, revision)) from error
    return found


def _why(error: Exception, model: str, revision: str | None) -> str:
    """The message: what is in the way, and what to do about it."""
    key = f"teacher.llm_path={model}"
    if isinstance(error, RevisionNotFoundError):
        return f"teacher.llm_revision={revision}: {model} has no such branch, tag or commit; see {_page(model)}"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        what = f"{model} in revision {revision}" if revision else model
        return (
            f"{key}: no folder of that name, the cache ({constants.HF_HUB_CACHE}) does not hold {what}, and {why}; run "
            f"`{_download_command(model, revision)}` where there is a network, with HF_HOME here and there on the same "
            f"cache or a copy of it, or give a folder: {EXPECTED}"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{key}: a gated model; accept its licence on {_page(model)}, then set HF_TOKEN to a token of that account "
            "(or `huggingface-cli login`)"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return (
            f"{key}: no folder of that name, and no such model on the hub, or a private one; correct the id, or set "
            f"HF_TOKEN to a token that may read it; {EXPECTED}"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{key}: it cannot be fetched from the hub ({reason}); try again later, or give a folder: {EXPECTED}"


def _page(model: str) -> str:
    return f"{constants.ENDPOINT}/{model}"


def _download_command(model: str, revision: str | None) -> str:
    return f"huggingface-cli download {model}" + (f" --revision {revision}" if revision else "")

"""Models of the Hugging Face hub, which huggingface_hub fetches and caches; what is in the way is said in one line.

Where the cache is, the token and whether the hub may be asked are as huggingface_hub has them (`HF_HOME`, `HF_TOKEN`,
`HF_HUB_OFFLINE`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from src.core.errors import UserError

_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text can be the id of a model, owner/name.

    >>> is_hub_id("owner/name"), is_hub_id("./owner/name"), is_hub_id("name")
    (True, False, False)
    """
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model that a user has named.

    Attributes:
        id: owner/name.
        revision: branch, tag or commit; None: its main branch.
        key, revision_key: what the two are called in the configuration, for messages.
        instead: what else may be given, a clause that begins `expected ...`.
    """

    id: str
    revision: str | None = None
    key: str
    revision_key: str = "revision"
    instead: str

    def fetch(self, patterns: Sequence[str]) -> Path:
        """The folder in the cache that holds what matches `patterns`, fetched if need be.

        Raises:
            UserError: no such model or revision, one that may not be read, or no way to the hub.
        """
        try:
            return Path(snapshot_download(self.id, revision=self.revision, allow_patterns=list(patterns)))
        except (OSError, ValueError) as error:  # what huggingface_hub raises is one of the two
            raise UserError(self._why(error)) from error

    @property
    def download_command(self) -> str:
        return f"huggingface-cli download {self.id}" + (f" --revision {self.revision}" if self.revision else "")

    def _why(self, error: Exception) -> str:
        """The message: what is in the way, and what to do about it."""
        given = f"{self.key}={self.id}"
        if isinstance(error, RevisionNotFoundError):
            return f"{self.revision_key}={self.revision}: {self.id} has no such branch, tag or commit; see {self._page}"
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
            what = f"{self.id} in revision {self.revision}" if self.revision else self.id
            return (
                f"{given}: no folder of that name, the cache ({constants.HF_HUB_CACHE}) does not hold {what}, and "
                f"{why}; run `{self.download_command}` where there is a network, with HF_HOME here and there on the "
                f"same cache or a copy of it, or give a folder: {self.instead}"
            )
        status = (
            error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
        )
        if isinstance(error, GatedRepoError) or status == 403:
            return (
                f"{given}: a gated model; accept its licence on {self._page}, then set HF_TOKEN to a token of that "
                "account (or `huggingface-cli login`)"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            return (
                f"{given}: no folder of that name, and no such model on the hub, or a private one; correct the id, or "
                f"set HF_TOKEN to a token that may read it; {self.instead}"
            )
        return (
            f"{given}: it cannot be fetched from the hub ({reason(error)}); try again later, or give a folder: "
            f"{self.instead}"
        )

    @property
    def _page(self) -> str:
        return f"{constants.ENDPOINT}/{self.id}"


def push_folder(folder: Path, model: str, *, private: bool) -> str:
    """Upload a folder's files as a model of the hub, which is made if it is not there; returns its address.

    Raises:
        UserError: there is no way to the hub, or no token that may write there.
    """
    api = HfApi()
    try:
        api.create_repo(model, private=private, exist_ok=True)
        api.upload_folder(repo_id=model, folder_path=folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{model}: cannot be written on the hub ({reason(error)}); give owner/name, and set HF_TOKEN to a token "
            "that may write there (or `huggingface-cli login`)"
        ) from error
    return f"{constants.ENDPOINT}/{model}"


def reason(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

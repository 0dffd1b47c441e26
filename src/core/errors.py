"""The one exception for what a user can cause and mend."""

from typing import Any


class UserError(Exception):
    """An error that a user can cause and mend.

    Its message is one readable line: the field (or file and line), the value, what is allowed, what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raises UserError ``key=value: must be <allowed>`` unless ``condition`` holds.

    >>> check(False, "dataset.max_seq_len", 0, "an integer >= 1")
    Traceback (most recent call last):
    ...
    src.core.errors.UserError: dataset.max_seq_len=0: must be an integer >= 1
    """
    if not condition:
        raise UserError(f"{key}={value!r}: must be {allowed}")

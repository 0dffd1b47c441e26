"""JSON read as what a type says it is: what fits arrives, what does not is named by its key."""

import json
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import pytest

from src.core.errors import UserError, check
from src.core.foreign.typed import read_typed, typed


@dataclass(frozen=True)
class Inner:
    ratio: float
    sizes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check(self.ratio >= 0, "ratio", self.ratio, "a number >= 0")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    note: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    anything: Any = None


class Loose(TypedDict):
    count: int
    flags: NotRequired[list[bool]]


SOUND = {"name": "a", "inner": {"ratio": 1, "sizes": [2, 3]}, "hashes": {"f": "0"}, "anything": [{}]}


def test_what_fits_arrives() -> None:
    expected = Outer("a", Inner(1, (2, 3)), None, {"f": "0"}, [{}])
    assert typed(SOUND, Outer, where="f", advice="x") == expected
    assert typed({"count": 2, "flags": [True], "more": "x"}, Loose, where="f", advice="x")["more"] == "x"
    assert typed({"a": 1, "b": 2.5}, dict[str, float], where="f", advice="x") == {"a": 1, "b": 2.5}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", 1, "name is 1, must be text"),
        ("name", None, "name is None, must be text"),
        ("name", ["x"], "name is a list, must be text"),
        ("inner", {}, r"inner\.ratio is missing"),
        ("inner", [], "inner is a list, must be an object"),
        ("inner", {"ratio": True}, r"inner\.ratio is True, must be a number"),
        ("inner", {"ratio": 10**30}, r"inner\.ratio is 10+, must be a number"),
        ("inner", {"ratio": -1.5}, r"ratio=-1\.5: must be a number >= 0"),
        ("inner", {"ratio": 0, "sizes": [1, 2.0]}, r"inner\.sizes\[1\] is 2\.0, must be an integer"),
        ("inner", {"ratio": 0, "sizes": [2**63]}, r"inner\.sizes\[0\] is 9\d+, must be an integer of 64 bits"),
        ("note", 5, "note is 5, must be null"),
        ("hashes", {"f": {}}, r"hashes\.f is an object, must be text"),
        ("other", 5, "other is no key of it"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, key, value, message) -> None:
    (tmp_path / "file.json").write_text(json.dumps({**SOUND, key: value}))
    with pytest.raises(UserError, match=rf"file\.json: {message}.*; make it again$"):
        read_typed(tmp_path / "file.json", Outer, "make it again")


@pytest.mark.parametrize("value", [{}, {"count": "1"}, {"count": 1, "flags": [0]}, [], None])
def test_a_dictionary_of_known_keys_has_those_that_are_required(value) -> None:
    with pytest.raises(UserError, match="^here: .*; do that$"):
        typed(value, Loose, where="here", advice="do that")

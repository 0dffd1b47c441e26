"""The wording of the prompts: `conf/teacher/prompt/*.yaml` or a YAML of one's own, and single keys on top of it."""

import functools
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.core.errors import UserError, check
from src.core.git_info import PROJECT_ROOT
from src.core.paths import project_path
from src.core.settings import parse_section, read_yaml

PLACEHOLDER, HISTORY_MARKER, CANDIDATE_MARKER, ITEM_MARKER = "[PH]", "[HistoryEmb]", "[CansEmb]", "[ItemEmb]"
MARKERS = (PLACEHOLDER, HISTORY_MARKER, CANDIDATE_MARKER, ITEM_MARKER)
HISTORY, CANDIDATES = "{history}", "{candidates}"  # their places in a question
_PRESETS = PROJECT_ROOT / "conf" / "teacher" / "prompt"
_USUAL = _PRESETS / "default.yaml"
_WORDS = ("item_noun", "item_noun_plural", "verb")  # their places in a question are {item_noun} and so on


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """`teacher.prompt`: what is to differ from the wording of `teacher.prompt_template`; None: nothing.

    The keys are those of `Wording`.
    """

    item_noun: str | None = None
    item_noun_plural: str | None = None
    verb: str | None = None
    questions: list[str] | None = None
    open_question: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A whole wording.

    Attributes:
        item_noun: what an item is called.
        item_noun_plural: more than one of it; None is the noun with an s.
        verb: what users did to items, such as `watched`.
        questions: texts with `{history}` before `{candidates}`, and `{item_noun}`, `{item_noun_plural}`, `{verb}`
            where they are wanted; training draws one for each step, the first one evaluates and exports.
        open_question: the same without `{candidates}`, where none are offered.

    Raises:
        UserError: a text that is empty, has line breaks, a marker of the prompts, or other places than these.
    """

    item_noun: str
    item_noun_plural: str | None
    verb: str
    questions: list[str]
    open_question: str

    def __post_init__(self) -> None:
        for key in _WORDS:
            word = getattr(self, key)
            allowed = f"a text in one line without blanks at its ends, braces, {', '.join(MARKERS)}"
            check(
                word is None or (_is_line(word) and not re.search("[{}]", word)), f"teacher.prompt.{key}", word, allowed
            )
        check(len(self.questions) > 0, "teacher.prompt.questions", self.questions, "a list with a question")
        for number, question in enumerate(self.questions):
            _check_places(f"teacher.prompt.questions[{number}]", question, [HISTORY, CANDIDATES])
        _check_places("teacher.prompt.open_question", self.open_question, [HISTORY])

    @property
    def templates(self) -> list[str]:
        """The questions with their words, `{history}` and `{candidates}` left open."""
        return [self._with_words(question) for question in self.questions]

    @property
    def open_template(self) -> str:
        """The open question with its words, `{history}` left open."""
        return self._with_words(self.open_question)

    def _with_words(self, question: str) -> str:
        words = {"item_noun": self.item_noun, "verb": self.verb}
        words["item_noun_plural"] = self.item_noun_plural or f"{self.item_noun}s"
        return functools.reduce(lambda text, key: text.replace(f"{{{key}}}", words[key]), _WORDS, question)


def _is_line(text: str) -> bool:
    """Whether a text is one that may stand in a prompt, whose pieces between the markers are stripped and joined."""
    controls = {"Cc", "Cs", "Zl", "Zp"}
    return (
        text.strip() == text != ""
        and not any(unicodedata.category(character) in controls for character in text)
        and not any(marker in text for marker in MARKERS)
    )


def _check_places(key: str, question: str, expected: list[str]) -> None:
    words = [f"{{{word}}}" for word in _WORDS]
    is_text = isinstance(question, str)  # OmegaConf lets a list stand among texts
    places = [place for place in re.findall(r"\{[^{}]*\}|[{}]", question if is_text else "") if place not in words]
    allowed = (
        f"a text in one line with {' before '.join(expected)}, each once, {', '.join(words)} where they are wanted, "
        f"without blanks at its ends, other braces, {', '.join(MARKERS)}"
    )
    check(is_text and _is_line(question) and places == expected, key, question, allowed)


def read_wording(template: str = "default", given: PromptConfig | None = None) -> Wording:
    """A wording: of `template`, what it lacks from the default one, what is `given` instead.

    Args:
        template: name of a file in `conf/teacher/prompt`, or a `.yaml` of one's own; a relative one starts where the
            command was called.

    Raises:
        UserError: no such file, or what `Wording` refuses; an error of the file names it.
    """
    path = _find(template)
    contents = [read_yaml(file) for file in (_USUAL, path)]
    try:
        usual, own = (_given(parse_section(PromptConfig, content, "teacher.prompt")) for content in contents)
        wording = Wording(**{"item_noun_plural": None, **usual, **own})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return replace(wording, **_given(given or PromptConfig()))


def _given(config: PromptConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if value is not None}


def _find(template: str) -> Path:
    names = sorted(path.stem for path in _PRESETS.glob("*.yaml"))
    if template in names:
        return _PRESETS / f"{template}.yaml"
    own = project_path(template)
    allowed = f"one of {', '.join(names)}, or a .yaml file of your own that exists"
    check(own.suffix in (".yaml", ".yml") and own.is_file(), "teacher.prompt_template", template, allowed)
    return own

"""From a configuration section to its checked dataclass."""

from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from src.core.errors import UserError, check
from src.core.settings import parse_section


@dataclass
class Inner:
    rank: int = 8

    def __post_init__(self) -> None:
        check(self.rank >= 1, "model.inner.rank", self.rank, "an integer >= 1")


@dataclass
class Section:
    name: str
    lr: float = 1e-3
    epochs: int = 5
    path: str | None = None
    ks: list[int] = field(default_factory=lambda: [1])
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self.lr > 0, "model.lr", self.lr, "a number > 0")


def parse(text: str) -> Section:
    return parse_section(Section, OmegaConf.create(text), "model")


def test_what_one_section_is_given_does_not_reach_the_next():
    parse("{name: a, ks: [3], inner: {rank: 2}}").ks.append(4)
    parse("{name: b}").ks.append(5)
    assert parse("{name: c}") == Section("c")


def test_values_and_defaults():
    section = parse("{name: a, lr: 1, ks: [3, 4], inner: {rank: 2}}")

    assert section == Section("a", 1.0, 5, None, [3, 4], Inner(2))
    assert (type(section), type(section.inner), type(section.ks), type(section.lr)) == (Section, Inner, list, float)


def test_a_section_of_a_larger_configuration_may_refer_to_it():
    cfg = OmegaConf.create("{general: {name: b}, model: {name: '${general.name}'}}")
    assert parse_section(Section, cfg.model, "model").name == "b"


def test_an_error_in_a_section_of_a_larger_configuration_names_the_key_once():
    cfg = OmegaConf.create("{model: {name: a, lr: fast}}")
    with pytest.raises(UserError, match=r"^model\.lr=fast: "):
        parse_section(Section, cfg.model, "model")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{name: a, learning_rate: 1}", r"^model\.learning_rate: unknown key"),
        ("{name: a, inner: {ranks: 1}}", r"^model\.inner\.ranks: unknown key"),
        ("{name: a, lr: fast}", r"^model\.lr=fast: .*could not be converted to Float"),
        ("{name: a, epochs: 1.5}", r"^model\.epochs=1\.5: .*could not be converted to Integer"),
        ("{name: a, epochs: null}", r"^model\.epochs=None: "),
        ("{name: a, inner: {rank: high}}", r"^model\.inner\.rank=high: "),
        ("{name: a, ks: [1, two]}", r"^model\.ks\[1\]=two: "),
        ("{lr: 1}", r"^model\.name=None: .*missing"),
        ("{name: a, lr: 0}", r"^model\.lr=0\.0: must be a number > 0$"),
        ("{name: a, inner: {rank: 0}}", r"^model\.inner\.rank=0: must be an integer >= 1$"),
    ],
)
def test_refused_sections(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_a_reference_to_nothing_is_a_user_error():
    cfg = OmegaConf.create("{model: {name: '${nowhere}'}}")
    with pytest.raises(UserError, match=r"^model\.name=None: Interpolation key 'nowhere' not found$"):
        parse_section(Section, cfg.model, "model")

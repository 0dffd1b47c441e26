"""What README and docs/ tell to type exists, and their Japanese pages tell the same."""

import re
import shlex
from difflib import unified_diff
from itertools import zip_longest

import pytest
import torch
from harness import ROOT, compose_config
from omegaconf import DictConfig, OmegaConf

from src.core.settings import parse_choice
from src.distill import selection_policy
from src.distill.selection_policy import TeacherInfo
from src.student.datamodule import Batch

PAIRS = [(ROOT / "README.md", ROOT / "README.ja.md")]
PAIRS += [(ROOT / "docs" / page.name, page) for page in sorted((ROOT / "docs" / "ja").glob("*.md"))]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```[^\n]*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
KEY = re.compile(r"(?<![\w./+-])(\+{0,2})([a-z_]+(?:\.[A-Za-z0-9_]+)+)=")
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(?:[A-Z_]+=\S+ )*(?:bash cmd/|poetry run python -m src\.exp\.)", line)
]

PLUGIN_CHOICES = {
    "hydra_plugins.hydra_joblib_launcher": "hydra/launcher=parallel",
    "hydra_plugins.hydra_submitit_launcher": "hydra/launcher=slurm",
    "hydra_plugins.hydra_optuna_sweeper": "hydra/sweeper=tune",
}


@pytest.fixture(scope="module")
def configurations() -> list[DictConfig]:
    """The default configuration and those with a key that only another choice of a group has."""
    choices = [[], ["teacher=ilora_tiny"], ["dataset=csv"], ["student=caser"], ["active=uncertainty"], ["study=curve"]]
    choices += [["active=meta"]]
    for plugin, choice in PLUGIN_CHOICES.items():
        pytest.importorskip(plugin)
        choices.append([choice])
    return [compose_config(*choice, with_hydra=True) for choice in choices]


def exists(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    return isinstance(node, DictConfig) and name in node


def test_readme_has_commands() -> None:
    assert COMMANDS


def test_every_script_exists() -> None:
    named = set(re.findall(r"\b((?:cmd|env_shell)/\w+\.sh)\b", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_module_exists() -> None:
    named = set(re.findall(r"\bsrc\.exp\.(\w+)", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / "src" / "exp" / f"{name}.py").is_file()] == []


def test_every_key_in_a_code_block_exists(configurations) -> None:
    keys = {match.groups() for block in BLOCKS for match in KEY.finditer(block)}
    assert keys
    missing = [k for plus, k in sorted(keys) if not plus and not any(exists(cfg, k) for cfg in configurations)]
    assert missing == []


def test_every_key_in_the_text_exists(configurations) -> None:
    """Keys in backquotes, `group.key` or `group.key=value`; a group is what the configuration has."""
    groups = {*configurations[0].keys()} - {"hydra"}
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL))
    keys = {q.split("=")[0] for q in quoted if re.fullmatch(r"[a-z_]+(\.[A-Za-z_]+)+(=\S*)?", q)}
    keys = {k for k in keys if k.split(".")[0] in groups and not k.endswith((".sh", ".py", ".md", ".json", ".txt"))}
    assert keys
    assert [k for k in sorted(keys) if not any(exists(cfg, k) for cfg in configurations)] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line) -> None:
    overrides = [w for w in shlex.split(line, comments=True) if re.match(r"\+{0,2}[a-z_./]+=", w)]
    if any(word.startswith(("hydra/launcher=", "hydra/sweeper=")) for word in overrides):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    compose_config(*[o for o in overrides if "," not in o])  # a list of values is for a sweep


@pytest.mark.parametrize("page", [*PAGES, *(page for pair in PAIRS for page in pair), ROOT / "CHANGELOG.md"], ids=str)
def test_every_link_leads_somewhere(page) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_the_readme_is_the_door_and_not_the_house() -> None:
    for page in PAIRS[0]:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:src|conf|cmd|data/raw)/[\w/.]+)`", README))))
def test_every_path_exists(path) -> None:
    assert (ROOT / path).exists()


def test_a_policy_of_ones_own_works_as_described(monkeypatch, make_dataset) -> None:
    """The class and the YAML of the README, put where it says, choose the rows with the rarest targets."""
    (code,) = re.findall(r"^```python\n(class .*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    (yaml,) = re.findall(r"^```yaml\n(# rare.yaml.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len((code + yaml).strip().splitlines()) <= 20
    for name in ("POLICIES", "SCHEMAS"):
        monkeypatch.setattr(selection_policy, name, dict(getattr(selection_policy, name)))
    exec(code, dict(vars(selection_policy)))
    dataset = make_dataset([[0, 1, 2, 0, 0], [3, 1, 2, 0, 0], [0, 1, 3, 0, 0], [0, 1, 2, 0, 0], [0, 1, 2, 0, 0]], 4)
    settings = parse_choice(selection_policy.SCHEMAS, OmegaConf.create(yaml), "active", by="strategy")
    policy = selection_policy.build_selection_policy(settings)
    policy.start(dataset, 1)
    target = torch.from_numpy(dataset.train.targets)
    assert target.tolist() == [1, 2, 1, 2, 1, 3, 1, 2, 1, 2]
    row, teacher = torch.arange(10), TeacherInfo(target[:, None], target[:, None].float(), torch.ones(10).bool())
    mask = policy.select(Batch(row, row[:, None], row + 1, target), teacher, None)
    assert int(mask.sum()) == 2 and mask[5]  # a fifth of ten rows, the one item that stands once among them


def without_prose(block: re.Match[str]) -> str:
    """A code block without what is translated: comments and docstrings; in `text` all but the first word of a line."""
    return re.sub(r" .*" if block[1] == "text" else r'[ \t]*(#|""").*', "", block[0])


def sections(text: str) -> list[tuple[str, list[str]]]:
    """Each heading and what a translation of its section keeps: code, the number of table rows, sorted code spans."""
    _, *parts = re.split(r"^(#+ .+)\n", BLOCK.sub(without_prose, text), flags=re.MULTILINE)
    found = []
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        code = [line for block in BLOCK.finditer(body) for line in block[0].splitlines()]
        prose = BLOCK.sub("", body)
        rows = len(re.findall(r"^\|", prose, flags=re.MULTILINE))
        spans = sorted(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
        found.append((heading, [*code, f"{rows} rows of tables", *[f"`{span}`" for span in spans]]))
    return found


@pytest.mark.parametrize(("english", "japanese"), PAIRS, ids=lambda page: page.name)
def test_a_japanese_page_has_the_same_headings(english, japanese) -> None:
    found = [[heading for heading, _ in sections(page.read_text(encoding="utf-8"))] for page in (english, japanese)]
    beside = "\n".join(f"{e:50} {j}" for e, j in zip_longest(*found, fillvalue=""))
    levels = [[heading.split(" ")[0] for heading in headings] for headings in found]
    assert levels[0] == levels[1], f"the levels of the headings of {english} and {japanese} differ:\n{beside}"


@pytest.mark.parametrize(("english", "japanese"), PAIRS, ids=lambda page: page.name)
def test_a_japanese_page_keeps_code_and_tables(english, japanese) -> None:
    """Commands, keys and paths of every section; a change of the English prose alone goes unnoticed."""
    pages = (sections(page.read_text(encoding="utf-8")) for page in (english, japanese))
    changes = [
        line
        for (heading, ours), (translated, theirs) in zip(*pages, strict=False)
        for line in unified_diff(ours, theirs, f"{english.name} {heading}", f"{japanese} {translated}", "", "", 0, "")
    ]
    assert not changes, f"{japanese} lacks the lines with -, {english} those with +:\n" + "\n".join(changes)

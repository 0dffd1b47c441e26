"""What README and docs/ tell to type or point at exists, and their Japanese pages tell the same."""

import re
import shlex
from difflib import unified_diff
from itertools import zip_longest
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from harness import ROOT, compose_config
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from src.core.datasets.csv_log import CsvConfig
from src.core.errors import UserError
from src.core.settings import parse_choice, parse_section
from src.distill import active_config, selection_policy
from src.distill.selection_policy import TeacherInfo
from src.exp.settings import known_keys, parse_settings, schemas
from src.exp.stage.keys import keys_page
from src.exp.study.config import StudyConfig
from src.exp.study.plan import variants
from src.serving.onnx_export import export_onnx
from src.serving.recommender import Recommender
from src.student import config as students
from src.student import models
from src.student.checkpoint import Catalogue, CheckpointInfo
from src.student.config import ModelConfig
from src.student.datamodule import Batch
from src.student.models import build_model
from src.teacher.prompt.wording import read_wording

GUIDES = sorted((ROOT / "docs").glob("*.md"))
TRANSLATED = sorted((ROOT / "docs" / "ja").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *GUIDES, *TRANSLATED]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
# What is history may name what is no more.
CURRENT = {name: text for name, text in TEXTS.items() if name != "CHANGELOG.md"}
DISTILLATION = TEXTS["docs/distillation.md"]
PAIRS = {"README.md": "README.ja.md", **{f"docs/{path.name}": f"docs/ja/{path.name}" for path in TRANSLATED}}

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"(?:[A-Z_0-9]+=\S+ )*(?:bash cmd/|poetry run (?:python|accelerate|torchrun)\b.* -m src\.|python -m src\.)"
)
KEY = re.compile(r"(?<![\w./+-])(\+{0,2})([a-z_]+(?:\.[A-Za-z0-9_]+)+)=")
FILE_ENDINGS = (".sh", ".py", ".md", ".json", ".txt", ".csv", ".npz", ".yaml", ".html", ".png", ".log")

PLUGIN_CHOICES = {
    "hydra_plugins.hydra_joblib_launcher": "hydra/launcher=parallel",
    "hydra_plugins.hydra_submitit_launcher": "hydra/launcher=slurm",
    "hydra_plugins.hydra_optuna_sweeper": "hydra/sweeper=tune",
}


def blocks(text: str) -> list[str]:
    return [block[2] for block in BLOCK.finditer(text)]


def spans(text: str) -> list[str]:
    """The code in the running text."""
    return [" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text))]


def commands(text: str) -> list[str]:
    """Command lines of blocks and of code spans, but for those that leave something out."""
    in_blocks = [line.strip() for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    lines = in_blocks + spans(text)
    return [line for line in lines if COMMAND.match(line) and "..." not in line]


COMMANDS = sorted({line for text in CURRENT.values() for line in commands(text)})


# --- what they point at -------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_relative_link_leads_somewhere(page) -> None:
    broken = []
    for link in LINK.findall(BLOCK.sub("", TEXTS[page])):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_every_guide_is_named_in_the_readme() -> None:
    links = set(LINK.findall(TEXTS["README.md"]))
    assert [path.name for path in GUIDES if f"docs/{path.name}" not in links] == []


@pytest.mark.parametrize("page", CURRENT)
def test_every_script_and_module_exists(page) -> None:
    text = CURRENT[page]
    named = set(re.findall(r"\b((?:cmd|env_shell)/\w+\.sh)\b", text))
    modules = re.findall(r"\bsrc\.(?:\w+\.)*\w+", text)
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert missing + [name for name in sorted(set(modules)) if not _is_module(name)] == []


def _is_module(name: str) -> bool:
    """Whether `src.a.b` is a module or a folder, or `src.a.b.c` a name in one."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    parent = path.parent.with_suffix(".py")
    return parent.is_file() and re.search(rf"\b{path.name}\b", parent.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("page", CURRENT)
def test_every_path_exists(page) -> None:
    kinds = re.compile(r"(?:src|conf|cmd|tests|docs|env_shell|data/raw/sample)/[\w/.]+")
    named = {span for span in spans(CURRENT[page]) if kinds.fullmatch(span)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# --- keys and commands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configurations() -> list[DictConfig]:
    """The default configuration and those with a key that only another choice of a group has."""
    choices = [[], ["teacher=ilora_tiny"], ["dataset=csv"], ["student=caser"], ["active=uncertainty"], ["active=meta"]]
    choices.append(["study=curve"])
    for plugin, choice in PLUGIN_CHOICES.items():
        pytest.importorskip(plugin)
        choices.append([choice])
    return [compose_config(*choice, with_hydra=True) for choice in choices]


def exists(configurations: list[DictConfig], key: str) -> bool:
    """Whether some configuration has the key, or the schema of its section."""
    section, _, name = key.rpartition(".")
    nodes = [OmegaConf.select(cfg, section) for cfg in configurations]
    return name in known_keys(section) or any(isinstance(node, DictConfig) and name in node for node in nodes)


@pytest.mark.parametrize("page", CURRENT)
def test_every_key_exists(page, configurations) -> None:
    """Overrides `group.key=value` anywhere; in the running text `group.key`, too, of a group that there is."""
    text, groups = CURRENT[page], set(configurations[0].keys())
    words = [word for span in spans(text) for word in span.split()]
    keys = {key for code in [*blocks(text), *words] for plus, key in KEY.findall(code) if not plus}
    keys |= {word for word in words if KEY.fullmatch(f"{word}=") and word.split(".")[0] in groups}
    keys = {key for key in keys if not key.endswith(FILE_ENDINGS)}
    assert [key for key in sorted(keys) if not exists(configurations, key)] == []


def test_the_check_of_keys_knows_right_from_wrong(configurations) -> None:
    assert exists(configurations, "teacher.export.rows") and exists(configurations, "dataset.columns.user")
    assert not exists(configurations, "teacher.export.row") and not exists(configurations, "arms.seeds")


def test_there_are_commands() -> None:
    assert any(line.startswith("bash cmd/") for line in COMMANDS)
    assert any("-m src.exp." in line for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line) -> None:
    own_yamls = {
        "dataset=plays",
        "dataset=shop",
        "student=mean_pool",
        "active=rare",
        "teacher=popular",
        "study=weights",
    }
    words = [w for w in shlex.split(line, comments=True) if re.match(r"\+{0,2}[a-z_./]+=", w) and w not in own_yamls]
    if any(word.startswith(("hydra/launcher=", "hydra/sweeper=")) for word in words):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    compose_config(*[w for w in words if "," not in w or "=[" in w])  # a list without brackets is for a sweep


@pytest.mark.parametrize("page", CURRENT)
def test_every_override_in_the_text_is_one(page) -> None:
    """As a shell and Hydra read it; what leaves something out (`...`, `<folder>`, `a|b`) is none."""
    parser, wrong = OverridesParser.create(), []
    for span in spans(CURRENT[page]):
        if re.match(r"[+~]{0,2}[a-z_]+(?:[./][a-z_0-9]+)*=", span) and not re.search(r"\.\.\.|[<|…]", span):
            for word in shlex.split(span):
                try:
                    parser.parse_override(word)
                except HydraException as error:
                    wrong.append(f"{span}: {error}")
    assert wrong == []


# --- examples -----------------------------------------------------------------------------------------------


def test_a_policy_of_ones_own_works_as_described(monkeypatch, make_dataset) -> None:
    """The class and the YAML of the guide, put where it says, choose the rows with the rarest targets."""
    (code,) = re.findall(r"^```python\n(class .*?)^```", DISTILLATION, flags=re.MULTILINE | re.DOTALL)
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```", DISTILLATION, flags=re.MULTILINE | re.DOTALL)
    (registration,) = re.findall(r"`(SCHEMAS\[.*?)`", DISTILLATION)
    assert len((code + yaml).strip().splitlines()) <= 20
    monkeypatch.setattr(selection_policy, "POLICIES", dict(selection_policy.POLICIES))
    monkeypatch.setattr(active_config, "SCHEMAS", dict(active_config.SCHEMAS))
    exec(code, dict(vars(selection_policy)))
    exec(registration, vars(active_config))
    dataset = make_dataset([[0, 1, 2, 0, 0], [3, 1, 2, 0, 0], [0, 1, 3, 0, 0], [0, 1, 2, 0, 0], [0, 1, 2, 0, 0]], 4)
    settings = parse_choice(active_config.SCHEMAS, OmegaConf.create(yaml), "active", by=("strategy",))
    policy = selection_policy.build_selection_policy(settings)
    policy.start(dataset, 1)
    target = torch.from_numpy(dataset.train.targets)
    assert target.tolist() == [1, 2, 1, 2, 1, 3, 1, 2, 1, 2]
    row, teacher = torch.arange(10), TeacherInfo(target[:, None], target[:, None].float(), torch.ones(10).bool())
    mask = policy.select(Batch(row, row[:, None], row + 1, target), teacher, None)
    assert int(mask.sum()) == 2 and mask[5]  # a fifth of ten rows, the one item that stands once among them


def contributed(name: str) -> str:
    """The Python block of CONTRIBUTING.md that defines a class of that name."""
    (code,) = (
        block for block in blocks(TEXTS["CONTRIBUTING.md"]) if re.search(rf"^class {name}\b", block, re.MULTILINE)
    )
    return code


def test_a_data_set_of_ones_own_reads_as_described(tmp_path) -> None:
    module: dict = {"__name__": "plays"}
    exec(contributed("Plays"), module)
    (tmp_path / "plays.txt").write_text("ann 7 100\nbob 8 200\n")
    (tmp_path / "songs.txt").write_text("7\tBlue\n8\tA Green Song\n")
    source, config = module["Plays"](), module["PlaysConfig"]()
    found = source.read(config, tmp_path)
    assert (found.users.tolist(), found.items.tolist(), found.timestamps.tolist()) == (
        ["ann", "bob"],
        ["7", "8"],
        [100.0, 200.0],
    )
    assert found.titles == {"7": "Blue", "8": "A Green Song"}
    assert found.users.values.tolist() == ["ann", "bob"]
    (tmp_path / "plays.txt").write_text("ann 7\n")
    with pytest.raises(UserError, match=r"plays\.txt:1: 2 fields, must be 3"):
        source.read(config, tmp_path)


def test_a_student_of_ones_own_scores_as_described() -> None:
    """The mean over the items of a window, times the output layer: 1 and 3 give 2, and the padding counts nothing."""
    model_code, settings_code = dict(vars(models)), dict(vars(students))
    exec(contributed("MeanPool"), model_code)
    exec(contributed("MeanPoolConfig"), settings_code)
    settings = settings_code["MeanPoolConfig"](name="mean_pool", emb_size=1, hidden_size=1, max_seq_len=3)
    model = model_code["MeanPool"](settings.model_config(2)).eval()
    with torch.no_grad():
        model.item_embeddings.weight.copy_(torch.tensor([[1.0], [3.0], [50.0]]))
        model.output.weight.copy_(torch.tensor([[1.0], [10.0]]))
        model.output.bias.zero_()
    assert model(torch.tensor([[0, 1, 2]]), torch.tensor([2])).tolist() == [[2.0, 20.0]]


def yaml_of(page: str) -> str:
    """The one YAML block of a page."""
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    return yaml


def test_a_log_of_ones_own_is_told_as_described(tmp_path) -> None:
    """The YAML of the guide, in a folder of one's own."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "shop.yaml").write_text(yaml_of("docs/data.md"))
    found = parse_settings(compose_config(f"hydra.searchpath=[file://{tmp_path}]", "dataset=shop")).dataset
    assert isinstance(found, CsvConfig) and (found.name, found.source, found.min_user_inter) == ("shop", "csv", 5)
    assert (found.titles_file, found.columns.timestamp, found.history) == ("products.parquet", "ordered_at", "removed")


def test_the_example_server_answers_a_request(tmp_path, monkeypatch) -> None:
    """As docs/serving.md has it, with a student of its own."""
    torch.manual_seed(0)
    model = build_model(ModelConfig("sasrec", 4, 8, 8, 5, 0.1)).eval()
    items = Catalogue(["7", "12", "x", "y"], ["a", "b", "c", "d"])
    info = CheckpointInfo("shop", "0" * 64, 1, "abc", 1, "ndcg@10", 0.5)
    Recommender(model, items, info).save_pretrained(tmp_path)
    export_onnx(model, tmp_path / "model.onnx", {})
    (code,) = (block for block in blocks(TEXTS["docs/serving.md"]) if "FastAPI" in block)
    server: dict[str, Any] = {}
    exec(code.replace("/models/student", str(tmp_path)), server)

    client = TestClient(server["app"])
    found = client.get("/recommend", params={"history": "12 none 7", "top_k": 2})
    assert found.status_code == 200
    (wanted,) = Recommender.from_pretrained(tmp_path).recommend([["12", "7"]], top_k=2)
    assert [(one["item"], one["title"]) for one in found.json()] == [(one.item_id, one.title) for one in wanted]
    assert [one["score"] for one in found.json()] == pytest.approx([one.score for one in wanted], abs=1e-5)
    assert client.get("/recommend", params={"history": "none"}).json() == []


def test_a_wording_of_ones_own_asks_as_described(tmp_path) -> None:
    (tmp_path / "songs.yaml").write_text(yaml_of("docs/teacher.md"))
    wording = read_wording(str(tmp_path / "songs.yaml"))
    assert wording.templates[1] == "Playlist: {history}. Offered: {candidates}. Next:"
    assert wording.open_template == "Somebody listened to these songs: {history}. The next song is"


def test_a_study_of_ones_own_has_variants_that_compose() -> None:
    found = variants(parse_section(StudyConfig, OmegaConf.create(yaml_of("docs/studies.md")), "study"))
    assert len(found) > 1
    for variant in found:
        compose_config(*variant.overrides)


# --- the translation ----------------------------------------------------------------------------------------


def without_prose(block: re.Match[str]) -> str:
    """A code block without what is translated: comments and docstrings; in `text` all but the first word of a line."""
    return re.sub(r" .*" if block[1] == "text" else r'[ \t]*(#|""").*', "", block[0])


def sections(text: str) -> list[tuple[str, list[str]]]:
    """Each heading and what a translation of its section keeps: code, the number of table rows, code spans."""
    _, *parts = re.split(r"^(#+ .+)\n", BLOCK.sub(without_prose, text), flags=re.MULTILINE)
    found = []
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        code = [line for block in BLOCK.finditer(body) for line in block[0].splitlines()]
        prose = BLOCK.sub("", body)
        rows = len(re.findall(r"^\|", prose, flags=re.MULTILINE))
        quoted = sorted(spans(prose))
        found.append((heading, [*code, f"{rows} rows of tables", *[f"`{span}`" for span in quoted]]))
    return found


@pytest.mark.parametrize("page", PAIRS)
def test_the_japanese_page_has_the_same_headings(page) -> None:
    names = page, PAIRS[page]
    english, japanese = ([heading for heading, _ in sections(TEXTS[name])] for name in names)
    beside = "\n".join(f"{e:50} {j}" for e, j in zip_longest(english, japanese, fillvalue=""))
    levels = [[heading.split(" ")[0] for heading in headings] for headings in (english, japanese)]
    assert levels[0] == levels[1], f"the levels of the headings of {page} and {PAIRS[page]} differ:\n{beside}"


@pytest.mark.parametrize("page", PAIRS)
def test_the_japanese_page_keeps_code_and_tables(page) -> None:
    """Commands, keys and paths of every section; a change of the English prose alone goes unnoticed."""
    other = PAIRS[page]
    pairs = zip(sections(TEXTS[page]), sections(TEXTS[other]), strict=False)
    changes = [
        line
        for (heading, english), (translated, japanese) in pairs
        for line in unified_diff(english, japanese, f"{page} {heading}", f"{other} {translated}", "", "", 0, "")
    ]
    assert not changes, f"{other} lacks the lines with -, {page} those with +:\n" + "\n".join(changes)


def test_every_key_is_told() -> None:
    """docs/keys.md is what its generator makes; after a change: python -m src.exp.stage.keys > docs/keys.md."""
    page = keys_page(schemas())
    assert TEXTS["docs/keys.md"] == page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows if len(row[-1].strip("| ")) < 8] == []


def test_the_readme_is_the_door_not_the_house() -> None:
    assert max(len(TEXTS[name].splitlines()) for name in ("README.md", "README.ja.md")) <= 160

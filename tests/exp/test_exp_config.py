"""Every YAML composes and parses; the specification's keys and values stand in them."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from composition import from_files
from harness import CONF, TINY_STUDENT, TINY_TEACHER, compose_config, refusal
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from src.exp.settings import parse_settings

GROUP_FILES = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "hydra")
)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

# Sections 5.2 and 5.3 of the specification.
SPECIFIED = {
    "config": {
        "general": {"experiment_name": "anyo_ilora_dllm2rec", "seed": 42, "device": "cuda:0"},
    },
    "dataset/movielens": {
        "name": "movielens",
        "max_seq_len": 50,
        "min_user_inter": 5,
        "split": {"method": "leave_one_out"},
    },
    "teacher/ilora": {
        "name": "ilora",
        "llm_path": "/path/to/Llama-2-7b-hf",
        "batch_size": 64,
        "lr": 1e-4,
        "num_epochs": 5,
        "prompt_template": "default",
        "save_interval": 1,
    },
    "student/sasrec": {
        "name": "sasrec",
        "emb_size": 64,
        "hidden_size": 64,
        "max_seq_len": 50,
        "dropout": 0.1,
        "batch_size": 256,
        "lr": 1e-3,
        "num_epochs": 200,
    },
    "distill/dllm2rec": {
        "name": "dllm2rec",
        "alpha": 0.5,
        "ed_weight": 0.3,
        "lambda": 0.7,
        "batch_size": 256,
        "lr": 1e-3,
        "num_epochs": 200,
    },
    "active/all": {"name": "all", "strategy": "all", "budget_ratio": 1.0},
    "paths/default": {
        "data_dir": "data",
        "result_root": "result",
        "teacher_outputs_dir": "${paths.data_dir}/teacher_outputs/${dataset.name}",
    },
}
SPECIFIED_DEFAULTS = {
    "dataset": "movielens",
    "teacher": "ilora",
    "student": "sasrec",
    "distill": "dllm2rec",
    "active": "all",
    "paths": "default",
    "logging": "default",
    "metrics": "recsys",
    "hydra": "default",
}


def load_raw(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=False)


def flatten(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return flat


def followed(value: object, cfg: DictConfig) -> object:
    """What a value of a YAML means: itself, or what `${section.key}` refers to."""
    refers = isinstance(value, str) and re.fullmatch(r"\$\{([\w.]+)\}", value)
    return OmegaConf.select(cfg, refers[1]) if refers else value


def test_there_is_something_to_check() -> None:
    assert {"dataset/sample", "teacher/ilora_tiny", "student/sasrec"} <= set(GROUP_FILES) and EXPERIMENTS


@pytest.mark.parametrize("file", GROUP_FILES)
def test_every_yaml_composes_and_parses(file) -> None:
    group, name = file.split("/")
    cfg = compose_config(f"{group}={name}")
    section = getattr(parse_settings(cfg), group)
    if "name" in cfg[group]:
        written = load_raw(file)["name"]
        assert section.name == cfg[group].name and ("$" in written or written == section.name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_parses(name) -> None:
    cfg = compose_config(f"+experiment={name}")
    parse_settings(cfg)
    written = {k: v for k, v in flatten(load_raw(f"experiment/{name}")).items() if k != "defaults"}
    assert written
    for key, value in written.items():
        assert OmegaConf.select(cfg, key) == followed(value, cfg), key


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_holds_only_what_differs_and_names_its_command(name) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    assert comments[0].startswith("# bash cmd/") or "+experiment=" in comments[0]
    raw = load_raw(f"experiment/{name}")
    groups = [
        f"{key.removeprefix('override /')}={value}"
        for entry in raw.get("defaults", [])
        if isinstance(entry, dict)
        for key, value in entry.items()
    ]
    without = compose_config(*groups)
    for key, value in flatten({k: v for k, v in raw.items() if k != "defaults"}).items():
        assert OmegaConf.select(without, key) != value, f"{key} repeats its default"


@pytest.mark.parametrize("file", SPECIFIED)
def test_the_specifications_keys_and_values_stand_in_the_yaml(file) -> None:
    """Its values may be references: a distillation has the student's budget."""
    written, cfg = flatten(load_raw(file)), compose_config()
    for key, value in flatten(SPECIFIED[file]).items():
        assert key in written, key
        found = followed(written[key], cfg)
        assert found == value and type(found) is type(value), key


def test_a_distillation_has_the_students_budget_unless_told_otherwise() -> None:
    budget = ["student.batch_size=8", "student.lr=0.5", "student.num_epochs=3"]
    distill = parse_settings(compose_config(*budget)).distill
    assert (distill.batch_size, distill.lr, distill.num_epochs) == (8, 0.5, 3)
    distill = parse_settings(compose_config(*budget, "distill.lr=0.25")).distill
    assert (distill.batch_size, distill.lr, distill.num_epochs) == (8, 0.25, 3)
    plain = parse_settings(compose_config()).distill
    assert (plain.batch_size, plain.lr, plain.num_epochs) == (256, 1e-3, 200)


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ("dataset=sample", "dataset.version=1m"),
        ("dataset=movielens", "dataset.separator=x"),
        ("student=gru4rec", "student.num_heads=2"),
        ("student=caser", "student.batching=rows"),
        ("student=sasrec", "student.num_filters=4"),
        ("active=random", "active.measure=student_loss"),
        ("active=uncertainty", "active.validation_batch_size=2"),
    ],
)
def test_each_kind_of_a_group_has_keys_of_its_own(choice, key) -> None:
    message = refusal(lambda: parse_settings(compose_config(choice, f"+{key}")))
    assert message.startswith(f"{key.split('=')[0]}: unknown key; ")


def test_the_specifications_defaults_are_chosen_in_their_order() -> None:
    entries = load_raw("config")["defaults"]
    chosen = {k: v for entry in entries if isinstance(entry, dict) for k, v in entry.items()}
    assert [(k, v) for k, v in chosen.items() if k in SPECIFIED_DEFAULTS] == list(SPECIFIED_DEFAULTS.items())
    assert entries[-1] == "_self_"


def test_the_run_and_sweep_folders_are_below_the_result_root() -> None:
    hydra = compose_config("paths.result_root=/somewhere", with_hydra=True).hydra
    for folder in (hydra.run.dir, hydra.sweep.dir):
        assert Path(folder).parent == Path("/somewhere")
        assert len(Path(folder).name) == len("result_20260101_000000")
        assert Path(folder).name.startswith("result_")
    assert hydra.job.chdir is True
    raw = load_raw("hydra/default")["hydra"]
    assert raw["run"]["dir"] == raw["sweep"]["dir"] == "${paths.result_root}/result_${now:%Y%m%d_%H%M%S}"
    assert raw["sweep"]["subdir"] == "${hydra.job.num}"


def test_lambda_works_on_the_command_line_and_becomes_kd_weight() -> None:
    assert parse_settings(compose_config("distill.lambda=0.25")).distill.kd_weight == 0.25
    assert "kd_weight" in refusal(lambda: parse_settings(compose_config("+distill.kd_weight=1")))
    assert refusal(lambda: parse_settings(compose_config("distill.lambda=-1"))) == (
        "distill.lambda=-1.0: must be a number >= 0"
    )
    message = refusal(lambda: parse_settings(compose_config("distill.lambda=much")))
    assert message.startswith("distill.lambda=much: ") and "kd_weight" not in message


def test_teacher_outputs_are_keyed_by_the_dataset() -> None:
    paths = parse_settings(compose_config("dataset=lastfm", "paths.data_dir=/d")).paths
    assert paths.teacher_outputs_dir == "/d/teacher_outputs/lastfm"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+student.lrr=1", "student.lrr: unknown key"),
        ("+teacher.lora.rank=1", "teacher.lora.rank: unknown key"),
        ("+surprise.key=1", "surprise: unknown section"),
        ("student.lr=0", "student.lr=0.0: must be a number > 0"),
        ("student.dropout=1", "student.dropout=1.0: must be a number in [0, 1)"),
        ("student.emb_size=wide", "student.emb_size=wide: "),
        ("student.num_epochs=1.5", "student.num_epochs=1.5: "),
        ("general.seed=-1", "general.seed=-1: must be an integer from 0"),
        ("general.seed=null", "general.seed=None: "),
        ("metrics.monitor=ndcg@7", "metrics.monitor='ndcg@7': must be one of recall@1"),
        ("metrics.ks=[]", "metrics.ks=[]: must be a list"),
        ("teacher.lora.num_experts=3", "teacher.lora.num_experts=3: must be a divisor of teacher.lora.r=8"),
        ("active.budget_ratio=0.5", "active.budget_ratio=0.5: must be 1.0"),
        ("dataset.split.method=random", "dataset.split.method='random': must be one of"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_allowed(override, message) -> None:
    assert refusal(lambda: parse_settings(compose_config(override))).startswith(message)


@pytest.mark.parametrize(
    "words",
    [
        [*TINY_STUDENT, *TINY_TEACHER, "hydra.run.dir=a", "hydra/launcher=basic"],
        ["+experiment=text", "~study.variants.distilled", "+study.variants.mine=['student.lr=1']", "general.seed=3"],
        ["student.lr=0.5", "student=caser", "student.filter_sizes=[2,5]", "student.lr=0.1"],
        [
            "dataset=csv",
            "teacher.export.embedding_text='a {title}, b'",
            "student.lr=",
            "paths.data_dir=${dataset.name}",
        ],
    ],
    ids=["tiny", "text", "caser", "csv"],
)
def test_what_the_tests_remember_is_what_hydra_composes(words) -> None:
    compose_config(*words, with_hydra=True).student.lr = 7  # what is done to one does nothing to the next
    remembered = compose_config(*words, with_hydra=True)
    with from_files():
        assert remembered == compose_config(*words, with_hydra=True)


@pytest.mark.parametrize("word", ["student.lrr=1", "student.num_filters=1", "nothing.x=1", "student=lrr", "~student.q"])
def test_what_hydra_refuses_is_not_remembered(word) -> None:
    messages = []
    for remembers in (nullcontext, from_files):
        with remembers(), pytest.raises(ConfigCompositionException) as error:
            compose_config(word)
        messages.append(str(error.value))
    assert messages[0] == messages[1]

"""The settings of each data set: their YAML, their defaults, and what is refused."""

from dataclasses import FrozenInstanceError

import pytest
from omegaconf import OmegaConf
from raw_examples import ROOT

from src.core.datasets.base import SplitConfig
from src.core.datasets.csv_log import CsvColumns
from src.core.datasets.sources import SCHEMAS
from src.core.errors import UserError
from src.core.settings import flat_settings, parse_choice

YAMLS = sorted((ROOT / "conf" / "dataset").glob("*.yaml"))


def parse(source: str, **changes):
    return parse_choice(SCHEMAS, {"source": source, **changes}, "dataset", by=("source", "name"))


def test_each_source_has_a_yaml_and_each_other_yaml_starts_from_one():
    assert {path.stem for path in YAMLS} >= {*SCHEMAS}
    presets = [OmegaConf.load(path) for path in YAMLS if path.stem not in SCHEMAS]
    assert presets and all(preset.defaults[0] in SCHEMAS and preset.defaults[1] == "_self_" for preset in presets)


@pytest.mark.parametrize("source", SCHEMAS)
def test_a_yaml_holds_every_key_and_the_defaults_of_its_settings(source):
    """What Python builds without a YAML is what the command line runs without overrides."""
    section = OmegaConf.load(ROOT / "conf" / "dataset" / f"{source}.yaml")
    config = parse_choice(SCHEMAS, section, "dataset", by=("source", "name"))
    assert config == SCHEMAS[source]() and type(config) is SCHEMAS[source]
    assert OmegaConf.to_container(section, resolve=True) == OmegaConf.to_container(OmegaConf.structured(config))


def test_a_yaml_of_before_the_source_names_it_by_its_name():
    assert parse_choice(SCHEMAS, {"name": "csv", "separator": ";"}, "dataset", by=("source", "name")) == parse(
        "csv", separator=";"
    )


def test_movielens_yaml_has_the_keys_of_the_specification():
    cfg = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "dataset" / "movielens.yaml"))
    expected = {"name": "movielens", "max_seq_len": 50, "min_user_inter": 5, "split": {"method": "leave_one_out"}}
    assert {key: cfg[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("netflix", {}, r"dataset\.source='netflix': must be one of sample, movielens, amazon"),
        *(
            ("csv", {"name": name}, r"dataset\.name=.*: must be a name of letters, digits, '\.', '_' and '-'")
            for name in ("", ".", "..", ".hidden", "a/b", "a\\b", "a b", "-x", "é", "x\n", "x" * 101)
        ),
        ("csv", {"missing_titles": "drop"}, r"dataset\.missing_titles='drop': must be refuse or name"),
        ("amazon", {"category": "../x"}, r"dataset\.category='\.\./x': must be a name of letters"),
        ("amazon", {"release": 2020}, r"dataset\.release=2020: must be null or one of 2014, 2018, 2023"),
        (
            "amazon",
            {"release": 2014, "interactions_file": "Beauty_5.json"},
            r"dataset\.interactions_file='Beauty_5\.json': must be null or one of reviews_Beauty_5\.json, "
            r"reviews_Beauty\.json, ratings_Beauty\.csv, gzipped or not",
        ),
        ("sample", {"max_seq_len": 0}, r"dataset\.max_seq_len=0: must be an integer >= 1"),
        ("sample", {"min_user_inter": 2}, r"dataset\.min_user_inter=2: must be an integer >= 3"),
        ("sample", {"max_train_rows": 0}, r"dataset\.max_train_rows=0: must be null or an integer >= 1"),
        ("sample", {"raw_dir": ""}, r"dataset\.raw_dir='': must be null or a folder"),
        ("sample", {"version": "100k"}, r"dataset\.version: unknown key"),
        ("movielens", {"separator": ","}, r"dataset\.separator: unknown key"),
        ("movielens", {"version": "10m"}, r"dataset\.version='10m': must be one of 100k, 1m"),
        (
            "sample",
            {"split": {"method": "given"}},
            r"dataset\.split\.method='given': must be leave_one_out or temporal, because sample does not come split",
        ),
        (
            "lastfm",
            {"split": {"method": "leave_one_out"}},
            r"dataset\.split\.method='leave_one_out': must be given, because lastfm comes split",
        ),
        ("lastfm", {"min_user_inter": 5}, r"dataset\.min_user_inter=5: .*must be 0"),
        ("csv", {"separator": "::"}, r"dataset\.separator='::': must be one character"),
        ("csv", {"titles_file": ""}, r"dataset\.titles_file='': must be the name of a file"),
        ("csv", {"columns": {"user": ""}}, r"dataset\.columns\.user='': must be the name of a column"),
        ("csv", {"columns": {"user": "item"}}, r"dataset\.columns=.*user, item and timestamp must differ"),
        (
            "csv",
            {"columns": {"users": "u"}},
            r"dataset\.columns\.users: unknown key; did you mean dataset\.columns\.user",
        ),
    ],
)
def test_values_that_are_wrong_or_without_effect_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        parse(name, **changes)


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"dataset\.split\.method='random': must be one of leave_one_out"):
        SplitConfig(method="random")


@pytest.mark.parametrize("name", SCHEMAS)
def test_settings_are_never_changed(name):
    config = SCHEMAS[name]()
    with pytest.raises(FrozenInstanceError):
        config.raw_dir = "elsewhere"


def test_where_the_raw_files_lie_decides_nothing():
    here, there = parse("csv", raw_dir="here"), parse("csv", raw_dir="there")
    assert flat_settings(here, "dataset") == flat_settings(there, "dataset")
    assert flat_settings(parse("csv", columns={"user": "who"}), "dataset") == {
        **flat_settings(here, "dataset"),
        "dataset.columns.user": "who",
    }
    assert parse("csv").columns == CsvColumns()

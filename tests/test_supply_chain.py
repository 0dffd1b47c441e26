"""What is installed is what the lock says, and what is known against it stands in docs/security.md."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmarks import audit
from src.core.errors import UserError
from src.teacher.llm.folder import check_llm_folder

ROOT = Path(__file__).resolve().parents[1]
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LOCK = tomllib.loads((ROOT / "poetry.lock").read_text(encoding="utf-8"))


def test_every_file_in_the_lock_has_a_hash_and_no_index_is_named() -> None:
    files = [file for package in LOCK["package"] for file in package["files"]]
    assert len(files) > len(LOCK["package"]) > 100
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", file["hash"]) for file in files)
    assert not [package["name"] for package in LOCK["package"] if "source" in package]


def test_advisories_name_the_versions_that_are_locked() -> None:
    """The first cell of each line of the table: `name version`."""
    told = re.findall(r"^\| `([\w-]+) ([\w.]+)` \|", SECURITY, re.MULTILINE)
    assert told and set(told) <= {(package["name"], package["version"]) for package in LOCK["package"]}


# --- the audit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "inside"),
    [
        ([{"introduced": "0"}], True),
        ([{"introduced": "0"}, {"fixed": "2.3.0"}], False),
        ([{"introduced": "0"}, {"fixed": "2.3.1"}], True),
        ([{"introduced": "2.4"}, {"fixed": "2.5"}], False),
        ([{"introduced": "1.0"}, {"fixed": "1.1"}, {"introduced": "2.3.0rc1"}], True),
        ([{"introduced": "0"}, {"last_affected": "2.3.0"}], True),
        ([{"introduced": "0"}, {"last_affected": "2.2.9"}], False),
    ],
)
def test_a_version_lies_in_a_range(events, inside) -> None:
    affected = {"package": {"name": "Some_Package"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    assert audit.applies(affected, "some-package", "2.3.0") is inside
    assert not audit.applies(affected, "other", "2.3.0")


def test_what_is_found_has_to_be_told(tmp_path, monkeypatch, capsys) -> None:
    def record(number: int, **more) -> None:
        folder = tmp_path / "db" / "vulns" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"id": f"PYSEC-2020-{number}", "aliases": [f"CVE-2020-{number}"], **more}
        content["affected"] = [{"package": {"name": "toy"}, "versions": ["1.0"]}]
        (folder / f"PYSEC-2020-{number}.yaml").write_text(yaml.safe_dump(content))

    (tmp_path / "lock").write_text('[[package]]\nname = "toy"\nversion = "1.0"\n')
    (tmp_path / "told.md").write_text("CVE-2020-1: never called.")
    words = ["audit", str(tmp_path / "db"), "--lock", str(tmp_path / "lock"), "--told", str(tmp_path / "told.md")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="has no folder vulns"):
        audit.main()
    record(1)
    record(2, withdrawn="2021-01-01")
    audit.main()
    assert capsys.readouterr().out.splitlines()[2:] == ["| toy | 1.0 | PYSEC-2020-1, CVE-2020-1 |"]
    record(3)
    with pytest.raises(SystemExit, match=r"told\.md does not say what is done about PYSEC-2020-3"):
        audit.main()


# --- the installation -------------------------------------------------------------------------------------------

_POETRY = """#!/bin/sh
case "$1" in
--version) echo "Poetry (version 2.5.1)" ;;
check) [ "$2" = --lock ] && echo "$@" >>"$CALLS" && exit "$STALE" ;;
*) echo "$@" >>"$CALLS" ;;
esac
"""


@pytest.mark.parametrize("stale", [0, 1])
def test_nothing_is_installed_by_a_lock_that_is_not_the_projects(tmp_path, stale) -> None:
    for script in ("install.sh", "_common.sh"):
        (tmp_path / "cmd").mkdir(exist_ok=True)
        (tmp_path / "cmd" / script).write_bytes((ROOT / "cmd" / script).read_bytes())
    for name, text in {
        "bin/poetry": _POETRY,
        "bin/python3.11": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
        ".venv/bin/python": "#!/bin/sh\n",
        "site.sh": "",
        "pyproject.toml": "",
        "poetry.lock": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    done = subprocess.run(
        ["bash", str(tmp_path / "cmd" / "install.sh")],
        env={**os.environ, **environment, "STALE": str(stale), "ENV_SHELL": "site.sh"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if not line.startswith("env use")]
    assert done.returncode == stale, done.stderr
    installs = [] if stale else ["install --no-interaction --with sweep"]
    assert calls == ["check --lock --no-interaction", *installs]
    assert ("error: poetry.lock does not belong to pyproject.toml" in done.stderr) is bool(stale)


# --- a configuration that a library would search for minutes ------------------------------------------------------


def test_an_llms_configuration_names_no_others(tmp_path) -> None:
    """transformers 4.43 searches those names in quadratic time (CVE-2025-3263): 230 KB take it minutes."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    check_llm_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"configuration_files": ["config." * 32_000]}))
    with pytest.raises(UserError, match=r"config\.json names other configurations \(configuration_files\)"):
        check_llm_folder(tmp_path)


def test_the_latest_version_is_the_same_wherever_it_is_told() -> None:
    """The first section of CHANGELOG.md with a number, pyproject.toml and CITATION.cff."""
    sections = re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], str(citation["date-released"])) == sections[0]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == sections[0][0]
    assert (
        "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
        and "`v<version>`" in (ROOT / "CONTRIBUTING.md").read_text()
    )

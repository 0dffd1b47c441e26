"""Advisories that apply to the versions in poetry.lock, as a table; fails where docs/security.md does not name one.

It works without a network, on a clone of https://github.com/pypa/advisory-database (OSV records in YAML).

Run: python -m benchmarks.audit <folder of the clone>
"""

import argparse
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def locked(lock: Path) -> dict[str, str]:
    """Version by name of every package in a `poetry.lock`, of all groups and extras."""
    return {package["name"]: package["version"] for package in tomllib.loads(lock.read_text("utf-8"))["package"]}


def findings(versions: dict[str, str], database: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Packages and the records that apply to their versions."""
    for name, version in sorted(versions.items()):
        for file in sorted(database.glob(f"vulns/{name}/*.yaml")):
            record = yaml.safe_load(file.read_text("utf-8"))
            if "withdrawn" not in record and any(applies(part, name, version) for part in record["affected"]):
                yield name, record


def applies(affected: dict[str, Any], name: str, version: str) -> bool:
    """Whether a part of a record is about this version: it is listed, or lies in a range."""
    if canonicalize_name(affected["package"]["name"]) != canonicalize_name(name):
        return False
    ranges = [r["events"] for r in affected.get("ranges", []) if r["type"] == "ECOSYSTEM"]
    return version in affected.get("versions", []) or any(_in_range(events, Version(version)) for events in ranges)


def _in_range(events: list[dict[str, str]], version: Version) -> bool:
    """Events are in ascending order; `0` is before every version."""
    inside = False
    for event in events:
        ((kind, text),) = event.items()
        if kind == "introduced":
            inside = inside or text == "0" or version >= Version(text)
        elif kind == "fixed":
            inside = inside and version < Version(text)
        elif kind == "last_affected":
            inside = inside and version <= Version(text)
    return inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("--lock", type=Path, default=ROOT / "poetry.lock")
    parser.add_argument("--told", type=Path, default=ROOT / "docs" / "security.md")
    args = parser.parse_args()
    if not (args.database / "vulns").is_dir():
        sys.exit(f"{args.database}: has no folder vulns; give a clone of https://github.com/pypa/advisory-database")
    versions, told, missing = locked(args.lock), args.told.read_text("utf-8"), []
    print("| package | version | advisory |\n|---|---|---|")
    for name, record in findings(versions, args.database):
        ids = [record["id"], *record.get("aliases", [])]
        print(f"| {name} | {versions[name]} | {', '.join(ids)} |")
        if not any(found in told for found in ids):
            missing.append(record["id"])
    if missing:
        sys.exit(f"{args.told} does not say what is done about {', '.join(missing)}")


if __name__ == "__main__":
    main()

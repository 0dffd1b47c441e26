"""The leaves of `conf/`, found by glob, and which entry of a table of effects shows what a leaf does.

A table names a leaf as `group.key` or, where one file needs its own, as `group/file:key`, and has for it the function
that changes the leaf and shows what differs: other numbers, other files, or a refusal that names the key.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness import CONF, compose_config, refusal
from leaves_bench import Bench
from omegaconf import OmegaConf

from src.exp.settings import parse_settings

Effect = Callable[[Bench], None]
PER_FILE = ("dataset", "student", "distill", "active")  # each file of these groups is another program: try all


@dataclass(frozen=True, order=True)
class Leaf:
    """A value in a YAML: `file` as group/name, `key` from the root of the configuration."""

    file: str
    key: str

    @property
    def group(self) -> str:
        return self.file.split("/")[0]

    def entry(self, table: Iterable[str]) -> str:
        """The table's name for this leaf: its own where it has one, else that of its key."""
        own = f"{self.file}:{self.key}"
        return own if own in table else self.key


def _flatten(node: object, prefix: str) -> list[str]:
    if not isinstance(node, dict) or not node:
        return [prefix]
    return [leaf for key, value in node.items() for leaf in _flatten(value, f"{prefix}.{key}" if prefix else key)]


def find_leaves() -> list[Leaf]:
    """Every leaf; a mapping that is empty is one, too."""
    leaves = []
    for path in CONF.rglob("*.yaml"):
        file = path.relative_to(CONF).with_suffix("").as_posix()
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        content.pop("defaults", None)
        at_root = "/" not in file or "@package _global_" in path.read_text()
        section = ".".join(file.split("/")[:-1])
        leaves += [Leaf(file, key) for key in _flatten(content, "" if at_root else section)]
    return sorted(leaves)


LEAVES = [leaf for leaf in find_leaves() if leaf.group != "experiment"]
EXPERIMENT_LEAVES = [leaf for leaf in find_leaves() if leaf.group == "experiment"]


def cases(table: Iterable[str]) -> list[tuple[str, str]]:
    """(file, entry) to try: every file of the groups in `PER_FILE`, of the others the first that has the leaf."""
    files: dict[tuple[str, str], str] = {}
    for leaf in LEAVES:
        entry = leaf.entry(table)
        files.setdefault((leaf.file if leaf.group in PER_FILE else "", entry), leaf.file)
    return [(file, entry) for (_, entry), file in files.items() if entry in table]


def refused(override: str, message: str) -> Effect:
    """The settings refuse the override with a message that begins like this."""

    def effect(bench: Bench) -> None:
        assert refusal(lambda: parse_settings(compose_config(bench.choice, override))).startswith(message)

    return effect

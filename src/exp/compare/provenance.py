"""What a run was given: the settings that differ from the defaults, and the command that repeats it."""

import shlex
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from src.core.paths import RunFolder
from src.core.settings import load_yaml
from src.exp.stage.snapshot import saved_overrides

# Sections that change no number of a run.
_NOT_OF_A_RUN = ("paths", "logging", "eval", "gather", "recommend", "export", "study")
_SCRIPTS = {"teacher": "run_teacher_train", "baseline": "run_student_baseline", "distill": "run_distill_dllm2rec"}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted key; lists and empty mappings are values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}


def changed_settings(source: RunFolder, stage: str) -> dict[str, tuple[Any, Any]]:
    """Settings of a stage that are not the defaults: by key, the default and the value.

    A choice such as `teacher=ilora_tiny` counts as one setting; its file's values are then the defaults. Only inside
    an entry point, which has told Hydra where `conf/` is.
    """
    folder = source.snapshot_dir(stage)
    if not (folder / "config.yaml").is_file():
        return {}
    config = load_yaml(folder / "config.yaml", _values)
    default = compose("config", return_hydra_config=True).hydra.runtime.choices
    given = load_yaml(folder / "hydra.yaml", lambda content: {**content["hydra"]["runtime"]["choices"]})
    chosen = {group: str(name) for group, name in given.items() if group in default and _is_section(group, config)}
    result: dict[str, tuple[Any, Any]] = {
        group: (default[group], name) for group, name in chosen.items() if default[group] != name
    }
    known = [f"{group}={name}" for group, name in chosen.items() if name in _options(group)]
    defaults = compose("config", overrides=known)
    written, expected = _values(defaults), _values(defaults, resolve=True)
    for key, value in config.items():
        if key.split(".")[0] not in _NOT_OF_A_RUN and value not in (written.get(key), expected.get(key)):
            result[key] = (expected.get(key), value)
    return result


def _is_section(group: str, config: dict[str, Any]) -> bool:
    return any(key.split(".")[0] == group for key in config)


def _options(group: str) -> list[str]:
    """The files that may be chosen: a run of another version may have had others."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _values(config: DictConfig | ListConfig, *, resolve: bool = False) -> dict[str, Any]:
    """By dotted key; only what is our own is resolved, a run's file may come from anywhere."""
    return flatten(OmegaConf.to_container(config, resolve=resolve))


def repeat_command(sources: dict[str, RunFolder]) -> str:
    """One command line that runs the stages of `sources` again in a new run folder."""
    overrides = {stage: saved_overrides(source, stage) for stage, source in sources.items() if stage in _SCRIPTS}
    lines = list(overrides.values())
    if len(lines) == len(_SCRIPTS) and all(words == lines[0] for words in lines):
        return shlex.join(["bash", "cmd/run_all_pipeline.sh", *lines[0]])
    run_dir = "hydra.run.dir=result/repeated"
    commands = [
        shlex.join(["bash", f"cmd/{_SCRIPTS[stage]}.sh", run_dir, *words]) for stage, words in overrides.items()
    ]
    same = next(iter(lines), [])
    return " && \\\n".join([*commands, shlex.join(["bash", "cmd/run_eval_all.sh", run_dir, *same])])

"""A study from its settings to its page."""

from dataclasses import replace
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig

from src.core.artefacts import Artefact, differences, locked
from src.core.errors import UserError
from src.core.foreign.escape import terminal
from src.core.logging import start_logging
from src.core.paths import RunFolder
from src.exp.compare.references import evaluate_references
from src.exp.compare.significance import Ranks
from src.exp.settings import Settings, parse_settings
from src.exp.stage.inputs import student_inputs, weights_hash
from src.exp.stage.stage import Stage, look, open_stage, run_folder
from src.exp.study.launch import launch
from src.exp.study.plan import (
    Variant,
    base_overrides,
    check_source,
    check_variants,
    job_overrides,
    source_run,
    variants,
)
from src.exp.study.results import Result, result
from src.exp.study.write import write_study
from src.student.lists import ListMetrics


def run(cfg: Settings) -> None:
    """Check every variant, train what is missing, write table, plot and page."""
    source = source_run(cfg.study)
    base = base_overrides(source, HydraConfig.get().overrides.task)
    settings = replace(parse_settings(compose("config", overrides=base)), study=cfg.study)
    with locked(run_folder().root):
        stage, found = look(settings, "study"), variants(cfg.study)
        if source is not None:
            check_source(source, stage)
        made_from = _made_from(stage, source)
        artefact = stage.folder.artefact("study")
        _require_same_study(artefact, made_from, cfg)
        check_variants(found, base, stage)
        open_stage(stage)
        artefact.begin(made_from)
        _train(stage, found, base)
        files = _write(stage, found, source)
        artefact.complete(files=stage.hashes(*files))
    for file in files:
        print(terminal(str(file)))


def _made_from(stage: Stage, source: RunFolder | None) -> dict[str, object]:
    study = stage.settings.study
    return {
        **student_inputs(stage.settings, stage.dataset),
        "study.variants": {variant.name: variant.overrides for variant in variants(study)},
        "study.seeds": study.seeds,
        "study.leader": study.leader,
        "the distillation": weights_hash(source.model_dir("distill")) if source else None,
    }


def _require_same_study(artefact: Artefact, made_from: dict[str, object], cfg: Settings) -> None:
    """A study may be given more seeds and variants; other settings belong to another study."""
    record = artefact.status().record
    if record is None or cfg.general.overwrite:
        return
    before, now = ({k: v for k, v in m.items() if not k.startswith("study.")} for m in (record.made_from, made_from))
    if changes := differences(before, now):
        raise UserError(
            f"{artefact.base}: holds a study of other settings: {changes}; use another hydra.run.dir, or "
            "general.overwrite=true to train its variants again"
        )


def _train(stage: Stage, found: list[Variant], base: list[str]) -> None:
    """All jobs that are not complete; the baselines first, from which others may start or have rows chosen."""
    for name in ("baseline", "distill"):
        jobs = [job_overrides(v, base, seed) for v in found if v.stage == name for seed in stage.settings.study.seeds]
        try:
            launch(name, jobs, stage.folder)
        finally:
            start_logging(stage.settings.logging)
            open_stage(stage)  # each job has had a log of its own


def _write(stage: Stage, found: list[Variant], source: RunFolder | None) -> list[Path]:
    """The table of what was found, beside it what needs no student.

    Raises:
        UserError: jobs have failed; which, and why.
    """
    results = {variant.name: _results(stage, variant) for variant in found}
    references = evaluate_references(stage, ListMetrics.of(stage.dataset, stage.settings.metrics.list_length))
    beside: dict[str, Ranks] = references.ranks()
    teacher = result("teacher", source) if source is not None else None
    if teacher is not None:
        beside["teacher"] = teacher.ranks
    return write_study(stage, found, results, beside, titles=references.titles)


def _results(stage: Stage, variant: Variant) -> list[Result]:
    results, failed = [], []
    for seed in stage.settings.study.seeds:
        folder = variant.folder(stage.folder, seed)
        found = result(variant.stage, folder)
        if found is None:
            status = folder.artefact(variant.stage).status()
            failed.append(f"{variant.subfolder(seed)}: {status.why or 'not begun'}")
        else:
            results.append(found)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(stage.settings.study.seeds)} runs of {variant.name} failed: {'; '.join(failed)}; "
            f"the same command with hydra.run.dir={stage.folder.root} trains only what is missing"
        )
    return results

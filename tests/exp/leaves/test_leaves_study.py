"""`conf/study`: every key makes other jobs, or another page of what they have found."""

import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from harness import compose_config, places, refusal, run_here
from leaves_bench import Bench
from leaves_table import LEAVES, Effect, cases
from omegaconf import OmegaConf

from src.core.paths import RunFolder
from src.exp import run_study
from src.exp.settings import Settings, parse_settings
from src.exp.stage.stage import look
from src.exp.study import run as study_run
from src.exp.study.plan import job_overrides, variants
from src.exp.study.results import result
from src.exp.study.write import write_study

# --- the jobs -----------------------------------------------------------------------------------------------

# What a study starts from here, so that neither `active=all` nor a budget in a variant repeats what it finds.
BASE = ["active=random", "active.budget_ratio=0.5"]
AXIS = "+study.grid.alpha={key: distill.alpha, values: [0.1, 0.2]}"  # for a study without a grid


@cache
def _planned(file: str, *overrides: str) -> dict[str, Settings]:
    """The settings of each job of a study's file, by the variant's name, with one seed for all."""
    found = variants(parse_settings(compose_config(file.replace("/", "="), *overrides)).study)
    words = {variant.name: job_overrides(variant, BASE, 1) for variant in found}
    return {name: parse_settings(compose_config(*given)) for name, given in words.items()}


def _variant(name: str) -> Effect:
    """It trains another student than all others of the study; what makes it so is tried with the other groups."""

    def effect(bench: Bench) -> None:
        planned = _planned(bench.file)
        distilled = {key: settings for key, settings in planned.items() if key != "baseline"}
        assert [key for key, settings in distilled.items() if settings == planned[name]] == [name]
        overrides = OmegaConf.select(compose_config(bench.choice), f"study.variants.{name}")
        assert (planned[name] == planned["baseline"]) == (list(overrides) == [])  # the baseline's has none besides BASE

    return effect


def _launched(bench: Bench, *overrides: str) -> list[list[str]]:
    """The overrides of all jobs that a study hands to the launcher, which starts none here."""
    jobs: list[list[str]] = []
    folder = bench.folder()
    where = places(bench.pipeline.data_dir, bench.pipeline.result_root, folder)
    with bench.patch.context() as patch:
        patch.setattr(study_run, "launch", lambda stage, given, folder: jobs.extend(given))
        words = (*where, bench.choice, f"study.run_dir={bench.pipeline.folder}", *overrides)
        message = refusal(lambda: run_here(run_study.run, *words, full_error=True))
    assert "not begun; the same command with hydra.run.dir=" in message
    return jobs


def _run_dir(bench: Bench) -> None:
    """The jobs have the overrides of that distillation; without one there is nothing to start from."""
    other = shutil.copytree(bench.pipeline.folder, bench.folder())
    for file in (other / ".hydra" / "distill").glob("overrides.yaml"):
        file.write_text(file.read_text() + "- student.dropout=0.9\n")
    one_variant = ("study.seeds=[1]",)
    assert not any("student.dropout=0.9" in job for job in _launched(bench, *one_variant))
    assert all("student.dropout=0.9" in job for job in _launched(bench, *one_variant, f"study.run_dir={other}"))
    message = bench.refused_stage(run_study.run, f"study.run_dir={bench.tmp}")
    assert message.startswith(f"study.run_dir={bench.tmp}: must be the run folder of a finished distillation")


def _seeds(bench: Bench) -> None:
    number = len(variants(parse_settings(compose_config(bench.choice)).study))
    jobs = _launched(bench, "study.seeds=[3,4]")
    assert len(jobs) == 2 * number
    assert all(sum(f"general.seed={seed}" in job for job in jobs) == number for seed in (3, 4))


def _grid(bench: Bench) -> None:
    """Each value of an axis is a variant besides those that are named."""
    before, after = _planned(bench.file), _planned(bench.file, AXIS)
    assert after.keys() - before.keys() == {"0.1", "0.2"}
    assert [after[name].distill.alpha for name in ("0.1", "0.2")] == [0.1, 0.2]


def _value_of_grid(axis: str, value: str) -> Effect:
    """It is combined with every value of the other axes, and none of those students is another's."""

    def effect(bench: Bench) -> None:
        planned, study = _planned(bench.file), parse_settings(compose_config(bench.choice)).study
        combined = [variant.name for variant in variants(study) if variant.place.get(axis) == value]
        assert len(combined) == len(study.axis_values("share"))
        for name in combined:
            assert [other for other, settings in planned.items() if settings == planned[name]] == [name]

    return effect


def _key_of_axis(bench: Bench) -> None:
    other = _planned(bench.file, "study.grid.share.key=distill.alpha")
    assert {other[f"random_{value}"].distill.alpha for value in (0.05, 0.1, 0.3)} == {0.05, 0.1, 0.3}
    own = _planned(bench.file)
    assert {own[f"random_{value}"].active.budget_ratio for value in (0.05, 0.1, 0.3)} == {0.05, 0.1, 0.3}


def _values_of_axis(bench: Bench) -> None:
    other = _planned(bench.file, "study.grid.share.values=[0.4]")
    assert {name for name in other if name.startswith("random_")} == {"random_0.4"}
    assert other["random_0.4"].active.budget_ratio == 0.4


# --- the page -----------------------------------------------------------------------------------------------


def _page(bench: Bench, *overrides: str) -> Path:
    """The folder of a study's page; every variant has found what the shared pipeline found."""
    source = RunFolder(bench.pipeline.folder)

    def write(cfg: Settings) -> None:
        found = variants(cfg.study)
        results = {variant.name: [result(variant.stage, source)] for variant in found}
        write_study(look(cfg, "study"), found, results, {})  # type: ignore[arg-type]

    return bench.stage(write, bench.choice, *overrides) / "metrics"


def _name(bench: Bench) -> None:
    assert {path.stem for path in _page(bench, "study.name=mine").iterdir()} == {"mine"}


def _question(bench: Bench) -> None:
    name = bench.file.split("/")[1]
    assert "Is it so?" in (_page(bench, "study.question='Is it so?'") / f"{name}.md").read_text()


def _plot(bench: Bench) -> None:
    """The page of the grid's variants as points, or as a curve, which a study without a grid is refused."""
    name = bench.file.split("/")[1]
    points = (_page(bench, AXIS, "study.plot=points") / f"{name}.html").read_text()
    curve = (_page(bench, AXIS, "study.plot=curve") / f"{name}.html").read_text()
    assert "standard deviation over seeds" in points and "by alpha" not in points
    assert "by alpha" in curve
    message = refusal(lambda: parse_settings(compose_config(bench.choice, "study.plot=curve")))
    assert message == "study.grid={}: must be one or more axes with study.plot=curve"


def _ends(bench: Bench) -> None:
    """A named variant stands on the curve where it is said to stand; who is not there cannot."""
    name = bench.file.split("/")[1]
    page = _page(bench, AXIS, "study.plot=curve", "+study.ends.distilled=0.7") / f"{name}.html"
    assert re.search(r"alpha 0\.1: [\d.]+, 0\.2: [\d.]+, 0\.7: [\d.]+", page.read_text())
    message = refusal(lambda: parse_settings(compose_config(bench.choice, "+study.ends.nobody=1")))
    assert message.startswith("study.ends={'nobody': 1.0}: must be of distilled, ")


def _end(name: str) -> Effect:
    def effect(bench: Bench) -> None:
        """On every line of the curve, at the place that was asked for."""
        page = (_page(bench, f"study.ends.{name}=0.02") / "selection_curve.html").read_text()
        for line in ("random", "coverage", "student_entropy", "student_loss"):
            assert re.search(rf"\b{line} [^;]*\b0\.02: ", page), line
        assert "by share" in page

    return effect


def _leader(bench: Bench) -> None:
    """Columns of its own, which a study without one has not; who is no variant leads nobody."""
    (page,) = _page(bench, "study.leader=null").glob("*.md")
    assert "lead over it" not in page.read_text()
    named = next(iter(OmegaConf.select(compose_config(bench.choice), "study.variants")))
    (page,) = _page(bench, f"study.leader={named}").glob("*.md")
    assert f"Lead: {named.replace('_', ' ')} less the variant of the line" in page.read_text()
    message = refusal(lambda: parse_settings(compose_config(bench.choice, "study.leader=nobody")))
    assert message.startswith("study.leader='nobody': must be null or one of study.variants (")


EFFECTS: dict[str, Effect] = {
    "study.name": _name,
    "study.question": _question,
    "study.run_dir": _run_dir,
    "study.seeds": _seeds,
    "study.leader": _leader,
    "study.grid": _grid,
    "study.grid.share.key": _key_of_axis,
    "study.grid.share.values": _values_of_axis,
    "study.plot": _plot,
    "study.ends": _ends,
    "study.ends.no_row": _end("no_row"),
    "study.ends.all_rows": _end("all_rows"),
}
for leaf in LEAVES:
    if found := re.fullmatch(r"study\.variants\.(\w+)", leaf.key):
        EFFECTS[f"{leaf.file}:{leaf.key}"] = _variant(found[1])
    if found := re.fullmatch(r"study\.grid\.(policy)\.(\w+)", leaf.key):
        EFFECTS[leaf.key] = _value_of_grid(found[1], found[2])


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)

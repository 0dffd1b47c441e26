"""Every preset and every student runs through the entry points, at tiny size."""

import re

import pytest
from harness import CONF, TINY_TEACHER, compose_config, places, read, run_here
from raw_files import write_raw_files

from src.distill.dllm2rec_wrapper import check_settings
from src.exp import run_distill, run_eval_all, run_student_baseline, run_teacher
from src.exp.settings import parse_settings

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
STUDENTS = sorted(path.stem for path in (CONF / "student").glob("*.yaml"))
SMALL = [  # for invented data of 9 items
    "general.device=cpu",
    "student.emb_size=8",
    "student.hidden_size=8",
    "student.max_seq_len=5",
    "student.batch_size=16",
    "student.num_epochs=2",
    "distill.batch_size=16",
    "distill.num_epochs=2",
    "distill.top_k=2",
    *(o for o in TINY_TEACHER if "num_candidates" not in o and "top_n" not in o),
    "teacher.num_candidates=3",
    "teacher.export.top_n=2",
    "teacher.export.embedding_layer=1",  # of two
    "teacher.max_train_rows=16",
    "teacher.max_eval_rows=8",
    "teacher.recommender.batch_size=16",
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_preset_trains_its_three_models(name, tmp_path) -> None:
    preset = f"+experiment={name}"
    dataset = compose_config(preset).dataset.name
    data, folder = tmp_path / "data", tmp_path / "run"
    write_raw_files(dataset, data / "raw" / dataset)
    overrides = [preset, *SMALL, *places(data, tmp_path / "result", folder)]
    for stage in (run_teacher, run_student_baseline, run_distill):
        assert run_here(stage.run, *overrides) == 0
    config = compose_config(preset)
    for model in ("teacher", "baseline", "distill"):
        evaluation = read(folder / "metrics" / f"eval_{model}.json")
        assert (evaluation["dataset"], evaluation["seed"]) == (dataset, config.general.seed)
        assert config.metrics.monitor in evaluation["metrics"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_launch_command_of_a_preset_names_it_and_its_other_words_are_settings(name) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    command = re.search(r"^# (bash cmd/\S+\.sh.*)$", text, flags=re.MULTILINE)[1].split()
    if command[1] == "cmd/quickstart.sh":  # which adds the preset itself
        assert f"+experiment={name}" in (CONF.parent / command[1]).read_text()
        return
    assert (CONF.parent / command[1]).is_file() and f"+experiment={name}" in command
    parse_settings(compose_config(*command[2:]))


def test_the_official_preset_is_what_the_original_program_does() -> None:
    """The wrapper around the unmodified program refuses whatever that program does otherwise."""
    settings = parse_settings(compose_config("+experiment=dllm2rec_official", "distill.engine=submodule"))
    strategy = settings.active.strategy
    check_settings(settings.distill, settings.student, settings.general.seed, strategy, settings.metrics)
    assert (settings.dataset.max_seq_len, settings.dataset.split.method) == (10, "temporal")


@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_goes_through_everything(pipeline, tmp_path, student) -> None:
    sizes = ("student.batch_size=64", "distill.batch_size=64")
    overrides = [*pipeline.overrides, f"student={student}", *sizes, f"hydra.run.dir={tmp_path / 'run'}"]
    for stage in (run_student_baseline, run_distill):
        assert run_here(stage.run, *overrides) == 0
    assert run_here(run_eval_all.run, *overrides, f"eval.run_dir={tmp_path / 'run'}") == 0
    found = [read(tmp_path / "run" / "metrics" / f"eval_{model}.json") for model in ("baseline", "distill")]
    assert [evaluation["model"] for evaluation in found] == [student] * 2
    assert found[0]["metrics"] != found[1]["metrics"]
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert f"- student: {student}, 8 dimensions" in report.replace("\\_", "_")

"""The shell scripts, with a `poetry` that only writes down what it is asked to run."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from harness import ROOT

SCRIPTS = sorted([*(ROOT / "cmd").glob("*.sh"), *(ROOT / "env_shell").glob("*.sh"), ROOT / ".ci" / "run"])
MODULES = {
    "run_teacher_train": "src.exp.run_teacher",
    "run_student_baseline": "src.exp.run_student_baseline",
    "run_distill_dllm2rec": "src.exp.run_distill",
    "run_eval_all": "src.exp.run_eval_all",
}


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the scripts with a `.venv` that counts as installed, a fake `poetry` and an environment file."""
    root = tmp_path / "project with a blank"
    for script in (ROOT / "cmd").glob("*.sh"):
        target = root / "cmd" / script.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(script.read_bytes())
    for name, text in {
        ".venv/bin/python": "#!/bin/sh\n",
        "bin/poetry": '#!/bin/sh\n[ "$5" = "$FAIL" ] && exit 3\nprintf "%s\\n" "$@" "--- $SITE" >>"$CALLS"\n',
        "site.sh": "export SITE=ours\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    return root


def call(project: Path, script: str, *arguments: str, fail: str = "") -> tuple[int, list[list[str]], str]:
    """Exit code, the arguments of each `poetry` call, and what was printed."""
    calls = project / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(project / "cmd" / f"{script}.sh"), *arguments],
        env={
            **os.environ,
            "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "ENV_SHELL": "site.sh",
            "FAIL": fail,
        },
        cwd=project.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    text = calls.read_text() if calls.is_file() else ""
    return done.returncode, [part.splitlines() for part in text.split("--- ours\n")[:-1]], done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_syntax_is_right(script) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.parent.name == "cmd"], ids=lambda path: path.name)
def test_a_script_stops_at_errors_and_sources_the_environment(script) -> None:
    text = script.read_text()
    if script.name == "_common.sh":
        assert 'source "$env_shell"' in text and "env_shell/default.sh" in text
        return
    assert "set -euo pipefail" in text and "_common.sh" in text
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", MODULES)
def test_a_stage_script_runs_its_module_with_every_argument_as_it_is(project, script) -> None:
    arguments = ("dataset=sample", "general.experiment_name='two words'", "-m", "student.lr=1e-3,3e-3")
    code, calls, _ = call(project, script, *arguments)
    assert code == 0
    assert calls == [["run", "python", "-m", MODULES[script], *arguments]]


def test_python_runs_only_through_poetry() -> None:
    for script in MODULES:
        lines = (ROOT / "cmd" / f"{script}.sh").read_text().splitlines()
        calls = [line for line in lines if "src.exp" in line and not line.startswith("#")]
        assert calls == [f'run_module {MODULES[script]} "$@"']


def test_the_pipeline_runs_the_four_stages_in_one_folder(project) -> None:
    arguments = ("dataset=sample", "general.experiment_name='two words'", "student.lr=1e-2")
    code, calls, _ = call(project, "run_all_pipeline", *arguments)
    assert code == 0
    assert [call[3] for call in calls] == list(MODULES.values())
    run_dir = next(a for a in calls[0] if a.startswith("hydra.run.dir="))
    assert re.fullmatch(r"hydra\.run\.dir=result/result_\d{8}_\d{6}", run_dir)
    for stage in calls[:3]:
        assert stage[4:] == [run_dir, *arguments]
    assert calls[3][4:] == ["eval." + run_dir.removeprefix("hydra.").replace("run.dir", "run_dir"), run_dir, *arguments]


def test_the_pipeline_begins_with_the_baseline_where_it_chooses_the_rows(project) -> None:
    code, calls, _ = call(project, "run_all_pipeline", "active=random", "teacher.export.rows=policy")
    assert code == 0
    modules = ("run_student_baseline", "run_teacher", "run_distill", "run_eval_all")
    assert [call[3] for call in calls] == [f"src.exp.{module}" for module in modules]


@pytest.mark.parametrize(
    ("argument", "run_dir"),
    [
        ("hydra.run.dir=result/mine", r"result/mine"),
        ("paths.result_root=/scratch/r", r"/scratch/r/result_\d{8}_\d{6}"),
        ("paths.result_root='/scratch/my runs'", r"'/scratch/my runs/result_\d{8}_\d{6}'"),
    ],
)
def test_the_pipeline_takes_the_folder_it_is_given(project, argument, run_dir) -> None:
    code, calls, _ = call(project, "run_all_pipeline", argument)
    assert code == 0
    for stage in calls:
        given = {a for a in stage if a.startswith("hydra.run.dir=")}
        assert len(given) == 1 and re.fullmatch(r"hydra\.run\.dir=" + run_dir, given.pop())
        assert argument in stage


def test_the_pipeline_stops_at_the_stage_that_fails_and_says_how_to_go_on(project) -> None:
    code, calls, printed = call(project, "run_all_pipeline", "dataset=sample", "hydra.run.dir=r", fail="dataset=sample")
    assert code == 3 and calls == []
    assert "error: stage 1/4 (run_teacher_train) failed with exit code 3" in printed
    assert "bash cmd/run_all_pipeline.sh dataset=sample hydra.run.dir=r\n" in printed


def test_the_way_to_go_on_names_the_folder_that_was_made(project) -> None:
    (project / "bin" / "poetry").write_text("#!/bin/sh\nexit 3\n")
    _, _, printed = call(project, "run_all_pipeline", "student.lr=1")
    assert re.search(r"run_all_pipeline.sh hydra.run.dir=result/result_\d{8}_\d{6} student.lr=1\n", printed)


@pytest.mark.parametrize("arguments", [("-m",), ("--multirun",), ("hydra.run.dir=result/${now:%Y}",)])
def test_the_pipeline_refuses_what_would_scatter_it(project, arguments) -> None:
    code, calls, printed = call(project, "run_all_pipeline", *arguments)
    assert code == 1 and calls == [] and "error: " in printed


def test_help_is_the_comment_at_the_top(project) -> None:
    code, calls, printed = call(project, "run_all_pipeline", "--help")
    assert code == 0 and calls == [] and printed.startswith("Runs everything in one run folder")


def test_without_an_installation_a_script_says_what_to_run(project) -> None:
    (project / ".venv" / "bin" / "python").unlink()
    code, calls, printed = call(project, "run_eval_all")
    assert code == 1 and calls == []
    assert "error: the project is not installed yet. Run: bash cmd/install.sh" in printed


def test_a_missing_environment_file_is_named(project) -> None:
    (project / "site.sh").unlink()
    code, calls, printed = call(project, "run_eval_all")
    assert code == 1 and calls == [] and "site.sh" in printed and "ENV_SHELL" in printed


WAYS_ON = {
    "run_all_pipeline": "error: stopped; to go on: bash cmd/run_all_pipeline.sh hydra.run.dir=r\n",
    "run_arms": "error: stopped; the line above says how to go on; if there is none, start the same command again\n",
}


@pytest.mark.parametrize("script", WAYS_ON)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_group", [True, False])  # as a terminal's Ctrl-C does, as `kill` does
def test_a_signal_ends_a_script_and_what_it_runs_and_says_how_to_go_on(project, script, number, to_group) -> None:
    """What it runs dies silently where it is told to before it can say anything."""
    (project / "bin" / "poetry").write_text('#!/bin/sh\necho "$$" >>"$CALLS"\nexec sleep 100\n')
    os.mkfifo(project / "calls")
    process = subprocess.Popen(
        ["bash", str(project / "cmd" / f"{script}.sh"), "hydra.run.dir=r"],
        env={**os.environ, "PATH": f"{project / 'bin'}:{os.environ['PATH']}", "CALLS": str(project / "calls")}
        | {"ENV_SHELL": "site.sh"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs behind `nohup ... &` ignores it
    )
    child = int((project / "calls").read_text())
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, printed = process.communicate(timeout=60)  # ends only when nobody writes to it any more
    assert process.returncode == 128 + number
    assert printed.endswith(WAYS_ON[script]) and printed.count("error: ") == 1 and "Terminated" not in printed
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)

"""What a user gets for a mistake: exit code 1, one readable line, no stack trace, nothing damaged."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from harness import TINY_STUDENT, TINY_TEACHER, Outcome, compose_config, places, run_here, run_process, snapshot
from hydra.errors import ConfigCompositionException

from src.core.errors import UserError
from src.exp import distill_steps, run_distill, run_eval_all, run_student_baseline, run_study, run_teacher
from src.exp.stage.messages import quoted

BESIDE_PYTORCH = {
    "accelerate",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "sympy",
    "tensorboard",
    "transformers",
}


@pytest.fixture
def attempt(capsys):
    """Run a stage in this process and catch what it prints."""

    def run(stage_function, *overrides: str) -> Outcome:
        capsys.readouterr()
        code = run_here(stage_function, *overrides)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def here(data_dir, tmp_path) -> list[str]:
    return [*TINY_STUDENT, *places(data_dir, tmp_path, tmp_path / "run")]


# --- real processes: what the shell sees --------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(pipeline, data_dir, tmp_path_factory):
    """Mistakes and questions, two processes at a time, and what each of them imported."""
    root = tmp_path_factory.mktemp("errors")
    finished = [*pipeline.overrides, f"hydra.run.dir={pipeline.folder}"]
    small = [*TINY_STUDENT, *places(data_dir, root, root / "run")]
    calls = {
        "misspelt": ("run_student_baseline", small, ["student.lrr=1"], {}),
        "out of range": ("run_distill", small, ["student.lr=-1"], {}),
        "no raw files": ("run_student_baseline", [*TINY_STUDENT, *places(root / "empty", root)], [], {}),
        "finished": ("run_student_baseline", finished, ["general.seed=7"], {"HYDRA_FULL_ERROR": "1"}),
        "help": ("run_student_baseline", ["--help"], [], {}),
        "teacher": ("run_teacher", small, ["teacher.lr=0"], {}),
        "study": ("run_study", small, ["study.seeds=[]"], {}),
        "gather": ("gather", small, ["gather.folder=here"], {}),
        "nothing to evaluate": ("run_eval_all", small, [], {}),
        "recommendation": ("recommend", pipeline.overrides, ["recommend.history=[1]", f"hydra.run.dir={root}"], {}),
    }
    before = snapshot(pipeline.folder)
    with ThreadPoolExecutor(2) as pool:
        running = {
            name: pool.submit(run_process, module, *base, *more, PYTHONPROFILEIMPORTTIME="1", **environment)
            for name, (module, base, more, environment) in calls.items()
        }
    assert snapshot(pipeline.folder) == before
    return {name: _without_imports(future.result()) for name, future in running.items()}


@dataclass(frozen=True)
class Process(Outcome):
    """A finished process.

    Attributes:
        libraries: top-level names of the modules that it imported.
    """

    libraries: set[str]


def _without_imports(outcome: Outcome) -> Process:
    """What the process itself printed, and what Python reported of its imports (`import time: self | total | name`)."""
    lines = outcome.err.splitlines(keepends=True)
    reports = [line for line in lines if line.startswith("import time:")]
    err = "".join(line for line in lines if line not in set(reports))
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in reports}
    return Process(outcome.code, outcome.out, err, names)


def test_a_misspelt_key_in_a_process(processes) -> None:
    processes["misspelt"].expect_error("student.lrr")


def test_a_value_out_of_range_in_a_process(processes) -> None:
    outcome = processes["out of range"]
    outcome.expect_error("student.lr=-1.0: must be a number > 0")
    assert outcome.err.strip() == outcome.error_lines[0]


def test_missing_raw_files_in_a_process(processes) -> None:
    processes["no raw files"].expect_error("empty", "missing interactions.csv, items.csv", "dataset.raw_dir")


def test_a_finished_folder_in_a_process_with_the_stack_trace_on_request(processes) -> None:
    outcome = processes["finished"]
    assert outcome.code == 1 and "Traceback" in outcome.err
    assert "UserError" in outcome.err and "baseline is complete there" in outcome.err


def test_a_refused_teacher_study_and_evaluation_in_a_process(processes) -> None:
    processes["teacher"].expect_error("teacher.lr=0.0: must be a number > 0")
    processes["study"].expect_error("study.seeds=[]")
    processes["gather"].expect_error("gather.folder")
    processes["nothing to evaluate"].expect_error("no finished baseline or distilled student")


@pytest.mark.parametrize("name", ["misspelt", "out of range", "no raw files", "help", "teacher", "study", "gather"])
def test_what_is_refused_costs_no_library(processes, name) -> None:
    """Each of them takes seconds to import, PyTorch alone more than all that a refused command does."""
    assert {"src", "hydra"} <= processes[name].libraries
    assert processes[name].libraries & {"torch", *BESIDE_PYTORCH} == set()


def test_help_shows_what_a_commands_choices_make_of_the_configuration(processes) -> None:
    """With the comments of the files that they read, and of no others."""
    lines = processes["help"].out.splitlines()
    assert any(re.fullmatch(r"  student= +caser \| gru4rec \| sasrec \| sasrec_plus", line) for line in lines)
    assert "  method: leave_one_out                     # or temporal: all rows by target time, 8:1:1" in map(
        str.rstrip, [line[2:] for line in lines]
    )
    assert "  max_seq_len: 50" in lines  # lastfm.yaml's comment on this key is not movielens'
    assert processes["help"].code == 0 and processes["help"].err == ""


def test_what_is_read_from_records_costs_no_pytorch(processes) -> None:
    assert "torch" not in processes["nothing to evaluate"].libraries


def test_a_recommendation_costs_pytorch_alone(processes) -> None:
    processes["recommendation"].expect_success()
    assert "torch" in processes["recommendation"].libraries
    assert processes["recommendation"].libraries & BESIDE_PYTORCH == set()


# --- the same entry point in this process -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("student.lrr=1", ("student.lrr: unknown key; did you mean student.lr? allowed there: name, emb_size", " lr,")),
        ("teacher.lora.rank=4", ("teacher.lora.rank: unknown key; allowed there: r, alpha",)),
        ("student.num_filters=4", ("student.num_filters: the chosen student has no such key, only another choice",)),
        ("distill.lambdaa=4", ("distill.lambdaa: unknown key", " lambda,")),
        ("generall.seed=4", ("generall.seed",)),
        ("+student.lrr=1", ("student.lrr: unknown key",)),
        ("+teacher.lora.rank=4", ("teacher.lora.rank: unknown key",)),
        ("+typo.x=1", ("typo: unknown section; available: general, dataset",)),
        ("hydra.run.dirr=1", ("hydra.run.dirr: unknown key; did you mean hydra.run.dir? allowed there: dir",)),
        ("hydra.rnu.dir=1", ("hydra.rnu: unknown key; did you mean hydra.run? allowed there: defaults, mode",)),
        ("hydra.sweeper.trials=1", ("the chosen hydra/sweeper has no such key; --cfg hydra shows what it has",)),
        ("hydra/launcher=basick", ("hydra/launcher=basick: there is none", "did you mean hydra/launcher=basic?")),
        ("--student.lr=1", ("--student.lr=1: a setting is written without dashes; did you mean student.lr=1?",)),
        ("dataset=foo", ("dataset=foo: there is none of that name; available: amazon,", " movielens, sample")),
        ("dataset=movielen", ("dataset=movielen: there is none of that name; did you mean dataset=movielens?",)),
        ("teacher=ilora_smal", ("did you mean teacher=ilora_small? available: ilora, ilora_small, ilora_tiny",)),
        ("studnet=gru", ("studnet: unknown key; did you mean student?",)),
        ("studnet.lr=1", ("studnet.lr: unknown key; there is no section studnet; did you mean student.lr?",)),
        ("experiment=x", ("experiment=x: experiment is chosen by a plus, +experiment=x",)),
        ("+experiment=gamess", ("experiment=gamess: there is none of that name; did you mean experiment=games?",)),
        (
            "dataset.raw_dir=/my log (1)",
            ("""log (1): its value has characters""", """write 'dataset.raw_dir="/my log (1)"'"""),
        ),
        ("dataset.raw_dir=/a=b", ("""write 'dataset.raw_dir="/a=b"'""",)),
        ("dataset.raw_dir=/a,b", ("needs --multirun", """'dataset.raw_dir="/a,b"' for one text""")),
        ("dataset.separator=;", ("""write 'dataset.separator=";"'""",)),
        (
            'general.experiment_name=[a"',
            ("close its bracket, or for a text write", r"""'general.experiment_name="[a\""'"""),
        ),
        (
            "student.lr 0.1",
            ("student.lr 0.1: is no setting, which is written key=value", "did you mean student.lr=0.1?"),
        ),
        ("student.dropout=1.5", ("student.dropout=1.5: must be a number in [0, 1)",)),
        ("student.batch_size=many", ("student.batch_size=many", "many")),
        ("distill.lambda=-0.1", ("distill.lambda=-0.1: must be a number >= 0",)),
        ("distill.lambda=[1]", ("distill.lambda=[1]",)),
        ("teacher.recommender.lr=0", ("teacher.recommender.lr=0.0: must be a number > 0",)),
        ("+teacher.recommender.max_seq_len=9", ("teacher.recommender.max_seq_len=9: ", "dataset.max_seq_len")),
        ("+teacher.recommender.save_interval=2", ("teacher.recommender.save_interval=2: ", "leave it out")),
        ("paths.data_dir=${nowhere}", ("nowhere",)),
        ("general.device=tpu9", ("general.device=tpu9: not a device; use cpu, cuda or cuda:<index>",)),
        ("general.device=meta", ("general.device=meta: only cpu and cuda:<index> are supported",)),
        ("student.lr=", ("student.lr",)),
        ("student.lr", ("student.lr",)),
    ],
)
def test_a_wrong_configuration(attempt, here, tmp_path, override, parts) -> None:
    attempt(run_student_baseline.run, *here, override).expect_error(*parts)
    assert not (tmp_path / "run" / "models").exists()
    assert not (tmp_path / "run" / "metrics").exists()


@pytest.mark.parametrize("text", ["/my log (1)", "/a=b", "/a,b", ";", "it's", '[a"', 'a\\"', "a\\", "#1 {x}"])
def test_thequoted_form_is_read_as_that_text(text) -> None:
    assert compose_config(quoted("general.experiment_name", text)).general.experiment_name == text


def test_a_new_name_where_the_user_chooses_the_names(attempt, here) -> None:
    attempt(run_study.run, *here, "study.variants.mine=[]").expect_error(
        "study.variants.mine: study.variants has no mine yet; +study.variants.mine=... adds it"
    )


def test_a_gpu_that_does_not_exist(attempt, here, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    attempt(run_student_baseline.run, *here, "general.device=cuda:7").expect_error(
        "general.device=cuda:7: this machine has 2 CUDA device(s); use an index from 0 to 1, or cpu"
    )


def test_without_cuda_the_cpu_is_used_with_a_warning(attempt, here, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    attempt(run_student_baseline.run, *here, "general.device=cuda:7").expect_success()
    log = (tmp_path / "run" / "logs" / "train_student_baseline.log").read_text()
    assert "WARNING general.device=cuda:7, but PyTorch sees no CUDA here: running on the CPU" in log


@pytest.mark.parametrize("entry", [run_student_baseline.run, run_distill.run])
def test_what_could_not_be_trained_leaves_no_run_folder(attempt, here, tmp_path, entry) -> None:
    attempt(entry, *here, "student.loss=bce", "student.max_seq_len=900", "dataset.max_seq_len=900").expect_error(
        "student.loss=bce: a history of 900 and its target may leave no item for a negative"
    )
    assert not (tmp_path / "run").exists()


def test_an_error_stands_in_the_log_too(attempt, here, tmp_path) -> None:
    outcome = attempt(run_student_baseline.run, *here, "student.lr=1e30", "student.loss=bce")
    log = (tmp_path / "run" / "logs" / "train_student_baseline.log").read_text()
    assert log.splitlines()[-1].endswith("ERROR   " + outcome.error_lines[0].removeprefix("error: "))


def test_hydra_full_error_gives_the_exception(here) -> None:
    with pytest.raises(UserError, match=r"student\.lr=0\.0"):
        run_here(run_student_baseline.run, *here, "student.lr=0", full_error=True)
    with pytest.raises(ConfigCompositionException, match=r"student\.lrr"):
        run_here(run_student_baseline.run, *here, "student.lrr=0", full_error=True)


def test_an_empty_raw_folder(attempt, here, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    attempt(run_student_baseline.run, *here, f"dataset.raw_dir={tmp_path / 'empty'}").expect_error(
        f"{tmp_path / 'empty'}: missing interactions.csv, items.csv", "dataset.raw_dir="
    )


def test_an_empty_raw_file(attempt, here, data_dir, tmp_path) -> None:
    raw = shutil.copytree(data_dir / "raw" / "sample", tmp_path / "raw")
    (raw / "items.csv").write_text("")
    attempt(run_student_baseline.run, *here, f"dataset.raw_dir={raw}").expect_error(
        f"{raw / 'items.csv'}: the file is empty"
    )


def test_a_malformed_line(attempt, here, data_dir, tmp_path) -> None:
    raw = shutil.copytree(data_dir / "raw" / "sample", tmp_path / "raw")
    lines = (raw / "interactions.csv").read_text().splitlines()
    lines[6] = "224,116,yesterday"
    (raw / "interactions.csv").write_text("\n".join(lines) + "\n")
    before = snapshot(raw)
    attempt(run_student_baseline.run, *here, f"dataset.raw_dir={raw}").expect_error(
        f"{raw / 'interactions.csv'}:7", "yesterday"
    )
    assert snapshot(raw) == before


@pytest.mark.parametrize("holds", ["nothing", "no config", "no tokenizer"])
def test_a_wrong_llm_path_says_what_is_expected_before_anything_is_trained(attempt, here, tmp_path, holds) -> None:
    llm = tmp_path / "llm"
    if holds != "nothing":
        llm.mkdir()
        (llm / "tokenizer.model" if holds == "no config" else llm / "config.json").write_text("{}")
    small = [o for o in TINY_TEACHER if ".tiny" not in o and "_tiny" not in o]
    attempt(run_teacher.run, *here, *small, f"teacher.llm_path={llm}").expect_error(
        f"teacher.llm_path={llm}: ", "expected a local Hugging Face folder of a LLaMA-family model"
    )
    assert not (tmp_path / "run" / "models").exists()


def test_an_unknown_teacher(attempt, here) -> None:
    attempt(run_teacher.run, *here, *TINY_TEACHER, "teacher.name=oracle").expect_error(
        "teacher.name=oracle: must be one of ilora, ilora_small, ilora_tiny"
    )


def test_missing_teacher_outputs(attempt, here, tmp_path) -> None:
    attempt(run_distill.run, *here, f"paths.teacher_outputs_dir={tmp_path / 'none'}").expect_error(
        f"{tmp_path / 'none'}: no teacher outputs; run src.exp.run_teacher for dataset sample first",
        "paths.teacher_outputs_dir",
    )
    assert not (tmp_path / "run").exists()


def test_teacher_files_that_do_not_fit_leave_no_run_folder(attempt, pipeline, tmp_path) -> None:
    here = [*pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}"]
    attempt(run_distill.run, *here, "distill.top_k=5").expect_error("4 items a line, distill.top_k=5")
    attempt(run_distill.run, *here, "distill.embedding=residual").expect_error(
        "distill.embedding=residual: the teacher's embeddings have 16 columns, the item table student.emb_size=8"
    )
    assert not (tmp_path / "run").exists()


def test_teacher_outputs_of_another_split(attempt, pipeline, tmp_path) -> None:
    before = snapshot(pipeline.teacher_outputs)
    attempt(
        run_distill.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}", "dataset.max_train_rows=500"
    ).expect_error("manifest.json: files of dataset sample", "600 rows", "500 rows")
    assert snapshot(pipeline.teacher_outputs) == before


def test_a_teacher_ranks_too_few_items(attempt, pipeline, tmp_path) -> None:
    attempt(run_distill.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}", "distill.top_k=5").expect_error(
        "4 items a line, distill.top_k=5", "teacher.export.top_n"
    )


INIT = ("distill.lambda=0", "distill.ed_weight=0", "distill.init=baseline")


def test_a_checkpoint_of_another_shape(attempt, pipeline, tmp_path) -> None:
    checkpoint = pipeline.folder / "models" / "baseline"
    before = snapshot(checkpoint)
    attempt(
        run_distill.run,
        *pipeline.overrides,
        *INIT,
        f"hydra.run.dir={tmp_path / 'run'}",
        f"distill.init_checkpoint={checkpoint}",
        "student.hidden_size=12",
    ).expect_error(str(checkpoint), "this model wants", "use the student settings")
    assert snapshot(checkpoint) == before


def test_a_checkpoint_that_is_replaced_between_its_hash_and_its_reading(
    attempt, pipeline, tmp_path, monkeypatch
) -> None:
    checkpoint = shutil.copytree(pipeline.folder / "models" / "baseline", tmp_path / "checkpoint")
    hash_of = distill_steps.weights_hash

    def hash_and_replace(path):
        digest = hash_of(path)
        if path is not None:
            (checkpoint / "model.safetensors").write_bytes(
                (pipeline.folder / "models" / "distill" / "model.safetensors").read_bytes()
            )
        return digest

    monkeypatch.setattr(distill_steps, "weights_hash", hash_and_replace)
    where = [f"hydra.run.dir={tmp_path / 'run'}", f"distill.init_checkpoint={checkpoint}"]
    attempt(run_distill.run, *pipeline.overrides, *INIT, *where).expect_error(
        f"{checkpoint / 'model.safetensors'}: was changed while it was read; start the same command again"
    )


def test_a_checkpoint_of_another_dataset(attempt, pipeline, tmp_path) -> None:
    checkpoint = pipeline.folder / "models" / "baseline"
    attempt(
        run_distill.run,
        *pipeline.overrides,
        *INIT,
        f"hydra.run.dir={tmp_path / 'run'}",
        f"distill.init_checkpoint={checkpoint}",
        "dataset.max_train_rows=500",
    ).expect_error(f"distill.init_checkpoint={checkpoint}: trained on sample", "this run uses sample")


def test_a_checkpoint_that_does_not_exist(attempt, pipeline, tmp_path) -> None:
    attempt(
        run_distill.run,
        *pipeline.overrides,
        *INIT,
        f"hydra.run.dir={tmp_path / 'run'}",
        f"distill.init_checkpoint={tmp_path / 'none'}",
    ).expect_error(str(tmp_path / "none"), "missing file")


def test_a_checkpoint_without_its_init(attempt, here, tmp_path) -> None:
    attempt(run_distill.run, *here, f"distill.init_checkpoint={tmp_path}").expect_error(
        f"distill.init_checkpoint='{tmp_path}': must be null with distill.init=scratch"
    )


def test_a_run_folder_that_does_not_exist(attempt, here, tmp_path) -> None:
    attempt(run_eval_all.run, *here, f"eval.run_dir={tmp_path / 'none'}").expect_error(
        f"eval.run_dir={tmp_path / 'none'}: no such folder; give a run folder"
    )


def test_a_run_folder_without_a_finished_student(attempt, here, tmp_path) -> None:
    (tmp_path / "bare").mkdir()
    for overrides, where in (([f"eval.run_dir={tmp_path / 'bare'}"], "in "), ([], "for dataset sample under ")):
        attempt(run_eval_all.run, *here, *overrides).expect_error(
            "no finished baseline or distilled student", where, "src.exp.run_student_baseline"
        )


def test_a_run_of_another_dataset_is_not_evaluated_and_leaves_nothing_behind(attempt, pipeline, tmp_path) -> None:
    before = snapshot(pipeline.folder)
    attempt(
        run_eval_all.run,
        *pipeline.overrides,
        f"hydra.run.dir={tmp_path / 'run'}",
        f"eval.run_dir={pipeline.folder}",
        "dataset.max_train_rows=500",
    ).expect_error("was made from other data", "give the dataset settings of that run")
    assert snapshot(pipeline.folder) == before
    assert not (tmp_path / "run" / "metrics").exists()


def test_a_damaged_checkpoint_is_named(attempt, pipeline, tmp_path) -> None:
    run = shutil.copytree(pipeline.folder, tmp_path / "damaged")
    weights = run / "models" / "distill" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    attempt(
        run_eval_all.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}", f"eval.run_dir={run}"
    ).expect_error(f"{weights}: damaged file")


def test_an_unforeseen_error_is_one_line_too_and_says_how_to_see_more(attempt, here) -> None:
    def stage(cfg) -> float:
        raise ZeroDivisionError("first line\nsecond line")

    attempt(stage, *here).expect_error("ZeroDivisionError: first line (not a known mistake", "HYDRA_FULL_ERROR=1")


def test_ctrl_c_is_one_line(attempt, here) -> None:
    def stage(cfg) -> float:
        raise KeyboardInterrupt

    outcome = attempt(stage, *here)
    assert outcome.code == 130
    assert outcome.error_lines == ["error: interrupted; nothing was written yet, start the same command again"]
    assert "Traceback" not in outcome.err


# --- selection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        (
            run_distill.run,
            ["active=random", "distill.lambda=0", "distill.ed_weight=0"],
            "active.strategy=random: there is no loss to select samples for with distill.lambda=0",
        ),
        (
            run_distill.run,
            ["active=meta", "distill.alpha=0"],
            "active.strategy=meta: there is no loss to select samples for with distill.lambda=0.7, distill.alpha=0",
        ),
        (
            run_distill.run,
            ["active=meta", "distill.alpha=0", "distill.embedding=align"],
            "active.strategy=meta: needs the teacher's ranking",
        ),
        (
            run_teacher.run,
            ["teacher.export.rows=policy"],
            "teacher.export.rows=policy: active=all leaves no row out; use active=random, coverage or uncertainty",
        ),
        (
            run_teacher.run,
            ["teacher.export.rows=policy", "active=uncertainty", "active.measure=disagreement"],
            "active.measure=disagreement: needs the teacher's ranking, and there is none before the export",
        ),
        (
            run_teacher.run,
            ["teacher.export.student_checkpoint=x"],
            "teacher.export.student_checkpoint='x': must be null with teacher.export.rows=all",
        ),
        (
            run_study.run,
            ["study=curve", "distill.lambda=0"],
            "variant random_0.05: active.strategy=random: there is no loss to select samples for with distill.lambda=0",
        ),
    ],
)
def test_a_selection_that_could_do_nothing(attempt, pipeline, tmp_path, stage, overrides, message) -> None:
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    attempt(stage, *pipeline.overrides, folder, "general.overwrite=true", *overrides).expect_error(message)

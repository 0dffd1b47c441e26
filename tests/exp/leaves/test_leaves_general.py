"""`conf/config.yaml`, `paths`, `logging` and `metrics`: what all stages share, and what the commands that look read."""

import io
import shutil

import pytest
from harness import compose_config, read, refusal, run_here
from leaves_bench import Bench
from leaves_table import Effect, cases, refused
from raw_files import write_raw_files
from rich.console import Console

import src.core.logging as run_logging
from src.core.metrics import HISTORIES
from src.core.paths import RunFolder
from src.exp import export_onnx, gather, recommend, run_distill, run_eval_all, run_student_baseline
from src.exp.settings import parse_settings
from src.serving.recommender import Recommendation, Recommender


def _export_checkpoint(bench: Bench) -> None:
    message = bench.refused_stage(export_onnx.run, "export.checkpoint=nowhere/at/all")
    assert message.startswith("export.checkpoint=nowhere/at/all: no such folder; expected the folder of a student")


def _export_output(bench: Bench) -> None:
    target = bench.tmp / "served.onnx"
    given = f"export.checkpoint={bench.pipeline.folder / 'models' / 'baseline'}"
    assert run_here(export_onnx.run, given, f"export.output={target}", f"hydra.run.dir={bench.tmp / 'x'}") == 0
    assert target.is_file()


# --- general ------------------------------------------------------------------------------------------------


def _experiment_name(bench: Bench) -> None:
    folder = bench.stage(run_eval_all.run, "general.experiment_name=other", f"eval.run_dir={bench.pipeline.folder}")
    assert (folder / "report.md").read_text().startswith("# other: sample")


def _seed(bench: Bench) -> None:
    bench.file = "student/sasrec"
    assert bench.train().losses != bench.train("general.seed=1").losses


def _device(bench: Bench) -> None:
    message = bench.refused_stage(run_student_baseline.run, "general.device=abacus")
    assert message == "general.device=abacus: not a device; use cpu, cuda or cuda:<index>"


def _overwrite(bench: Bench) -> None:
    folder = bench.stage(run_student_baseline.run)
    message = bench.refused_stage(run_student_baseline.run, "general.seed=3", folder=folder)
    assert "or general.overwrite=true to make it again" in message
    assert read(folder / "metrics" / "eval_baseline.json")["seed"] == 42
    bench.stage(run_student_baseline.run, "general.seed=3", "general.overwrite=true", folder=folder)
    assert read(folder / "metrics" / "eval_baseline.json")["seed"] == 3


# --- eval, gather, recommend --------------------------------------------------------------------------------


def _run_dir(bench: Bench) -> None:
    other = bench.stage(run_student_baseline.run, "general.seed=5")
    for source, seed in ((other, 5), (bench.pipeline.folder, 42)):
        folder = bench.stage(run_eval_all.run, f"eval.run_dir={source}")
        assert read(folder / "metrics" / "eval_baseline.json")["seed"] == seed


def _seed_dirs(bench: Bench) -> None:
    other = bench.stage(run_student_baseline.run, "general.seed=5")
    given = (f"eval.run_dir={bench.pipeline.folder}", f"eval.seed_dirs=[{other}]")
    report = (bench.stage(run_eval_all.run, *given) / "report.md").read_text()
    assert "baseline: 2, distilled: 1" in report and "student, baseline, 2 seeds" in report
    message = bench.refused_stage(run_eval_all.run, *given[:1], f"eval.seed_dirs=[{bench.pipeline.folder}]")
    assert "has seed 42 once more; give runs of different seeds" in message


def _gather_sweep_dir(bench: Bench) -> None:
    message = bench.refused_stage(gather.run)
    assert message.startswith("gather.sweep_dir=null: must be the folder of a sweep")
    sweep = bench.tmp / "sweep"
    shutil.copytree(bench.pipeline.folder, sweep / "0")
    bench.stage(gather.run, f"gather.sweep_dir={sweep}")
    assert "| baseline" in (sweep / "sweep.md").read_text()


OWN_HISTORY = ("recommend.history=", "recommend.input=")


def _asked(bench: Bench, *overrides: str) -> list[tuple[str, float]]:
    """What `recommend` answers: item ids and scores."""
    answers: list[Recommendation] = []
    original = Recommender.recommend

    def noted(self, histories, **asked):  # type: ignore[no-untyped-def]
        found = original(self, histories, **asked)
        answers.extend(item for best in found for item in best)
        return found

    bench.patch.setattr(Recommender, "recommend", noted)
    bench.stage(
        recommend.run,
        f"recommend.checkpoint={bench.pipeline.folder / 'models' / 'baseline'}",
        *([] if any(word.startswith(OWN_HISTORY) for word in overrides) else ["recommend.history=['1','2']"]),
        *overrides,
    )
    bench.patch.setattr(Recommender, "recommend", original)
    return [(answer.item_id, answer.score) for answer in answers]


def _recommend_checkpoint(bench: Bench) -> None:
    other = bench.pipeline.folder / "models" / "distill"
    assert _asked(bench) != _asked(bench, f"recommend.checkpoint={other}")


def _recommend_history(bench: Bench) -> None:
    assert _asked(bench) != _asked(bench, "recommend.history=['3','4']")


def _recommend_top_k(bench: Bench) -> None:
    assert [len(_asked(bench, f"recommend.top_k={k}")) for k in (2, 7)] == [2, 7]


def _recommend_show_history(bench: Bench) -> None:
    everything = [_asked(bench, "recommend.top_k=200", f"recommend.show_history={show}") for show in (False, True)]
    assert [{"1", "2"} <= {item for item, _ in answer} for answer in everything] == [False, True]


def _recommend_input_and_output(bench: Bench) -> None:
    source, target = bench.tmp / "histories.csv", bench.tmp / "answers.csv"
    source.write_text("user,history\nu,1 2\n")
    assert _asked(bench, f"recommend.input={source}", f"recommend.output={target}") == _asked(bench)
    assert target.read_text().startswith("user,rank,item,title,score\nu,1,")


def _recommend_allowed(bench: Bench) -> None:
    answer = _asked(bench, "recommend.allowed=['3','7','9']", "recommend.top_k=3")
    assert {item for item, _ in answer} == {"3", "7", "9"}


def _recommend_unknown(bench: Bench) -> None:
    history = "recommend.history=['1','no such item','2']"
    assert _asked(bench, history, "recommend.unknown=skip") == _asked(bench)
    with pytest.raises(AssertionError):
        _asked(bench, history)


# --- paths, logging, metrics --------------------------------------------------------------------------------


def _data_dir(bench: Bench) -> None:
    data = bench.tmp / "data"
    write_raw_files("sample", data / "raw" / "sample")
    folder = bench.stage(run_student_baseline.run, f"paths.data_dir={data}", "student.batch_size=16")
    assert read(folder / "metrics" / "eval_baseline.json")["num_items"] == 9
    assert len(list((data / "processed" / "sample").glob("*/record.json"))) == 1


def _result_root(bench: Bench) -> None:
    root = bench.tmp / "elsewhere"
    overrides = [o for o in bench.pipeline.overrides if not o.startswith("paths.result_root")]
    assert run_here(run_student_baseline.run, *overrides, f"paths.result_root={root}") == 0
    (run,) = root.iterdir()
    assert run.name.startswith("result_") and (run / "metrics" / "eval_baseline.json").is_file()


def _teacher_outputs_dir(bench: Bench) -> None:
    bench.stage(run_distill.run)
    missing = bench.tmp / "nothing"
    message = bench.refused_stage(run_distill.run, f"paths.teacher_outputs_dir={missing}")
    assert message.startswith(f"{missing}: no teacher outputs")


def _level(bench: Bench) -> None:
    loud, quiet = (bench.stage(run_student_baseline.run, f"logging.level={level}") for level in ("INFO", "ERROR"))
    assert "epoch 1/2" in RunFolder(loud).log_file("baseline").read_text()
    assert RunFolder(quiet).log_file("baseline").read_text() == ""


def _tracker(bench: Bench) -> None:
    folders = {
        name: bench.stage(run_student_baseline.run, f"logging={name}") for name in ("tensorboard", "csv", "none")
    }
    kept = {name: sorted({"tb", "tracking"} & {p.name for p in folder.iterdir()}) for name, folder in folders.items()}
    assert kept == {"tensorboard": ["tb"], "csv": ["tracking"], "none": []}
    assert len(list((folders["tensorboard"] / "tb" / "baseline").iterdir())) == 1
    assert (folders["csv"] / "tracking" / "csv" / "baseline" / "summary.json").is_file()
    refused("logging.tracker=paper", "logging.tracker='paper': must be one of tensorboard, csv, wandb, mlflow")(bench)


def _of_tracker(name: str, **values: str) -> Effect:
    """The keys of a tracker's own choice: read where they are, refused where another tracker has no such key."""

    def effect(bench: Bench) -> None:
        words = [f"logging.{key}={value}" for key, value in values.items()]
        found = parse_settings(compose_config(f"logging={name}", *words)).logging
        assert {key: getattr(found, key) for key in values} == values
        for key, value in values.items():
            message = refusal(
                lambda word=f"+logging.{key}={value}": parse_settings(compose_config("logging=csv", word))
            )
            assert message.startswith(f"logging.{key}: unknown key")

    return effect


def _progress(bench: Bench) -> None:
    shown = {}
    for value in ("true", "false"):
        screen = io.StringIO()
        bench.patch.setattr(run_logging, "_console", Console(file=screen, force_terminal=True))
        bench.stage(run_student_baseline.run, f"logging.progress={value}")
        shown[value] = screen.getvalue()
    assert "━" in shown["true"] and "━" not in shown["false"]
    assert all("INFO" in text for text in shown.values())  # the log lines are shown either way


def _ks(bench: Bench) -> None:
    folder = bench.stage(run_student_baseline.run, "metrics.ks=[3,10]")
    names = read(folder / "metrics" / "eval_baseline.json")["metrics"].keys()
    assert names == {f"{m}@{k}" for m in ("recall", "ndcg", "hit_ratio") for k in (3, 10)} | {"mrr"}


def _monitor(bench: Bench) -> None:
    bench.file = "student/sasrec"
    for monitor in ("ndcg@10", "recall@20"):
        trained = bench.train(f"metrics.monitor={monitor}", "student.num_epochs=3")
        assert trained.description["info"]["monitor"] == monitor
        assert trained.result.best_value == max(r[f"valid/{monitor}"] for r in trained.result.history)


def _history(bench: Bench) -> None:
    """Another ranking picks the epoch, and a data set may choose it."""
    bench.file = "student/sasrec"
    shown, removed = (bench.train(f"metrics.history={history}", "student.num_epochs=3") for history in HISTORIES)
    assert shown.losses == removed.losses
    best = [max(record["valid/ndcg@10"] for record in trained.result.history) for trained in (shown, removed)]
    assert best[0] < best[1] and [shown.result.best_value, removed.result.best_value] == best
    chosen = [parse_settings(compose_config(*words)).metrics.history for words in CHOICES]
    assert chosen == ["shown", "removed", "removed", "shown", "shown"]
    refused("metrics.history=hidden", "metrics.history='hidden': must be one of shown, removed")(bench)


CHOICES = (
    ["dataset=movielens"],
    ["dataset.history=removed"],
    ["dataset=amazon_games"],
    ["dataset=amazon_games", "metrics.history=shown"],
    ["+experiment=dllm2rec_official"],
)
EFFECTS: dict[str, Effect] = {
    "general.experiment_name": _experiment_name,
    "general.seed": _seed,
    "general.device": _device,
    "general.overwrite": _overwrite,
    "eval.run_dir": _run_dir,
    "eval.seed_dirs": _seed_dirs,
    "gather.sweep_dir": _gather_sweep_dir,
    "recommend.checkpoint": _recommend_checkpoint,
    "recommend.history": _recommend_history,
    "recommend.top_k": _recommend_top_k,
    "recommend.show_history": _recommend_show_history,
    "recommend.input": _recommend_input_and_output,
    "recommend.output": _recommend_input_and_output,
    "recommend.allowed": _recommend_allowed,
    "recommend.unknown": _recommend_unknown,
    "export.checkpoint": _export_checkpoint,
    "export.output": _export_output,
    "paths.data_dir": _data_dir,
    "paths.result_root": _result_root,
    "paths.teacher_outputs_dir": _teacher_outputs_dir,
    "logging.level": _level,
    "logging.tracker": _tracker,
    "logging.project": _of_tracker("wandb", project="p"),
    "logging.mode": _of_tracker("wandb", mode="offline"),
    "logging.experiment": _of_tracker("mlflow", experiment="e"),
    "logging.uri": _of_tracker("mlflow", uri="http://server"),
    "logging.progress": _progress,
    "metrics.ks": _ks,
    "metrics.monitor": _monitor,
    "metrics.history": _history,
}


@pytest.mark.parametrize(("file", "entry"), cases(EFFECTS), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file
    EFFECTS[entry](bench)

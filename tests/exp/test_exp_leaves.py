"""Every leaf of `conf/` does something.

`EFFECTS` names each leaf, as `group.key` or, where one file needs its own, as `group/file:key`, and the function
that changes it and shows what differs: other numbers, other files, or a refusal that names the key. Leaves are
found by glob: a leaf without an entry fails, and so does an entry without a leaf.
"""

import importlib
import io
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from harness import CONF, SAMPLE, TINY_STUDENT, TINY_TEACHER, compose_config, places, read, refusal, run_here
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from raw_files import write_raw_files
from rich.console import Console
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import src.core.logging as run_logging
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.errors import UserError
from src.core.paths import RunFolder
from src.core.teacher_files import read_manifest
from src.distill import trainer_distill
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import TeacherTable
from src.distill.selection_policy import build_selection_policy
from src.distill.trainer_distill import train_distilled
from src.exp import (
    gather,
    recommend,
    run_arms,
    run_distill,
    run_eval_all,
    run_student_baseline,
    run_teacher,
    selection_curve,
)
from src.exp.settings import TEACHERS, Settings, parse_settings
from src.exp.sweep import Job
from src.student import serving
from src.student.context import Resume
from src.student.serving import Recommendation
from src.student.trainer_baseline import train_baseline
from src.student.training import FitResult
from src.teacher import ilora_backend
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import ILoRATeacher
from src.teacher.scoring.answers import generate_answers

CPU = torch.device("cpu")
QUIET = logging.getLogger("leaves")
JOBLIB = "hydra_plugins.hydra_joblib_launcher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
PER_FILE = ("dataset", "student", "distill", "active")  # each file of these groups is another program: try all


# --- leaves of conf/ ----------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Leaf:
    """A value in a YAML: `file` as group/name, `key` from the root of the configuration."""

    file: str
    key: str

    @property
    def group(self) -> str:
        return self.file.split("/")[0]


def _flatten(node: object, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [leaf for key, value in node.items() for leaf in _flatten(value, f"{prefix}.{key}" if prefix else key)]


def find_leaves() -> list[Leaf]:
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


# --- what the effects use -----------------------------------------------------------------------------------


class Recorder:
    """A TensorBoard writer that keeps what it is told."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value))

    def close(self) -> None:
        pass

    def values(self, tag: str) -> list[float]:
        return [value for name, value in self.scalars if name == tag]


@dataclass(frozen=True)
class Trained:
    """A finished training: its history, the checkpoint's weights and description."""

    result: FitResult
    weights: dict[str, torch.Tensor]
    description: dict

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.result.history]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.weights.items()}


@dataclass
class Bench:
    """Small runs at the level that an effect needs; `file` is the YAML whose leaf is tried."""

    tmp: Path
    patch: pytest.MonkeyPatch
    request: pytest.FixtureRequest
    file: str
    taught: dict[tuple[str, ...], "Taught"]
    runs: int = field(default=0)

    def folder(self) -> Path:
        self.runs += 1
        return self.tmp / f"run{self.runs}"

    @property
    def choice(self) -> str:
        group, name = self.file.split("/")
        return f"{group}={name}"

    @property
    def pipeline(self):  # type: ignore[no-untyped-def]
        return self.request.getfixturevalue("pipeline")

    # students

    def settings(self, *overrides: str) -> Settings:
        small = [*TINY_STUDENT, "dataset.max_train_rows=200", "student.batch_size=64", "distill.batch_size=64"]
        mine = [self.choice] if self.file.split("/")[0] in ("student", "distill", "active") else []
        return parse_settings(compose_config(*small, *mine, f"paths.data_dir={self.tmp}", *overrides))

    def sample(self, settings: Settings) -> SequenceDataset:
        return load_dataset(replace(settings.dataset, raw_dir=str(SAMPLE)), self.tmp / "data", QUIET)

    def _trained(self, folder: Path, result: FitResult) -> Trained:
        return Trained(result, load_file(folder / "model.safetensors"), read(folder / "config.json"))

    def train(self, *overrides: str) -> Trained:
        """The baseline, on 200 rows."""
        settings, folder = self.settings(*overrides), self.folder()
        result = train_baseline(
            settings.student,
            self.sample(settings),
            settings.metrics,
            folder,
            settings.general.seed,
            CPU,
            QUIET,
            Recorder(),
            Resume(folder / "last_state.pt"),
        )
        return self._trained(folder, result)

    def distil(self, *overrides: str) -> Trained:
        """The distillation, on 200 rows with an invented teacher."""
        settings, folder = self.settings(*overrides), self.folder()
        dataset = self.sample(settings)
        random = torch.Generator().manual_seed(0)
        ranking = torch.stack([torch.randperm(dataset.num_items, generator=random)[:6] for _ in range(200)])
        confidence = torch.rand(200, 6, generator=random).sort(1).values
        top_k = settings.distill.top_k if settings.distill.confidence == "per_candidate" else 1
        outputs = TeacherOutputs(
            torch.randn(dataset.num_items, 5, generator=random),
            ranking[:, : settings.distill.top_k],
            confidence[:, :top_k],
            None,
        )
        result = train_distilled(
            settings.distill,
            settings.student,
            dataset,
            outputs,
            build_selection_policy(OmegaConf.create(vars(settings.active)), dataset, settings.general.seed),
            None,
            settings.metrics,
            folder,
            settings.general.seed,
            CPU,
            QUIET,
            Recorder(),
        )
        return self._trained(folder, result)

    # data sets

    def load(self, *overrides: str, raw: Path | None = None) -> SequenceDataset:
        """The data set of this file, from invented raw files."""
        name = self.file.split("/")[1]
        data = self.tmp / "data"
        if not (data / "raw" / name).is_dir():
            write_raw_files(name, data / "raw" / name)
        where = [f"dataset.raw_dir={raw}"] if raw else []
        settings = parse_settings(compose_config(self.choice, *where, *overrides))
        return load_dataset(settings.dataset, data, QUIET)

    # stages

    def stage(self, function: Callable, *overrides: str, folder: Path | None = None) -> Path:
        """A whole stage in this process, in a new folder next to the shared pipeline's data."""
        folder = folder or self.folder()
        assert run_here(function, *self.pipeline.overrides, f"hydra.run.dir={folder}", *overrides) == 0
        return folder

    def refused_stage(self, function: Callable, *overrides: str) -> str:
        message = []
        self.patch.setattr("src.exp.stage._fail", lambda text, code: message.append(text))
        run_here(function, *self.pipeline.overrides, f"hydra.run.dir={self.folder()}", *overrides)
        assert len(message) == 1
        return message[0]

    # teachers

    def teacher(self, *overrides: str, tiny: bool = True) -> tuple[ILoRATeacher, object, RunFolder]:
        chosen = [o for o in TINY_TEACHER if tiny or not o.startswith(("teacher=", "teacher.tiny."))]
        base = [
            "dataset=sample",
            "dataset.max_train_rows=40",
            f"dataset.raw_dir={SAMPLE}",
            f"paths.data_dir={self.tmp / 'data'}",
            *chosen,
            "teacher.batch_size=8",
            "teacher.micro_batch_size=4",
            "teacher.max_train_rows=16",
            "teacher.max_valid_rows=4",
            "teacher.max_eval_rows=4",
            "teacher.recommender.batch_size=32",
            *(["teacher.tiny.pretrain_steps=1"] if tiny else ["teacher=ilora", "teacher.dtype=float32"]),
        ]
        folder = RunFolder(self.folder())
        cfg = compose_config(*base, f"paths.teacher_outputs_dir={folder.root / 'outputs'}", *overrides)
        settings = parse_settings(cfg)
        dataset = load_dataset(settings.dataset, self.tmp / "data", QUIET)
        teacher = build_teacher(settings, dataset=dataset, folder=folder, device=CPU)
        return teacher, settings, folder  # type: ignore[return-value]

    def teach(self, *overrides: str, fresh: bool = False, tiny: bool = True) -> "Taught":
        """A trained teacher, one for equal overrides; `fresh` trains another."""
        if fresh or overrides not in self.taught:
            teacher, cfg, folder = self.teacher(*overrides, tiny=tiny)
            writer = Recorder()
            teacher.train(cfg, QUIET, writer)
            self.taught[overrides] = Taught(teacher, cfg, folder, writer)
        return self.taught[overrides]


@dataclass(frozen=True)
class Taught:
    """A trained tiny teacher."""

    teacher: ILoRATeacher
    cfg: object
    folder: RunFolder
    writer: Recorder

    @property
    def losses(self) -> list[float]:
        return self.writer.values("train/loss")

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder.model_dir("teacher") / "adapter" / "adapter_model.safetensors")

    @property
    def recommender(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder.model_dir("teacher") / "recommender" / "model.safetensors")

    @property
    def llm(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder.model_dir("teacher") / "llm" / "model.safetensors")

    @property
    def llm_config(self) -> dict:
        return read(self.folder.model_dir("teacher") / "llm" / "config.json")

    def export(self) -> Path:
        outputs = self.folder.root / "outputs"
        if not outputs.is_dir():
            self.teacher.export_for_dllm2rec(self.cfg, QUIET)
        return outputs


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


Effect = Callable[[Bench], None]


def refused(override: str, message: str) -> Effect:
    """The settings refuse the override with a message that begins like this."""

    def effect(bench: Bench) -> None:
        assert refusal(lambda: parse_settings(compose_config(bench.choice, override))).startswith(message)

    return effect


# --- general, eval, paths, logging, metrics, active, hydra --------------------------------------------------


def _experiment_name(bench: Bench) -> None:
    folder = bench.stage(run_eval_all.run, "general.experiment_name=other", f"eval.run_dir={bench.pipeline.folder}")
    assert (folder / "report.md").read_text().startswith("# other: sample")


def _seed(bench: Bench) -> None:
    bench.file = "student/sasrec"
    assert bench.train().losses == bench.train().losses != bench.train("general.seed=1").losses


def _device(bench: Bench) -> None:
    message = bench.refused_stage(run_student_baseline.run, "general.device=abacus")
    assert message == "general.device=abacus: not a device; use cpu, cuda or cuda:<index>"


def _overwrite(bench: Bench) -> None:
    folder = bench.stage(run_student_baseline.run)
    again = (run_student_baseline.run, *bench.pipeline.overrides, f"hydra.run.dir={folder}", "general.seed=3")
    assert run_here(*again) == 1
    assert read(folder / "metrics" / "eval_baseline.json")["seed"] == 42
    assert run_here(*again, "general.overwrite=true") == 0
    assert read(folder / "metrics" / "eval_baseline.json")["seed"] == 3


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
    shutil.copytree(bench.pipeline.folder / "metrics", sweep / "0" / "metrics")
    Job(sweep / "0", "run_student_baseline", {}, {"general.seed": 42}).write(0.5, None)
    bench.stage(gather.run, f"gather.sweep_dir={sweep}")
    assert "| baseline | " in (sweep / "sweep.md").read_text()


def _asked(bench: Bench, *overrides: str) -> list[tuple[str, float]]:
    """What `recommend` answers: item ids and scores."""
    answers: list[Recommendation] = []
    bench.patch.setattr("src.exp.recommend.Console.print", lambda self, table: None)
    original = serving.recommend
    bench.patch.setattr("src.exp.recommend.recommend", lambda *args: answers.extend(original(*args)) or answers)
    folder = f"recommend.checkpoint={bench.pipeline.folder / 'models' / 'baseline'}"
    base = (*bench.pipeline.overrides, f"hydra.run.dir={bench.folder()}", folder, "recommend.history=['1','2']")
    assert run_here(recommend.run, *base, *overrides) == 0
    return [(answer.item_id, answer.score) for answer in answers]


def _recommend_checkpoint(bench: Bench) -> None:
    other = bench.pipeline.folder / "models" / "distill"
    assert _asked(bench) != _asked(bench, f"recommend.checkpoint={other}")


def _recommend_history(bench: Bench) -> None:
    assert _asked(bench) != _asked(bench, "recommend.history=['3','4']")


def _recommend_top_k(bench: Bench) -> None:
    assert [len(_asked(bench, f"recommend.top_k={k}")) for k in (2, 7)] == [2, 7]


def _recommend_show_history(bench: Bench) -> None:
    everything = [_asked(bench, "recommend.top_k=198", f"recommend.show_history={show}") for show in (False, True)]
    assert [{"1", "2"} <= {item for item, _ in answer} for answer in everything] == [False, True]


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


def _tensorboard(bench: Bench) -> None:
    on, off = (bench.stage(run_student_baseline.run, f"logging.tensorboard={value}") for value in ("true", "false"))
    assert len(list((on / "tb" / "baseline").iterdir())) == 1
    assert not (off / "tb").exists()


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


def _curve(bench: Bench) -> None:
    """One point besides those that are always there, with the seed, policy and share that were asked for."""
    asked = ("curve.policies=[student_loss]", "curve.shares=[0.2]", "curve.seeds=[3]", "distill.num_epochs=1")
    folder = bench.stage(selection_curve.run, *asked, "student.num_epochs=1")
    frame = pd.read_csv(folder / "metrics" / "selection_curve.csv")
    assert frame["policy"].tolist() == ["baseline", "no row", "all rows", "student_loss"]
    assert frame["rows"].tolist() == [0, 0, 600, 120] and set(frame["seed"]) == {3}
    assert "0.2" in (folder / "metrics" / "selection_curve.md").read_text()
    assert (folder / "plots" / "selection_curve.png").stat().st_size > 1000


def _refused_curve(override: str, message: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert refusal(lambda: parse_settings(compose_config(override))).startswith(message)

    return effect


def _where(bench: Bench, *overrides: str) -> list[tuple[Path, Path]]:
    """Run folder and working folder of the jobs of a stage that does nothing."""
    places_seen: list[tuple[Path, Path]] = []

    def stage(cfg) -> None:  # type: ignore[no-untyped-def]
        places_seen.append((Path(HydraConfig.get().runtime.output_dir), Path.cwd()))

    assert run_here(stage, *overrides, f"paths.result_root={bench.tmp}") == 0
    return places_seen


def _hydra_run_dir(bench: Bench) -> None:
    assert _where(bench, f"hydra.run.dir={bench.tmp / 'mine'}")[0][0] == bench.tmp / "mine"
    assert _where(bench)[0][0].name.startswith("result_")


def _sweep_dir(bench: Bench) -> None:
    (job,) = _where(bench, "-m", f"hydra.sweep.dir={bench.tmp / 'mine'}")
    assert job[0] == bench.tmp / "mine" / "0"


def _sweep_subdir(bench: Bench) -> None:
    (job,) = _where(bench, "-m", f"hydra.sweep.dir={bench.tmp / 'mine'}", "hydra.sweep.subdir=job${hydra.job.num}")
    assert job[0] == bench.tmp / "mine" / "job0"


def _refused_jobs(bench: Bench, *overrides: str) -> tuple[str, int]:
    """The last error line of a sweep whose jobs all fail, and how many jobs were tried."""
    tried: list[int] = []
    lines: list[str] = []
    bench.patch.setattr("src.exp.stage._fail", lambda text, code: lines.append(text))

    def stage(cfg) -> None:  # type: ignore[no-untyped-def]
        tried.append(cfg.general.seed)
        raise UserError("no luck")

    run_here(stage, "-m", f"hydra.sweep.dir={bench.folder()}", *overrides)
    return lines[-1], len(tried)


def _sweep_callback(bench: Bench) -> None:
    seeds = "general.seed=1,2"
    assert _refused_jobs(bench, seeds)[0].startswith("2 of 2 jobs failed: 0 (general.seed=1), 1 (general.seed=2)")
    without = "hydra.callbacks.sweep._target_=hydra.experimental.callback.Callback"
    assert _refused_jobs(bench, seeds, without) == ("no luck", 2)


def _launcher(plugin: str, executor: str, key: str, value: int) -> Effect:
    """What the launcher hands to the program that starts the jobs, which is not started here."""

    def effect(bench: Bench) -> None:
        pytest.importorskip(plugin)
        seen: list[dict] = []

        class Executor:
            def __init__(self, *args, **parameters) -> None:  # type: ignore[no-untyped-def]
                seen.append(parameters)

            def update_parameters(self, **parameters) -> None:  # type: ignore[no-untyped-def]
                seen.append(parameters)

        module, _, name = executor.rpartition(".")
        bench.patch.setattr(importlib.import_module(module), name, Executor)
        for given in ([], [f"hydra.launcher.{key}={value}"]):
            choice = f"hydra/launcher={bench.file.split('/')[-1]}"
            assert run_here(lambda cfg: None, "-m", choice, f"hydra.sweep.dir={bench.folder()}", *given) == 1
        before, after = (parameters[key] for parameters in seen if key in parameters)
        assert before != after == value

    return effect


def _tuned(bench: Bench, *overrides: str) -> list[float]:
    """The values that the Optuna sweeper tried for `student.dropout`, which is the value that it optimises."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    tried: list[float] = []

    def stage(cfg) -> float:  # type: ignore[no-untyped-def]
        tried.append(cfg.student.dropout)
        return tried[-1]

    base = ("-m", "hydra/sweeper=tune", "student.dropout=interval(0,0.5)", f"hydra.sweep.dir={bench.folder()}")
    assert run_here(stage, *base, "hydra.sweeper.n_trials=2", *overrides) == 0
    return tried


def _direction(bench: Bench) -> None:
    for direction, best in (("maximize", max), ("minimize", min)):
        folder = bench.tmp / direction
        tried = _tuned(bench, f"hydra.sweeper.direction={direction}", f"hydra.sweep.dir={folder}")
        assert OmegaConf.load(folder / "optimization_results.yaml").best_value == best(tried)


def _n_trials(bench: Bench) -> None:
    assert [len(_tuned(bench, f"hydra.sweeper.n_trials={n}")) for n in (1, 2)] == [1, 2]


def _trials_at_a_time(bench: Bench) -> None:
    """A batch of trials is asked for before any of them is told."""
    optuna = pytest.importorskip("optuna")
    events: list[str] = []

    def noting(name: str) -> Callable:
        method = getattr(optuna.Study, name)
        return lambda *args, **keys: events.append(name) or method(*args, **keys)

    for name in ("ask", "tell"):
        bench.patch.setattr(optuna.Study, name, noting(name))
    _tuned(bench)
    _tuned(bench, "hydra.sweeper.n_jobs=2")
    assert events == ["ask", "tell", "ask", "tell", "ask", "ask", "tell", "tell"]


def _max_failure_rate(bench: Bench) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    base = ("hydra/sweeper=tune", "hydra.sweeper.n_trials=2", "student.dropout=interval(0,0.5)")
    assert _refused_jobs(bench, *base)[1] == 2
    assert _refused_jobs(bench, *base, "hydra.sweeper.max_failure_rate=0.0")[1] == 1


def _sampler_seed(bench: Bench) -> None:
    assert _tuned(bench) == _tuned(bench) != _tuned(bench, "hydra.sweeper.sampler.seed=1")


def _chdir(bench: Bench) -> None:
    ((folder, inside),) = _where(bench)
    ((_, outside),) = _where(bench, "hydra.job.chdir=false", f"hydra.run.dir={bench.tmp / 'other'}")
    assert inside == folder and outside == Path.cwd()


def _output_subdir(bench: Bench) -> None:
    assert not list(_where(bench)[0][0].iterdir())
    folder = _where(bench, "hydra.output_subdir=mine", f"hydra.run.dir={bench.tmp / 'other'}")[0][0]
    assert (folder / "mine" / "config.yaml").is_file()


# --- data sets ----------------------------------------------------------------------------------------------


def _dataset_max_seq_len(bench: Bench) -> None:
    name = bench.file.split("/")[1]
    raw = write_raw_files(name, bench.tmp / "raw")
    width = []
    for length in (2, 3):
        small = [*TINY_STUDENT, "student.batch_size=4"]
        overrides = [*small, bench.choice, f"dataset.raw_dir={raw}", f"dataset.max_seq_len={length}"]
        folder = bench.folder()
        where = places(bench.tmp / "data", bench.tmp, folder)
        assert run_here(run_student_baseline.run, *overrides, *where) == 0
        width.append(read(folder / "models" / "baseline" / "config.json")["model"]["max_seq_len"])
    assert width == [2, 3]


def _min_user_inter(bench: Bench) -> None:
    assert bench.load().num_users == 24
    assert bench.load("dataset.min_user_inter=7").num_users == 8  # every third user has 7 items


def _split_method(bench: Bench) -> None:
    leave_one_out, temporal = bench.load(), bench.load("dataset.split.method=temporal")
    assert leave_one_out.fingerprint != temporal.fingerprint
    assert (len(leave_one_out.test), len(temporal.test)) == (24, 12)  # one a user; a tenth of 120 rows


def _raw_dir(bench: Bench) -> None:
    other = write_raw_files(bench.file.split("/")[1], bench.tmp / "other", num_users=12)
    assert (bench.load().num_users, bench.load(raw=other).num_users) in ((24, 12), (216, 108))


def _max_train_rows(bench: Bench) -> None:
    whole, part = bench.load(), bench.load("dataset.max_train_rows=7")
    assert len(whole.train) > 7 == len(part.train)
    assert whole.fingerprint != part.fingerprint


def _version(bench: Bench) -> None:
    assert (bench.load().num_users, bench.load("dataset.version=1m").num_users) == (24, 12)


def _renamed(bench: Bench, file: str) -> Path:
    raw = write_raw_files("csv", bench.tmp / "other")
    (raw / file).rename(raw / "renamed")
    return raw


def _interactions_file(bench: Bench) -> None:
    raw = _renamed(bench, "interactions.csv")
    assert bench.load("dataset.interactions_file=renamed", raw=raw).num_users == 24
    assert "missing interactions.csv" in refusal(lambda: bench.load(raw=raw))


def _titles_file(bench: Bench) -> None:
    raw = _renamed(bench, "items.csv")
    assert bench.load("dataset.titles_file=renamed", raw=raw).titles[0] == "Title 0"
    assert "missing items.csv" in refusal(lambda: bench.load(raw=raw))


def _separator(bench: Bench) -> None:
    raw = write_raw_files("csv", bench.tmp / "other")
    for path in raw.iterdir():
        path.write_text(path.read_text().replace(",", ";"))
    assert bench.load("dataset.separator=';'", raw=raw).num_users == 24
    assert "items.csv" in refusal(lambda: bench.load(raw=raw))


def _column(key: str) -> Effect:
    def effect(bench: Bench) -> None:
        raw = write_raw_files("csv", bench.tmp / "other")
        for path in raw.iterdir():
            header, _, rest = path.read_text().partition("\n")
            names = ["renamed" if name == key else name for name in header.split(",")]
            path.write_text(",".join(names) + "\n" + rest)
        assert bench.load(f"dataset.columns.{key}=renamed", raw=raw).fingerprint == bench.load().fingerprint
        assert repr(key) in refusal(lambda: bench.load(raw=raw))

    return effect


# --- students -----------------------------------------------------------------------------------------------


def _other_training(*overrides: str) -> Effect:
    """Other losses than with the defaults."""

    def effect(bench: Bench) -> None:
        assert bench.train().losses == bench.train().losses != bench.train(*overrides).losses

    return effect


def _other_training_than(common: str, change: str) -> Effect:
    """Other losses than with what the leaf belongs to."""

    def effect(bench: Bench) -> None:
        assert bench.train(common).losses != bench.train(common, change).losses

    return effect


def _two_trainings(one: str, other: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert bench.train(one).losses == bench.train(one).losses != bench.train(other).losses

    return effect


def _other_shapes(key: str) -> Effect:
    def effect(bench: Bench) -> None:
        small, large = bench.train(f"{key}=4"), bench.train(f"{key}=12")
        assert small.shapes != large.shapes
        assert {4, 12} == {t.description["model"][key.split(".")[1]] for t in (small, large)}

    return effect


def _student_max_seq_len(bench: Bench) -> None:
    short, long = bench.train("student.max_seq_len=4"), bench.train("student.max_seq_len=10")
    assert (short.description["model"]["max_seq_len"], long.description["model"]["max_seq_len"]) == (4, 10)
    assert short.losses != long.losses


def _student_num_epochs(bench: Bench) -> None:
    assert [len(bench.train(f"student.num_epochs={n}").losses) for n in (1, 3)] == [1, 3]


def _patience(bench: Bench) -> None:
    still = ("student.lr=1e-30", "student.num_epochs=6")  # never better than in the first epoch
    assert [len(bench.train(*still, f"student.patience={n}").losses) for n in (1, 3)] == [2, 4]


# --- distillation -------------------------------------------------------------------------------------------


def _other_distillation(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert bench.distil().losses == bench.distil().losses != bench.distil(*overrides).losses

    return effect


def _student_save_interval(bench: Bench) -> None:
    """With a learning rate that improves nothing: each epoch, or the first (the best) and the last."""
    saves: list[Path] = []
    bench.patch.setattr(Resume, "save", lambda self, progress, parts: saves.append(self.file))
    counts = []
    for interval in (1, 9):
        saves.clear()
        bench.train("student.num_epochs=4", "student.lr=1e-30", f"student.save_interval={interval}")
        counts.append(len(saves))
    assert counts == [4, 2]


def _other_confidence(bench: Bench) -> None:
    one, other = (bench.distil(f"distill.confidence=per_{name}") for name in ("candidate", "sequence"))
    assert one.losses != other.losses


def _teacher_table(bench: Bench) -> None:
    """Other rounding, and the table lies where the key says."""
    tables: list[TeacherTable] = []
    original = trainer_distill.TeacherTable

    def make(*args) -> TeacherTable:  # type: ignore[no-untyped-def]
        tables.append(original(*args))
        return tables[-1]

    bench.patch.setattr(trainer_distill, "TeacherTable", make)
    full, half, _ = (bench.distil(f"distill.teacher_table={kind}") for kind in ("float32", "bfloat16", "cpu"))
    assert full.losses != half.losses
    assert [table.embeddings.dtype for table in tables] == [torch.float32, torch.bfloat16, torch.float32]
    assert TeacherTable(tables[0].embeddings, "cpu", torch.device("meta")).embeddings.device.type == "cpu"
    assert TeacherTable(tables[0].embeddings, "float32", torch.device("meta")).embeddings.device.type == "meta"


def _engine(bench: Bench) -> None:
    """The other engine is the original program, which is not there, or fixes what this run sets otherwise."""
    assert "distill.engine=submodule" in bench.refused_stage(run_distill.run, bench.choice, "distill.engine=submodule")


def _distill_num_epochs(bench: Bench) -> None:
    assert [len(bench.distil(f"distill.num_epochs={n}").losses) for n in (1, 3)] == [1, 3]


STILL = ("distill.lambda=0", "distill.ed_weight=0", "distill.num_epochs=1", "distill.lr=1e-30")


def _started(bench: Bench, *overrides: str) -> torch.Tensor:
    folder = bench.stage(run_distill.run, bench.choice, *STILL, *overrides)
    return load_file(folder / "models" / "distill" / "model.safetensors")["output.weight"]


def _init(bench: Bench) -> None:
    baseline = load_file(bench.pipeline.folder / "models" / "baseline" / "model.safetensors")["output.weight"]
    assert torch.allclose(_started(bench, "distill.init=baseline"), baseline)
    assert not torch.allclose(_started(bench, "distill.init=scratch"), baseline)


def _init_checkpoint(bench: Bench) -> None:
    other = bench.stage(run_student_baseline.run, "general.seed=9") / "models" / "baseline"
    started = _started(bench, "distill.init=baseline", f"distill.init_checkpoint={other}")
    assert torch.allclose(started, load_file(other / "model.safetensors")["output.weight"])


# --- teacher ------------------------------------------------------------------------------------------------


def _llm_path(bench: Bench) -> None:
    """A folder of the ordinary layout is used as it is; anything else is refused, with what is expected."""
    llm, missing = bench.pipeline.folder / "models" / "teacher" / "llm", bench.tmp / "nothing"
    taught = bench.teach(f"teacher.llm_path={llm}", tiny=False)
    assert taught.losses and not (taught.folder.model_dir("teacher") / "llm").exists()
    assert read_manifest(taught.export()).base_model == "llm"
    message = refusal(lambda: bench.teach(f"teacher.llm_path={missing}", tiny=False))
    assert message.startswith(f"teacher.llm_path={missing}: no such folder; expected a local Hugging Face folder")


def _teacher_engine(bench: Bench) -> None:
    """`submodule` is refused where iLoRA is not checked out; `auto` then takes ours."""
    bench.patch.setenv("ILORA_DIR", str(bench.tmp / "nothing"))
    assert refusal(lambda: bench.teacher("teacher.engine=submodule")).startswith("teacher.engine=submodule: ")
    assert bench.teacher("teacher.engine=auto")[0].engine == "native"


def _init_adapter(bench: Bench) -> None:
    """Training goes on from another adapter of the same base model."""
    llm = bench.pipeline.folder / "models" / "teacher" / "llm"
    first = bench.teach(f"teacher.llm_path={llm}", tiny=False)
    adapter = first.folder.model_dir("teacher") / "adapter"
    second = bench.teach(f"teacher.llm_path={llm}", f"teacher.init_adapter={adapter}", tiny=False)
    assert second.losses[0] != first.losses[0]
    assert refusal(lambda: bench.teach(f"teacher.init_adapter={bench.tmp / 'nothing'}")).startswith(str(bench.tmp))


def _rec_model_path(bench: Bench) -> None:
    own = bench.teach()
    given = own.folder.model_dir("teacher") / "recommender"
    other = bench.teach(f"teacher.rec_model_path={given}", "general.seed=3")
    assert not (other.folder.model_dir("teacher") / "recommender").exists()
    assert other.losses != bench.teach("general.seed=3").losses


def _steps(*overrides: str, expected: int) -> Effect:
    """16 rows in batches of 8 are 2 steps; with the overrides another number."""

    def effect(bench: Bench) -> None:
        assert (len(bench.teach().losses), len(bench.teach(*overrides).losses)) == (2, expected)

    return effect


def _other_teaching(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert bench.teach().losses != bench.teach(*overrides).losses

    return effect


def _teacher_weight_decay(bench: Bench) -> None:
    assert not same(bench.teach().adapter, bench.teach("teacher.weight_decay=10").adapter)


def _max_eval_rows(bench: Bench) -> None:
    for count in (3, 5):
        taught = bench.teach(f"teacher.max_eval_rows={count}")
        taught.teacher.evaluate(taught.cfg, QUIET)
        assert read(taught.folder.eval_file("teacher"))["num_users"] == count


def _max_valid_rows(bench: Bench) -> None:
    answered: list[int] = []

    def answer(teacher, rows, index, *, seed):  # type: ignore[no-untyped-def]
        answered.append(len(index))
        return generate_answers(teacher, rows, index, seed=seed)

    bench.patch.setattr(ilora_backend, "generate_answers", answer)
    for count in (3, 5):
        bench.teach(f"teacher.max_valid_rows={count}", "teacher.num_epochs=2", fresh=True)
    assert answered == [3, 3, 5, 5]  # after each epoch


def _saved_steps(bench: Bench, *overrides: str) -> list[int]:
    """After which of 6 steps, 2 an epoch, the state of the adapter's training was saved."""
    steps: list[int] = []
    with bench.patch.context() as patch:
        patch.setattr(Resume, "save", lambda self, progress, parts: steps.append(progress.get("step")))
        bench.teach("teacher.num_epochs=3", *overrides, fresh=True)
    return [step for step in steps if step is not None]  # the recommender saves its own state


def _save_interval(bench: Bench) -> None:
    """Always after the last step, and before it after some epochs."""
    saved = [_saved_steps(bench, f"teacher.save_interval={interval}") for interval in (1, 2, 5)]
    assert saved == [[2, 4, 6], [4, 6], [6]]


def _save_steps(bench: Bench) -> None:
    assert _saved_steps(bench, "teacher.save_interval=5", "teacher.save_steps=4") == [4, 6]
    assert _saved_steps(bench, "teacher.save_interval=5", "teacher.save_steps=1") == [1, 2, 3, 4, 5, 6]


def _dtype(bench: Bench) -> None:
    full, half = bench.teach(), bench.teach("teacher.dtype=bfloat16")
    assert [t.teacher._loaded().lm.lora.llm.dtype for t in (full, half)] == [torch.float32, torch.bfloat16]
    assert full.losses != half.losses


def _gradient_checkpointing(bench: Bench) -> None:
    """The backward pass runs the layers again, and the numbers stay."""
    calls = [0]
    original = LlamaDecoderLayer.forward

    def forward(self, *args, **options):  # type: ignore[no-untyped-def]
        calls[0] += self.training
        return original(self, *args, **options)

    bench.patch.setattr(LlamaDecoderLayer, "forward", forward)
    counts, losses = [], []
    for value in ("false", "true"):
        calls[0] = 0
        losses.append(bench.teach(f"teacher.gradient_checkpointing={value}", fresh=True).losses)
        counts.append(calls[0])
    pretraining = 3  # layers, in one step
    assert counts[1] - pretraining == 2 * (counts[0] - pretraining) > 0
    assert losses[0] == pytest.approx(losses[1])


def _lora_r(bench: Bench) -> None:
    ranks = []
    for rank in (2, 4):
        adapter = bench.teach(f"teacher.lora.r={rank}").adapter
        ranks.append(next(t for name, t in adapter.items() if "lora_A" in name).shape[0])
    assert ranks == [2, 4]


def _num_experts(bench: Bench) -> None:
    gates = []
    for count in (2, 4):
        adapter = bench.teach(f"teacher.lora.num_experts={count}").adapter
        gates.append(next(t for name, t in adapter.items() if "gate.weight" in name).shape[0])
    assert gates == [2, 4]


def _other_recommender(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert not same(bench.teach().recommender, bench.teach(*overrides).recommender)

    return effect


def _recommender_epochs(bench: Bench) -> None:
    for count in (1, 3):
        taught = bench.teach(f"teacher.recommender.num_epochs={count}")
        assert len(taught.writer.values("recommender/loss_ce")) == count


def _recommender_patience(bench: Bench) -> None:
    still = ("teacher.recommender.lr=1e-30", "teacher.recommender.num_epochs=6")
    for patience, epochs in ((1, 2), (3, 4)):
        taught = bench.teach(*still, f"teacher.recommender.patience={patience}")
        assert len(taught.writer.values("recommender/loss_ce")) == epochs


def _export_method(bench: Bench) -> None:
    written = [bench.teach(f"teacher.export.method={m}").export() for m in ("likelihood", "generate")]
    assert [read_manifest(folder).method for folder in written] == ["likelihood", "generate"]
    one, other = (np.loadtxt(folder / "myrank_train.txt") for folder in written)
    assert one.shape == other.shape and (one != other).any()


def _top_n(bench: Bench) -> None:
    for count in (2, 5):
        folder = bench.teach(f"teacher.export.top_n={count}").export()
        assert np.loadtxt(folder / "myrank_train.txt").shape == (40, count)


def _confidence(bench: Bench) -> None:
    scaled, raw = (
        np.loadtxt(bench.teach(f"teacher.export.confidence={kind}").export() / "confidence_train.txt")
        for kind in ("minmax", "raw")
    )
    assert (scaled[:, 0] == 0).all() and (raw[:, 0] > 0).all()


def _export_rows(bench: Bench) -> None:
    """The teacher is asked for fewer rows, and the distillation knows which."""
    outputs = bench.tmp / "outputs"
    chosen = ("active=random", "active.budget_ratio=0.1", "teacher.export.rows=policy")
    there = f"paths.teacher_outputs_dir={outputs}"
    bench.stage(run_teacher.run, *chosen, there)
    manifest = read_manifest(outputs)
    assert (manifest.num_rows, manifest.selection) == (60, "random, budget_ratio 0.1")
    rows = np.load(outputs / "rows_train.npy")
    assert len(rows) == 60 == len(np.loadtxt(outputs / "myrank_train.txt"))
    folder = bench.stage(run_distill.run, *chosen, there)
    log = RunFolder(folder).log_file("distill").read_text()
    assert "the teacher was asked for 60 of 600 training rows" in log
    assert "chosen before the export (random, budget_ratio 0.1): distilling all of them" in log
    selected = read_history(folder)["selected"]
    assert selected.tolist() == pytest.approx([0.1, 0.1], abs=0.02)  # a mean over batches, of which the last is short
    message = bench.refused_stage(run_distill.run, *chosen)
    assert "holds all rows; leave the key out" in message


def read_history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(RunFolder(folder).history_file("distill"))


def _export_student_checkpoint(bench: Bench) -> None:
    chosen = ("active=random", "teacher.export.rows=policy", "general.overwrite=true")
    message = bench.refused_stage(run_teacher.run, *chosen, f"teacher.export.student_checkpoint={bench.tmp}")
    assert message.startswith(f"{bench.tmp / 'config.json'}: missing file")


def _export_candidates(bench: Bench) -> None:
    manifests = []
    for kind in ("retrieval", "sampled"):
        folder = bench.teach(f"teacher.export.candidates={kind}").export()
        manifests.append((read_manifest(folder).candidates, read_manifest(folder).leaks_target))
    assert manifests == [("retrieval", False), ("sampled", True)]
    one, other = (
        np.loadtxt(bench.teach(f"teacher.export.candidates={kind}").export() / "myrank_train.txt")
        for kind in ("retrieval", "sampled")
    )
    assert (one != other).any()


def _export_batch_tokens(bench: Bench) -> None:
    calls: list[int] = []
    original = PromptedLM.candidate_log_probs

    def counted(self, batch, gates, answers):  # type: ignore[no-untyped-def]
        calls.append(len(answers))
        return original(self, batch, gates, answers)

    bench.patch.setattr(PromptedLM, "candidate_log_probs", counted)
    for tokens, expected in ((100_000, [40]), (1, [1] * 40)):
        taught = bench.teach(f"teacher.export.batch_tokens={tokens}")
        calls.clear()  # the validation after the training asks for probabilities, too
        taught.export()
        assert calls == expected


def _llm_config(key: str, name: str, values: tuple[int, int]) -> Effect:
    def effect(bench: Bench) -> None:
        for value in values:
            assert bench.teach(f"teacher.tiny.{key}={value}").llm_config[name] == value

    return effect


def _vocab_size(bench: Bench) -> None:
    small, large = (bench.teach(f"teacher.tiny.vocab_size={n}").llm_config["vocab_size"] for n in (320, 400))
    assert small < large


def _other_llm(*overrides: str) -> Effect:
    def effect(bench: Bench) -> None:
        assert not same(bench.teach().llm, bench.teach(*overrides).llm)

    return effect


# --- arms ---------------------------------------------------------------------------------------------------


def _arms(bench: Bench, *overrides: str) -> Path:
    """`run_arms` without arms: the baseline alone, for one seed unless said otherwise."""
    folder, run_dir = bench.folder(), f"arms.run_dir={bench.pipeline.folder}"
    where = places(bench.pipeline.data_dir, bench.pipeline.result_root, folder)
    assert run_here(run_arms.run, *where, run_dir, "~arms.trained", "arms.seeds=[1]", *overrides) == 0
    return folder


def _arms_run_dir(bench: Bench) -> None:
    other = bench.stage(run_distill.run, "student.dropout=0.9")
    means = [pd.read_csv(_arms(bench, f"arms.run_dir={run}") / "metrics" / "arms.csv")["mean"][0] for run in (
        bench.pipeline.folder, other
    )]  # fmt: skip
    assert means[0] != means[1]


def _arms_seeds(bench: Bench) -> None:
    folder = _arms(bench, "arms.seeds=[3,4]")
    assert sorted(path.name for path in (folder / "arms" / "baseline").iterdir()) == ["seed_3", "seed_4"]


def _arm_teacher(bench: Bench) -> None:
    """Another teacher, another student; who else might teach is refused."""
    weights = []
    for teacher in TEACHERS:
        folder = _arms(bench, f"+arms.trained={{one: {{teacher: {teacher}}}}}")
        weights.append(load_file(folder / "arms" / "one" / "seed_1" / "models" / "distill" / "model.safetensors"))
    assert not any(same(one, other) for one, other in zip(weights, weights[1:] + weights[:1], strict=True))
    message = refusal(lambda: parse_settings(compose_config("+arms.trained.x.teacher=oracle")))
    assert message.startswith("arms.trained.<name>.teacher='oracle': must be one of files, recommender, random")


def _arm_setting(bench: Bench) -> None:
    """An arm's values differ from those of the distillation; the leaves they change are tried above."""
    cfg = OmegaConf.to_container(compose_config(bench.choice))
    for name, arm in cfg["arms"]["trained"].items():
        for group in ("distill", "active"):
            for key, value in arm.get(group, {}).items():
                assert cfg[group].get(key) != value, f"{name}.{group}.{key}"
            parse_settings(OmegaConf.merge(cfg, {group: arm.get(group, {})}))


# --- the table ----------------------------------------------------------------------------------------------

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
    "arms.run_dir": _arms_run_dir,
    "arms.seeds": _arms_seeds,
    "paths.data_dir": _data_dir,
    "paths.result_root": _result_root,
    "paths.teacher_outputs_dir": _teacher_outputs_dir,
    "logging.level": _level,
    "logging.tensorboard": _tensorboard,
    "logging.progress": _progress,
    "metrics.ks": _ks,
    "metrics.monitor": _monitor,
    "curve.seeds": _curve,
    "curve.policies": _refused_curve("curve.policies=[x]", "curve.policies=['x']: must be of random, student_entropy"),
    "curve.shares": _refused_curve("curve.shares=[0.1,1]", "curve.shares=[0.1, 1.0]: must be numbers between 0 and 1"),
    "active.name": refused("active.name=other", "active.name='other': must be active.strategy ("),
    "active.strategy": refused("active.strategy=other", "active.strategy='other': must be one of all"),
    "active.budget_ratio": _other_distillation("active.budget_ratio=0.7"),
    "active/all:active.budget_ratio": refused("active.budget_ratio=0.5", "active.budget_ratio=0.5: must be 1.0"),
    "active.measure": _other_distillation("active.measure=disagreement"),
    "active.budget_per": _other_distillation("active.budget_per=batch"),
    "active.validation_batch_size": _other_distillation("active.validation_batch_size=20"),
    "active.validation_temperature": _other_distillation("active.validation_temperature=1"),
    "hydra.run.dir": _hydra_run_dir,
    "hydra.callbacks.sweep._target_": _sweep_callback,
    "hydra.launcher.n_jobs": _launcher(JOBLIB, f"{JOBLIB}._core.Parallel", "n_jobs", 3),
    "hydra.launcher.timeout_min": _launcher(SUBMITIT, "submitit.AutoExecutor", "timeout_min", 5),
    "hydra.launcher.gpus_per_node": _launcher(SUBMITIT, "submitit.AutoExecutor", "gpus_per_node", 2),
    "hydra.launcher.cpus_per_task": _launcher(SUBMITIT, "submitit.AutoExecutor", "cpus_per_task", 3),
    "hydra.launcher.mem_gb": _launcher(SUBMITIT, "submitit.AutoExecutor", "mem_gb", 7),
    "hydra.sweeper.direction": _direction,
    "hydra.sweeper.n_trials": _n_trials,
    "hydra.sweeper.n_jobs": _trials_at_a_time,
    "hydra.sweeper.max_failure_rate": _max_failure_rate,
    "hydra.sweeper.sampler.seed": _sampler_seed,
    "hydra.sweep.dir": _sweep_dir,
    "hydra.sweep.subdir": _sweep_subdir,
    "hydra.job.chdir": _chdir,
    "hydra.output_subdir": _output_subdir,
    "dataset.name": refused("dataset.name=other", "dataset.name='other': must be one of"),
    "dataset.max_seq_len": _dataset_max_seq_len,
    "dataset.min_user_inter": _min_user_inter,
    "dataset.split.method": _split_method,
    "dataset/lastfm:dataset.min_user_inter": refused("dataset.min_user_inter=5", "dataset.min_user_inter=5: must be 0"),
    "dataset/lastfm:dataset.split.method": refused(
        "dataset.split.method=temporal", "dataset.split.method='temporal': must be given"
    ),
    "dataset.raw_dir": _raw_dir,
    "dataset.max_train_rows": _max_train_rows,
    "dataset.version": _version,
    "dataset.interactions_file": _interactions_file,
    "dataset.titles_file": _titles_file,
    "dataset.separator": _separator,
    "dataset.columns.user": _column("user"),
    "dataset.columns.item": _column("item"),
    "dataset.columns.timestamp": _column("timestamp"),
    "dataset.columns.title": _column("title"),
    "student.name": refused("student.name=other", "student.name='other': must be one of"),
    "student.emb_size": _other_shapes("student.emb_size"),
    "student.hidden_size": _other_shapes("student.hidden_size"),
    "student.max_seq_len": _student_max_seq_len,
    "student.dropout": _other_training("student.dropout=0.5"),
    "student.batch_size": _other_training("student.batch_size=32"),
    "student.lr": _other_training("student.lr=1e-2"),
    "student.num_epochs": _student_num_epochs,
    "student.weight_decay": _other_training("student.weight_decay=0.1"),
    "student.grad_clip": _other_training("student.grad_clip=1e-4"),
    "student.patience": _patience,
    "student.loss": _other_training("student.loss=bce"),
    "student.dros_weight": _other_training_than("student.loss=bce_dros", "student.dros_weight=0.2"),
    "student.dros_beta": _other_training_than("student.loss=bce_dros", "student.dros_beta=0.5"),
    "student.num_negatives": _other_training_than("student.loss=sampled_softmax", "student.num_negatives=8"),
    "student.num_blocks": _other_training("student.num_blocks=3"),
    "student.num_heads": _other_training("student.num_heads=4"),
    "student.norm": _other_training("student.norm=post"),
    "student.tied_output": _two_trainings("student.tied_output=true", "student.tied_output=false"),
    "student.batching": _two_trainings("student.batching=packed", "student.batching=rows"),
    "student.mixed_precision": _other_training("student.mixed_precision=true"),
    "student.save_interval": _student_save_interval,
    "student.num_filters": _other_shapes("student.num_filters"),
    "student.filter_sizes": _other_training("student.filter_sizes=[2,5]"),
    "distill.name": refused("distill.name=other", "distill.name='other': must be"),
    "distill.engine": _engine,
    "distill.teacher_table": _teacher_table,
    "distill.alpha": _other_distillation("distill.alpha=2"),
    "distill.ed_weight": _other_distillation("distill.ed_weight=2"),
    "distill.lambda": _other_distillation("distill.lambda=2"),
    "distill.batch_size": _other_distillation("distill.batch_size=32"),
    "distill.lr": _other_distillation("distill.lr=1e-2"),
    "distill.num_epochs": _distill_num_epochs,
    "distill.top_k": _other_distillation("distill.top_k=2"),
    "distill.gamma_position": _other_distillation("distill.gamma_position=3"),
    "distill.gamma_confidence": _other_distillation("distill.gamma_confidence=3"),
    "distill.gamma_consistency": _other_distillation("distill.gamma_consistency=3"),
    "distill.loss": _other_distillation("distill.loss=bce"),
    "distill/dllm2rec_paper:distill.loss": _other_distillation("distill.loss=ce"),
    "distill.candidate_loss": _other_distillation("distill.candidate_loss=softmax"),
    "distill.confidence": _other_confidence,
    "distill.embedding": _other_distillation("distill.embedding=align"),
    "distill.init": _init,
    "distill.init_checkpoint": _init_checkpoint,
    "teacher.name": lambda bench: _check_teacher_name(bench),
    "teacher/ilora:teacher.llm_path": _llm_path,
    "teacher/ilora_tiny:teacher.llm_path": refused("teacher.llm_path=/x", "teacher.llm_path='/x': must be null"),
    "teacher.engine": _teacher_engine,
    "teacher.init_adapter": _init_adapter,
    "teacher.rec_model_path": _rec_model_path,
    "teacher.batch_size": _steps("teacher.batch_size=4", expected=4),
    "teacher.micro_batch_size": _other_teaching("teacher.micro_batch_size=8"),
    "teacher.lr": _other_teaching("teacher.lr=1e-1"),
    "teacher.weight_decay": _teacher_weight_decay,
    "teacher.num_epochs": _steps("teacher.num_epochs=3", expected=6),
    "teacher.prompt_template": _other_teaching("teacher.prompt_template=movie"),
    "teacher.max_history": _other_teaching("teacher.max_history=1"),
    "teacher.num_candidates": _other_teaching("teacher.num_candidates=8"),
    "teacher.max_train_rows": _steps("teacher.max_train_rows=24", expected=3),
    "teacher.max_valid_rows": _max_valid_rows,
    "teacher.max_eval_rows": _max_eval_rows,
    "teacher.save_interval": _save_interval,
    "teacher.save_steps": _save_steps,
    "teacher.dtype": _dtype,
    "teacher.gradient_checkpointing": _gradient_checkpointing,
    "teacher.lora.r": _lora_r,
    "teacher.lora.alpha": _other_teaching("teacher.lora.alpha=320", "teacher.num_epochs=2"),
    "teacher.lora.dropout": _other_teaching("teacher.lora.dropout=0.9", "teacher.num_epochs=2"),
    "teacher.lora.num_experts": _num_experts,
    "teacher.recommender.name": refused(
        "teacher.recommender.name=other", "teacher.recommender.name='other': must be one of"
    ),
    "teacher.recommender.dropout": _other_recommender("teacher.recommender.dropout=0.9"),
    "teacher.recommender.norm": _other_recommender("teacher.recommender.norm=post"),
    "teacher.recommender.tied_output": _other_recommender("teacher.recommender.tied_output=false"),
    "teacher.recommender.batch_size": _other_recommender("teacher.recommender.batch_size=16"),
    "teacher.recommender.lr": _other_recommender("teacher.recommender.lr=1e-1"),
    "teacher.recommender.num_epochs": _recommender_epochs,
    "teacher.recommender.patience": _recommender_patience,
    "teacher.export.method": _export_method,
    "teacher.export.top_n": _top_n,
    "teacher.export.confidence": _confidence,
    "teacher.export.candidates": _export_candidates,
    "teacher.export.batch_tokens": _export_batch_tokens,
    "teacher.export.rows": _export_rows,
    "teacher.export.student_checkpoint": _export_student_checkpoint,
    "teacher.tiny.vocab_size": _vocab_size,
    "teacher.tiny.hidden_size": _llm_config("hidden_size", "hidden_size", (16, 24)),
    "teacher.tiny.num_layers": _llm_config("num_layers", "num_hidden_layers", (3, 4)),
    "teacher.tiny.num_heads": _llm_config("num_heads", "num_attention_heads", (2, 4)),
    "teacher.tiny.pretrain_steps": _other_llm("teacher.tiny.pretrain_steps=2"),
    "teacher.tiny.pretrain_batch_size": _other_llm("teacher.tiny.pretrain_batch_size=2"),
    "teacher.tiny.pretrain_lr": _other_llm("teacher.tiny.pretrain_lr=1e-1"),
}


EFFECTS |= {leaf.key: _arm_setting for leaf in LEAVES if re.match(r"arms\.trained\.\w+\.(distill|active)\.", leaf.key)}
EFFECTS |= {leaf.key: _arm_teacher for leaf in LEAVES if re.fullmatch(r"arms\.trained\.\w+\.teacher", leaf.key)}


def _check_teacher_name(bench: Bench) -> None:
    assert refusal(lambda: bench.teacher("teacher.name=other")).startswith("teacher.name=other: must be one of")


def entry_of(leaf: Leaf) -> str:
    """The table's name for a leaf: its own where it has one, else that of its key."""
    own = f"{leaf.file}:{leaf.key}"
    return own if own in EFFECTS else leaf.key


def _cases() -> list[tuple[str, str]]:
    """(file, entry): every file of the groups in `PER_FILE`, one file an entry of the others."""
    cases: dict[tuple[str, str], str] = {}
    for leaf in LEAVES:
        entry = entry_of(leaf)
        cases.setdefault((leaf.file if leaf.group in PER_FILE else "", entry), leaf.file)
    return [(file, entry) for (_, entry), file in cases.items() if entry in EFFECTS]


def test_every_leaf_has_an_entry() -> None:
    assert [f"{leaf.file}:{leaf.key}" for leaf in LEAVES if entry_of(leaf) not in EFFECTS] == []


def test_every_entry_has_a_leaf() -> None:
    assert sorted(EFFECTS.keys() - {entry_of(leaf) for leaf in LEAVES}) == []


def test_an_experiment_only_sets_leaves_of_the_groups() -> None:
    assert EXPERIMENT_LEAVES
    assert {leaf.key for leaf in EXPERIMENT_LEAVES} <= {leaf.key for leaf in LEAVES}


@pytest.fixture(scope="module")
def taught() -> dict[tuple[str, ...], Taught]:
    return {}


@pytest.fixture
def bench(tmp_path, monkeypatch, request, taught) -> Bench:
    return Bench(tmp_path, monkeypatch, request, "dataset/sample", taught)


@pytest.mark.parametrize(("file", "entry"), _cases(), ids=str)
def test_a_leaf_does_something(bench, file, entry) -> None:
    bench.file = file if "/" in file else bench.file
    EFFECTS[entry](bench)


def test_equal_settings_teach_equally(bench) -> None:
    """What `test_a_leaf_does_something` takes for an effect must not be noise."""
    one, other = bench.teach(), bench.teach(fresh=True)
    assert one is not other and one.losses == other.losses
    assert same(one.adapter, other.adapter) and same(one.llm, other.llm)
    assert same(one.recommender, other.recommender)

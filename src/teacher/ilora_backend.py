"""iLoRA as a teacher: training, evaluation and export around either engine."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.core.files import sha256_file, write_text
from src.core.git_info import git_commit
from src.core.logging import LOGGER_NAME, TensorBoardWriter, forget_times
from src.core.metrics import MetricsConfig
from src.core.paths import RunFolder, project_path, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.settings import parse_section
from src.core.teacher_files import MANIFEST_FILE, ChosenRows, Manifest, find_damage, read_manifest, write_teacher_files
from src.student.context import Resume
from src.student.cost import answer_latency, parameter_counts, record_cost
from src.student.evaluator import write_evaluation
from src.teacher.adapter_file import WEIGHTS_FILE, read_adapter
from src.teacher.config import TeacherConfig
from src.teacher.engine import Engine
from src.teacher.engines import add_adapter, choose_engine, load_adapter
from src.teacher.evaluation import Answers, answer_metrics, examples, full_ranking, generate_answers
from src.teacher.export import Ranking, Scores, base_embeddings, rank_rows, score_rows, to_ranking
from src.teacher.interfaces import ITeacherRecommender
from src.teacher.llm import check_llm_folder, load_llm
from src.teacher.processes import gather, share, state
from src.teacher.prompts import PromptBuilder
from src.teacher.recommender import FrozenRecommender, load_recommender, train_recommender
from src.teacher.shards import has_shards, read_shards, remove_shards, shard_folder, write_shards
from src.teacher.tiny_llm import build_tiny_llm
from src.teacher.training import TeacherParts, train_adapter, training_rows

_SAMPLE_ANSWERS = 20
_TIMED_USERS = 10
EXPORT_TIME = "distill_teacher_export_time"  # in metrics/time.json


class ILoRATeacher(ITeacherRecommender):
    """A LLaMA-family LM with iLoRA's adapter, reading a frozen recommender.

    Everything it makes lies under `models/teacher`: `recommender/`, `llm/` (if built here), `adapter/`.
    """

    def __init__(
        self,
        settings: TeacherConfig,
        dataset: SequenceDataset,
        folder: RunFolder,
        device: torch.device,
        rows: ChosenRows | None = None,
    ) -> None:
        longest = max(int((rows.pos - rows.start).max()) for rows in (dataset.train, dataset.valid, dataset.test))
        free = dataset.num_items - longest - 1  # besides the target
        if settings.num_candidates - 1 > free:
            raise UserError(
                f"teacher.num_candidates={settings.num_candidates}: dataset {dataset.name} has {dataset.num_items} "
                f"items and histories of up to {longest}; use at most {free + 1}"
            )
        if settings.tiny is None and settings.llm_path is None:
            raise UserError("teacher.llm_path=null: must be a local LLaMA folder, or use teacher=ilora_tiny")
        self.settings = settings
        self.dataset = dataset
        self.folder = folder
        self.device = device
        self.rows = rows  # to export; None: all
        self._parts: TeacherParts | None = None
        self._engine = choose_engine(settings.engine, logging.getLogger(LOGGER_NAME))
        if settings.tiny is None:
            check_llm_folder(self._llm_dir)

    @property
    def _adapter_dir(self) -> Path:
        return self.folder.model_dir("teacher") / "adapter"

    @property
    def _llm_dir(self) -> Path:
        if self.settings.tiny is not None:
            return self.folder.model_dir("teacher") / "llm"
        return project_path(self.settings.llm_path)

    @property
    def _recommender_dir(self) -> Path:
        if self.settings.rec_model_path is not None:
            return project_path(self.settings.rec_model_path)
        return self.folder.model_dir("teacher") / "recommender"

    def train(self, cfg: DictConfig, logger: logging.Logger, tb_writer: TensorBoardWriter) -> float:
        """Train the recommender and the tiny LLM where they are not given, then the adapter.

        Returns:
            HR@1 x ValidRatio on the validation rows.
        """
        seed, settings = cfg.general.seed, self.settings
        resume = Resume(self.folder.last_state_file("teacher"))
        recommender = self._prepare(cfg, resume.file.is_file(), logger, tb_writer)
        set_seed(seed)
        tokenizer, llm = load_llm(self._llm_dir, settings.dtype, self.device)
        if settings.gradient_checkpointing:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        lora = add_adapter(self._engine, llm, settings, recommender.model.config.emb_size, logger)
        self._parts = self._assemble(lora, tokenizer, recommender)
        rows = training_rows(self.dataset, settings.max_train_rows, seed)
        logger.info("training the adapter on %d of %d rows", len(rows), len(self.dataset.train))
        save_best = partial(lora.save, self._adapter_dir) if state().is_main_process else lambda: None
        best = train_adapter(
            self._parts, rows, seed, partial(self._validate, seed), save_best, resume, logger, tb_writer
        )
        state().wait_for_everyone()
        lora.load_state(read_adapter(self._adapter_dir, lora.base))
        return best

    def _validate(self, seed: int) -> float:
        """HR@1 x ValidRatio on the validation rows, shared out among the processes."""
        assert self._parts is not None
        rows = self._sampled(self.dataset.valid, self.settings.max_valid_rows)
        answers = generate_answers(self._parts, self.dataset.valid, rows[share(len(rows))], seed)
        return answer_metrics(Answers(*(gather(getattr(answers, field.name)) for field in fields(answers))))["hr@1_all"]

    def _prepare(
        self, cfg: DictConfig, is_prepared: bool, logger: logging.Logger, tb_writer: TensorBoardWriter
    ) -> FrozenRecommender:
        """Train recommender and tiny LLM, in the main process, unless they are given or an interrupted run did."""
        team = state(self.device)
        with team.main_process_first():
            if self.settings.rec_model_path is not None or is_prepared or not team.is_main_process:
                recommender = load_recommender(self._recommender_dir, self.dataset, self.device)
            else:
                recommender = self._train_recommender(cfg, logger, tb_writer)
            if self.settings.tiny is not None and not is_prepared and team.is_main_process:
                seed = cfg.general.seed
                build_tiny_llm(self.settings, self.dataset, self._llm_dir, seed, self.device, logger, tb_writer)
        return recommender

    def _train_recommender(
        self, cfg: DictConfig, logger: logging.Logger, tb_writer: TensorBoardWriter
    ) -> FrozenRecommender:
        metrics = parse_section(MetricsConfig, cfg.metrics, "metrics")
        return train_recommender(
            replace(self.settings.recommender, max_seq_len=self.dataset.max_seq_len),
            self.dataset,
            metrics,
            self._recommender_dir,
            cfg.general.seed,
            self.device,
            logger,
            tb_writer,
        )

    def _assemble(self, lora, tokenizer, recommender: FrozenRecommender) -> TeacherParts:  # type: ignore[no-untyped-def]
        context = lora.llm.config.max_position_embeddings
        builder = PromptBuilder(tokenizer, self.dataset.titles, self.settings.prompt_template, context)
        engine = Engine(lora, recommender.item_table)
        return TeacherParts(engine, builder, recommender, self.dataset, self.settings)

    def _loaded(self) -> TeacherParts:
        """The parts of a finished training, from memory or from the run folder."""
        if self._parts is None:
            if not self._adapter_dir.is_dir():
                raise UserError(f"{self._adapter_dir}: no trained adapter; run the teacher's training first")
            recommender = load_recommender(self._recommender_dir, self.dataset, self.device)
            tokenizer, llm = load_llm(self._llm_dir, self.settings.dtype, self.device)
            lora = load_adapter(self._engine, llm, self._adapter_dir, self.settings, recommender.model.config.emb_size)
            self._parts = self._assemble(lora, tokenizer, recommender)
        return self._parts

    def _sampled(self, rows: Rows, count: int | None) -> np.ndarray:
        """Row numbers to evaluate, the same in every run: int64 [N], ascending."""
        if count is None or count >= len(rows):
            return np.arange(len(rows))
        return np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))

    def evaluate(self, cfg: DictConfig, logger: logging.Logger) -> None:
        """HR@1 and ValidRatio among fixed candidates, and full ranking the way the export ranks."""
        parts, seed = self._loaded(), cfg.general.seed
        metrics = parse_section(MetricsConfig, cfg.metrics, "metrics")
        index = self._sampled(self.dataset.test, self.settings.max_eval_rows)
        answers = generate_answers(parts, self.dataset.test, index, seed)
        result = answer_metrics(answers)
        by_answer = self.settings.export.method == "generate"
        titles = base_embeddings(parts, self.dataset.titles) if by_answer else torch.empty(0)
        ranking = self._rank_test_rows(parts, index, titles, seed, max(metrics.ks))
        evaluation = full_ranking(ranking, self.dataset, index, metrics.ks)
        page = examples(parts, self.dataset.test, index[:_SAMPLE_ANSWERS], seed, answers, ranking.items[:, :10])
        write_text(self.folder.root / "metrics" / "teacher_examples.md", page)
        latency = answer_latency(
            lambda i: self._rank_test_rows(parts, index[i : i + 1], titles, seed, max(metrics.ks)),
            min(_TIMED_USERS + 1, len(index)),
            self.device,
        )
        record_cost(self.folder.cost_file, "teacher", parameter_counts(parts.engine.lora.model) | latency)
        about = {
            "model": self.settings.name,
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            "split": "test",
            "num_users": len(index),
            "num_items": self.dataset.num_items,
            "seed": seed,
            "git_commit": git_commit(),
            "checkpoint": str(self._adapter_dir.relative_to(self.folder.root)),
            "answers": result,
        }
        write_evaluation(self.folder.eval_file("teacher"), self.folder.ranks_file("teacher"), evaluation, about)
        logger.info(
            "teacher test: HR@1 among %d candidates %.4f [%.4f, %.4f], valid %.4f, by likelihood %.4f [%.4f, %.4f]; "
            "full ranking %s %.4f",
            self.settings.num_candidates,
            result["hr@1_all"],
            result["hr@1_all_low"],
            result["hr@1_all_high"],
            result["valid_ratio"],
            result["hr@1_likelihood"],
            result["hr@1_likelihood_low"],
            result["hr@1_likelihood_high"],
            metrics.monitor,
            evaluation.metrics_masked[metrics.monitor],
        )

    def _rank_test_rows(
        self, parts: TeacherParts, index: np.ndarray, titles: torch.Tensor, seed: int, depth: int
    ) -> Ranking:
        """The export's way on test rows, deep enough for `depth` items without the history.

        A prompt that offers the target would give it away, so `sampled` candidates are replaced by retrieved ones.
        """
        export, rows = self.settings.export, self.dataset.test
        by_answer = export.method == "generate"
        longest = int((rows.pos - rows.start)[index].max())
        count = min(depth + longest, self.dataset.num_items) if by_answer else self.settings.num_candidates
        candidates = "retrieval" if export.candidates == "sampled" else export.candidates
        return rank_rows(parts, rows, index, titles, seed, candidates, count)

    def export_for_dllm2rec(self, cfg: DictConfig, logger: logging.Logger) -> None:
        """Rank the training rows and write the files of `src/core/teacher_files.py`.

        What is done is kept in `models/teacher/shards` until the files are written. Several processes (`accelerate
        launch`) each take their share of the shards, and the main one writes the files.

        Raises:
            UserError: another teacher's export is there and `general.overwrite` is off.
        """
        target, seed, train = teacher_outputs_dir(cfg), cfg.general.seed, self.dataset.train
        own = self.folder.model_dir("teacher")
        parts, export = self._loaded(), self.settings.export
        made_with = self._export_settings(parts, seed)
        manifest = _present_manifest(target, cfg.general.overwrite)
        if manifest is not None and manifest.made_with == made_with:
            damage = find_damage(target, manifest)
            if damage is None:
                logger.info("%s: holds this export already", target)
                _keep_manifest(target, own)
                return
            logger.warning("%s: exporting again", damage)
        else:
            require_free_export(target, cfg.general.overwrite, own)

        index = self._rows_to_export()

        def score(places: np.ndarray, advance: Callable[[int], None]) -> dict[str, np.ndarray]:
            return score_rows(parts, train, index[places], seed, export.candidates, advance)

        folder = shard_folder(own / "shards", made_with)
        process = state()
        if process.is_main_process and not has_shards(folder):
            forget_times(EXPORT_TIME)
        logger.info(
            "exporting %d of %d rows by %s, candidates: %s", len(index), len(train), export.method, export.candidates
        )
        write_shards(folder, len(index), score, logger, process.process_index, process.num_processes)
        process.wait_for_everyone()
        if process.is_main_process:
            self._write_files(target, read_shards(folder, len(index)), made_with)
            _keep_manifest(target, own)
            remove_shards(folder)
            logger.info("wrote %s (%d rows, %d items)", target, len(index), self.dataset.num_items)

    def _rows_to_export(self) -> np.ndarray:
        """Training rows, int64 ascending."""
        return np.arange(len(self.dataset.train)) if self.rows is None else self.rows.index

    def _write_files(self, target: Path, scores: Scores, made_with: dict[str, Any]) -> None:
        """The teacher's files from the scores of the exported rows."""
        parts, export = self._loaded(), self.settings.export
        embeddings = base_embeddings(parts, self.dataset.titles)
        ranking = to_ranking(parts, scores, embeddings, min(export.top_n, self.dataset.num_items))
        learnt = training_rows(self.dataset, self.settings.max_train_rows, made_with["seed"])
        in_sample = np.isin(self._rows_to_export(), learnt)
        write_teacher_files(
            target,
            embeddings,
            ranking.items,
            ranking.confidences(export.confidence),
            {
                "raw_best_distance": ranking.distances[:, 0],
                "log_prob": ranking.log_prob,
                "valid": ranking.valid,
                "in_sample": in_sample,
            },
            {
                "dataset": self.dataset.name,
                "dataset_fingerprint": self.dataset.fingerprint,
                "engine": made_with["engine"],
                "method": export.method,
                "candidates": export.candidates,
                "leaks_target": export.candidates == "sampled",
                "confidence": export.confidence,
                "base_model": self._base_model_name(),
                "adapter_sha256": made_with["adapter_sha256"],
                "in_sample_rows": int(in_sample.sum()),
                "seed": made_with["seed"],
                "git_commit": git_commit(),
                "made_with": made_with,
            },
            self.rows,
        )

    def _export_settings(self, parts: TeacherParts, seed: int) -> dict[str, Any]:
        """All that the rankings depend on; two exports with equal settings are the same."""
        settings = self.settings
        return {
            "dataset_fingerprint": self.dataset.fingerprint,
            "titles_sha256": hashlib.sha256("\n".join(self.dataset.titles).encode()).hexdigest(),
            "engine": parts.engine.lora.name,
            "base_model": self._base_model_name(),
            "dtype": settings.dtype,
            "adapter_sha256": sha256_file(self._adapter_dir / WEIGHTS_FILE),
            "recommender_sha256": _weights_sha256(parts.recommender.model),
            "prompt_template": settings.prompt_template,
            "max_history": settings.max_history,
            "num_candidates": settings.num_candidates,
            "seed": seed,
            "method": settings.export.method,
            "candidates": settings.export.candidates,
            "top_n": settings.export.top_n,
            "confidence": settings.export.confidence,
            "rows_sha256": None if self.rows is None else hashlib.sha256(self.rows.index.tobytes()).hexdigest(),
        }

    def _base_model_name(self) -> str:
        return "ilora_tiny" if self.settings.tiny is not None else self._llm_dir.name


def require_free_export(folder: Path, overwrite: bool, own: Path) -> None:
    """Refuse to replace a finished export unless told to; called before the training, too, which costs hours.

    Args:
        own: `models/teacher` of the run folder. What it has exported, or what its adapter has, it may replace.
    """
    manifest = _present_manifest(folder, overwrite)
    if manifest is None or overwrite or _is_kept(folder, own):
        return
    adapter = own / "adapter" / WEIGHTS_FILE
    if adapter.is_file() and sha256_file(adapter) == manifest.adapter_sha256:
        return
    raise UserError(
        f"{folder}: holds the export of another teacher ({manifest.base_model}, seed {manifest.seed}, "
        f"{manifest.num_rows} rows); set general.overwrite=true to replace it, or another paths.teacher_outputs_dir"
    )


def export_is_there(folder: Path, own: Path) -> bool:
    """Whether `folder` holds, whole, what the run folder with `own` as its `models/teacher` exported last."""
    if not _is_kept(folder, own):
        return False
    manifest = read_manifest(folder)
    return manifest is not None and find_damage(folder, manifest) is None


def _keep_manifest(folder: Path, own: Path) -> None:
    """Copy the export's manifest to the run folder, by which it knows its export again."""
    if state().is_main_process:
        write_text(own / MANIFEST_FILE, (folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def _is_kept(folder: Path, own: Path) -> bool:
    there, kept = folder / MANIFEST_FILE, own / MANIFEST_FILE
    return there.is_file() and kept.is_file() and there.read_bytes() == kept.read_bytes()


def _present_manifest(folder: Path, overwrite: bool) -> Manifest | None:
    """The export's manifest; with `overwrite` an unreadable one counts as none."""
    try:
        return read_manifest(folder)
    except UserError:
        if not overwrite:
            raise
        return None


def _weights_sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()

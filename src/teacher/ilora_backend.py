"""iLoRA as a teacher: training, evaluation and export around either engine."""

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.core.files import sha256_file, write_text
from src.core.git_info import git_commit
from src.core.logging import LOGGER_NAME, TensorBoardWriter
from src.core.metrics import MetricsConfig, metrics_from_ranks
from src.core.paths import RunFolder, project_path, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.settings import parse_section
from src.core.teacher_files import read_manifest, write_teacher_files
from src.student.evaluator import Evaluation, write_evaluation
from src.teacher.config import TeacherConfig
from src.teacher.engine import NativeEngine
from src.teacher.engines import add_adapter, choose_engine, load_adapter
from src.teacher.evaluation import answer_metrics, generate_answers
from src.teacher.export import Ranking, base_embeddings, rank_rows
from src.teacher.interfaces import ITeacherRecommender
from src.teacher.llm import check_llm_folder, load_llm
from src.teacher.prompts import PromptBuilder
from src.teacher.recommender import FrozenRecommender, load_recommender, train_recommender
from src.teacher.tiny_llm import build_tiny_llm
from src.teacher.training import TeacherParts, train_adapter, training_rows

_SAMPLE_ANSWERS = 20


class ILoRATeacher(ITeacherRecommender):
    """A LLaMA-family LM with iLoRA's adapter, reading a frozen recommender.

    Everything it makes lies under `models/teacher`: `recommender/`, `llm/` (if built here), `adapter/`.
    """

    def __init__(
        self, settings: TeacherConfig, dataset: SequenceDataset, folder: RunFolder, device: torch.device
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
        recommender = self._recommender(cfg, logger, tb_writer)
        if settings.tiny is not None:
            build_tiny_llm(settings, self.dataset, self._llm_dir, seed, self.device, logger, tb_writer)
        set_seed(seed)
        tokenizer, llm = load_llm(self._llm_dir, settings.dtype, self.device)
        if settings.gradient_checkpointing:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        lora = add_adapter(self._engine, llm, settings, recommender.model.config.emb_size, logger)
        self._parts = self._assemble(lora, tokenizer, recommender)
        rows = training_rows(self.dataset, settings.max_train_rows, seed)
        logger.info("training the adapter on %d of %d rows", len(rows), len(self.dataset.train))

        def save(epoch: int) -> None:
            lora.save(self._adapter_dir)

        train_adapter(self._parts, rows, seed, save, logger, tb_writer)
        valid = self._sampled(self.dataset.valid, settings.max_eval_rows)
        result = answer_metrics(generate_answers(self._parts, self.dataset.valid, valid, seed))
        tb_writer.add_scalar("valid/hr@1_all", result["hr@1_all"], settings.num_epochs)
        logger.info("validation: HR@1 x ValidRatio %.4f on %d rows", result["hr@1_all"], len(valid))
        return result["hr@1_all"]

    def _recommender(self, cfg: DictConfig, logger: logging.Logger, tb_writer: TensorBoardWriter) -> FrozenRecommender:
        if self.settings.rec_model_path is not None:
            return load_recommender(self._recommender_dir, self.dataset, self.device)
        metrics = parse_section(MetricsConfig, cfg.metrics, "metrics")
        self.settings.recommender.max_seq_len = self.dataset.max_seq_len
        return train_recommender(
            self.settings.recommender,
            self.dataset,
            metrics,
            self._recommender_dir,
            cfg.general.seed,
            self.device,
            logger,
            tb_writer,
        )

    def _assemble(self, lora, tokenizer, recommender: FrozenRecommender) -> TeacherParts:  # type: ignore[no-untyped-def]
        builder = PromptBuilder(tokenizer, self.dataset.titles, self.settings.prompt_template)
        engine = NativeEngine(lora, recommender.item_table)
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
        embeddings = base_embeddings(parts, self.dataset.titles)
        count = min(max(*metrics.ks, self.settings.num_candidates), self.dataset.num_items)
        ranking = rank_rows(parts, self.dataset.test, index, embeddings, seed, count)
        evaluation = _full_ranking(ranking, self.dataset, index, metrics.ks)
        self._write_examples(index, answers.texts, answers.targets, answers.candidates)
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

    def _write_examples(
        self, index: np.ndarray, texts: list[str], targets: list[str], candidates: list[list[str]]
    ) -> None:
        """A readable sample of histories, candidates and answers."""
        lines = ["# Answers of the teacher on test rows", ""]
        for i, row in enumerate(index[:_SAMPLE_ANSWERS]):
            history = self.dataset.test.history(int(row))[-self.settings.max_history :]
            lines += [
                f"## Test row {row}: {'right' if texts[i].casefold() == targets[i].casefold() else 'wrong'}",
                f"- history: {'; '.join(self.dataset.titles[item] for item in history)}",
                f"- candidates: {'; '.join(candidates[i])}",
                f"- answer: {texts[i]}",
                f"- target: {targets[i]}",
                "",
            ]
        write_text(self.folder.root / "metrics" / "teacher_examples.md", "\n".join(lines))

    def export_for_dllm2rec(self, cfg: DictConfig, logger: logging.Logger) -> None:
        """Rank every training row and write the files of `src/core/teacher_files.py`.

        Raises:
            UserError: another teacher's export is there and `general.overwrite` is off.
        """
        target = teacher_outputs_dir(cfg)
        require_free_export(target, cfg.general.overwrite)
        parts, seed, export = self._loaded(), cfg.general.seed, self.settings.export
        train = self.dataset.train
        embeddings = base_embeddings(parts, self.dataset.titles)
        top_n = min(export.top_n, self.dataset.num_items)
        logger.info("exporting %d rows by %s", len(train), export.method)
        ranking = rank_rows(parts, train, np.arange(len(train)), embeddings, seed, top_n)
        learnt = training_rows(self.dataset, self.settings.max_train_rows, seed)
        manifest = write_teacher_files(
            target,
            embeddings,
            ranking.items,
            ranking.confidences(export.confidence),
            {
                "raw_best_distance": ranking.distances[:, 0],
                "log_prob": ranking.log_prob,
                "valid": ranking.valid,
            },
            {
                "dataset": self.dataset.name,
                "dataset_fingerprint": self.dataset.fingerprint,
                "engine": parts.engine.lora.name,
                "method": export.method,
                "candidates": f"retrieval ({self.settings.num_candidates})",
                "confidence": export.confidence,
                "base_model": self._base_model_name(),
                "adapter_sha256": sha256_file(self._adapter_dir / "adapter_model.safetensors"),
                "in_sample_rows": len(learnt),
                "seed": seed,
                "git_commit": git_commit(),
            },
        )
        logger.info("wrote %s (%d rows, %d items, top %d)", target, manifest.num_rows, manifest.num_items, top_n)

    def _base_model_name(self) -> str:
        return "ilora_tiny" if self.settings.tiny is not None else self._llm_dir.name


def require_free_export(folder: Path, overwrite: bool) -> None:
    """Refuse to replace a finished export unless told to; called before the training, too, which costs hours."""
    manifest = read_manifest(folder) if not overwrite else None
    if manifest is not None:
        raise UserError(
            f"{folder}: holds the export of another teacher ({manifest.base_model}, seed {manifest.seed}, "
            f"{manifest.num_rows} rows); set general.overwrite=true to replace it, or another paths.teacher_outputs_dir"
        )


def _full_ranking(ranking: Ranking, dataset: SequenceDataset, index: np.ndarray, ks: list[int]) -> Evaluation:
    """Metrics of rankings that hold some items only: a target that is missing counts as last.

    Retrieval leaves the history out of the candidates, so shown and masked are the same.
    """
    targets = dataset.test.targets[index]
    found = ranking.items == targets[:, None]
    better = np.where(found.any(1), found.argmax(1), dataset.num_items - 1)
    equal = np.ones_like(better)
    metrics = metrics_from_ranks(better, equal, ks)
    ranks = {
        "user": dataset.test.user[index].astype(np.int64),
        "target": targets,
        "better": better,
        "equal": equal,
    }
    ranks |= {"better_masked": better, "equal_masked": equal}
    return Evaluation(metrics, metrics, ranks)

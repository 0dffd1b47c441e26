"""iLoRA as a teacher: its three steps, around either implementation of the adapter."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.core.artefacts import Artefact
from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.core.files import Sighting, sha256_file, write_text
from src.core.git_info import git_commit
from src.core.logging import LOGGER_NAME
from src.core.paths import RunFolder, teacher_outputs_dir
from src.core.seed import set_seed
from src.core.teacher_files import ChosenRows
from src.core.tracking.base import ScalarWriter, TrackedRun, tracking
from src.student.context import Resume, RunContext
from src.student.cost import record_cost
from src.student.evaluator import write_evaluation
from src.student.lists import ListMetrics
from src.teacher import provenance
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.adapter.adapter_file import find_adapter, read_adapter
from src.teacher.adapter.implementation import add_adapter, choose_implementation, load_adapter
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import TeacherConfig
from src.teacher.interfaces import ITeacherRecommender, Settings, Step
from src.teacher.llm.folder import check_formats, llm_license, num_layers
from src.teacher.llm.hub import find_llm
from src.teacher.llm.load import check_llm, load_llm, native_dtype, require_4bit
from src.teacher.model import TeacherModel
from src.teacher.paths import TeacherPaths
from src.teacher.processes import gather, share, state
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.recommender import (
    FrozenRecommender,
    load_recommender,
    recommender_config,
    require_recommender_data,
    train_recommender,
)
from src.teacher.scoring.answers import Answers, answer_metrics, generate_answers
from src.teacher.scoring.evaluation import TeacherEvaluation, evaluate_teacher, evaluated_rows
from src.teacher.scoring.export import Export, run_export, run_part
from src.teacher.tiny.build import build_tiny_llm
from src.teacher.training import learnt_rows, rows_with_history, train_adapter


class ILoRATeacher(ITeacherRecommender):
    """A LLaMA-family LM with iLoRA's adapter, reading a frozen recommender.

    Everything it makes lies under `models/teacher`: `recommender/`, `llm/` (if built here), `adapter/`.

    Args:
        rows: to export; None: all training rows.

    Raises:
        UserError: the settings do not fit the data set, or what they name is not there.
    """

    def __init__(
        self,
        config: TeacherConfig,
        *,
        dataset: SequenceDataset,
        folder: RunFolder,
        device: torch.device,
        rows: ChosenRows | None = None,
    ) -> None:
        _require_enough_items(config, dataset)
        _require_enough_rows(config, dataset)
        if config.tiny is None and config.llm_path is None:
            raise UserError(
                "teacher.llm_path=null: must be a local LLaMA folder or a hub id, owner/name; or use teacher=ilora_tiny"
            )
        if config.load_in_4bit:
            require_4bit(device)
        self.engine = choose_implementation(config.engine, logging.getLogger(LOGGER_NAME))
        start = None if config.init_adapter is None else find_adapter(config.init_adapter)
        dtype = native_dtype(config.dtype, device)
        self.config = replace(config, engine=self.engine, dtype=dtype, init_adapter=start)
        self.dataset = dataset
        self.folder = folder
        self.device = device
        self.rows = rows
        llm = None if config.llm_path is None else find_llm(config.llm_path, config.llm_revision)
        if llm is not None:
            check_formats(llm, load_in_4bit=config.load_in_4bit)
        self.paths = TeacherPaths(folder.model_dir("teacher"), self.config, llm)
        self.base_model = self.paths.base_model
        self.base_model_license = None if llm is None else llm_license(llm)
        self._given_llm = Sighting.of(llm)  # before its hash is asked for
        self.on_save: Callable[[], None] = lambda: None
        self.on_shard: Callable[[], None] = lambda: None
        self._model: TeacherModel | None = None
        self._written: dict[Step, dict[str, str]] = {}
        _require_layer(config, llm)

    # --- train ----------------------------------------------------------------------------------------------

    def train(self, cfg: Settings, logger: logging.Logger, tb_writer: ScalarWriter) -> float:
        """Train the recommender and the tiny LLM where they are not given, then the adapter.

        Returns:
            HR@1 x ValidRatio on the validation rows, of the best epoch.
        """
        seed = cfg.general.seed
        resume = Resume(self.folder.last_state_file("teacher"), lambda: self.on_save())
        context = RunContext(seed=seed, device=self.device, logger=logger, writer=tb_writer, resume=resume)
        recommender = self._prepare(cfg, context)
        set_seed(seed)
        tokenizer, llm = self._load_llm()
        if self.config.gradient_checkpointing:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        rec_size = recommender.model.config.emb_size
        lora = add_adapter(self.engine, llm, config=self.config, rec_size=rec_size, logger=logger)
        self._model = self._assemble(lora, tokenizer, recommender)
        rows = learnt_rows(self.dataset, self.config, seed)
        if len(rows):
            logger.info("training the adapter on %d of %d rows", len(rows), len(self.dataset.train))
        else:
            logger.info("taking the LLM as it is: nothing is trained with teacher.num_epochs=0")
        save_best = partial(lora.save, self.paths.adapter) if state().is_main_process else lambda: None
        validate = partial(self._validate, self._model, seed)
        best = train_adapter(self._model, rows, validate=validate, save_best=save_best, context=context)
        state().wait_for_everyone()
        lora.load_state(read_adapter(self.paths.adapter, lora.base))
        self._written["train"] = self._hashes(_files_in(self.paths.adapter))
        return best

    def _prepare(self, cfg: Settings, context: RunContext) -> FrozenRecommender:
        """Let the main process make the recommender and the tiny LLM, unless they are given or made already."""
        with state(self.device).main_process_first():
            if state().is_main_process and self.config.tiny is None:
                check_llm(self.paths.llm, self.dataset.titles, self.config.wording)
            if state().is_main_process and self.config.rec_model_path is None:
                self._make_recommender(cfg, context)
            if state().is_main_process and self.config.tiny is not None:
                self._make_tiny_llm(cfg, context)
            return load_recommender(self.paths.recommender, self.dataset, self.device)

    def _make_recommender(self, cfg: Settings, context: RunContext) -> None:
        artefact, folder = self._artefact("frozen recommender", "recommender"), self.paths.recommender
        made_from = provenance.recommender_made_from(cfg, self.dataset)
        if _is_made(artefact, made_from, context.logger):
            return
        artefact.begin(made_from)
        config = recommender_config(self.config, self.dataset)
        with self._own_curves(cfg, context, "recommender", made_from) as own_context:
            train_recommender(config, self.dataset, cfg.metrics, folder=folder, context=own_context)
        artefact.complete(files=self._hashes(_files_in(folder)))
        self.on_save()

    def _make_tiny_llm(self, cfg: Settings, context: RunContext) -> None:
        artefact, folder = self._artefact("tiny LLM", "tiny_llm"), self.paths.llm
        made_from = provenance.tiny_llm_made_from(cfg, self.dataset)
        if _is_made(artefact, made_from, context.logger):
            return
        artefact.begin(made_from)
        with self._own_curves(cfg, context, "tiny_llm", made_from) as own_context:
            build_tiny_llm(self.config, self.dataset, folder=folder, context=own_context)
        artefact.complete(files=self._hashes(_files_in(folder)))
        self.on_save()

    @contextmanager
    def _own_curves(
        self, cfg: Settings, context: RunContext, name: str, made_from: dict[str, Any]
    ) -> Iterator[RunContext]:
        """For a training before the adapter's: its scalars count steps of their own, and it is not resumed."""
        run = TrackedRun(folder=self.folder, name=f"teacher/{name}", hparams=made_from)
        with tracking(cfg.logging, run) as tracker:
            yield replace(context, writer=tracker, resume=None)

    def _artefact(self, name: str, key: str) -> Artefact:
        root = self.folder.root
        return Artefact(name=name, record_file=root / "records" / f"{key}.json", base=root)

    def _validate(self, teacher: TeacherModel, seed: int) -> float:
        """HR@1 x ValidRatio on the validation rows, shared out among the processes."""
        rows = evaluated_rows(self.dataset.valid, self.config.max_valid_rows)
        answers = generate_answers(teacher, self.dataset.valid, rows[share(len(rows))], seed=seed)
        return answer_metrics(Answers(*(gather(getattr(answers, field.name)) for field in fields(answers))))["hr@1_all"]

    # --- export and evaluate --------------------------------------------------------------------------------

    def export_for_dllm2rec(self, cfg: Settings, logger: logging.Logger) -> None:
        """Rank the training rows and write the files of `src/core/teacher_files.py`; see `scoring/export.py`.

        With `teacher.export.part` a part of the rows is ranked, and nothing written but its shards.

        Raises:
            UserError: another teacher's export is there and `general.overwrite` is off, or nothing was trained.
        """
        self._require_adapter()
        export = Export(
            folder=teacher_outputs_dir(cfg),
            overwrite=cfg.general.overwrite,
            made_with=self.made_from("export", cfg),
            adapter=self.paths.adapter_weights,
            base_model=self.base_model,
            base_model_license=self.base_model_license,
            seed=cfg.general.seed,
            shards=self.paths.shards,
            rankings=self.config.export.rankings,
            rows=self.rows,
        )
        part, on_shard = self.config.export.part, lambda: self.on_shard()
        if part is not None:
            run_part(export, part, self._loaded, logger=logger, on_shard=on_shard)
        else:
            self._written["export"] = run_export(export, self._loaded, logger=logger, on_shard=on_shard)

    def evaluate(self, cfg: Settings, logger: logging.Logger) -> None:
        """HR@1 and ValidRatio among fixed candidates, and full ranking the way the export ranks."""
        result = evaluate_teacher(self._loaded(), seed=cfg.general.seed, ks=cfg.metrics.ks)
        evaluation, ranks = self.folder.eval_file("teacher"), self.folder.ranks_file("teacher")
        examples = self.folder.root / "metrics" / "teacher_examples.md"
        write_text(examples, result.examples)
        record_cost(self.folder.cost_file, "teacher", result.cost)
        ranking = ListMetrics.of(self.dataset, cfg.metrics.list_length).add_to(result.full_ranking)
        write_evaluation(evaluation, ranks, ranking, self._about(cfg, result))
        self._written["evaluate"] = self._hashes([evaluation, ranks, examples])
        answers, monitor = result.answers, cfg.metrics.monitor
        logger.info(
            "teacher test: HR@1 among %d candidates %.4f [%.4f, %.4f], valid %.4f, by likelihood %.4f [%.4f, %.4f]; "
            "full ranking %s (history removed) %.4f",
            self.config.num_candidates,
            *(answers[name] for name in ("hr@1_all", "hr@1_all_low", "hr@1_all_high", "valid_ratio")),
            *(answers[f"hr@1_likelihood{end}"] for end in ("", "_low", "_high")),
            monitor,
            result.full_ranking.metrics_masked[monitor],
        )

    def _about(self, cfg: Settings, result: TeacherEvaluation) -> dict[str, object]:
        """The head of the evaluation file."""
        return {
            "model": self.config.name if self.config.reads_items else f"{self.config.name}, not trained",
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            "split": "test",
            "num_users": len(result.full_ranking.ranks["user"]),
            "num_items": self.dataset.num_items,
            "seed": cfg.general.seed,
            "git_commit": git_commit(),
            "checkpoint": str(self.paths.adapter.relative_to(self.folder.root)),
            "answers": result.answers,
        }

    # --- what the steps read and write ----------------------------------------------------------------------

    def made_from(self, step: Step, cfg: Settings) -> dict[str, Any]:
        """See `provenance`."""
        paths, chosen = self.paths, {"engine": self.engine, "dtype": native_dtype(cfg.teacher.dtype, self.device)}
        if step == "train":
            return provenance.training_made_from(cfg, self.dataset, paths=paths, chosen=chosen)
        if step == "export":
            return provenance.export_made_from(cfg, self.dataset, paths=paths, chosen=chosen, rows=self.rows)
        return provenance.evaluation_made_from(cfg, self.dataset, paths=paths, chosen=chosen)

    def files(self, step: Step) -> dict[str, str]:
        """SHA-256 of what `step` wrote when it was run last, by path."""
        return self._written[step]

    def _hashes(self, paths: Iterable[Path]) -> dict[str, str]:
        return {str(path.relative_to(self.folder.root)): sha256_file(path) for path in sorted(paths)}

    # --- the models -----------------------------------------------------------------------------------------

    def _loaded(self) -> TeacherModel:
        """The trained teacher, from memory or from the run folder."""
        if self._model is None:
            self._require_adapter()
            recommender = load_recommender(self.paths.recommender, self.dataset, self.device)
            tokenizer, llm = self._load_llm()
            lora = load_adapter(
                self.engine,
                llm,
                folder=self.paths.adapter,
                num_experts=self.config.lora.num_experts,
                rec_size=recommender.model.config.emb_size,
            )
            self._model = self._assemble(lora, tokenizer, recommender)
        return self._model

    def _load_llm(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        config = self.config
        loaded = load_llm(
            self.paths.llm,
            config.dtype,
            self.device,
            attn_implementation=config.attn_implementation,
            load_in_4bit=config.load_in_4bit,
        )
        self._given_llm.require_same()
        return loaded

    def _require_adapter(self) -> None:
        if not self.paths.adapter.is_dir():
            raise UserError(f"{self.paths.adapter}: no trained adapter; run the teacher's training first")

    def _assemble(
        self, lora: AdaptedLM, tokenizer: PreTrainedTokenizerBase, recommender: FrozenRecommender
    ) -> TeacherModel:
        context = lora.llm.config.max_position_embeddings
        return TeacherModel(
            lm=PromptedLM(lora, recommender.item_table),
            builder=PromptBuilder(tokenizer, self.dataset.titles, self.config.wording, context),
            recommender=recommender,
            dataset=self.dataset,
            config=self.config,
        )


def _is_made(artefact: Artefact, made_from: dict[str, Any], logger: logging.Logger) -> bool:
    """Whether it is there, whole, and made from the same; the log tells why it is made again."""
    status = artefact.status(made_from, verify=True)
    if status.is_current:
        logger.info("the %s is there already, made from the same", artefact.name)
    elif status.record is not None:
        logger.info("the %s is made again: %s", artefact.name, status.changes or status.why)
    return status.is_current


def _files_in(folder: Path) -> list[Path]:
    """The files of a model; hidden ones are half-written."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _require_layer(config: TeacherConfig, llm: Path | None) -> None:
    layer, layers = config.export.embedding_layer, config.tiny.num_layers if config.tiny else None
    if llm is not None:
        layers = num_layers(llm)
    if layers is not None and not -layers - 1 <= layer <= layers:
        raise UserError(
            f"teacher.export.embedding_layer={layer}: the LLM has {layers} layers; use 0 (its token embeddings) to "
            f"{layers}, or -1 (the last) to {-layers - 1}"
        )


def _require_enough_rows(config: TeacherConfig, dataset: SequenceDataset) -> None:
    """Refuse before anything is trained what its training would refuse."""
    if config.num_epochs > 0:
        rows_with_history(dataset)
    if config.rec_model_path is None:
        require_recommender_data(config, dataset)


def _require_enough_items(config: TeacherConfig, dataset: SequenceDataset) -> None:
    """A prompt's candidates are the target and items outside the history: the longest one must leave enough."""
    splits = (dataset.train, dataset.valid, dataset.test)
    longest = max(int((rows.pos - rows.start).max()) for rows in splits)
    if config.num_candidates <= dataset.num_items - longest:
        return
    seen = max(map(_most_items, splits))  # some occur in a history more than once
    most = dataset.num_items - seen + 1
    if config.num_candidates > most:
        advice = f"use at most {most}" if most > 1 else "a prompt needs 2: the teacher takes a larger catalogue"
        raise UserError(
            f"teacher.num_candidates={config.num_candidates}: dataset {dataset.name} has {dataset.num_items} items, "
            f"up to {seen} of them in a history and its target; {advice}"
        )


def _most_items(rows: Rows) -> int:
    """The largest number of different items of a row's history and target."""
    starts = np.unique(rows.start)
    last = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(last, np.searchsorted(starts, rows.start), rows.pos)  # of a sequence the longest history has the most
    return max(len(np.unique(rows.items[begin : end + 1])) for begin, end in zip(starts, last, strict=True))

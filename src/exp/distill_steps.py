"""The step of `run_distill`: this framework's distillation, or the original program."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch.nn.functional as F

from src.core.errors import UserError
from src.core.files import Sighting, write_json
from src.core.logging import forget_times, time_block
from src.core.paths import project_path, teacher_outputs_dir
from src.core.teacher_files import ROWS_FILE
from src.core.tracking.base import ScalarWriter, Tracker
from src.distill.blending import blended_ranking, recommended
from src.distill.config import DistillConfig
from src.distill.control_teachers import (
    load_recommenders,
    random_teacher,
    recommender_embeddings,
    recommender_teacher,
    required_title_vectors,
    shuffled_teacher,
    title_embeddings,
)
from src.distill.data_bridge import TeacherOutputs, load_teacher_outputs
from src.distill.dllm2rec_wrapper import PROTOCOL, arguments, check_settings, find_program, run_program, write_files
from src.distill.row_selection import select_rows
from src.distill.selection_log import LoggedPolicy
from src.distill.selection_policy import SelectionPolicy, SelectionPolicyAll, build_selection_policy
from src.distill.trainer_distill import Distillation, entering_embeddings, train_distilled, transformed
from src.exp.report.card import write_student_card
from src.exp.settings import Settings
from src.exp.stage.inputs import distillation_inputs, teacher_files_hash, weights_hash
from src.exp.stage.lookup import baseline_folder, recommender_folders
from src.exp.stage.stage import Stage, Step
from src.exp.stage.students import about, finish, student_step
from src.exp.stage.training import tracked, training
from src.student.checkpoint import load_checkpoint_of
from src.student.datamodule import require_full_batch
from src.student.references import Beside, Vectors, similarity_to_history
from src.student.training import FitResult, require_enough_data, save_history

_CHOOSER_KEY = "teacher.export.student_checkpoint"
_Read = Callable[[], TeacherOutputs]


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What a distillation reads besides its data: folders, None or no folder where it reads none.

    Attributes:
        initial: checkpoint that the student starts from; recommenders: who teaches with `distill.teacher=recommender`;
            chooser: the student whose scores have the policy choose rows of a whole export.
    """

    initial: Path | None
    recommenders: tuple[Path, ...]
    chooser: Path | None


def plan(stage: Stage) -> list[Step]:
    """One step; refused here is what could not be distilled."""
    cfg = stage.settings
    if cfg.distill.engine == "submodule":
        return _plan_original(stage)
    _require_settings(stage)
    sources = _find_sources(stage)
    before = _sighting(stage, sources)
    made_from = {
        **distillation_inputs(
            cfg,
            stage.dataset,
            teacher_files=teacher_files_hash(teacher_outputs_dir(cfg)) if _reads_teacher(cfg) else None,
            initial_weights=weights_hash(sources.initial),
        ),
        "the frozen recommender": " ".join(filter(None, map(weights_hash, sources.recommenders))) or None,
        "the student that chose the rows": weights_hash(sources.chooser),
    }
    teacher = _read_once(stage, sources.recommenders)
    return [
        student_step(
            stage,
            made_from=made_from,
            work=lambda: _train(stage, sources, teacher, before),
            require=lambda: _require_teacher(stage, teacher),
        )
    ]


def _sighting(stage: Stage, sources: _Sources) -> Sighting:
    """How the files look that are read besides the data: before they are hashed, and until they have been read."""
    distill = stage.settings.distill
    own = project_path(distill.embeddings_file) if distill.embeddings_file and distill.reads_embeddings else None
    outputs = teacher_outputs_dir(stage.settings) if _reads_teacher(stage.settings) else None
    return Sighting.of(sources.initial, *sources.recommenders, sources.chooser, outputs, own)


def require_trainable(stage: Stage) -> None:
    """Refuse what could not be distilled once the baseline is there; reads the teacher's files as training would."""
    _require_settings(stage)
    _require_teacher(stage, _read_once(stage, _recommenders(stage), rankings=False))


def _read_once(stage: Stage, recommenders: tuple[Path, ...], *, rankings: bool = True) -> _Read:
    """What is known of the teacher before training, its embeddings as they enter; made once, when it is asked for.

    Args:
        rankings: False: only the embeddings are asked for, and a random teacher need not rank a million rows.
    """

    def read() -> TeacherOutputs:
        distill = stage.settings.distill
        if recommenders:
            models = load_recommenders(recommenders, stage.dataset, stage.device) if distill.reads_embeddings else []
            outputs = TeacherOutputs(embeddings=recommender_embeddings(models) if models else None)
        else:
            files = teacher_outputs(stage)
            outputs = _as_control(stage, files if rankings else replace(files, ranking=None, confidence=None))
        if outputs.embeddings is None:
            return outputs
        return replace(outputs, embeddings=transformed(outputs.embeddings, distill, stage.settings.student.emb_size))

    return cache(read)


def _after_reading(distill: DistillConfig) -> DistillConfig:
    """The settings for embeddings that are transformed already: whitening 4,096 columns takes most of a minute."""
    return replace(distill, embedding_transform="none", embedding_dims=None)


def _require_teacher(stage: Stage, teacher: _Read) -> None:
    """Refuse a teacher whose files cannot be read or whose embeddings cannot enter the student."""
    distill, embeddings = stage.settings.distill, teacher().embeddings
    if embeddings is not None and distill.needs_embeddings:
        entering_embeddings(embeddings, _after_reading(distill), stage.settings.student.emb_size)


def _require_settings(stage: Stage) -> None:
    cfg = stage.settings
    require_enough_data(cfg.distill.as_student(cfg.student), stage.dataset)
    _require_something_to_select(cfg)


def _find_sources(stage: Stage) -> _Sources:
    cfg = stage.settings
    initial = chooser = None
    if cfg.distill.init == "baseline":
        initial = baseline_folder(stage, "distill.init_checkpoint", cfg.distill.init_checkpoint)
    if _chooses_rows(cfg) and not _is_partial(teacher_outputs_dir(cfg)):
        chooser = baseline_folder(stage, _CHOOSER_KEY, cfg.teacher.export.student_checkpoint)
    return _Sources(initial=initial, recommenders=_recommenders(stage), chooser=chooser)


def _recommenders(stage: Stage) -> tuple[Path, ...]:
    if stage.settings.distill.teacher != "recommender":
        return ()
    return recommender_folders(stage, teacher_outputs_dir(stage.settings))


def _require_something_to_select(cfg: Settings) -> None:
    if cfg.active.strategy != "all" and not cfg.distill.gates_samples:
        raise UserError(
            f"active.strategy={cfg.active.strategy}: there is no loss to select samples for with distill.lambda="
            f"{cfg.distill.kd_weight:g}, distill.alpha={cfg.distill.alpha:g} and distill.embedding="
            f"{cfg.distill.embedding}; use active=all"
        )


def _reads_teacher(cfg: Settings) -> bool:
    """Whether a part of the teacher's exported files is used."""
    distill = cfg.distill
    embeddings = distill.reads_embeddings and distill.embeddings_file is None
    return distill.reads_files and (distill.reads_ranking or embeddings)


def _chooses_rows(cfg: Settings) -> bool:
    """Whether the policy chooses rows before the teacher is asked, so that none is left to choose while distilling."""
    return cfg.teacher.export.rows == "policy" and cfg.active.strategy != "all" and cfg.distill.gates_samples


def _is_partial(folder: Path) -> bool:
    return (folder / ROWS_FILE).is_file()


# --- this framework -----------------------------------------------------------------------------------------


def _train(stage: Stage, sources: _Sources, teacher: _Read, before: Sighting) -> float:
    """Train and test the student with the teacher's files; returns the best validation value."""
    outputs = _asked_for(stage, _teach(stage, sources, teacher), sources)
    with tracked(stage) as tracker:
        result = _distil(stage, sources, outputs, before, tracker)
        value = finish(stage, result, tracker)
        tracker.add_files([write_student_card(stage)])
    return value


def _distil(stage: Stage, sources: _Sources, outputs: TeacherOutputs, before: Sighting, tracker: Tracker) -> FitResult:
    cfg = stage.settings
    with training(stage, "distill_student_train_time", tracker) as context:
        policy = _policy(stage, outputs, context.writer)
        distillation = Distillation(
            settings=_after_reading(cfg.distill),
            outputs=outputs,
            policy=policy,
            init_checkpoint=sources.initial,
            files=before,
        )
        result = train_distilled(
            cfg.student,
            stage.dataset,
            distillation=distillation,
            metrics=cfg.metrics,
            folder=stage.folder.model_dir("distill"),
            context=context,
        )
    if isinstance(policy, LoggedPolicy):
        policy.save(stage.folder.selection_file)
    return result


def _teach(stage: Stage, sources: _Sources, teacher: _Read) -> TeacherOutputs:
    """The knowledge of the teacher that `distill.teacher` names, with rankings of its own or made from likeness."""
    distill, dataset, outputs = stage.settings.distill, stage.dataset, teacher()
    top_k, per_sequence = distill.top_k, distill.confidence == "per_sequence"
    beside = _beside_the_chain(stage, sources, outputs)
    if beside is not None:
        made = blended_ranking(
            dataset,
            beside,
            weight=distill.similarity_weight,
            metrics=stage.settings.metrics,
            top_k=top_k,
            per_sequence=per_sequence,
            logger=stage.logger,
        )
    elif sources.recommenders and distill.needs_ranking:
        models = load_recommenders(sources.recommenders, dataset, stage.device)
        made = recommender_teacher(models, dataset, top_k=top_k, per_sequence=per_sequence)
    else:
        return outputs
    return replace(outputs, ranking=made.ranking, confidence=made.confidence)


def _beside_the_chain(stage: Stage, sources: _Sources, outputs: TeacherOutputs) -> Beside | None:
    """What ranks the training rows beside the Markov chain; None where the teacher's own rankings are used."""
    if stage.settings.distill.ranks_by_similarity:
        return similarity_to_history(_item_vectors(stage, outputs))
    if stage.settings.distill.blends_recommender:
        return recommended(load_recommenders(sources.recommenders, stage.dataset, stage.device))
    return None


def _item_vectors(stage: Stage, outputs: TeacherOutputs) -> Vectors:
    """What the teacher says of each item, of length 1: its embeddings, or the words of the titles themselves."""
    if stage.settings.distill.teacher == "tfidf":
        return required_title_vectors(stage.dataset)
    assert outputs.embeddings is not None  # whoever reads the files reads what the settings need
    return F.normalize(outputs.embeddings, dim=1).numpy()


def _as_control(stage: Stage, outputs: TeacherOutputs) -> TeacherOutputs:
    """What was read, mixed up as `distill.teacher` says."""
    make = {"random": random_teacher, "shuffled": shuffled_teacher}.get(stage.settings.distill.teacher)
    return make(outputs, stage.dataset.num_items, stage.settings.general.seed) if make else outputs


def teacher_outputs(stage: Stage) -> TeacherOutputs:
    """The teacher's files, or the titles' embeddings; nothing where the settings use no part of them."""
    distill = stage.settings.distill
    if not (distill.needs_ranking or distill.reads_embeddings):
        stage.logger.warning("distill.lambda=0 and distill.ed_weight=0: this is the baseline, no teacher is read")
        return TeacherOutputs()
    if distill.teacher == "tfidf":
        embeddings = title_embeddings(stage.dataset)
        return TeacherOutputs(embeddings=embeddings if distill.needs_embeddings else None)
    folder = teacher_outputs_dir(stage.settings)
    outputs = load_teacher_outputs(folder, stage.dataset, distill, logger=stage.logger)
    if _reads_teacher(stage.settings):
        stage.logger.info("teacher: %s (manifest %s)", folder, (outputs.manifest_sha256 or "none")[:12])
    if distill.embeddings_file and distill.reads_embeddings:
        stage.logger.info("item embeddings: %s", distill.embeddings_file)
    return outputs


def _asked_for(stage: Stage, outputs: TeacherOutputs, sources: _Sources) -> TeacherOutputs:
    """As if the teacher had been asked only for the rows that the policy chooses from a baseline.

    That equals an export of only those rows, because no line of an export depends on another.
    """
    if sources.chooser is None:
        return outputs
    cfg, dataset = stage.settings, stage.dataset
    model = load_checkpoint_of(sources.chooser, dataset, _CHOOSER_KEY)
    rows = select_rows(cfg.active, model, dataset, seed=cfg.general.seed, device=stage.device)
    stage.logger.info("as if the teacher had been asked for %d of %d rows", len(rows), len(dataset.train))
    return outputs.restricted_to(rows, len(dataset.train))


def _policy(stage: Stage, outputs: TeacherOutputs, writer: ScalarWriter) -> SelectionPolicy:
    """The policy of `active`, logged; one that chose rows before the export has nothing left to choose."""
    cfg = stage.settings
    if cfg.active.strategy == "all" or _chooses_rows(cfg):
        if outputs.selection:
            stage.logger.info("the rows were chosen before the export (%s): distilling all of them", outputs.selection)
        return SelectionPolicyAll()
    return LoggedPolicy(build_selection_policy(cfg.active), writer)


# --- DLLM2Rec's own program ---------------------------------------------------------------------------------


def _plan_original(stage: Stage) -> list[Step]:
    cfg, name = stage.settings, stage.name
    check_settings(cfg.distill, cfg.student, cfg.general.seed, cfg.active.strategy, cfg.metrics)
    require_full_batch(cfg.distill.batch_size, len(stage.dataset.train))
    find_program()
    before = _sighting(stage, _Sources(initial=None, recommenders=(), chooser=None))
    made_from = distillation_inputs(
        cfg,
        stage.dataset,
        teacher_files=teacher_files_hash(teacher_outputs_dir(cfg)),
        initial_weights=None,
    )
    teacher = _read_once(stage, ())

    def work() -> float:
        outputs = teacher()
        before.require_same()
        return _run_original(stage, outputs)

    step = Step(
        artefact=stage.folder.artefact(name),
        made_from=lambda: made_from,
        work=work,
        require=lambda: _require_teacher(stage, teacher),
        files=lambda: stage.hashes(stage.folder.eval_file(name)),
        forget=lambda: stage.folder.eval_file(name).unlink(missing_ok=True),
    )
    return [step]


def _run_original(stage: Stage, outputs: TeacherOutputs) -> float:
    """Train with DLLM2Rec's own program; its metrics become `metrics/eval_dllm2rec_upstream.json`."""
    cfg, folder, monitor = stage.settings, stage.folder, stage.settings.metrics.monitor
    program, work = find_program(), folder.model_dir(stage.name)
    write_files(work, stage.dataset, outputs)
    stage.logger.info("histories are cut to their last 10 items, as the original program has it")
    words = arguments(cfg.distill, cfg.student, stage.device)
    stage.logger.info("in %s: python %s %s", work, program / "main.py", " ".join(words))
    forget_times("dllm2rec_upstream_train_time")
    with time_block("dllm2rec_upstream_train_time"):
        result = run_program(program, work, words, cfg.distill.num_epochs, work / "output.log")
    save_history(FitResult(history=result.epochs), folder.history_file(stage.name))
    metrics = result.metrics("test")
    head = about(stage, f"{cfg.student.name}, original program", f"models/{stage.name}")
    content = {"protocol": PROTOCOL, "best_epoch": result.best_epoch, "metrics": metrics, "metrics_masked": {}}
    write_json(folder.eval_file(stage.name), {**head, **content})
    stage.logger.info("test %s: %.4f in epoch %d (%s)", monitor, metrics[monitor], result.best_epoch, PROTOCOL)
    return result.metrics("valid")[monitor]

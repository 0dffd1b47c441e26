"""Finding what earlier stages made: by their records, in whatever folder under the results a run was given."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.core.artefacts import Record, State, unlike
from src.core.data_utils import load_dataset
from src.core.errors import UserError
from src.core.paths import RunFolder, data_dir, project_path, result_root
from src.exp.settings import Settings
from src.exp.stage.inputs import DATA, student_inputs, teacher_files_hash
from src.exp.stage.stage import Stage, run_folder

Misfit = Callable[[Record], str]  # why a record does not fit, in words; empty where it does


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete artefact of some run."""

    folder: RunFolder
    record: Record


def complete_runs(name: str, root: Path, here: RunFolder | None = None) -> list[Found]:
    """All runs below `root` in which `name` is complete, the newest first; before them `here`, and the study it is of.

    A study may lie elsewhere, as `hydra.run.dir` says: its jobs find each other all the same.
    """
    study = _study_of(here) if here is not None else None
    first = _complete(here, name) if here is not None else []
    mine = _newest_first(name, study.root) if study is not None else []
    taken: dict[Path, Found] = {}
    for run in [*first, *mine, *_newest_first(name, root)]:
        taken.setdefault(run.folder.root, run)
    return list(taken.values())


def _newest_first(name: str, root: Path) -> list[Found]:
    folders = {path.parents[1] for path in root.rglob(f"records/{name}.json")} if root.is_dir() else set()
    found = [run for folder in folders for run in _complete(RunFolder(folder), name)]
    return sorted(found, key=lambda run: run.record.completed or "", reverse=True)


def _complete(folder: RunFolder, name: str) -> list[Found]:
    status = folder.artefact(name).status()
    return [Found(folder=folder, record=status.record)] if status.state is State.COMPLETE and status.record else []


def _study_of(folder: RunFolder) -> RunFolder | None:
    """The study that a job's folder, <study>/runs/<variant>/seed_<n>, lies in."""
    above = RunFolder(folder.root.parent.parent.parent)
    return above if above.artefact("study").record_file.is_file() else None


def of_data(fingerprint: str) -> Misfit:
    """Fits what was made from the data set with this fingerprint."""
    return lambda record: "" if record.made_from.get(DATA) == fingerprint else "it is of other data"


def find(
    name: str,
    *,
    root: Path,
    here: RunFolder,
    misfit: Misfit,
    why: str,
    logger: logging.Logger,
    of_studies: bool = True,
) -> Found | None:
    """The newest complete `name` that fits, this run's own before all others; what was taken is logged.

    The nearest one that does not fit is named, with what is in the way.

    Args:
        why: what it is looked for, such as the key that was not given.
        of_studies: whether the runs within a study count, whose variants nobody means by "the newest".
    """
    nearest: tuple[Found, str] | None = None
    for run in complete_runs(name, root, here):
        if not of_studies and run.folder.root != here.root and _study_of(run.folder) is not None:
            continue
        reason = misfit(run.record)
        if not reason:
            if run.folder.root != here.root:
                logger.info("%s: taking %s of %s (complete %s)", why, name, run.folder.root, run.record.completed)
            return run
        if nearest is None or reason.count(",") < nearest[1].count(","):
            nearest = (run, reason)
    if nearest is not None:
        logger.info("%s: no %s fits; the nearest, of %s, does not: %s", why, name, nearest[0].folder.root, nearest[1])
    return None


def baseline_folder(stage: Stage, key: str, given: str | None) -> Path:
    """Checkpoint folder of a baseline: the given one, else that of the newest run with this student, data and seed.

    Raises:
        UserError: none was given, and none fits.
    """
    if given is not None:
        return project_path(given)
    wanted = student_inputs(stage.settings, stage.dataset)
    found = find(
        "baseline",
        root=result_root(stage.settings),
        here=stage.folder,
        misfit=lambda record: unlike(record.made_from, wanted),
        why=f"{key} not given",
        logger=stage.logger,
    )
    if found is None:
        raise UserError(
            f"{key}=null: no finished baseline of dataset {stage.dataset.name} with these student settings and this "
            "seed; run src.exp.run_student_baseline with them first, or set the key to a checkpoint's folder"
        )
    return found.folder.model_dir("baseline")


def newest_student(cfg: Settings, logger: logging.Logger, *, key: str) -> Path:
    """Folder of the distilled student of the newest run of this data set, else of the newest baseline.

    Raises:
        UserError: there is none; `key` is what would name one.
    """
    fingerprint = load_dataset(cfg.dataset, data_dir(cfg), logger).fingerprint
    for name in ("distill", "baseline"):
        run = find(
            name,
            root=result_root(cfg),
            here=run_folder(),
            misfit=of_data(fingerprint),
            why=f"{key} not given",
            logger=logger,
            of_studies=False,
        )
        if run is not None:
            return run.folder.model_dir(name)
    raise UserError(
        f"{key}=null: no finished student of dataset {cfg.dataset.name} under {result_root(cfg)}; run "
        "src.exp.run_student_baseline first or give the folder of a checkpoint (result/<run>/models/baseline)"
    )


def run_that_exported(stage: Stage, files: str | None) -> RunFolder | None:
    """The run whose teacher has written the files with this hash (`teacher_files_hash`), wherever they lie now."""
    root, name = result_root(stage.settings), "teacher_export"
    folders = [stage.folder, *(RunFolder(path.parents[1]) for path in sorted(root.rglob(f"records/{name}.json")))]
    for folder in folders:
        record = folder.artefact(name).status().record
        if files is not None and record is not None and record.completed and files in record.files.values():
            return folder
    return None


def recommender_folders(stage: Stage, outputs: Path) -> tuple[Path, ...]:
    """The recommenders that teach: the given ones, else the frozen one behind the teacher's files, which is given, too,
    or that of the run that exported them.

    Raises:
        UserError: there is none.
    """
    cfg = stage.settings
    if cfg.distill.recommenders:
        folders = tuple(map(project_path, cfg.distill.recommenders))
        missing = next((path for path in folders if not path.exists()), None)
        if missing:
            raise UserError(
                f"distill.recommenders={list(cfg.distill.recommenders)}: there is no {missing}; give folders of "
                "students' checkpoints (result/<run>/models/baseline)"
            )
        return folders
    given, exporter = cfg.teacher.rec_model_path, run_that_exported(stage, teacher_files_hash(outputs))
    own = exporter.model_dir("teacher") / "recommender" if exporter else None
    folder = project_path(given) if given else own
    if folder is None or not folder.exists():
        raise UserError(
            f"distill.teacher=recommender: no frozen recommender{f' in {folder}' if folder else ''}; set "
            "teacher.rec_model_path to one or distill.recommenders to some, or train a teacher here "
            "(src.exp.run_teacher), which trains one"
        )
    return (folder,)

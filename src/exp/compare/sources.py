"""Which run each model of a comparison comes from, and whether the two students may be compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.core.artefacts import Record, unlike
from src.core.errors import UserError
from src.core.paths import RunFolder, project_path, result_root
from src.exp.compare.comparison import CONTROLS, STUDENTS
from src.exp.compare.significance import PairedTest, Ranks, load_ranks, paired_tests
from src.exp.stage.inputs import DATA, INITIAL_WEIGHTS, OWN_EMBEDDINGS, TEACHER_FILES, differ_besides_distillation
from src.exp.stage.lookup import Found, Misfit, complete_runs, find, of_data, run_that_exported
from src.exp.stage.multirun import is_multirun
from src.exp.stage.stage import Stage

SEED, TEACHER, HISTORY = "general.seed", "distill.teacher", "metrics.history"
_OF_A_SEED = (SEED, TEACHER_FILES, INITIAL_WEIGHTS, "the frozen recommender", "the student that chose the rows")
_UPSTREAM = "dllm2rec_upstream"
_ITSELF = "itself"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The runs that a comparison is about.

    Attributes:
        runs: by model: `teacher`, `baseline`, `distill`, `dllm2rec_upstream`.
        unlike: what differs between the two students besides the distillation; empty if they may be compared.
        notes: sentences that a reader of the comparison has to know.
    """

    runs: dict[str, Found]
    unlike: str = ""
    notes: list[str] = field(default_factory=list)


def find_sources(stage: Stage) -> Sources:
    """The runs that `eval.run_dir` names; without it this folder's, completed by the newest runs that fit them.

    Raises:
        UserError: there is no finished student.
    """
    given = stage.settings.eval.run_dir
    runs, other = _of_folder(stage, given) if given is not None else _searched(stage)
    if not runs.keys() & {"baseline", "distill"}:
        where = f"in {given}" if given else f"for dataset {stage.dataset.name} under {result_root(stage.settings)}"
        raise UserError(
            f"eval.run_dir={given}: no finished baseline or distilled student {where} (its record is "
            "records/<student>.json, which runs of earlier versions lack); run src.exp.run_student_baseline or "
            "src.exp.run_distill first"
        )
    difference = other
    if {"baseline", "distill"} <= runs.keys():
        difference = differ_besides_distillation(runs["baseline"].record, runs["distill"].record)
    notes = [*_notes(runs), *_other_ranking(runs, stage.settings.metrics.history)]
    return Sources(runs=runs, unlike=difference, notes=notes)


def _of_folder(stage: Stage, given: str) -> tuple[dict[str, Found], str]:
    folder = RunFolder(project_path(given))
    if not folder.root.is_dir():
        raise UserError(f"eval.run_dir={given}: no such folder; give a run folder such as result/result_<timestamp>")
    names = {"teacher": "teacher_evaluation", "baseline": "baseline", "distill": "distill", _UPSTREAM: _UPSTREAM}
    runs = {model: run for model, name in names.items() if (run := _here(folder, name)) is not None}
    for model, run in runs.items():
        found = run.record.made_from.get(DATA)
        if found != stage.dataset.fingerprint:
            raise UserError(
                f"eval.run_dir={given}: its {model} was made from other data ({str(found)[:12]}) than "
                f"{stage.dataset.name} of this run ({stage.dataset.fingerprint[:12]}); give the dataset settings of "
                "that run"
            )
    return runs, ""


def _here(folder: RunFolder, name: str) -> Found | None:
    status = folder.artefact(name).status()
    return Found(folder=folder, record=status.record) if status.is_current and status.record else None


def _searched(stage: Stage) -> tuple[dict[str, Found], str]:
    """The runs, and by what the nearest other student differs where none fits."""
    anchor = _anchor(stage)
    if anchor is None:
        return {}, ""
    name, first = anchor
    partner = {"distill": "baseline", "baseline": "distill"}[name]

    def differs(record: Record) -> str:
        students = {name: first.record, partner: record}
        return differ_besides_distillation(students["baseline"], students["distill"])

    # Where none fits but both lie in this folder, the report says why they are not compared.
    other = _search(stage, partner, differs) or _fitting_here(stage, partner)
    of_same_data = (run for run in _all(stage, partner) if run.record.made_from.get(DATA) == stage.dataset.fingerprint)
    reason = next((differs(run.record) for run in of_same_data), "") if other is None else ""
    students = {name: first} if other is None else {name: first, partner: other}
    teacher = _teacher_of(stage, students.get("distill"))
    upstream = _fitting_here(stage, _UPSTREAM)  # another run's must not slip into this report
    found = {"teacher": teacher, **students, _UPSTREAM: upstream}
    return {model: run for model, run in found.items() if run is not None}, reason


def _anchor(stage: Stage) -> tuple[str, Found] | None:
    """The student that the report is about: this folder's, else the newest one, a distilled one before a baseline.

    Raises:
        UserError: under multirun, where the newest could be another seed's.
    """
    for name in ("distill", "baseline"):
        if (run := _fitting_here(stage, name)) is not None:
            return name, run
    if is_multirun():
        raise UserError("eval.run_dir=null: must be given under multirun, because guessing a run could mix seeds")
    for name in ("distill", "baseline"):
        run = _search(stage, name, of_data(stage.dataset.fingerprint), of_studies=False)
        if run is not None:
            return name, run
    return None


def _all(stage: Stage, name: str) -> list[Found]:
    return complete_runs(name, result_root(stage.settings), stage.folder)


def _fitting_here(stage: Stage, name: str) -> Found | None:
    run = _here(stage.folder, name)
    return run if run is not None and run.record.made_from.get(DATA) == stage.dataset.fingerprint else None


def _search(stage: Stage, name: str, misfit: Misfit, *, of_studies: bool = True) -> Found | None:
    return find(
        name,
        root=result_root(stage.settings),
        here=stage.folder,
        misfit=misfit,
        why="eval.run_dir not given",
        logger=stage.logger,
        of_studies=of_studies,
    )


def _teacher_of(stage: Stage, distilled: Found | None) -> Found | None:
    """The teacher whose files were distilled; without a distilled student the newest one of the data."""
    if distilled is None:
        return _search(stage, "teacher_evaluation", of_data(stage.dataset.fingerprint))
    exporter = run_that_exported(stage, distilled.record.made_from.get(TEACHER_FILES))
    return _here(exporter, "teacher_evaluation") if exporter else None


def _notes(runs: Mapping[str, Found]) -> list[str]:
    notes = []
    if {"baseline", "distill"} <= runs.keys():
        one, other = runs["baseline"].record, runs["distill"].record
        if one.commit != other.commit:
            notes.append(
                f"The students were trained by different versions of the code: baseline {one.commit[:12]}, distilled "
                f"{other.commit[:12]}."
            )
        if other.made_from.get("distill.init") == "baseline":
            notes.append("The distilled student started from a baseline's weights, so it was trained for longer.")
        if other.made_from.get(TEACHER, "files") != "files":
            control = str(other.made_from[TEACHER])
            notes.append(f"The distilled student's teacher was a control: {CONTROLS.get(control, control)}.")
        if OWN_EMBEDDINGS in other.made_from:
            notes.append("Its item embeddings were those of distill.embeddings_file, not the teacher's.")
    teacher = _training_of_teacher(runs["teacher"].folder) if "teacher" in runs else {}
    if engine := teacher.get("teacher.engine"):
        notes.append(f"The teacher's engine was {engine} (teacher.engine); another engine gives another teacher.")
    if teacher.get("teacher.num_epochs") == 0:
        notes.append("The teacher was not trained (teacher.num_epochs=0): what it says is the LLM's as it was given.")
    return notes


def _other_ranking(runs: Mapping[str, Found], history: str) -> list[str]:
    """That best epochs were chosen by another ranking than the one this report is about."""
    chosen = {name: run.record.made_from.get(HISTORY, history) for name, run in runs.items() if name in STUDENTS}
    others = [f"{found} ({name})" for name, found in chosen.items() if found != history]
    if not others:
        return []
    return [f"Best epochs were chosen with the history {', '.join(others)}; here it is {history} ({HISTORY})."]


def _training_of_teacher(folder: RunFolder) -> Mapping[str, Any]:
    record = folder.artefact("teacher").status().record
    return record.made_from if record else {}


# --- runs of other seeds, and controls ----------------------------------------------------------------------


def differ_besides_seed(one: Record, other: Record, *also: str) -> str:
    """By what two runs differ besides their seed and what the seed decides; empty: by nothing."""
    left, right = (
        {key: value for key, value in record.made_from.items() if key not in (*_OF_A_SEED, *also)}
        for record in (one, other)
    )
    return unlike(left, right)


def control_tests(stage: Stage, distilled: Found) -> dict[str, PairedTest] | None:
    """The distilled student against those of each control teacher, over the seeds that both were run for.

    None where the distilled student's own teacher is a control.
    """
    if _taught_by(distilled.record, distilled.record) != _ITSELF:
        return None
    alike: dict[str, dict[int, Found]] = {name: {} for name in (_ITSELF, *CONTROLS)}
    for run in _all(stage, "distill"):
        teacher = _taught_by(run.record, distilled.record)
        same = not differ_besides_seed(distilled.record, run.record, TEACHER, OWN_EMBEDDINGS)
        if teacher in alike and same and type(seed := run.record.made_from.get(SEED)) is int:
            alike[teacher].setdefault(seed, run)
    own, pairs = alike.pop(_ITSELF), {}
    for name, runs in alike.items():
        if seeds := sorted(own.keys() & runs.keys()):
            pairs[name] = (_ranks_of(own, seeds), _ranks_of(runs, seeds))
    metrics = stage.settings.metrics
    return paired_tests(pairs, metrics.monitor, metrics.masked)


def _taught_by(run: Record, distilled: Record) -> str:
    """A run's teacher as a control of the distilled student: a key of `CONTROLS`, `_ITSELF`, or empty where neither."""
    teacher = str(run.made_from.get(TEACHER, "files"))
    own = run.made_from.get(OWN_EMBEDDINGS)
    if teacher in ("tfidf", "recommender"):  # they read no files that could be others
        return teacher
    if own == distilled.made_from.get(OWN_EMBEDDINGS):
        return _ITSELF if teacher == "files" else teacher
    return "own" if teacher == "files" and own is not None else ""


def _ranks_of(runs: Mapping[int, Found], seeds: list[int]) -> list[Ranks]:
    return [load_ranks(runs[seed].folder.ranks_file("distill")) for seed in seeds]

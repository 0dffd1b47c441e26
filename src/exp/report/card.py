"""Model cards, `README.md` in the form of the Hugging Face hub: of a student, of a teacher's files, of an adapter."""

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from src.core.foreign.hub import is_hub_id
from src.core.paths import CARD_FILE, teacher_outputs_dir
from src.core.teacher_files import MANIFEST_FILE, Manifest, read_manifest
from src.exp.compare.comparison import CONTROLS, metric_label
from src.exp.compare.significance import load_ranks, normal_interval, user_metric
from src.exp.report.pages import Table, write_markdown
from src.exp.report.tables import valid_sample
from src.exp.stage.stage import Stage
from src.student.checkpoint import load_checkpoint

_USAGE = """from src.serving.recommender import Recommender

student = Recommender.from_pretrained("<this folder, or owner/name on the hub>")
for best in student.recommend([["<raw item id>", "<another, taken later>"]], top_k=10):
    print([(item.item_id, item.title, item.score) for item in best])"""
_FILES = {
    "all_embeddings.pt": "a vector of each item's title",
    "myrank_train.txt": "a line per training row: items, best first",
    "confidence_train.txt": "their distances, ascending",
    "row_stats.npz": "per row: best distance, log-probability of the answer, whether it was valid, whether trained on",
    "rows_train.npy": "the training row of each line",
    MANIFEST_FILE: "what the files belong to, how they were made, their hashes",
}


# --- students -----------------------------------------------------------------------------------------------


def write_student_card(stage: Stage) -> Path:
    """Write the card of a student that was trained and tested beside its weights; returns its file."""
    folder = stage.folder.model_dir(stage.name)
    model, info = load_checkpoint(folder)
    record = stage.folder.artefact(stage.name).status().record
    assert record is not None  # its training is under way
    dataset, config = stage.dataset, model.config
    manifest = _manifest_of(stage)
    metrics, users = _numbers(stage)
    context = {
        "front_matter": _front_matter(
            tags=[
                "sequential-recommendation",
                config.name,
                *(["knowledge-distillation"] if _is_distilled(stage) else []),
            ],
            base_model=manifest.base_model if manifest else None,
            extra={"model-index": [_index_entry(stage, metrics)]},
        ),
        "title": f"{stage.settings.general.experiment_name}: {config.name} on {dataset.name}",
        "student": f"{config.name}, {config.emb_size} dimensions, the last {config.max_seq_len} items",
        "origin": "It was distilled from a teacher." if _is_distilled(stage) else "It was trained on the log alone.",
        "num_items": dataset.num_items,
        "metrics": metrics,
        "rows": len(dataset.test),
        "users": users,
        "deciding": stage.settings.metrics.description,
        "validation": f"{info.valid_value:.4f}",
        "chance": f"a recall@10 of {min(1.0, 10 / dataset.num_items):.4f}",
        "data": _data(stage),
        "teacher": _teacher(stage, manifest),
        "usage": _USAGE,
        "made_from": yaml.safe_dump(record.made_from, sort_keys=False, allow_unicode=True).rstrip(),
        "info": info,
    }
    write_markdown("student_card", folder / CARD_FILE, context)
    return folder / CARD_FILE


def _is_distilled(stage: Stage) -> bool:
    return stage.name == "distill"


def _numbers(stage: Stage) -> tuple[Table, int]:
    """The metrics of the test rows with their intervals, and the number of users: shown and removed, k by k."""
    ranks, settings = [load_ranks(stage.folder.ranks_file(stage.name))], stage.settings.metrics
    names = list(
        dict.fromkeys([settings.monitor, *(f"{kind}@{max(settings.ks)}" for kind in ("recall", "ndcg")), "mrr"])
    )
    rows, users = [], 0
    for name in names:
        cells = []
        for masked in (False, True):
            _, values = user_metric(ranks, name, masked)
            low, high = normal_interval(values)
            cells.append(f"{values.mean():.4f} ({low:.4f} to {high:.4f})")
            users = len(values)
        rows.append([metric_label(name), *cells])
    columns = ["metric", "history shown", "history removed"]
    return Table(columns=columns, rows=rows, numbers=columns[1:]), users


def _index_entry(stage: Stage, metrics: Table) -> dict[str, Any]:
    """`model-index` of the hub: the metrics in a form that it can list."""
    results = [
        {"type": row[0], "name": f"{row[0]}, {column}", "value": float(cell.split(" ")[0])}
        for row in metrics.rows
        for column, cell in zip(metrics.columns[1:], row[1:], strict=True)
    ]
    return {
        "name": stage.settings.general.experiment_name,
        "results": [
            {
                "task": {"type": "sequential-recommendation"},
                "dataset": {"name": stage.dataset.name, "type": stage.dataset.name},
                "metrics": results,
            }
        ],
    }


def _data(stage: Stage) -> dict[str, str]:
    dataset, settings = stage.dataset, stage.settings.dataset
    return {
        "data set": f"{dataset.name} (source {settings.source}), fingerprint {dataset.fingerprint}",
        "rows": f"{len(dataset.train)} train, {len(dataset.valid)} validation, {len(dataset.test)} test",
        **valid_sample(stage.settings.student, dataset),
        "split": f"{settings.split.method}; users with fewer than {settings.min_user_inter} interactions left out",
        "protocol": "full ranking of all items, ties at their expected place; no sampled negatives",
    }


def _manifest_of(stage: Stage) -> Manifest | None:
    """That of the teacher's files, where this student was distilled from them."""
    if not _is_distilled(stage) or not stage.settings.distill.reads_files:
        return None
    return read_manifest(teacher_outputs_dir(stage.settings))


def _teacher(stage: Stage, manifest: Manifest | None) -> dict[str, str]:
    if not _is_distilled(stage):
        return {}
    distill = stage.settings.distill
    facts = {"kind": f"a control: {CONTROLS[distill.teacher]}" if distill.teacher in CONTROLS else "a language model"}
    if distill.embeddings_file:
        facts["item embeddings"] = "a file of the user's own (distill.embeddings_file)"
    return facts | (_teacher_facts(manifest) if manifest else {})


# --- teachers -----------------------------------------------------------------------------------------------


def write_export_card(stage: Stage) -> None:
    """Write the card of a teacher's files beside their manifest."""
    folder = teacher_outputs_dir(stage.settings)
    manifest = read_manifest(folder)
    assert manifest is not None  # they have just been written
    files = [[name, what] for name, what in _FILES.items() if (folder / name).is_file()]
    context = {
        "front_matter": _front_matter(tags=["sequential-recommendation", "teacher"], base_model=manifest.base_model),
        "title": f"{stage.settings.general.experiment_name}: a teacher's files for {manifest.dataset}",
        "facts": {
            "data set": f"{manifest.dataset}, fingerprint {manifest.dataset_fingerprint}",
            "items": f"{manifest.num_items}, vectors of {manifest.llm_dim} numbers",
            "training rows ranked": f"{manifest.num_rows}, {manifest.top_n} items each",
            "rows it was trained on among them": str(manifest.in_sample_rows),
        },
        "files": Table(columns=["file", "content"], rows=files, code=["file"]),
        "teacher": _teacher_facts(manifest),
        "leaks_target": manifest.leaks_target,
    }
    write_markdown("export_card", folder / CARD_FILE, context)


def write_adapter_card(stage: Stage, base_model: str, licence: str | None) -> Path:
    """Write the card of a trained adapter beside its weights; returns its file.

    Args:
        base_model: a name of the LM for people; licence: as its own card gives it.
    """
    cfg, folder = stage.settings, stage.folder.model_dir("teacher") / "adapter"
    lora = cfg.teacher.lora
    context = {
        "front_matter": _front_matter(tags=["ilora", "lora", "sequential-recommendation"], base_model=base_model),
        "title": f"{cfg.general.experiment_name}: iLoRA adapter for {stage.dataset.name}",
        "facts": {
            "base model": base_model,
            "its licence": licence or "not given",
            "LoRA": f"rank {lora.r} over {lora.num_experts} experts, alpha {lora.alpha:g}",
            "data set": f"{stage.dataset.name}, fingerprint {stage.dataset.fingerprint}",
            "rows": str(cfg.teacher.max_train_rows or len(stage.dataset.train)),
            "seed": str(cfg.general.seed),
        },
    }
    write_markdown("adapter_card", folder / CARD_FILE, context)
    return folder / CARD_FILE


def _teacher_facts(manifest: Manifest) -> dict[str, str]:
    return {
        "base model": manifest.base_model,
        "its licence": manifest.base_model_license or "not given",
        "adapter": f"sha256 {manifest.adapter_sha256[:16]}, by the {manifest.engine} engine",
        "rankings": f"{manifest.method}, candidates: {manifest.candidates}" if manifest.has_rankings else "none",
        "embeddings": f"{manifest.embedding_pooling}, layer {manifest.embedding_layer}, of {manifest.embedding_text!r}",
        "seed, commit": f"{manifest.seed}, {manifest.git_commit}",
    }


def _front_matter(*, tags: list[str], base_model: str | None, extra: dict[str, Any] | None = None) -> Markup:
    """The hub's metadata; a base model is named where it can be an id there."""
    values: dict[str, Any] = {"tags": tags}
    if base_model and is_hub_id(base_model):
        values["base_model"] = base_model
    text = yaml.safe_dump(values | (extra or {}), sort_keys=False, allow_unicode=True)
    return Markup(f"---\n{text}---\n")

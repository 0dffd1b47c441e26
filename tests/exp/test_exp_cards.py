"""Model cards of the shared run, and its student as ONNX."""

import re
import shutil

import numpy as np
import onnxruntime
import pytest
from harness import run_here
from huggingface_hub import ModelCard

from src.core.files import read_json
from src.exp import export_onnx
from src.serving.recommender import Recommender


@pytest.fixture
def student(pipeline, tmp_path):
    return shutil.copytree(pipeline.folder / "models" / "distill", tmp_path / "student")


def cells(card: str, first: str) -> list[str]:
    """The further cells of a table's line."""
    (line,) = (line for line in card.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


@pytest.mark.parametrize("name", ["baseline", "distill"])
def test_a_students_card_has_its_numbers_and_where_it_comes_from(pipeline, name):
    card = ModelCard.load(pipeline.folder / "models" / name / "README.md")
    evaluation = read_json(pipeline.folder / "metrics" / f"eval_{name}.json")

    for label, key in (("NDCG@10", "ndcg@10"), ("MRR", "mrr")):
        for cell, part in zip(cells(card.text, label), ("metrics", "metrics_masked"), strict=True):
            value, low, high = map(float, re.findall(r"[\d.]+", cell))
            assert value == pytest.approx(evaluation[part][key], abs=5e-5) and low <= value <= high
    fingerprint, commit = evaluation["dataset_fingerprint"], evaluation["git_commit"]
    assert fingerprint in card.text and commit in card.text and "student.name: sasrec" in card.text
    assert ("None: it learnt from the log alone" in card.text) == (name == "baseline")
    assert ("- base model: ilora\\_tiny" in card.text) == (name == "distill")
    data = card.data.to_dict()
    assert ("knowledge-distillation" in data["tags"]) == (name == "distill")
    (result,) = {r.metric_value for r in card.data.eval_results if r.metric_name == "NDCG@10, history removed"}
    assert result == pytest.approx(evaluation["metrics_masked"]["ndcg@10"], abs=5e-5)


def test_the_cards_usage_runs(student):
    card = (student / "README.md").read_text(encoding="utf-8")
    (usage,) = re.findall(r"```python\n(.*?)```", card, re.S)
    items = Recommender.from_pretrained(student).items.item_ids
    for placeholder, value in (
        ("<this folder, or owner/name on the hub>", str(student)),
        ("<raw item id>", items[0]),
        ("<another, taken later>", items[1]),
    ):
        assert placeholder in usage
        usage = usage.replace(placeholder, value)
    exec(usage, {"print": lambda best: shown.append(best)} if (shown := []) is None else {})


def test_a_teachers_files_and_its_adapter_have_cards(pipeline):
    files = ModelCard.load(pipeline.teacher_outputs / "README.md")
    manifest = read_json(pipeline.teacher_outputs / "manifest.json")
    assert (
        manifest["dataset_fingerprint"] in files.text
        and f"{manifest['num_rows']}, {manifest['top_n']} items each" in files.text
    )
    listed = set(re.findall(r"\| `(\S+)` ", files.text))
    assert listed == {
        path.name
        for path in pipeline.teacher_outputs.iterdir()
        if path.suffix in (".pt", ".txt", ".npz", ".npy", ".json")
    }
    adapter = ModelCard.load(pipeline.folder / "models" / "teacher" / "adapter" / "README.md")
    assert "Plain `peft` loads the LoRA of this folder but neither the gate nor the projection" in adapter.text


# --- ONNX ---------------------------------------------------------------------------------------------------


def export(pipeline, tmp_path, *overrides: str) -> int:
    return run_here(export_onnx.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}", *overrides)


def test_the_exported_student_ranks_as_the_served_one(pipeline, student, tmp_path, capsys):
    assert export(pipeline, tmp_path, f"export.checkpoint={student}") == 0
    assert re.search(
        r"wrote .*model\.onnx; its scores differ from PyTorch's by at most \S+ of their size", capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()

    served = Recommender.from_pretrained(student)
    history = [3, 1, 4]
    session = onnxruntime.InferenceSession(student / "model.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"history": np.array([history])})
    scores[0, history] = -np.inf
    (best,) = served.recommend([[served.items.item_ids[item] for item in history]], top_k=5)
    assert [served.items.item_ids[item] for item in scores[0].argsort()[::-1][:5]] == [item.item_id for item in best]


def test_another_file_and_what_is_no_student(pipeline, student, tmp_path, capsys):
    target = tmp_path / "out" / "served.onnx"
    assert (
        export(pipeline, tmp_path, f"export.checkpoint={student}", f"export.output={target}") == 0 and target.is_file()
    )
    for words, message in (
        ([f"export.checkpoint={tmp_path / 'none'}"], "none: no such folder; expected the folder of a student"),
        ([f"export.checkpoint={pipeline.teacher_outputs}"], "config.json: missing file"),
        ([f"export.output={tmp_path / 'a.pt'}"], "must be null or a file .onnx"),
    ):
        assert export(pipeline, tmp_path, *words) == 1
        assert message in capsys.readouterr().err

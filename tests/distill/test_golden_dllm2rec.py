"""Our steps against kept numbers of the original program; needs no checkout. `golden.py` says how they were made."""

import json

import pytest
import torch
from golden import FILE, STEPS, golden_values
from test_parity_dllm2rec import README, make_case, ours
from upstream import STUDENTS, known_weight

from src.student import objectives


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_first_steps_have_the_losses_of_the_original(kept, monkeypatch, name):
    golden, case = kept[name], make_case()
    assert len(golden["losses"]) == STEPS and len(set(map(tuple, golden["rows"]))) == STEPS
    model, objective = ours(case, name, README)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(known_weight(parameter_name, parameter.shape))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    for i, (rows, negatives, losses) in enumerate(
        zip(golden["rows"], golden["negatives"], golden["losses"], strict=True)
    ):
        monkeypatch.setattr(objectives, "sample_negatives", lambda *args, drawn=negatives: torch.tensor(drawn))
        optimizer.zero_grad()
        loss, parts = objective(model, case.batch(torch.tensor(rows)))
        loss.backward()
        tolerance = 1e-5 if i == 0 else 1e-4  # rounding grows with Adam's steps
        found = {"base": parts["loss_bce"], "dros": parts["loss_dros"], "ranking": parts["loss_ranking"], "total": loss}
        assert {key: value.item() for key, value in found.items()} == pytest.approx(losses, rel=tolerance)
        if i == 0:
            norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
            noise = 5e-7 * max(golden["gradient_norms"].values())
            assert norms == pytest.approx(golden["gradient_norms"], rel=1e-5, abs=noise)
        optimizer.step()


@pytest.mark.parametrize("name", STUDENTS)
def test_the_original_still_gives_these_numbers(kept, dllm2rec_folder, tmp_path, name):
    fresh = golden_values(dllm2rec_folder, name, tmp_path / "upstream")

    assert fresh["rows"] == kept[name]["rows"] and fresh["negatives"] == kept[name]["negatives"]
    for now, before in zip(fresh["losses"], kept[name]["losses"], strict=True):
        assert now == pytest.approx(before, rel=1e-6)
    assert fresh["gradient_norms"] == pytest.approx(kept[name]["gradient_norms"], rel=1e-4, abs=1e-6)

"""Small numbers of the original program, kept in `golden_dllm2rec.json` for where it is not checked out.

    DLLM2REC_DIR=<checkout of istarryn/DLLM2Rec@b78cc65> python tests/distill/golden.py

writes them anew. Of each student: the rows and negatives of the first steps at README's settings from known weights,
their losses, and the norm of each gradient in the first.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402
from test_parity_dllm2rec import BATCH_SIZE, README, make_case, ours  # noqa: E402
from upstream import STUDENTS, give_known_weights, in_upstream, run_upstream  # noqa: E402

FILE = HERE / "golden_dllm2rec.json"
STEPS = 5


def golden_values(folder: Path, name: str, where: Path) -> dict:
    """What the original program in `folder` computes for the student `name`."""
    case = make_case()
    model, _ = ours(case, name, README)
    options = {"batch_size": BATCH_SIZE, **README}
    steps = run_upstream(folder, case, name, options, where, STEPS, lambda theirs: give_known_weights(theirs, model))
    return {
        "rows": [step.rows.tolist() for step in steps],
        "negatives": [step.negatives.tolist() for step in steps],
        "losses": [step.losses for step in steps],
        "gradient_norms": {
            parameter: in_upstream(steps[0].gradients, parameter, value.shape).norm().item()
            for parameter, value in model.named_parameters()
        },
    }


def main() -> None:
    if "DLLM2REC_DIR" not in os.environ:
        raise SystemExit("set DLLM2REC_DIR to a checkout of istarryn/DLLM2Rec@b78cc65")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        values = {name: golden_values(Path(os.environ["DLLM2REC_DIR"]), name, Path(folder) / name) for name in STUDENTS}
    FILE.write_text(json.dumps(values, indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

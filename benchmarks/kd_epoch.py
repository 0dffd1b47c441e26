"""An epoch of distillation with its evaluation, ours against the unmodified DLLM2Rec program; prints one JSON line.

    DLLM2REC_DIR=<checkout of istarryn/DLLM2Rec@b78cc65> python -m benchmarks.kd_epoch \
        +experiment=lastfm distill=dllm2rec_official dataset.raw_dir=...

On the data that the overrides choose, with a drawn teacher of DLLM2Rec's shapes (embeddings 4,096 wide, 10 ranked items
a row). The program ranks the validation and the test rows after each epoch, so ours does, too. Each is run with 1 epoch
and with `EPOCHS`, so that starting and reading files do not count; rounds alternate. It takes long: on LastFM and
two CPU cores the program's run of 1 epoch took six minutes.
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import CPU, quiet_context, settings_of
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.device import keep_freed_memory
from src.core.errors import UserError
from src.distill.data_bridge import TeacherOutputs
from src.distill.dllm2rec_wrapper import arguments, find_program, run_program, write_files
from src.distill.trainer_distill import Distillation, train_distilled
from src.exp.settings import Settings
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import evaluate_model

EPOCHS, ROUNDS, LLM_DIM = 3, 2, 4096


def drawn_teacher(dataset: SequenceDataset, top_k: int) -> TeacherOutputs:
    random = np.random.default_rng(0)
    ranking = [random.choice(dataset.num_items, top_k, replace=False) for _ in range(len(dataset.train))]
    confidence = np.sort(random.random((len(dataset.train), top_k)), axis=1).astype(np.float32)
    embeddings = torch.randn(dataset.num_items, LLM_DIM, generator=torch.Generator().manual_seed(0)) * 0.1
    ranked = torch.from_numpy(np.stack(ranking))
    return TeacherOutputs(embeddings=embeddings, ranking=ranked, confidence=torch.from_numpy(confidence))


def our_seconds(settings: Settings, dataset: SequenceDataset, teacher: TeacherOutputs, num_epochs: int) -> float:
    distill = replace(settings.distill, num_epochs=num_epochs)
    student = replace(settings.student, patience=num_epochs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        begin = time.perf_counter()
        train_distilled(
            student,
            dataset,
            distillation=Distillation(settings=distill, outputs=teacher),
            metrics=settings.metrics,
            folder=folder,
            context=quiet_context(1),
        )
        model = load_checkpoint(folder)[0]
        for _ in range(num_epochs):
            evaluate_model(model, dataset.test, dataset, settings.metrics.ks, CPU)
        return time.perf_counter() - begin


def their_seconds(settings: Settings, dataset: SequenceDataset, teacher: TeacherOutputs, num_epochs: int) -> float:
    distill = replace(settings.distill, num_epochs=num_epochs)
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(temporary)
        write_files(folder, dataset, teacher)
        words = arguments(distill, settings.student, CPU)
        begin = time.perf_counter()
        try:
            run_program(find_program(), folder, words, num_epochs, folder / "log.txt")
        except UserError as error:  # also where it ended well and its metrics are all 0, as after a few epochs
            if "ended with code 0" not in str(error):
                raise
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    settings = settings_of(parser.parse_args().overrides)
    find_program()
    keep_freed_memory()
    logging.disable(logging.INFO)
    dataset = load_dataset(settings.dataset, settings.paths.data_dir, logging.getLogger("kd_epoch"))
    teacher = drawn_teacher(dataset, settings.distill.top_k)
    epoch: dict[str, list[float]] = {"ours": [], "upstream": []}
    for _ in range(ROUNDS):
        for name, seconds in (("ours", our_seconds), ("upstream", their_seconds)):
            one, several = (seconds(settings, dataset, teacher, count) for count in (1, EPOCHS))
            epoch[name].append((several - one) / (EPOCHS - 1))
    ours, upstream = (statistics.median(epoch[name]) for name in ("ours", "upstream"))
    print(
        json.dumps(
            {
                "rows": [len(rows) for rows in (dataset.train, dataset.valid, dataset.test)],
                "items": dataset.num_items,
                "ours_s": round(ours, 3),
                "upstream_s": round(upstream, 3),
                "ratio": round(upstream / ours, 1),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()

"""Two processes that train one teacher."""

import logging
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import multiprocessing

from src.core.data_utils import SequenceDataset
from src.core.tracking.base import Untracked
from src.student.config import ModelConfig
from src.student.context import Resume, RunContext
from src.student.models import build_model
from src.teacher import processes
from src.teacher.adapter.moe_lora import add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import TeacherConfig
from src.teacher.llm.load import load_llm
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.prompt.wording import read_wording
from src.teacher.recommender import FrozenRecommender
from src.teacher.training import train_adapter, training_rows

CPU = torch.device("cpu")


def train(folder: Path, dataset: SequenceDataset, config: TeacherConfig, llm: Path) -> None:
    """Train in float64, where Adam does not blow rounding up to steps, and leave the weights in `folder`."""
    torch.set_num_threads(1)
    tokenizer, model = load_llm(llm, "float32", CPU)
    torch.manual_seed(3)
    recommender = FrozenRecommender(build_model(ModelConfig("sasrec", dataset.num_items, 8, 8, 6, 0.0)), dataset, CPU)
    recommender.model.double()
    lora = add_gated_lora(model, config.lora, 8)
    lora.model.double()
    builder = PromptBuilder(tokenizer, dataset.titles, read_wording("movie"))
    lm = PromptedLM(lora, recommender.item_table)
    teacher = TeacherModel(lm=lm, builder=builder, recommender=recommender, dataset=dataset, config=config)
    gathered = []

    def validate() -> float:
        gathered.extend(processes.gather(list(range(5))[processes.share(5)]))
        return 0.5

    logger = logging.getLogger("tests")
    resume = Resume(folder / "last_state.pt")
    context = RunContext(seed=7, device=CPU, logger=logger, writer=Untracked(), resume=resume)
    rows = training_rows(dataset, None, 7)
    train_adapter(teacher, rows, validate=validate, save_best=lambda: None, context=context)
    torch.save({"weights": lora.state(), "gathered": gathered}, folder / "end.pt")


def one_of_two(rank: int, port: int, folder: Path, *args) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in world.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    processes.state(CPU)
    (folder / str(rank)).mkdir()
    train(folder / str(rank), *args)
    torch.distributed.destroy_process_group()


def test_two_processes_train_what_one_does(dataset, config, llm_folder, tmp_path):
    """Three micro-batches a step: one process takes two of them, the other one. With dropout and BatchNorm."""
    config = replace(config, batch_size=3, micro_batch_size=1, lora=replace(config.lora, dropout=0.2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, tmp_path, dataset, config, llm_folder)
    multiprocessing.start_processes(one_of_two, arguments, nprocs=2, start_method="forkserver")
    (tmp_path / "alone").mkdir()
    train(tmp_path / "alone", dataset, config, llm_folder)

    ends = {name: torch.load(tmp_path / name / "end.pt") for name in ("0", "1", "alone")}
    for name, expected in ends["alone"]["weights"].items():
        assert torch.equal(ends["0"]["weights"][name], ends["1"]["weights"][name])
        torch.testing.assert_close(ends["0"]["weights"][name], expected, rtol=1e-4, atol=1e-6)
    assert ends["alone"]["gathered"] == [0, 1, 2, 3, 4]
    assert ends["0"]["gathered"] == ends["1"]["gathered"] == [0, 2, 4, 1, 3]
    assert (tmp_path / "0" / "last_state.pt").is_file() and not (tmp_path / "1" / "last_state.pt").exists()


def test_alone_nothing_is_sent(monkeypatch):
    monkeypatch.setattr(processes, "reduce", None)
    parameter = torch.nn.Parameter(torch.ones(2))
    processes.reduce_gradients([parameter])
    assert parameter.grad is None
    assert processes.reduce_sum([1.0, 2.0], CPU) == [1.0, 2.0]
    assert np.arange(7)[processes.share(7)].tolist() == list(range(7))

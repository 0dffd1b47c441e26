"""A teacher small enough to check by hand: hidden 16, three layers, two pretraining steps."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from src.core.data_utils import DatasetConfig, SequenceDataset
from src.core.metrics import MetricsConfig
from src.core.paths import PathsConfig
from src.core.tracking.base import TrackingConfig, Untracked
from src.core.tracking.tensorboard_events import TensorBoardConfig
from src.student.config import ModelConfig, SASRecConfig
from src.student.context import RunContext
from src.student.models import build_model
from src.teacher.adapter.moe_lora import GatedLora, add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import ExportSettings, LoraSettings, TeacherConfig, TinySettings
from src.teacher.llm.load import load_llm
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.prompt.wording import read_wording
from src.teacher.recommender import FrozenRecommender
from src.teacher.tiny.build import build_tiny_llm

CPU = torch.device("cpu")
REC_SIZE = 8
_WORDS = ["Red Lamp", "The Long Road (2)", "Café No. 7", "Stone", "A Walk, by Night", "Zig-Zag: Part II"]


@pytest.fixture(scope="session")
def dataset(make_dataset) -> SequenceDataset:
    """24 items with titles of different lengths; 6 users of 7 items: 24 training rows of history 1 to 4."""
    titles = [f"{_WORDS[item % 6]}{'' if item < 6 else f' {chr(65 + item // 6)}' * (item // 6)}" for item in range(24)]
    sequences = [[(4 * user + (1 + user % 3) * place) % 24 for place in range(7)] for user in range(6)]
    return make_dataset(sequences, num_items=24, max_seq_len=6, name="toy", titles=titles)


def make_config() -> TeacherConfig:
    return TeacherConfig(
        name="ilora_tiny",
        engine="native",
        max_history=3,
        num_candidates=5,
        batch_size=4,
        micro_batch_size=2,
        num_epochs=1,
        lr=1e-2,
        dtype="float32",
        gradient_checkpointing=False,
        lora=LoraSettings(r=4, alpha=6, dropout=0.0, num_experts=2),
        recommender=SASRecConfig(name="sasrec", batch_size=8),
        export=ExportSettings(top_n=4, batch_tokens=300),
        tiny=TinySettings(
            vocab_size=400, hidden_size=16, num_layers=3, num_heads=2, pretrain_steps=2, pretrain_batch_size=2
        ),
    )


@pytest.fixture
def config() -> TeacherConfig:
    return make_config()


@pytest.fixture(scope="session")
def build_llm(dataset) -> Callable[..., None]:
    def build(config: TeacherConfig, folder: Path, seed: int, dataset: SequenceDataset = dataset) -> None:
        context = RunContext(seed=seed, device=CPU, logger=logging.getLogger("tests"), writer=Untracked())
        build_tiny_llm(config, dataset, folder=folder, context=context)

    return build


@pytest.fixture(scope="session")
def llm_folder(build_llm, dataset, tmp_path_factory) -> Path:
    """Built from other titles, so that it spells the dataset's in several tokens, as a real LLaMA does."""
    folder = tmp_path_factory.mktemp("teacher") / "llm"
    build_llm(make_config(), folder, 7, replace(dataset, titles=[title[::-1] for title in dataset.titles]))
    return folder


@pytest.fixture
def make_lora(llm_folder, config, fill_with_ramp) -> Callable[..., GatedLora]:
    """A fresh adapted LM with ramp weights in adapter, router and projector."""

    def make(settings: LoraSettings = config.lora, ramp: bool = True, scale: float = 0.25) -> GatedLora:
        lora = add_gated_lora(load_llm(llm_folder, "float32", CPU)[1], settings, REC_SIZE)
        if ramp:
            trained = torch.nn.ParameterList(p for p in lora.model.parameters() if p.requires_grad)
            fill_with_ramp(trained, scale)
        lora.model.eval()
        return lora

    return make


@pytest.fixture
def lora(make_lora) -> GatedLora:
    return make_lora()


@pytest.fixture
def builder(llm_folder, dataset) -> PromptBuilder:
    return PromptBuilder(load_llm(llm_folder, "float32", CPU)[0], dataset.titles, read_wording("movie"))


@pytest.fixture
def recommender(dataset, fill_with_ramp) -> FrozenRecommender:
    model = build_model(ModelConfig("sasrec", dataset.num_items, REC_SIZE, REC_SIZE, 6, 0.0))
    return FrozenRecommender(fill_with_ramp(model), dataset, CPU)


@pytest.fixture
def teacher(lora, builder, recommender, dataset, config) -> TeacherModel:
    lm = PromptedLM(lora, recommender.item_table)
    return TeacherModel(lm=lm, builder=builder, recommender=recommender, dataset=dataset, config=config)


@pytest.fixture
def with_export() -> Callable[..., TeacherModel]:
    """The teacher with other settings of `teacher.export`."""

    def change(teacher: TeacherModel, **changes: object) -> TeacherModel:
        return replace(teacher, config=replace(teacher.config, export=replace(teacher.config.export, **changes)))

    return change


@dataclass(frozen=True)
class GeneralSettings:
    seed: int
    overwrite: bool


@dataclass(frozen=True)
class AllSettings:
    """The sections of the program's settings that a teacher reads."""

    general: GeneralSettings
    dataset: DatasetConfig
    teacher: TeacherConfig
    metrics: MetricsConfig
    paths: PathsConfig
    logging: TrackingConfig


@pytest.fixture
def make_settings(config, tmp_path) -> Callable[..., AllSettings]:
    """Settings of a short training on few rows, which exports to `outputs`; changes are of `teacher`."""

    def make(seed: int = 7, overwrite: bool = False, outputs: str = "outputs", **changes: object) -> AllSettings:
        student = SASRecConfig(name="sasrec", emb_size=8, hidden_size=8, max_seq_len=6, batch_size=8, num_epochs=1)
        rows = {"max_train_rows": 8, "max_valid_rows": 4, "max_eval_rows": 4}
        return AllSettings(
            GeneralSettings(seed, overwrite),
            DatasetConfig(source="sample", name="sample"),
            replace(config, **{"recommender": student, **rows, **changes}),
            MetricsConfig(ks=[1, 5], monitor="ndcg@5"),
            PathsConfig(data_dir="data", result_root="result", teacher_outputs_dir=str(tmp_path / outputs)),
            TensorBoardConfig(),
        )

    return make

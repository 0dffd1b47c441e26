"""Both implementations against the unmodified iLoRA: tokens, logits, loss, gradients, generations, training.

The oracle is upstream's Lightning module with its fork of peft, router, projector and recommender, fed by its
collater. Generation is compared with padding on the left: on the right, as upstream has it, only the longest row of a
batch is answered correctly.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import upstream_ilora as upstream
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from src.core.datasets.lastfm import read_lastfm
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.adapter.ilora_submodule import SubmoduleLora, add_submodule_lora
from src.teacher.adapter.moe_lora import add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.adapter.upstream_recommender import read_pickled_sasrec
from src.teacher.adapter.upstream_weights import to_adapter
from src.teacher.config import LoraSettings
from src.teacher.llm.load import load_llm
from src.teacher.llm.texts import positions
from src.teacher.prompt.builder import IGNORED, PromptBatch, PromptBuilder
from src.teacher.prompt.candidates import sample_candidates
from src.teacher.prompt.wording import read_wording

CPU = torch.device("cpu")
HIDDEN, NUM_CANDIDATES, SEED = 64, 20, 5
TOLERANCE = 1e-5
ENGINES = {"native": add_gated_lora, "submodule": add_submodule_lora}


@pytest.fixture(scope="session")
def program(ilora_folder) -> SimpleNamespace:
    return upstream.load_program(ilora_folder)


# --- the rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    titles: list[str]
    rows: upstream.PromptRows


def make_data(titles: list[str], histories: list[list[int]], targets: list[int]) -> Data:
    rng, num_items = np.random.default_rng(0), len(titles)
    padded = torch.full((len(histories), upstream.WINDOW), num_items)
    candidates = []
    for row, history, target in zip(padded, histories, targets, strict=True):
        row[: len(history)] = torch.tensor(history)
        candidates.append(
            sample_candidates(rng, num_items=num_items, count=NUM_CANDIDATES, history=np.array(history), target=target)
        )
    lengths = torch.tensor([len(history) for history in histories])
    return Data(
        titles, upstream.PromptRows(padded, lengths, torch.from_numpy(np.stack(candidates)), torch.tensor(targets))
    )


@pytest.fixture(scope="session")
def made(dataset) -> Data:
    titles = [dataset.titles[item % 24] + " again" * (item // 24) for item in range(40)]
    return make_data(titles, [[1, 7, 3], [2, 9, 4, 30, 12, 0, 5, 6, 8, 39], [11, 35, 20, 3, 17]], [25, 31, 2])


@pytest.fixture(scope="session")
def lastfm(ilora_folder) -> Data:
    """Real training windows of LastFM, from `LASTFM_DIR` or as they come with iLoRA."""
    folder = Path(os.environ.get("LASTFM_DIR", ilora_folder / "data" / "ref" / "lastfm"))
    if not (folder / "train_data.df").is_file():
        pytest.skip(f"no LastFM windows in {folder}")
    splits = read_lastfm(folder)
    index = [0, 11, 4000, 30000]
    train = splits.train
    histories = [train.history[i, : train.length[i]].tolist() for i in index]
    return make_data(splits.titles, histories, train.target[index].tolist())


@pytest.fixture(params=["made", "lastfm"])
def data(request) -> Data:
    return request.getfixturevalue(request.param)


# --- both sides ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """Upstream's module and what our implementations need, with equal weights."""

    program: SimpleNamespace
    data: Data
    interface: nn.Module
    lm: Callable[[str], PromptedLM]
    users: Tensor
    builder: PromptBuilder

    def batches(self, embed: bool, train: bool, side: str = "left") -> tuple[dict[str, object], PromptBatch]:
        """Upstream's batch and ours of the same rows, padded on one side."""
        self.builder.tokenizer.padding_side = side
        rows, template = self.data.rows, self.builder.templates[0]
        text = template.format(history="[HistoryHere]", candidates="[CansHere]")
        theirs = upstream.collate(self.program, self.builder.tokenizer, rows, self.data.titles, text, embed, train)
        prompts = [
            self.builder.prompt(np.array(rows.items(i)), rows.candidates[i].numpy(), template=0, embed=embed)
            for i in range(len(rows.length))
        ]
        answers = [self.builder.answer(int(target)) for target in rows.target]
        ours = self.builder.batch(prompts, answers if train else None)
        return theirs, ours if side == "left" else padded_right(ours)


def padded_right(batch: PromptBatch) -> PromptBatch:
    def turned(values: Tensor) -> Tensor:
        return torch.stack([row.roll(int(n)) for row, n in zip(values, batch.mask.sum(1), strict=True)])

    return PromptBatch(*map(turned, (batch.ids, batch.mask, batch.is_marker)), batch.markers, turned(batch.labels))


@pytest.fixture(scope="session")
def plain_llm(llm_folder, tmp_path_factory) -> Path:
    """A LLaMA with ordinary random weights: the sharp attention that the tiny one starts with blows rounding up."""
    folder = tmp_path_factory.mktemp("plain") / "llm"
    shutil.copytree(llm_folder, folder)
    config = LlamaConfig.from_pretrained(folder)
    config.initializer_range = 0.1
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_sides(program, data, plain_llm, tmp_path) -> Callable[..., Sides]:
    def make(dropout: float) -> Sides:
        settings = LoraSettings(r=8, alpha=8, dropout=dropout, num_experts=4)
        sasrec = upstream.build_sasrec(program, len(data.titles), HIDDEN)
        upstream.save_pickled(program, sasrec, tmp_path / "sasrec.pt")
        recommender = read_pickled_sasrec(tmp_path / "sasrec.pt").eval().requires_grad_(False)

        def adapted(name: str) -> AdaptedLM:
            return ENGINES[name](load_llm(plain_llm, "float32", CPU)[1], settings, HIDDEN)

        torch.manual_seed(0)
        known = adapted("native")  # the router keeps its start: a ramp would make BatchNorm amplify rounding
        shown = {n.replace(".", "/"): p for n, p in trained(known) if ".router." not in n}
        upstream.give_known_weights(nn.ParameterDict(shown), 0.1)

        def lm(name: str) -> PromptedLM:
            lora = adapted(name)
            lora.load_state(known.state())
            return PromptedLM(lora, recommender.item_embeddings.weight[:-1])

        tokenizer, base = load_llm(plain_llm, "float32", CPU)
        llm = upstream.Llama(base.config)
        llm.load_state_dict(base.state_dict())
        interface = upstream.build_interface(program, llm, tokenizer, sasrec, settings, known.state())
        users = sasrec.cacul_h(data.rows.history, data.rows.length)[:, 0]
        return Sides(program, data, interface, lm, users, PromptBuilder(tokenizer, data.titles, read_wording("artist")))

    return make


def trained(lora: AdaptedLM) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in lora.model.named_parameters() if p.requires_grad]


def adapter_name(lora: AdaptedLM, name: str) -> str:
    """A parameter's name in the adapter file."""
    if not isinstance(lora, SubmoduleLora):
        return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
    inside = name.removeprefix("base_model.model.").replace("router.inner.", "router.")
    return next(
        iter(to_adapter({inside if inside.startswith(("router.", "projector.")) else f"llama_model.{name}": 0}))
    )


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Relative to the largest value."""
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference <= TOLERANCE, f"{what}: {difference:.1e}"


def forward(lm: PromptedLM, batch: PromptBatch, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates, logits of every position, and the loss after its backward; equal dropout in both passes."""
    lora = lm.lora
    gates = lora.router(users)
    torch.manual_seed(SEED)
    with torch.no_grad(), lora.gated(gates):
        logits = lora.llm(
            inputs_embeds=lm.inputs_embeds(batch),
            attention_mask=batch.mask.long(),
            position_ids=positions(batch.mask),
        ).logits
    torch.manual_seed(SEED)
    with lora.gated(gates):
        loss = lm.loss(batch, gates)
        loss.backward()
    return gates, logits, loss.detach()


# --- parity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", [True, False], ids=["markers", "placeholders"])
def test_prompts_have_upstreams_tokens_and_targets(make_sides, embed):
    sides = make_sides(0.0)
    theirs, ours = sides.batches(embed, train=True)
    tokens = theirs["tokens"]
    scored = (tokens.token_type_ids[:, 1:] == 1) & (tokens.input_ids != sides.builder.tokenizer.pad_token_id)

    assert torch.equal(ours.ids, tokens.input_ids)
    assert torch.equal(ours.mask.long(), tokens.attention_mask)
    assert torch.equal(ours.labels, tokens.input_ids.masked_fill(~scored, IGNORED))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("embed", [True, False], ids=["markers", "placeholders"])
def test_forward_and_backward(make_sides, embed, dropout):
    """Padded as upstream trains, so that positions and dropout masks fall alike."""
    sides = make_sides(dropout)
    theirs, batch = sides.batches(embed, train=True, side="right")
    sides.interface.train()
    sides.interface.rec_model.eval()
    torch.manual_seed(SEED)
    wanted = sides.interface(theirs)
    wanted.loss.backward()
    gradients = to_adapter({n: p.grad for n, p in sides.interface.named_parameters() if p.grad is not None})
    assert all(value.abs().max() > 0 for value in gradients.values())
    assert any("projector" in name for name in gradients) == embed

    for name in ENGINES:
        lm = sides.lm(name)
        lm.lora.model.train()
        _, logits, loss = forward(lm, batch, sides.users)

        assert_close(logits[batch.mask], wanted.logits.detach()[batch.mask], f"{name}: logits")
        assert_close(loss, wanted.loss.detach(), f"{name}: loss")
        ours = {adapter_name(lm.lora, n): p.grad for n, p in trained(lm.lora) if p.grad is not None}
        assert ours.keys() == gradients.keys()
        for parameter, gradient in ours.items():
            assert_close(gradient, gradients[parameter], f"{name}: gradient of {parameter}")


def test_greedy_answers(make_sides):
    sides = make_sides(0.0)
    theirs, batch = sides.batches(embed=True, train=False)
    sides.interface.eval()
    with torch.no_grad():
        wanted = [text.split("\n")[0].strip() for text in sides.interface.generate(theirs, temperature=None)]
    assert len(set(wanted)) > 1

    for name in ENGINES:
        lm = sides.lm(name)
        lm.lora.model.eval()
        with torch.no_grad():
            gates = lm.lora.router(sides.users)
            answers, _ = lm.generate(
                batch, gates, tokenizer=sides.builder.tokenizer, newline_id=sides.builder.newline_id
            )
        assert answers == wanted


def test_training_goes_the_same_way(make_sides):
    """Three steps of Adam with dropout, one seed: equal losses."""
    sides = make_sides(0.2)
    _, batch = sides.batches(embed=True, train=True)
    losses: dict[str, list[float]] = {}
    for name in ENGINES:
        lm = sides.lm(name)
        lm.lora.model.train()
        optimizer = torch.optim.Adam(lm.lora.parameter_groups(1e-3, 1e-5))
        torch.manual_seed(SEED)
        for _ in range(3):
            gates = lm.lora.router(sides.users)
            optimizer.zero_grad()
            with lm.lora.gated(gates):
                loss = lm.loss(batch, gates)
                loss.backward()
            optimizer.step()
            losses.setdefault(name, []).append(loss.item())
    assert losses["native"] == pytest.approx(losses["submodule"], rel=TOLERANCE)
    assert losses["native"][0] != losses["native"][2]

"""Small numbers of the unmodified iLoRA, kept in `golden_ilora.json` for where it is not checked out.

    ILORA_DIR=<checkout of AkaliKong/iLoRA@28e4737> python tests/teacher/golden_ilora.py

writes them anew: what upstream's Lightning module, its layers, router and projector make of a hand-made batch with
known weights. The recommender is two tables here; its parity is tested elsewhere.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402
import upstream_ilora as upstream  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from src.teacher.adapter.adapted_lm import AdaptedLM  # noqa: E402
from src.teacher.adapter.ilora_submodule import find_code  # noqa: E402
from src.teacher.adapter.moe_lora import add_gated_lora  # noqa: E402
from src.teacher.adapter.upstream_weights import to_adapter  # noqa: E402
from src.teacher.config import LoraSettings  # noqa: E402
from src.teacher.prompt.builder import IGNORED, PromptBatch  # noqa: E402

FILE = HERE / "golden_ilora.json"
SETTINGS = LoraSettings(r=8, alpha=8, dropout=0.0, num_experts=4)
NUM_ITEMS, HIDDEN, VOCAB, PAD, BOS, EOS, NEWLINE = 12, 64, 60, 0, 1, 2, 50
MARKERS = {"[HistoryEmb]": 57, "[CansEmb]": 58, "[ItemEmb]": 59}
NUM_TOKENS = 10
ROWS = upstream.PromptRows(
    torch.tensor([[3, 1, 4], [7, 2, 9], [5, 11, 0]]),
    torch.tensor([3] * 3),
    torch.tensor([[4, 8], [6, 10], [1, 9]]),
    torch.tensor([8, 6, 9]),
)
ITEM_TABLE = torch.sin(0.7 * torch.arange(NUM_ITEMS * HIDDEN)).reshape(NUM_ITEMS, HIDDEN)
USERS = torch.cos(0.3 * torch.arange(3 * HIDDEN) ** 1.1).reshape(3, HIDDEN)


class Recommender(nn.Module):
    """Answers upstream's two questions from the tables."""

    hidden_size = HIDDEN

    def cacu_x(self, items: Tensor) -> Tensor:
        return ITEM_TABLE[items]

    def cacul_h(self, history: Tensor, length: Tensor) -> Tensor:
        return USERS[:, None]


@dataclass(frozen=True)
class Tokenizer:
    """What both sides ask of a tokenizer; it writes token ids as numbers."""

    pad_token_id: int = PAD
    eos_token_id: int = EOS

    def __call__(self, text: str, **options: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.tensor([[MARKERS[text]]]))

    def batch_decode(self, rows: Tensor | list[list[int]], **options: object) -> list[str]:
        return [" ".join(str(int(token)) for token in row) for row in rows]


def make_batch(with_answers: bool) -> PromptBatch:
    """BOS and titles of one token with their markers, then answers of 2 to 4 tokens, padded on the right."""
    prompts, answers = [], []
    for i in range(3):
        history = [token for item in ROWS.items(i) for token in (20 + item, MARKERS["[HistoryEmb]"])]
        candidates = [token for item in ROWS.candidates[i].tolist() for token in (20 + item, MARKERS["[CansEmb]"])]
        prompts.append([BOS, *history, *candidates])
        answers.append([BOS, *range(40 + i, 40 + 2 * i), NEWLINE] if with_answers else [])
    width = max(len(p + a) for p, a in zip(prompts, answers, strict=True))
    ids, labels = torch.full((3, width), PAD), torch.full((3, width), IGNORED)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[i, : len(prompt + answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt + answer)] = torch.tensor(answer)
    markers = torch.cat([ROWS.history, ROWS.candidates], 1).flatten()
    return PromptBatch(ids, ids != PAD, torch.isin(ids, torch.tensor(list(MARKERS.values()))), markers, labels)


def make_llm() -> upstream.Llama:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    llm = upstream.Llama(LlamaConfig(VOCAB, **sizes, pad_token_id=PAD, eos_token_id=EOS))
    upstream.give_known_weights(llm, 0.15)
    return llm


def known_adapter() -> AdaptedLM:
    """Our implementation with known weights everywhere."""
    lora = add_gated_lora(make_llm(), SETTINGS, HIDDEN)
    shown = {name.replace(".", "/"): p for name, p in lora.model.named_parameters() if p.requires_grad}
    upstream.give_known_weights(nn.ParameterDict(shown), 0.1)
    return lora


def norms(gradients: dict[str, Tensor]) -> dict[str, float]:
    """Norm of each gradient under the adapter file's names."""
    return {name: gradient.norm().item() for name, gradient in sorted(gradients.items())}


def upstream_batch(batch: PromptBatch) -> dict[str, object]:
    types = upstream.with_first_column((batch.labels != IGNORED).long())
    tokens = SimpleNamespace(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=types)
    lengths = {"len_seq": ROWS.length, "len_cans": torch.full_like(ROWS.length, ROWS.candidates.shape[1])}
    return {"tokens": tokens, "seq": ROWS.history, "cans": ROWS.candidates, "item_id": ROWS.target, **lengths}


def golden_values(folder: Path) -> dict:
    """What the original in `folder` computes."""
    program = upstream.load_program(folder)
    module = upstream.build_interface(
        program, make_llm(), Tokenizer(), Recommender(), SETTINGS, known_adapter().state()
    )
    with torch.no_grad():
        answers = module.eval().generate(upstream_batch(make_batch(with_answers=False)), temperature=None)
    out = module.train()(upstream_batch(make_batch(with_answers=True)))
    out.loss.backward()
    gradients = to_adapter({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    return {
        "answers": [[int(token) for token in answer.split()[:NUM_TOKENS]] for answer in answers],
        "loss": out.loss.item(),
        "logits": out.logits[:, 10, ::6].tolist(),  # of the prompts' last position
        "gradient_norms": norms(gradients),
    }


def main() -> None:
    folder = find_code()
    if folder is None:
        raise SystemExit("set ILORA_DIR to a checkout of AkaliKong/iLoRA@28e4737")
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(golden_values(folder), indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The small LLaMA that is built from the titles: its tokenizer and its start."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from src.teacher.config import TinySettings
from src.teacher.llm import load_llm

CPU = torch.device("cpu")


@pytest.mark.parametrize("vocab_size", [300, 400])
def test_every_title_can_be_spelt(make_dataset, build_llm, config, tmp_path, vocab_size):
    titles = [*(chr(0x4E00 + 7 * i) + chr(0x5E00 + 5 * i) for i in range(150)), "Naïve 2"]  # more letters than pieces
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 3, num_items=len(titles), max_seq_len=4, name="letters", titles=titles)
    tiny = replace(config.tiny, vocab_size=vocab_size)
    build_llm(replace(config, tiny=tiny), tmp_path / "llm", 1, dataset)
    tokenizer, _ = load_llm(tmp_path / "llm", "float32", CPU)
    for title in titles:
        ids = tokenizer(title, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == title
    assert tokenizer.vocab_size <= vocab_size


def test_it_starts_with_induction_heads(build_llm, config, tmp_path):
    """Before any training, half of layer 0's heads look one back, half of layer 1's behind the earlier occurrence."""
    untrained = TinySettings(400, 128, 2, 4, pretrain_steps=1, pretrain_batch_size=1, pretrain_lr=1e-12)
    build_llm(replace(config, tiny=untrained), tmp_path / "llm", 3)
    tokenizer, _ = load_llm(tmp_path / "llm", "float32", CPU)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "llm", attn_implementation="eager")
    length = 40
    tokens = torch.randperm(tokenizer.vocab_size - 3, generator=torch.Generator().manual_seed(0))[:length] + 3
    with torch.no_grad():
        previous, match = model(tokens.repeat(2)[None], output_attentions=True).attentions
    second = torch.arange(length, 2 * length - 1)
    assert previous[0, :2, second, second - 1].mean() > 0.8
    assert match[0, :2, second, second - length + 1].mean() > 0.4  # 1/60 by chance
    assert match[0, 2:, second, second - length + 1].mean() < 0.1
    comma, bos = tokenizer(",", add_special_tokens=False).input_ids[-1], tokenizer.bos_token_id
    embeddings = model.get_input_embeddings().weight
    torch.testing.assert_close(embeddings[bos], embeddings[comma], atol=1e-6, rtol=0)

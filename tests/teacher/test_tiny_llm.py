"""The small LLaMA that is built from the titles: its tokenizer and its start."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from src.teacher.config import TinySettings
from src.teacher.llm.load import load_llm
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.prompt.wording import read_wording
from src.teacher.tiny.start import association_vectors

CPU = torch.device("cpu")


@pytest.mark.parametrize("vocab_size", [300, 400])
def test_every_title_is_one_token_and_other_texts_can_be_spelt(make_dataset, build_llm, config, tmp_path, vocab_size):
    letters = [chr(0x4E00 + 7 * i) + chr(0x5E00 + 5 * i) for i in range(150)]  # more than pieces
    titles = [*letters, "Naïve 2", "Naïve 2 B", "B", "The One, 50% Off", "Answer:", letters[0] + letters[1]]
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 3, num_items=len(titles), max_seq_len=4, name="letters", titles=titles)
    tiny = replace(config.tiny, vocab_size=vocab_size)
    build_llm(replace(config, tiny=tiny), tmp_path / "llm", 1, dataset)
    tokenizer, _ = load_llm(tmp_path / "llm", "float32", CPU)
    for title in titles:
        ids = tokenizer(title, add_special_tokens=False).input_ids
        assert len(ids) == 1
        assert tokenizer.decode(ids) == title
        assert tokenizer.decode(tokenizer(title + "\n", add_special_tokens=False).input_ids) == title + "\n"
    other = "Zürich 4711 " + letters[3]
    ids = tokenizer(other, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == other
    words = {word for template in read_wording().templates for word in template.split()}
    assert tokenizer.vocab_size <= vocab_size + len(titles) + len(words)


def test_association_vectors(make_dataset):
    """Users of items 0, 1, 2 and of 3, 4, 5; 6 never occurs."""
    dataset = make_dataset([[0, 1, 2, 0, 1, 2]] * 3 + [[3, 4, 5, 3, 4, 5]] * 3, num_items=7, max_seq_len=4)
    vectors = association_vectors(dataset, window=2, rank=2)
    assert vectors.shape == (7, 2) and vectors.dtype == torch.float32
    expected = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.zeros(1, 1))
    torch.testing.assert_close(vectors @ vectors.T, expected, atol=1e-5, rtol=0)


def test_it_starts_with_a_pointer_to_the_fitting_candidate(make_dataset, build_llm, config, tmp_path):
    """Before any training. Ten groups of four items, users who stay in one; one candidate a group."""
    rng = np.random.default_rng(0)
    users = [(4 * (user % 10) + rng.permutation(8) % 4).tolist() for user in range(60)]
    dataset = make_dataset(users, num_items=40, max_seq_len=8)
    untrained = TinySettings(
        vocab_size=400, hidden_size=96, num_layers=3, pretrain_steps=1, pretrain_batch_size=1, pretrain_lr=1e-12
    )
    build_llm(replace(config, tiny=untrained), tmp_path / "llm", 3, dataset)
    tokenizer, _ = load_llm(tmp_path / "llm", "float32", CPU)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "llm", attn_implementation="eager")
    builder = PromptBuilder(tokenizer, dataset.titles, read_wording())
    for group, template in product(range(10), range(3)):
        fitting = 4 * group + 3
        candidates = np.roll([4 * other for other in range(10) if other != group] + [fitting], group)
        earlier = 4 * ((group + 1) % 10)
        history = np.array([earlier + 1, earlier + 2, 4 * group, 4 * group + 1])
        prompt = builder.prompt(history, candidates, template=template, embed=False).ids
        with torch.no_grad():
            result = model(torch.tensor([[*prompt, tokenizer.bos_token_id]]), output_attentions=True)
        token = builder.tokens(dataset.titles[fitting])[0]
        assert int(result.logits[0, -1].argmax()) == token
        assert result.attentions[2][0, :2, -1].argmax(-1).tolist() == [prompt.index(token)] * 2

"""iLoRA's forward passes over prompt batches, the same for our adapter and for upstream's."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.teacher.adapter_file import BaseModel
from src.teacher.llm import positions
from src.teacher.prompts import IGNORED, PromptBatch

_MAX_ANSWER_TOKENS = 64


class AdaptedLM(Protocol):
    """A causal LM with gated experts, a router and a projector: `moe_lora.GatedLora` or iLoRA's own code.

    Attributes:
        name: `native` or `submodule`; base: the LM without adapter.
        model: everything that is trained is inside; its `disable_adapter()` gives the base LM.
    """

    name: str
    model: torch.nn.Module
    base: BaseModel

    @property
    def llm(self) -> PreTrainedModel:
        """The causal LM inside, its layers carrying the adapter."""

    @property
    def router(self) -> torch.nn.Module:
        """User representations float [B, W] -> gates float [B, num_experts] that sum to 1."""

    @property
    def projector(self) -> torch.nn.Module:
        """Item embeddings [..., rec_size] -> the LLM's input space [..., llm_dim]."""

    def gated(self, gates: Tensor) -> AbstractContextManager[None]:
        """Use `gates` float [B, num_experts] in every forward, and in the backward that belongs to it."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """What an optimizer takes."""

    def state(self) -> dict[str, Tensor]:
        """Adapter, router (BatchNorm statistics included) and projector under the names of the adapter file."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy what `state` returned, here or in the other engine."""

    def save(self, folder: Path) -> None:
        """Write the adapter's folder, readable by both engines."""


class NativeEngine:
    """An adapted LM together with the frozen recommender's item table.

    Args:
        lora: the adapted LM.
        item_table: float [num_items, rec_size], the recommender's item embeddings (not trained).
    """

    def __init__(self, lora: AdaptedLM, item_table: Tensor) -> None:
        self.lora = lora
        self.item_table = item_table

    def inputs_embeds(self, batch: PromptBatch) -> Tensor:
        """Token embeddings [B, S, llm_dim] with the projected item embeddings at the markers."""
        embeds = self.lora.llm.get_input_embeddings()(batch.ids)
        if len(batch.markers) == 0:
            return embeds
        projected = self.lora.projector(self.item_table[batch.markers]).to(embeds.dtype)  # [M, llm_dim]
        return embeds.masked_scatter(batch.is_marker[..., None], projected)

    def loss(self, batch: PromptBatch, gates: Tensor) -> Tensor:
        """Mean cross-entropy over the answers' tokens (BOS, title, newline); scalar float32.

        The output layer only sees the positions that are scored: [answer tokens, vocab] instead of [B, S, vocab].
        """
        with self.lora.gated(gates):
            hidden = self._hidden(self.inputs_embeds(batch), batch.mask)
        labels = batch.labels[:, 1:]
        scored = labels != IGNORED
        logits = self.lora.llm.lm_head(hidden[:, :-1][scored]).float()
        return F.cross_entropy(logits, labels[scored])

    def _hidden(self, embeds: Tensor, mask: Tensor) -> Tensor:
        return self.lora.llm.model(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
        ).last_hidden_state

    @torch.no_grad()
    def generate(
        self, batch: PromptBatch, gates: Tensor, tokenizer: PreTrainedTokenizerBase, newline_id: int
    ) -> tuple[list[str], Tensor]:
        """Greedy answers of left-padded prompts without answers.

        Returns:
            The first line of each answer, and the log-probability of its tokens, float32 [B].
        """
        with self.lora.gated(gates):
            out = self.lora.llm.generate(
                inputs_embeds=self.inputs_embeds(batch),
                attention_mask=batch.mask.long(),
                max_new_tokens=_MAX_ANSWER_TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
                eos_token_id=[tokenizer.eos_token_id, newline_id],
                pad_token_id=tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
        texts = tokenizer.batch_decode(out.sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        tokens = torch.stack(out.logits, 1).float().log_softmax(-1).gather(2, out.sequences[..., None])[..., 0]
        log_probs = tokens.masked_fill(out.sequences == tokenizer.pad_token_id, 0.0).sum(1)
        return [text.strip().split("\n")[0].strip() for text in texts], log_probs

    @torch.no_grad()
    def candidate_log_probs(
        self, batch: PromptBatch, gates: Tensor, answers: list[list[list[int]]]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every candidate's answer given its row's prompt, in one forward pass.

        The candidates' tokens follow the prompt in one sequence; a mask lets each candidate see the prompt and
        itself only, and its positions go on from the prompt's end, so that the prefix is computed once.

        Args:
            batch: left-padded prompts without answers, S wide.
            gates: float [B, num_experts].
            answers: token ids per row and candidate, the same number C for every row.

        Returns:
            total float32 [B, C] (sum over the answer's tokens) and mean float32 [B, C].
        """
        device = batch.ids.device
        suffix, owner, offset = (part.to(device) for part in _lay_out(answers))  # each [B, A]
        embeds = self.inputs_embeds(batch)
        embeds = torch.cat([embeds, self.lora.llm.get_input_embeddings()(suffix.clamp(min=0))], 1)
        length = batch.mask.sum(1, keepdim=True)
        position = torch.cat([positions(batch.mask), length + offset], 1)
        mask = _candidate_mask(batch.mask, owner, offset)
        blocked = torch.zeros(mask.shape, dtype=embeds.dtype, device=device)
        blocked.masked_fill_(~mask, torch.finfo(embeds.dtype).min)
        with self.lora.gated(gates):
            hidden = self.lora.llm.model(
                inputs_embeds=embeds, attention_mask=blocked[:, None], position_ids=position, use_cache=False
            ).last_hidden_state
        return self._sum_log_probs(hidden, suffix, owner, offset, len(answers[0]))

    def _sum_log_probs(
        self, hidden: Tensor, suffix: Tensor, owner: Tensor, offset: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Score each suffix token from the position before it; a candidate's first from the prompt's end."""
        start = hidden.shape[1] - suffix.shape[1]
        before = torch.arange(start - 1, hidden.shape[1] - 1, device=hidden.device).expand_as(suffix)
        before = torch.where(offset == 0, start - 1, before)  # [B, A]
        real = owner >= 0
        row = torch.arange(len(suffix), device=hidden.device)[:, None].expand_as(suffix)[real]
        logits = self.lora.llm.lm_head(hidden[row, before[real]]).float()  # [answer tokens, vocab]
        token = -F.cross_entropy(logits, suffix[real], reduction="none")
        total = torch.zeros(len(suffix), num_candidates, device=hidden.device)
        count = torch.zeros_like(total)
        total.index_put_((row, owner[real]), token, accumulate=True)
        count.index_put_((row, owner[real]), torch.ones_like(token), accumulate=True)
        return total, total / count


def _lay_out(answers: list[list[list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate each row's answers: token, owning candidate and place in it, int64 [B, A], -1 (0) beyond."""
    width = max(sum(map(len, row)) for row in answers)
    token = torch.full((len(answers), width), -1)
    owner, offset = token.clone(), torch.zeros_like(token)
    for i, row in enumerate(answers):
        lengths = torch.tensor([len(answer) for answer in row])
        flat = torch.tensor([t for answer in row for t in answer])
        token[i, : len(flat)] = flat
        owner[i, : len(flat)] = torch.repeat_interleave(torch.arange(len(row)), lengths)
        begin = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        offset[i, : len(flat)] = torch.arange(len(flat)) - begin
    return token, owner, offset


def _candidate_mask(prompt: Tensor, owner: Tensor, offset: Tensor) -> Tensor:
    """Who sees whom: bool [B, S + A, S + A] from prompt bool [B, S] and the suffix's owner, offset [B, A]."""
    causal = torch.ones(prompt.shape[1], prompt.shape[1], dtype=torch.bool, device=prompt.device).tril()
    top = causal & prompt[:, None]  # [B, S, S]
    same = (owner[:, :, None] == owner[:, None]) & (offset[:, :, None] >= offset[:, None])  # [B, A, A]
    left = prompt[:, None].expand(-1, owner.shape[1], -1)  # [B, A, S]
    right = torch.zeros(len(prompt), prompt.shape[1], owner.shape[1], dtype=torch.bool, device=prompt.device)
    mask = torch.cat([torch.cat([top, right], 2), torch.cat([left, same], 2)], 1)
    # A padded query would see nothing and its softmax would be NaN: let it see itself.
    return mask | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)

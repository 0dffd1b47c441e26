"""iLoRA's forward passes over prompt batches, the same for our adapter and for iLoRA's own."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedTokenizerBase

from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.llm.texts import positions
from src.teacher.prompt.builder import IGNORED, PromptBatch
from src.teacher.scoring.answer_tree import AnswerTrees, build_trees

_MAX_ANSWER_TOKENS = 64


class PromptedLM:
    """An adapted LM that reads prompts: at the markers stand the frozen recommender's items, projected.

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
        self, batch: PromptBatch, gates: Tensor, *, tokenizer: PreTrainedTokenizerBase, newline_id: int
    ) -> tuple[list[str], Tensor]:
        """Greedy answers of left-padded prompts without answers.

        The output layer sees the last position only. A row that has ended leaves the batch, so that the longest
        answer holds up nobody.

        Returns:
            The first line of each answer, and the log-probability of its tokens, float32 [B].
        """
        stop = torch.tensor([tokenizer.eos_token_id, newline_id], device=batch.ids.device)
        rows = torch.arange(len(batch.ids), device=batch.ids.device)  # those that go on
        answers: list[list[int]] = [[] for _ in rows]
        log_probs = torch.zeros(len(rows), device=rows.device)
        embeds, mask, cache = self.inputs_embeds(batch), batch.mask, DynamicCache()
        for _ in range(_MAX_ANSWER_TOKENS):
            hidden = self._extend(cache, embeds, mask.long(), positions(mask)[:, -embeds.shape[1] :], gates)
            logits = self.lora.llm.lm_head(hidden[:, -1]).float()  # [rows, vocab]
            token = logits.argmax(-1)
            log_probs[rows] += _token_log_prob(logits, token)
            for row, value in zip(rows.tolist(), token.tolist(), strict=True):
                answers[row].append(value)
            going = ~torch.isin(token, stop)
            if not going.any():
                break
            if not going.all():
                cache.batch_select_indices(going)
                rows, token, mask, gates = rows[going], token[going], mask[going], gates[going]
            embeds = self.lora.llm.get_input_embeddings()(token)[:, None]
            mask = F.pad(mask, (0, 1), value=True)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip().split("\n")[0].strip() for text in texts], log_probs

    @torch.no_grad()
    def candidate_log_probs(
        self, batch: PromptBatch, gates: Tensor, answers: list[list[list[int]]]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every candidate's answer given its row's prompt.

        The prompt is computed once, then all candidates in one pass over its cache: as a tree in which common
        beginnings are one branch, with a mask that lets each token see the prompt and its own branch only.

        Args:
            batch: left-padded prompts without answers, S wide.
            gates: float [B, num_experts].
            answers: token ids per row and candidate, the same number C for every row.

        Returns:
            total float32 [B, C] (sum over the answer's tokens) and mean float32 [B, C].
        """
        trees, cache = build_trees(answers).to(batch.ids.device), DynamicCache()
        before = self._extend(cache, self.inputs_embeds(batch), batch.mask.long(), positions(batch.mask), gates)
        visible = torch.cat([batch.mask[:, None].expand(-1, trees.token.shape[1], -1), trees.visible()], 2)
        blocked = torch.zeros(visible.shape, dtype=before.dtype, device=before.device)  # [B, A, S + A]
        blocked.masked_fill_(~visible, torch.finfo(before.dtype).min)
        embeds = self.lora.llm.get_input_embeddings()(trees.token)
        position = batch.mask.sum(1, keepdim=True) + trees.depth
        inside = self._extend(cache, embeds, blocked[:, None], position, gates)
        hidden = torch.cat([before[:, -1:], inside], 1)  # [B, 1 + A, llm_dim]
        total = torch.zeros(len(answers), len(answers[0]), device=hidden.device)
        count = torch.zeros_like(total)
        scores = self._scored(hidden, trees)
        place = (trees.row, trees.candidate)
        total.index_put_(place, scores, accumulate=True)
        count.index_put_(place, torch.ones_like(scores), accumulate=True)
        return total, total / count

    def _scored(self, hidden: Tensor, trees: AnswerTrees) -> Tensor:
        """Log-probability of each scored token, float32 [T], from the prompt ends and nodes [B, 1 + A, llm_dim].

        Every hidden state goes through the output layer once, however many answers branch there.
        """
        source, follows = torch.unique(trees.row * hidden.shape[1] + trees.source + 1, return_inverse=True)
        logits = self.lora.llm.lm_head(hidden.flatten(0, 1)[source]).float()  # [sources, vocab]
        return logits[follows, trees.target] - logits.logsumexp(-1)[follows]

    def _extend(self, cache: Cache, embeds: Tensor, mask: Tensor, position: Tensor, gates: Tensor) -> Tensor:
        """Run N more positions and keep their keys and values in `cache`: hidden states [B, N, llm_dim].

        Args:
            embeds: [B, N, llm_dim]; position: int64 [B, N].
            mask: int64 [B, S] over all positions so far, or a float [B, 1, N, S] to add to the attention scores.
        """
        with self.lora.gated(gates):
            return self.lora.llm.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state


def _token_log_prob(logits: Tensor, token: Tensor) -> Tensor:
    """Log-probability of one token a row: float [N, vocab], int64 [N] -> float [N]."""
    return logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)

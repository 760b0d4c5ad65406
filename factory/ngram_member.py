"""An n-gram model (`ngram_model.py`) that speaks token by token, as a member of an ensemble beside language models.

Does: read the question and the answer so far out of token ids, and turn probabilities of whole answers into those of the next
token: answers that begin otherwise are out, the others share what is left.
Does not: train, or say anything about tokens of a prompt. Module of torch code; imported lazily.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from factory.dataset import prompt_text
from factory.ngram_model import NgramSet

LEAST = -20.0
"""Natural logarithm of the least share of a token, of those that go on to no answer too; finite for the mean of logarithms."""
REMEMBERED = 4096
"""Questions whose probabilities are kept: a row of a batch asks at every token."""
_MARK = "\x00"
_PROBE = " what ' s this ?"


class NgramMember(nn.Module):
    """Looks like a transformers causal LM to `Ensemble`, for prompts that `tokenizer`'s chat template makes of the task's compact
    messages. Its cache layer holds the token ids that were read, (B, 1, T, 1), for it has no keys and values.

    At prompt tokens, of prompts that it does not know, and after an answer that is none it says nothing: NaN for every token, and
    `silent` counts the tokens it was asked there. Raises ValueError where the tokenizer hides what was asked.
    """

    may_be_silent = True

    def __init__(self, sets: Sequence[NgramSet], tokenizer: Any) -> None:
        super().__init__()
        self.vocab = len(tokenizer)
        self.config = LlamaConfig(num_hidden_layers=1, vocab_size=self.vocab, hidden_size=1, num_attention_heads=1,
                                  intermediate_size=1)  # fmt: skip
        self.config.max_position_embeddings = sys.maxsize  # it reads any length
        self.sets = [_Spoken(one, tokenizer) for one in sets]
        self.head = _Head(self)
        self._decode = tokenizer.decode
        self._asked: OrderedDict[tuple[int, tuple[int, ...]], Tensor] = OrderedDict()
        self.silent = 0
        self._ids: list[list[int]] = []
        self._length = 0
        self.train(False)

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """`input_ids` (B, T) -> logits (B, T or `logits_to_keep`, V) float32: log-probabilities but for a constant, or NaN."""
        every = input_ids
        if past_key_values is not None:
            kept = input_ids[:, None, :, None].float()  # exact below 2^24
            every = past_key_values.update(kept, kept, 0)[0][:, 0, :, 0].round().long()
        rows: list[list[int]] = every.tolist()
        if attention_mask is not None:
            rows = [[i if real else -1 for i, real in zip(ids, mask)] for ids, mask in zip(rows, attention_mask.tolist())]
        self._ids, self._length = rows, every.shape[1]
        first = every.shape[1] - (logits_to_keep or input_ids.shape[1])
        places = torch.arange(every.numel(), device=input_ids.device).view(every.shape)[:, first:, None]
        return CausalLMOutputWithPast(logits=self.head(places), past_key_values=past_key_values if use_cache else None)

    def at(self, place: int) -> tuple[Tensor, Tensor] | None:
        """(ids, log-probabilities) of the tokens that may follow place `row * T + column` of the ids read last; None where it has
        nothing to say."""
        row, column = divmod(place, self._length)
        ids = self._ids[row][: column + 1]
        ids = ids[next((n for n, i in enumerate(ids) if i >= 0), len(ids)) :]
        for number, one in enumerate(self.sets):
            parts = one.split(ids)
            if parts is None:
                continue
            question, answer = parts
            node = one.nodes.get(answer)
            return None if node is None else node.share(self._probabilities(number, question))
        return None

    def _probabilities(self, number: int, question: tuple[int, ...]) -> Tensor:
        key = (number, question)
        if key not in self._asked:
            text = self._decode(list(question), clean_up_tokenization_spaces=False)
            self._asked[key] = self.sets[number].model.log_probabilities([text])[0]
            if len(self._asked) > REMEMBERED:
                self._asked.popitem(last=False)
        return self._asked[key]


class _Head(nn.Module):
    """From places in the ids read last to logits: what a language model's head is, so that it too is run only where asked."""

    def __init__(self, member: NgramMember) -> None:
        super().__init__()
        self._member = [member]  # in a list: set plainly, it would become a submodule that holds its own head
        self.weight = nn.Parameter(torch.empty(member.vocab, 0), requires_grad=False)

    def forward(self, places: Tensor) -> Tensor:
        """`places` (…, 1) -> (…, V) float32."""
        flat: list[int] = places.flatten().tolist()
        logits = torch.full((len(flat), self.weight.shape[0]), LEAST)
        for n, place in enumerate(flat):
            said = self._member[0].at(place)
            if said is None:
                logits[n] = math.nan
                self._member[0].silent += 1
            else:
                logits[n, said[0]] = said[1]
        return logits.view(*places.shape[:-1], -1).to(places.device)


class _Node:
    """What may follow one beginning of an answer: `tokens` (m,), and for each of the `answers` (a,) which token goes on to it."""

    def __init__(self, follow: Sequence[tuple[int, int]]) -> None:
        tokens = list(dict.fromkeys(token for _, token in follow))
        self.tokens = torch.tensor(tokens)
        self.answers = torch.tensor([answer for answer, _ in follow])
        self.owners = torch.tensor([tokens.index(token) for _, token in follow])

    def share(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        known = answers[self.answers].log_softmax(-1).exp()
        shares = torch.zeros(len(self.tokens)).index_add_(0, self.owners, known)
        return self.tokens, shares.log().clamp(min=LEAST)


class _Spoken:
    """One set's model with the token ids of its prompts and answers."""

    def __init__(self, model: NgramSet, tokenizer: Any) -> None:
        self.model = model
        whole = prompt_text(tokenizer, [{"role": "user", "content": model.opening + _MARK}])
        if whole.count(_MARK) != 1:
            raise ValueError("the chat template does not write a question once, so that n-grams cannot find it")
        before, after = whole.split(_MARK)
        self.before = tuple(tokenizer(before, add_special_tokens=False)["input_ids"])
        self.after = tuple(tokenizer(after, add_special_tokens=False)["input_ids"])
        if not self.after:
            raise ValueError("the chat template has no mark between question and answer, so that n-grams cannot tell them apart")
        probe = tokenizer(whole.replace(_MARK, _PROBE), add_special_tokens=False)["input_ids"]
        found = self.split(probe)
        if found is None or tokenizer.decode(list(found[0]), clean_up_tokenization_spaces=False) != _PROBE or found[1]:
            raise ValueError(f"the tokenizer joins {model.opening!r} with the question, so that n-grams cannot tell them apart")
        said = tokenizer(list(model.completions), add_special_tokens=False)["input_ids"]
        follow: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for answer, ids in enumerate(said):
            spelt = (*ids, tokenizer.eos_token_id)
            for n, token in enumerate(spelt):
                follow.setdefault(spelt[:n], []).append((answer, token))
        self.nodes = {beginning: _Node(pairs) for beginning, pairs in follow.items()}

    def split(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """(question, answer so far); None for other prompts, and inside a prompt."""
        if tuple(ids[: len(self.before)]) != self.before:
            return None
        rest, width = tuple(ids[len(self.before) :]), len(self.after)
        for n in range(len(rest) - width + 1):
            if rest[n] == self.after[0] and rest[n : n + width] == self.after:
                return rest[:n], rest[n + width :]
        return None

"""Several causal language models with one tokenizer as one: the mean of their next-token probabilities.

Does: run every member over the same tokens, one key/value cache for all, `log(mean(softmax))` as logits, or the geometric mean.
Does not: load members or compare tokenizers (`teachers_local.py`, `teacher_ensemble.py`). Module of torch code; imported lazily.

Members that were trained apart err apart, so their mean is right more often than each (Hansen and Salamon 1990), and teaches a
student what no single one could (Hinton et al. 2015).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class Ensemble(nn.Module):
    """Looks like a transformers causal LM to whatever generates or grades with it; cannot be trained or saved.

    `members`: models with the same token ids; `vocab`: how many there are (default: entries of the smallest head). What a padded
    head says beyond them is left out before the mean. `geometric`: the mean of logarithms, normalized, where members are sure to
    different degrees (n-grams beside language models): it asks that all find an answer likely, not that one be sure of it. There
    a member with `may_be_silent`, which has NaN where it says nothing, has no part in the mean at such tokens.
    Raises ValueError for fewer than two, or a head with fewer entries.
    """

    def __init__(self, members: Sequence[Any], vocab: int | None = None, geometric: bool = False) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble needs two models or more, not {len(members)}")
        super().__init__()
        self.geometric = geometric
        speaking = [member for member in members if not getattr(member, "may_be_silent", False)]
        heads = [member.get_output_embeddings() for member in speaking]
        self._head = min(heads, key=lambda head: int(head.weight.shape[0]))
        least = int(self._head.weight.shape[0])
        self.vocab = least if vocab is None else vocab
        if self.vocab > least:
            raise ValueError(f"a member has {least} outputs for {self.vocab} tokens; give models of one tokenizer")
        self.members = nn.ModuleList(members)
        first: Any = members[0]
        self._embeddings = first.get_input_embeddings
        self.configs = [member.config.get_text_config() for member in members]
        self.layers = [int(config.num_hidden_layers) for config in self.configs]
        self.config = copy.deepcopy(self.configs[0])
        self.config.num_hidden_layers = sum(self.layers)
        self.config.vocab_size = self.vocab
        contexts = [getattr(config, "max_position_embeddings", None) for config in self.configs]
        self.config.max_position_embeddings = min((n for n in contexts if n is not None), default=None)
        self.generation_config = getattr(members[0], "generation_config", None)
        self.train(False)

    def new_cache(self) -> DynamicCache:
        """Keys and values of all members, layer after layer, each as its member's own configuration wants it (`decode.py`)."""
        cache = DynamicCache()
        cache.layers = [layer for config in self.configs for layer in DynamicCache(config=config).layers]
        return cache

    def get_input_embeddings(self) -> Any:
        return self._embeddings()

    def get_output_embeddings(self) -> Any:
        return self._head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """`input_ids` (B, T) -> logits (B, T or `logits_to_keep`, V) float32: log-probabilities of the members' mean."""
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache()
        said: list[Tensor] = []
        first = 0
        for member, count in zip(self.members, self.layers, strict=True):
            part = None
            if past_key_values is not None:
                # The member's own layers of the one cache, under the numbers the member knows them by.
                part = DynamicCache()
                part.layers = past_key_values.layers[first : first + count]
            first += count
            logits = member(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=part,
                use_cache=use_cache, logits_to_keep=logits_to_keep,
            ).logits  # fmt: skip
            said.append(logits[..., : self.vocab].float().log_softmax(-1))
        mean = _geometric(self.members, said) if self.geometric else torch.stack(said).logsumexp(0) - math.log(len(said))
        return CausalLMOutputWithPast(logits=mean, past_key_values=past_key_values if use_cache else None)


def _geometric(members: Iterable[Any], said: Sequence[Tensor]) -> Tensor:
    """`said`, of each member (…, V) log-probabilities -> (…, V): their mean over those that say something, normalized."""
    total, count = torch.zeros_like(said[0]), torch.zeros_like(said[0][..., :1])
    for member, part in zip(members, said, strict=True):
        silent = part[..., :1].isnan() if getattr(member, "may_be_silent", False) else torch.zeros_like(count, dtype=torch.bool)
        total = total + part.masked_fill(silent, 0.0)
        count = count + ~silent
    mean: Tensor = (total / count).log_softmax(-1)
    return mean

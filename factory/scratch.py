"""A Llama from scratch for one task: its shape, its tokenizer, its first weights.

Does: train a byte-level BPE that GGUF knows, build the model, set weights from a seed, write the directory whole.
Does not: train the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factory.tokenizer_match import PROBES

MARK = "student.json"


@dataclass(frozen=True)
class Shape:
    """A Llama from scratch. Hidden and inner widths are multiples of 256, so every GGUF quantization applies to every matrix."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def parameters(self) -> float:
        """Millions, embeddings tied."""
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        return (self.vocab * self.hidden + self.layers * (attention + 3 * self.hidden * self.inner)) / 1e6


SCRATCH: dict[str, Shape] = {
    "tiny": Shape(256, 512, 4, 4, 4, 4096),
    "small": Shape(256, 768, 8, 4, 4, 4096),
    "base": Shape(512, 1536, 6, 8, 8, 8192),
}

POSITIONS = 2048
EOS, PAD = "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '" + EOS + "' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def write_scratch(
    size: str, corpus: Sequence[str], special_tokens: Sequence[str], out_dir: Path, seed: int, tokenizer: Any = None
) -> Path:
    """Tokenizer trained on `corpus` (or the one given) and random weights as a model directory: whole or not at all, the same
    bytes for the same inputs. An `out_dir` made from the same inputs is left as it is."""
    from factory.train import quiet

    made_from = _fingerprint(size, corpus if tokenizer is None else _described(tokenizer), special_tokens, seed)
    mark = out_dir / MARK
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == made_from:
        return out_dir
    tmp = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    with quiet():
        if tokenizer is None:
            tokenizer = train_tokenizer(corpus, special_tokens, SCRATCH[size].vocab)
        model = new_model(SCRATCH[size], tokenizer)
        init_weights(model, seed)
        model.save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)
    (tmp / MARK).write_text(json.dumps(made_from), encoding="utf-8")
    shutil.rmtree(out_dir, ignore_errors=True)
    tmp.rename(out_dir)
    return out_dir


def _fingerprint(size: str, corpus: Sequence[str], special_tokens: Sequence[str], seed: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for text in [*special_tokens, "", *corpus]:
        digest.update(text.encode() + b"\0")
    return {"scratch": size, "shape": asdict(SCRATCH[size]), "seed": seed, "text": digest.hexdigest()}


def _described(tokenizer: Any) -> list[str]:
    """What tells a ready tokenizer from another: its entries, how it splits, its chat template."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    splits = [tokenizer.encode(text, add_special_tokens=False) for text in PROBES]
    return [json.dumps([entries, splits, tokenizer.chat_template])]


def train_tokenizer(corpus: Sequence[str], special_tokens: Sequence[str], vocab: int) -> Any:
    """Byte-level BPE of at most `vocab` tokens, pre-tokenized by GPT-2's pattern (llama.cpp: `gpt-2`).

    Ids: end, pad and role tokens, then the 256 bytes and merges, then `special_tokens` whole, as ordinary text (not special: they
    survive decoding). No normalizer and no BOS. Returns a transformers tokenizer with a minimal chat template.
    Raises ValueError without texts.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    wrapper: Any = PreTrainedTokenizerFast
    control = [EOS, PAD, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(special_tokens),
        special_tokens=control,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts: Any = corpus
    if not corpus:
        raise ValueError("a tokenizer cannot be trained on 0 texts")
    if special_tokens:
        # Merges must be learned from the text between whole tokens only.
        split = re.compile("|".join(re.escape(t) for t in sorted(special_tokens, key=len, reverse=True)))
        texts = (part for text in corpus for part in split.split(text) if part)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in special_tokens])
    return wrapper(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=control[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_model(shape: Shape, tokenizer: Any) -> Any:
    """LlamaForCausalLM of this shape in fp32, weights not yet set; the vocabulary is the tokenizer's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def init_weights(model: Any, seed: int, induction: bool = True) -> None:
    """Set every weight of a Llama: N(0, 0.02), output projections scaled by 1 / sqrt(2 layers) (GPT-2), norms 1.

    `induction`: the first two layers start as heads that look things up (`factory.induction`).
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    residual = (2 * model.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            scale = 0.02 * (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
            weight.copy_(torch.randn(weight.shape, generator=random) * scale)
    if induction:
        from factory.induction import set_induction_heads

        set_induction_heads(model, random)

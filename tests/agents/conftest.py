"""A tiny random Llama with a byte-level tokenizer, saved as a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> Any:
    """Byte-level BPE of about 400 tokens with `<c0>`…`<c3>` as whole tokens of ordinary text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=control, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["how many rivers run through the state of texas"] * 4, trainer)
    tokenizer.add_tokens([AddedToken(f"<c{i}>", special=False, normalized=False) for i in range(4)])
    out = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", extra_special_tokens=control[2:]
    )
    out.chat_template = TEMPLATE
    return out


def make_model(tokenizer: Any, seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + 3,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random Llama (2 layers, 64 wide) and its tokenizer; logits are 3 wider than the vocabulary."""
    path = tmp_path_factory.mktemp("llama")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(path)
    make_model(tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def llama(model_dir: Path) -> Any:
    import torch

    from agents.models import open_model

    torch.set_num_threads(1)  # two threads on a busy machine wait for each other far longer than such a model takes
    return open_model(str(model_dir), batch=8)

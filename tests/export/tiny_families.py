"""Tiny models of every architecture export knows, each with a tokenizer trained the way its family splits text.

Does: build real classes with random weights that show a mistake (norms, biases and embeddings away from their initial values,
distributions far from flat), and save them as a hub checkpoint would lie on disk.
Does not: download or train a model; tokenizers learn their merges from the texts below.

    make_family("gemma2", tmp_path / "gemma2")                      # a directory; FAMILIES lists the kinds
    make_family("llama", tmp_path / "wide", hidden_size=256, dtype="bfloat16", max_shard_size="100KB")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
INST = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}"
    "{%- elif message['role'] == 'system' -%}{{- '<<SYS>>' + message['content'] + '<</SYS>>' -}}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}{%- endfor -%}"
)
LLAMA3_CHAT = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
GEMMA_CHAT = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}"
    "{{- message['content'] | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
PHI3_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)

TEXTS = [
    "Which of the teams with more than 12 wins scored the most points in 1998, and who was its captain at that time?",
    "SELECT name, COUNT(*) AS n FROM singer WHERE age >= 21 AND country = 'France' GROUP BY name ORDER BY n DESC LIMIT 3;",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "unit": "celsius", "days": 3}}',
    "The quick brown fox jumps over the lazy dog. It's what they'd said we'll see; I'm sure you've been there, haven't you?",
    "Übermäßig große Straßen führen nach Köln, und die Bäume blühen im schönen Frühling.",
    "Les élèves ont déjà reçu leurs leçons à l'école, où ils étaient restés très tôt.",
    "你好，世界。今天天气很好，我们去公园散步吧。数据库里有多少行？",
    "こんにちは世界。データベースに何行ありますか。カタカナとひらがな。",
    "Привет, мир! Сколько строк в таблице? Какие команды выиграли больше всех матчей?",
    "नमस्ते दुनिया, आज मौसम अच्छा है। مرحبا بالعالم، كم عدد الصفوف؟",
    "Numbers: 0 1 22 333 4444 55555 3.14159 1,000,000 0x7fff 1e-5 2024-02-29 12:34:56",
    "Emoji 😀 👍🏽 👨‍👩‍👧 🇨🇭 and symbols € £ ¥ § ± µ ∑ → ≤ ≥",
    "\tif (x > 0) {\n\t\treturn x;\n\t}   // spaces   and\t\ttabs    \n\n\n}",
]  # fmt: skip
PREDICATES = ("<c0>", "<c1>")
"""Added tokens that are no special tokens, as a task adds them for its columns."""

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.1}  # fmt: skip
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 128}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "spm", {"tie_word_embeddings": False}),
    "llama3-rope": ("Llama", "llama3", {"rope_parameters": LLAMA3_ROPE}),
    "mistral": ("Mistral", "spm", {"sliding_window": None, "head_dim": 32}),
    "mistral-window": ("Mistral", "spm", {"sliding_window": 64}),
    "qwen2": ("Qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "qwen2", {"tie_word_embeddings": False, "head_dim": 32}),
    "smollm2": ("Llama", "smollm", {"tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", "llama3", {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", "gemma", {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3", "gemma", {"num_hidden_layers": 6, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32}),
    "phi3": ("Phi3", "phi3", {"tie_word_embeddings": False, "sliding_window": None}),
}
"""kind -> (transformers class before "ForCausalLM", kind of tokenizer, what differs from SHAPE)."""


def make_family(kind: str, directory: Path, *, seed: int = 0, dtype: str = "float32", vocab_size: int = 640,
                max_shard_size: str = "5GB", vocab_padding: int = 0, steps: int = 0, **shape: Any) -> Path:  # fmt: skip
    """A model directory of one of FAMILIES with its tokenizer; returns `directory`.

    `dtype`: what the weights are stored in. `vocab_padding`: embedding rows beyond the tokenizer's. `steps`: how long it learns
    TEXTS first (random weights lose several times more to 8 bits than learnt ones; 20 steps take two seconds). `shape`: any field
    of the transformers configuration (hidden_size=256, sliding_window=32, rope_parameters={…}, attention_bias=True, …).
    """
    import transformers

    from factory.train import quiet

    name, tokenizer_kind, differs = FAMILIES[kind]
    tokenizer = make_family_tokenizer(tokenizer_kind, vocab_size)
    settings = {**SHAPE, "vocab_size": len(tokenizer) + vocab_padding, "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **differs, **shape}  # fmt: skip
    suffix = "TextConfig" if name == "Gemma3" else "Config"
    config = getattr(transformers, f"{name}{suffix}")(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    shake(model, seed)
    learn(model, tokenizer, steps)
    with quiet():
        model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(directory)
    return directory


def shake(model: Any, seed: int = 0) -> None:
    """Move norms and biases away from the ones and zeros they start as, so that a swapped or dropped one is seen."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and name.endswith("bias"):
                weight.normal_(0.0, 0.3, generator=generator)
            elif weight.ndim == 1:
                weight.add_(torch.empty_like(weight).uniform_(-0.4, 0.4, generator=generator))


def learn(model: Any, tokenizer: Any, steps: int) -> None:
    """Train on TEXTS for some steps of 8 rows of 128 tokens."""
    if steps == 0:
        return
    ids = torch.tensor(tokenizer("\n".join(TEXTS), add_special_tokens=False)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 128, (8,), generator=generator)
        batch = torch.stack([ids[start : start + 128] for start in starts.tolist()])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def make_family_tokenizer(kind: str, vocab_size: int = 640) -> Any:
    """A transformers tokenizer of kind "spm", "gemma", "phi3", "llama3", "qwen2", "gpt2" or "smollm", trained on TEXTS."""
    from transformers import AddedToken, PreTrainedTokenizerFast

    if kind in ("spm", "gemma", "phi3"):
        backend, named, template = _metaspace(kind, vocab_size)
    else:
        backend, named, template = _bytelevel(kind, vocab_size)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = template
    # Normalized, they would be "▁<c0>" where the normalizer prepends, and match after a space only.
    tokenizer.add_tokens([AddedToken(token, normalized=kind not in ("spm", "phi3")) for token in PREDICATES])
    return tokenizer


def _bytelevel(kind: str, vocab_size: int) -> tuple[Any, dict[str, str], str]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = {
        "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "gpt2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    }[kind]
    bpe = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    whole, plain = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel(False, use_regex=False)
    if kind == "gpt2":
        bpe.pre_tokenizer = whole
    elif kind == "smollm":
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    else:
        words = Regex(LLAMA3 if kind == "llama3" else QWEN2)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), plain])
    if kind == "qwen2":
        bpe.normalizer = normalizers.NFC()
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    bpe.train_from_iterator(TEXTS, trainer)
    if kind == "llama3":
        start = special[0]
        bpe.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False),
             processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, bpe.token_to_id(start))])]
        )  # fmt: skip
        return bpe, {"bos_token": start, "eos_token": special[4], "pad_token": special[1]}, LLAMA3_CHAT
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    return bpe, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML


def _metaspace(kind: str, vocab_size: int) -> tuple[Any, dict[str, str], str]:
    """A BPE over "▁"-joined text with byte fallback, as Llama 2, Gemma and Phi-3 have it; there is no tokenizer.model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    start, end, unknown, pad = ("<bos>", "<eos>", "<unk>", "<pad>") if kind == "gemma" else ("<s>", "</s>", "<unk>", "<unk>")
    head = [pad, end, start, unknown] if kind == "gemma" else [unknown, start, end]
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 256 - len(head), show_progress=False, max_token_length=16)
    learnt.train_from_iterator([" " + text for text in TEXTS], trainer)
    state = json.loads(learnt.to_str())["model"]
    pieces = [piece for piece, _ in sorted(state["vocab"].items(), key=lambda entry: entry[1])]
    alphabet, merged = [p for p in pieces if len(p) == 1], [p for p in pieces if len(p) > 1]
    vocab = {p: i for i, p in enumerate([*head, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *alphabet])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(pair) for pair in state["merges"]], unk_token=unknown,
                               fuse_unk=True, byte_fallback=True))  # fmt: skip
    replace = normalizers.Replace(" ", "▁")
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        bpe.normalizer = replace
        bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        decoder.append(decoders.Strip(" ", 1, 0))
    bpe.decoder = decoders.Sequence(decoder)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, vocab[start])]
    )
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in head])
    if kind == "gemma":
        bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<start_of_turn>", "<end_of_turn>")])
        named = {"bos_token": start, "eos_token": end, "unk_token": unknown, "pad_token": pad}
        return bpe, named, GEMMA_CHAT
    if kind == "phi3":
        bpe.add_special_tokens([AddedToken("</s>", special=True, normalized=False, rstrip=True)])
        bpe.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
        roles = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
        bpe.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=True) for t in roles])
        named = {"bos_token": start, "eos_token": "<|endoftext|>", "unk_token": unknown, "pad_token": "<|endoftext|>"}
        return bpe, named, PHI3_CHAT
    return bpe, {"bos_token": start, "eos_token": end, "unk_token": unknown}, INST

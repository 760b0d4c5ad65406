"""Models of known shapes with random weights and a vocabulary learnt from the bundled questions, exported to GGUF.

Does: build `tiny` (6M parameters, vocabulary 4k), `small` (30M, 8k) and `smol` (SmolLM2-135M's shape, 49k) from a fixed seed,
write each as F32, F16, Q8_0 or Q4_0 with the program's own converter.
Does not: train; what such a model says means nothing, what it costs does.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
             "num_attention_heads": 4, "num_key_value_heads": 2},
    "small": {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
              "num_attention_heads": 8, "num_key_value_heads": 4},
    "smol": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3},
}  # fmt: skip
"""Name -> shape; both tie input and output embeddings."""


def texts() -> list[str]:
    """The bundled questions and table cells, for a tokenizer to learn its words from."""
    data = ROOT / "factory" / "data" / "wikisql"
    out = []
    for name in ("train.jsonl.xz", "tables_train.jsonl.xz"):
        with lzma.open(data / name, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                out.append(row["question"] if "question" in row else json.dumps(row.get("rows", row), ensure_ascii=False))
    return out


def model_dir(shape: str, cache: Path) -> Path:
    """A transformers directory of this shape, made on first use."""
    directory = cache / shape
    if (directory / "config.json").is_file():
        return directory
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = SHAPES[shape]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=sizes["vocab_size"], special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    bpe.train_from_iterator(texts(), trainer)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, max_position_embeddings=2048, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                         initializer_range=0.05)  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the control tokens' logits are then 0, which is never the most: answers have the length asked for
        model.get_input_embeddings().weight[: len(special)] = 0.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def gguf_file(shape: str, precision: str, cache: Path) -> Path:
    """The model as a GGUF file, made on first use."""
    out = cache / f"{shape}-{precision}.gguf"
    if not out.is_file():
        from export.convert import convert
        from export.source import Source

        convert(Source.open(model_dir(shape, cache)), out, precision)
    return out

"""A model traced by torch.onnx, for architectures that onnxruntime-genai's builder gets wrong or does not know.

Does: trace a transformers model in float32 with its cache as inputs, positions per row, and attention masks made from them
inside, in a process of its own without network.
Does not: quantize (`export.onnx_rewrite`), or use fused attention: it decodes more slowly than the builder's graphs.

The graph takes input_ids (B, S), position_ids (B, S) and past_key_values.N.key/value (B, heads, T, size); it gives logits
(B, S, V) and only the new positions, new.N.key/value (B, heads, S, size). Place t of the past holds position t; what lies at or
behind a row's first new position is not seen, so rows of different lengths share a batch.

Run by itself: python -m export.onnx_torch MODEL_DIR OUT_DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.onnx_builder import run_offline

OPSET = 20


def trace(model_dir: Path, out: Path) -> None:
    """The float32 graph of `model_dir` in `out`. Raises ExportError with what torch said."""
    run_offline("torch.onnx", "export.onnx_torch", str(model_dir), str(out))


def main(argv: Sequence[str] | None = None) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.cache_utils import DynamicCache

    model_dir, out = sys.argv[1:3] if argv is None else argv
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, attn_implementation="eager"
    )
    model.eval()
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    heads = config.num_key_value_heads or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        window = None

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, position_ids: Any, past: list[Any]) -> Any:
            length = past[0].shape[2]
            places = torch.arange(length, device=input_ids.device)
            keys = torch.cat([places[None].expand(input_ids.shape[0], -1), position_ids], dim=1)
            first = position_ids[:, :1]
            filled = torch.cat([places[None] < first, torch.ones_like(position_ids, dtype=torch.bool)], dim=1)
            gap = position_ids[:, :, None] - keys[:, None, :]
            seen = filled[:, None, :] & (gap >= 0)
            lowest = torch.finfo(torch.float32).min
            full = torch.where(seen, 0.0, lowest)[:, None]
            masks: Any = full
            if window is not None:
                near = torch.where(seen & (gap < window), 0.0, lowest)[:, None]
                masks = {"full_attention": full, "sliding_attention": near} if kinds is not None else near
            cache = DynamicCache()
            for i in range(layers):
                cache.update(past[2 * i], past[2 * i + 1], i)
            found = self.model(
                input_ids=input_ids, position_ids=position_ids, attention_mask=masks, past_key_values=cache, use_cache=True
            )
            new = []
            for layer in found.past_key_values.layers:
                new += [layer.keys[:, :, length:], layer.values[:, :, length:]]
            return (found.logits, *new)

    rows, new, length = 2, 3, 5
    ids = torch.ones((rows, new), dtype=torch.long)
    positions = torch.arange(length, length + new)[None].expand(rows, -1).contiguous()
    past = [torch.zeros((rows, heads, length, size)) for _ in range(2 * layers)]
    dim = torch.export.Dim.DYNAMIC
    names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    Path(out).mkdir()
    with torch.no_grad():
        torch.onnx.export(
            Decoder(),
            (ids, positions, past),
            str(Path(out) / "model.onnx"),
            dynamo=True,
            external_data=True,
            opset_version=OPSET,
            input_names=["input_ids", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"new.{name}" for name in names)],
            dynamic_shapes={
                "input_ids": {0: dim, 1: dim},
                "position_ids": {0: dim, 1: dim},
                "past": [{0: dim, 2: dim} for _ in range(2 * layers)],
            },
            verbose=False,
        )


if __name__ == "__main__":
    main()

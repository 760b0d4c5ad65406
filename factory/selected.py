"""Skip the work of a forward pass that no loss looks at.

Does: hook a decoder so that its last feed-forward block and its head see chosen positions only. Does not: choose them.
Module of torch code; imported by trainers only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Selected:
    """Computes the last layer's feed-forward block and the head only at `positions` of the flattened (B * T) batch.

    What the other positions would have had there is used by nobody, so loss and gradients are the same; the model's logits
    come out as (N, V). Hooks keep working under peft, DDP and FSDP because the whole model is still called from outside.
    """

    def __init__(self, model: nn.Module) -> None:
        self.positions: Tensor | None = None
        self.handles: list[Any] = []
        self.shape: tuple[int, ...] = ()
        base: Any = model
        if hasattr(base, "get_base_model"):
            base = base.get_base_model()
        head = base.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(base).__name__} has no output embeddings; only decoder-only language models can be trained")
        self.handles.append(head.register_forward_pre_hook(self._pick))
        layers = getattr(getattr(base, "model", None), "layers", None)
        block = getattr(layers[-1], "mlp", None) if layers is not None and len(layers) else None
        # A router's balance and dropout see every position, so only a plain block is cut.
        if block is not None and not any(isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules()) and _plain(block):
            self.handles.append(block.register_forward_pre_hook(self._pick))
            self.handles.append(block.register_forward_hook(self._put))

    def _pick(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        hidden = args[0]
        self.shape = hidden.shape
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.positions), *args[1:])

    def _put(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.positions is None:
            return None
        whole = output.new_zeros(self.shape[0] * self.shape[1], output.shape[-1])
        return whole.index_copy(0, self.positions, output).view(*self.shape[:2], -1)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _plain(block: nn.Module) -> bool:
    return all(p.dim() <= 2 for p in block.parameters()) and not any(
        "router" in n or n.endswith("gate") for n, _ in block.named_modules()
    )

"""Load a local teacher; in 4 bit, really in 4 bit, fused expert weights included.

Does: quantize linear layers and 3-D expert parameters to nf4 while the checkpoint is read, measure bytes per parameter, refuse a
model that stayed wide. Does not: decide device and precision (`teacher.py`), or generate (`agents.models.hf`).

Memory: each weight is quantized as soon as it is read (fused experts: as soon as one layer's are joined), so the peak is the
4-bit model plus one layer's experts in 16 bit, not the 16-bit model. transformers' own 4-bit path replaces `nn.Linear` only and
leaves the experts, most of a mixture, in 16 bit (bitsandbytes#1849); a model loaded here cannot be saved again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ChatModel
from factory.chat_template import accept_system_turns
from factory.ngrams import is_ngrams

if TYPE_CHECKING:
    import torch

    from factory.teacher import TeacherPlan

MOST_BYTES = 0.75
"""Bytes per parameter above which a "4-bit" model is not one: nf4 takes 0.516, 16 bit takes 2."""
BLOCK = 64
"""Parameters that share one scale."""
METHOD = "nf4_with_experts"
"""Name under which transformers knows this way of quantizing."""


@dataclass(frozen=True)
class Footprint:
    """Memory of a loaded model. `parameters` counts logical values, packed ones unpacked; embeddings, output head and vectors
    (norms, biases), which stay wide by design, are in the totals and not in `wide_share` or `bytes_per_parameter`."""

    parameters: int
    size_bytes: int
    bytes_per_parameter: float
    wide_share: float
    """share of the weight parameters that take more than a byte"""


class NotQuantizedError(Exception):
    """A model that was to be in 4 bit is not: the figure, what stayed wide, and the ways on."""


def load_teacher(plan: TeacherPlan) -> ChatModel:
    """The planned local teacher as a ChatModel. Raises TeacherError when it cannot be loaded as planned."""
    from agents.models.hf import TransformersModel

    model, tokenizer = load_planned(plan)
    opened: ChatModel = TransformersModel(model, tokenizer, name=plan.name)
    return opened


def load_planned(plan: TeacherPlan, own_device: bool = False) -> tuple[Any, Any]:
    """The planned local teacher's (model, tokenizer), as `load` gives them. Raises TeacherError when that fails."""
    import torch

    from factory.teacher import WAYS_ON, TeacherError
    from factory.train import cpu_has_bf16

    at = plan.location
    # A CPU without bfloat16 multiplies it seven times slower than float32 (LOG.md).
    wide = plan.device == "cpu" and plan.bits == 16 and not cpu_has_bf16() and 4.4 * plan.parameters + 1.0 <= plan.have_gb
    try:
        if plan.members:
            from factory.ensemble import Ensemble

            tokenizer = load_tokenizer(plan.location)
            models: dict[str, Any] = {}
            counting = {member for member in plan.members if is_ngrams(Path(member))}
            for at in sorted(plan.members, key=lambda member: member not in counting):  # what is light and may be damaged first
                if at in counting:
                    from factory.ngram_member import NgramMember
                    from factory.ngram_model import load as load_ngrams

                    models[at] = NgramMember(load_ngrams(Path(at)), tokenizer)
                else:
                    models[at], _ = load(at, bits=plan.bits, device=plan.device, own_device=own_device, wide=wide)
            return Ensemble([models[member] for member in plan.members], len(tokenizer), geometric=bool(counting)), tokenizer
        revision = plan.revision or None
        return load(plan.location, bits=plan.bits, device=plan.device, revision=revision, own_device=own_device, wide=wide)
    except NotQuantizedError as error:
        raise TeacherError(f"teacher {plan.name!r}: {error}: {WAYS_ON}") from None
    except (OSError, ValueError, torch.cuda.OutOfMemoryError) as error:
        first = (str(error).splitlines() or [repr(error)])[0]
        raise TeacherError(f"teacher {plan.name!r} ({at}) cannot be loaded: {first}: {WAYS_ON}") from None


def load(
    location: str, bits: int, device: str, revision: str | None = None, own_device: bool = False, wide: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) of a hub id or directory, in evaluation mode, in bfloat16 (`wide`: float32) or (`bits` 4) nf4.

    `device` "cuda" spreads over all GPUs, or stays on this process's own. A checkpoint that comes quantized is loaded as it is.
    Raises NotQuantizedError, OSError (no such model) and ValueError (not loadable by this version of transformers).
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from factory.train import quiet

    revision = None if Path(location).is_dir() else revision
    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    ready = getattr(config, "quantization_config", None) is not None
    place: Any = {"": "cpu"} if device != "cuda" else {"": torch.cuda.current_device()} if own_device else "auto"
    options: dict[str, Any] = {"dtype": torch.float32 if wide else torch.bfloat16, "device_map": place}
    if bits == 4 and not ready:
        options["quantization_config"] = nf4_with_experts()
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            location, revision=revision, config=config, use_safetensors=True, trust_remote_code=False, **options
        )
    model.train(False)
    if bits == 4 and not ready:
        check_quantized(model)
    return model, load_tokenizer(location, revision)


def load_tokenizer(location: str, revision: str | None = None) -> Any:
    """The tokenizer alone (a few MB), before weights are read; its chat template is made to take system messages."""
    from transformers import AutoTokenizer

    revision = None if Path(location).is_dir() else revision
    tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
    accept_system_turns(tokenizer)
    return tokenizer


def nf4_with_experts() -> Any:
    """A quantization config for `from_pretrained`: nf4 with compressed statistics for linear layers and 3-D expert parameters.

    Made on call, as transformers wants its quantizers registered and torch is not imported before it is needed.
    """
    import torch
    from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
    from transformers import BitsAndBytesConfig
    from transformers.core_model_loading import ConversionOps
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    class Quantize(ConversionOps):
        """Packs one fused parameter; its scales wait in `states` until the model is whole."""

        def __init__(self, linear: Any, experts: frozenset[str], states: dict[str, Any]) -> None:
            self.linear, self.experts, self.states = linear, experts, states

        def convert(self, input_dict: dict[str, Any], *args: Any, **context: Any) -> dict[str, Any]:
            out: dict[str, Any] = {}
            for name, value in input_dict.items():
                if name not in self.experts:
                    out.update(self.linear.convert({name: value}, *args, **context))
                    continue
                tensor = value[0] if isinstance(value, list) else value
                packed, self.states[name] = pack(tensor)
                out[name] = torch.nn.Parameter(packed, requires_grad=False)
            return out

    class Quantizer(Bnb4BitHfQuantizer):
        """transformers' nf4 quantizer, extended to parameters that are stacks of matrices."""

        def _process_model_before_weight_loading(  # type: ignore[override]  # as the class above does
            self, model: Any, device_map: Any, **options: Any
        ) -> None:
            super()._process_model_before_weight_loading(model, device_map, **options)
            self.experts = frozenset(expert_parameters(model))
            self.states: dict[str, Any] = {}

        def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
            return param_name in self.experts or super().param_needs_quantization(model, param_name, **options)

        def get_quantize_ops(self) -> Any:
            return Quantize(Bnb4bitQuantize(self), self.experts, self.states)  # type: ignore[no-untyped-call]

        def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
            for name, state in self.states.items():
                module_name, _, own = name.rpartition(".")
                module = model.get_submodule(module_name)
                replace_parameter_4bit_prequantized(module, own, state.as_dict(packed=True), getattr(module, own).device)
            return super()._process_model_after_weight_loading(model, **options)

        def is_serializable(self) -> bool:
            return False

    class Config(BitsAndBytesConfig):
        """`BitsAndBytesConfig` under a name of its own, so that `from_pretrained` takes the quantizer above."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)  # type: ignore[no-untyped-call]
            vars(self)["quant_method"] = METHOD

    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, Quantizer)
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, Config)
    return Config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )


def pack(stack: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """nf4 of a stack (experts, out, in) with compressed statistics: (packed bytes, bitsandbytes' QuantState).

    The same as quantizing it whole, one matrix at a time: on a CPU the temporary copies take 13 bytes a parameter.
    """
    import torch
    from bitsandbytes import functional

    if stack[0].numel() % BLOCK:
        whole: tuple[torch.Tensor, Any] = functional.quantize_4bit(
            stack.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        return whole
    parts = [functional.quantize_4bit(matrix.contiguous(), blocksize=BLOCK, quant_type="nf4") for matrix in stack]
    absmax = torch.cat([state.absmax for _, state in parts])
    offset = absmax.mean()
    compressed, scales = functional.quantize_blockwise(absmax - offset, blocksize=256)
    state = functional.QuantState(  # type: ignore[no-untyped-call]
        absmax=compressed, shape=stack.shape, dtype=stack.dtype, blocksize=BLOCK, code=parts[0][1].code, quant_type="nf4",
        offset=offset, state2=scales,
    )  # fmt: skip
    return torch.cat([packed for packed, _ in parts]), state


def expert_parameters(model: torch.nn.Module) -> list[str]:
    """Names of parameters that are stacks of matrices, (experts, out, in): what `nn.Linear` replacement does not reach."""
    return [name for name, value in model.named_parameters() if value.ndim == 3 and value.is_floating_point()]


def footprint(model: Any) -> Footprint:
    """Count a loaded model's parameters and bytes, seeing through 4-bit packing."""
    outer = {id(part) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None}
    total = size = weights = weight_bytes = wide = 0
    seen: set[int] = set()
    for module in model.modules():
        for _, value in module.named_parameters(recurse=False):
            if id(value) in seen:
                continue
            seen.add(id(value))
            state = _quant_state(module, value)
            count, taken = value.numel(), value.numel() * value.element_size()
            matrix = value.ndim >= 2
            if state is not None:
                count, matrix = state.shape.numel(), True
                taken += _state_bytes(state)
            total, size = total + count, size + taken
            if matrix and id(module) not in outer:
                weights, weight_bytes = weights + count, weight_bytes + taken
                wide += count if taken > count else 0
    return Footprint(total, size, weight_bytes / max(1, weights), wide / max(1, weights))


def _quant_state(module: Any, value: Any) -> Any:
    """Scales of a packed parameter: on the parameter itself (linear layers) or on its parametrization (experts)."""
    state = getattr(value, "quant_state", None)
    if state is not None:
        return state
    from bitsandbytes.nn.parametrize import Bnb4bitParametrization

    if getattr(module, "original", None) is value:
        return next((step.quant_state for step in module if isinstance(step, Bnb4bitParametrization)), None)
    return None


def _state_bytes(state: Any) -> int:
    tensors = [state.absmax] + ([state.offset, state.state2.absmax] if state.nested else [])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def check_quantized(model: Any) -> Footprint:
    """Raise NotQuantizedError unless the weights take at most `MOST_BYTES` a parameter; returns what was measured."""
    found = footprint(model)
    if found.bytes_per_parameter > MOST_BYTES:
        raise NotQuantizedError(
            f"was to be in 4 bit but its weights take {found.bytes_per_parameter:.2f} bytes a parameter (at most {MOST_BYTES}), "
            f"{100 * found.wide_share:.0f} % of them were not quantized"
        )
    return found

"""The architectures export knows: which tensors each has, what llama.cpp calls them, and what its metadata says.

Does: turn a transformers configuration into a plan (GGUF architecture, tensors with shapes and transforms, metadata, usable
context) and refuse, before any weight is read, what llama.cpp cannot run as transformers does.
Does not: read weights, tokenizers, or a directory.

Checked against llama.cpp 0c1e57098 (its src/models/*.cpp say which tensors and keys are read; its converter, the names).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from export.errors import ExportError

Role = Literal["embedding", "head", "matrix", "vector"]


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file: where it comes from and what is done to it on the way."""

    name: str
    """as llama.cpp calls it"""
    source: str
    """as the checkpoint calls it"""
    shape: tuple[int, ...]
    """rows first, as PyTorch has it"""
    role: Role = "matrix"
    rotary_heads: int = 0
    """heads whose rows go from transformers' half-split to llama.cpp's interleaved rotary order; 0 leaves them"""
    add: float = 0.0
    """added to every value: Gemma's norms multiply by 1 + weight"""
    scale: float = 1.0
    """what every value is multiplied by, after `add`"""


@dataclass(frozen=True)
class Plan:
    """What a GGUF file of this model consists of."""

    architecture: str
    """`general.architecture`"""
    tensors: tuple[PlannedTensor, ...]
    metadata: dict[str, Any]
    """key without the architecture's prefix -> int, float, bool, str or a list of one of them"""
    made: dict[str, list[float]]
    """tensors no checkpoint holds (rotary factors): name -> float32 values"""
    context: int
    """tokens up to which the file computes what the model computes"""
    notes: tuple[str, ...]
    """what a user must know: one sentence each"""


@dataclass(frozen=True)
class Family:
    """One class of models, by the name in config.json's `architectures`."""

    name: str
    class_name: str
    architecture: str
    activation: str = "silu"
    rotary_interleaved: bool = False
    """llama.cpp rotates neighbours (i, i+1), so q and k rows move"""
    qk_norm: bool = False
    sandwich_norms: bool = False
    """norms after attention and feed-forward as well, stored as weight - 1 (Gemma)"""
    fused: bool = False
    """one tensor for q, k and v and one for gate and up (Phi-3)"""
    biases: frozenset[str] = frozenset()
    """projections that may carry a bias: "qkv", "o", "mlp" """
    windows: bool = False
    """llama.cpp applies its sliding window"""
    own_head_dim: bool = True
    """head_dim may differ from hidden_size / heads"""
    rotary_factors: bool = False
    """llama.cpp reads a `rope_freqs.weight` for it"""
    refuse: dict[str, Any] = field(default_factory=dict)
    """configuration fields that must have this value (absent counts)"""


FAMILIES: dict[str, Family] = {
    family.class_name: family
    for family in (
        Family("Llama", "LlamaForCausalLM", "llama", rotary_interleaved=True, rotary_factors=True,
               biases=frozenset({"qkv", "o", "mlp"})),
        Family("Mistral", "MistralForCausalLM", "llama", rotary_interleaved=True, rotary_factors=True),
        Family("Qwen2", "Qwen2ForCausalLM", "qwen2", biases=frozenset({"qkv"}), own_head_dim=False),
        Family("Qwen3", "Qwen3ForCausalLM", "qwen3", qk_norm=True, refuse={"attention_bias": False}),
        Family("SmolLM3", "SmolLM3ForCausalLM", "smollm3", rotary_interleaved=True,
               refuse={"attention_bias": False, "mlp_bias": False}),
        Family("Gemma 2", "Gemma2ForCausalLM", "gemma2", "gelu_pytorch_tanh", sandwich_norms=True, windows=True,
               refuse={"attention_bias": False}),
        Family("Gemma 3", "Gemma3ForCausalLM", "gemma3", "gelu_pytorch_tanh", sandwich_norms=True, qk_norm=True, windows=True,
               refuse={"attention_bias": False, "attn_logit_softcapping": None, "use_bidirectional_attention": False}),
        Family("Phi-3", "Phi3ForCausalLM", "phi3", fused=True, own_head_dim=False),
    )
}  # fmt: skip
"""class name -> family. SmolLM and SmolLM2 are of class LlamaForCausalLM."""

SUPPORTED = "Llama, Mistral, Qwen2, Qwen3, SmolLM2, SmolLM3, Gemma 2, Gemma 3 (text), Phi-3"


def family_of(architectures: Any, where: str) -> Family:
    """The family `architectures` of a config.json names. Raises ExportError with the supported ones."""
    found = architectures[0] if isinstance(architectures, list) and architectures else None
    if found in FAMILIES:
        return FAMILIES[found]
    hint = "; export its text part as Gemma3ForCausalLM" if found == "Gemma3ForConditionalGeneration" else ""
    raise ExportError(f"{where}: architecture {found!r} cannot be exported; choose a model of {SUPPORTED}{hint}")


def plan_of(family: Family, config: Mapping[str, Any], where: str) -> Plan:
    """How a model with this configuration (as transformers reads it, every field present) becomes a GGUF file.

    Raises ExportError when llama.cpp would compute something else.
    """
    _check(family, config, where)
    layers, hidden, width = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], _head_dim(config)
    metadata: dict[str, Any] = {
        "block_count": layers,
        "embedding_length": hidden,
        "feed_forward_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "vocab_size": config["vocab_size"],
    }
    notes: list[str] = []
    context = int(config["max_position_embeddings"])
    rotary, made, rotary_context = _rotary(family, config, head_dim, where)
    metadata |= rotary
    if rotary_context is not None and rotary_context < context:
        notes.append(
            f"llama.cpp picks one set of longrope factors for the whole context, so the file's context is the {rotary_context} "
            f"tokens the short ones are for, not {context}"
        )
        context = rotary_context
    if family.windows:
        metadata |= _windows(config)
    elif (window := _window(config)) is not None and window < context:
        notes.append(
            f"llama.cpp does not apply this architecture's sliding window of {window} tokens, so the file's context is "
            f"{window}, not {context}: within it both compute the same"
        )
        context = window
    metadata["context_length"] = context
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key) is not None:
            metadata[key] = float(config[key])
    tensors = tuple(_tensors(family, config, _query_scale(family, config, head_dim)))
    return Plan(family.architecture, tensors, metadata, made, context, tuple(notes))


def _head_dim(config: Mapping[str, Any]) -> int:
    own = config.get("head_dim")
    return int(own) if own is not None else config["hidden_size"] // config["num_attention_heads"]


def _check(family: Family, config: Mapping[str, Any], where: str) -> None:
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation != family.activation:
        raise ExportError(f"{where}: activation {activation!r}; llama.cpp computes {family.activation} for {family.name} models")
    for key, value in family.refuse.items():
        if config.get(key, value) not in (value, None):
            raise ExportError(f"{where}: {key} is {config[key]!r}; llama.cpp has no such {family.name} model, only {value!r}")
    if config.get("attention_bias") and "qkv" not in family.biases:
        raise ExportError(f"{where}: attention_bias is set; llama.cpp has no such {family.name} model")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if not family.own_head_dim and _head_dim(config) * heads != hidden:
        raise ExportError(
            f"{where}: {heads} heads of {_head_dim(config)} are not the hidden size {hidden}; llama.cpp has no such "
            f"{family.name} model"
        )
    for key in ("num_local_experts", "num_experts"):
        if config.get(key):
            raise ExportError(
                f"{where}: a mixture of {config[key]} experts cannot be exported; choose a dense model of {SUPPORTED}"
            )
    if config.get("quantization_config") is not None:
        raise ExportError(f"{where}: its weights are stored quantized; give the original checkpoint")
    if family.name == "Gemma 2" and None in (config.get("attn_logit_softcapping"), config.get("final_logit_softcapping")):
        raise ExportError(f"{where}: soft capping is off; llama.cpp always caps the logits of Gemma 2 models")
    if family.name == "SmolLM3":
        wanted = [int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])]
        if list(config.get("no_rope_layers") or wanted) != wanted:
            raise ExportError(
                f"{where}: no_rope_layers is {config['no_rope_layers']}; llama.cpp leaves rotary positions out of every fourth"
            )


def _window(config: Mapping[str, Any]) -> int | None:
    """The sliding window of any of its layers."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return int(window)


def _windows(config: Mapping[str, Any]) -> dict[str, Any]:
    window = _window(config)
    if window is None:
        # A window as long as the context is none, and keeps llama.cpp from assuming its own default.
        return {"attention.sliding_window": int(config["max_position_embeddings"])} if config["model_type"] == "gemma2" else {}
    pattern = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


def _query_scale(family: Family, config: Mapping[str, Any], head_dim: int) -> float:
    """What queries are multiplied by so that llama.cpp's fixed 1/sqrt(…) becomes the model's query_pre_attn_scalar (Gemma)."""
    wanted = config.get("query_pre_attn_scalar")
    if wanted is None:
        return 1.0
    largest = {"gemma2": 46, "gemma3": 62}[family.architecture]
    if config["num_hidden_layers"] == largest:  # llama.cpp knows the 27B models by their layers
        fixed = config["hidden_size"] // config["num_attention_heads"]
    else:
        fixed = head_dim
    return math.sqrt(fixed / wanted)


def _rotary(
    family: Family, config: Mapping[str, Any], head_dim: int, where: str
) -> tuple[dict[str, Any], dict[str, list[float]], int | None]:
    """(metadata, made tensors, context up to which they hold or None) for its rotary positions."""
    every = config.get("rope_parameters") or {}
    rope = every.get("full_attention", every)
    kind, base = rope.get("rope_type", "default"), float(rope.get("rope_theta", 10000.0))
    partial = float(rope.get("partial_rotary_factor") or 1.0)
    dim = int(head_dim * partial)
    if partial != 1.0 and not family.fused:
        raise ExportError(f"{where}: partial_rotary_factor is {partial}; llama.cpp rotates whole heads of {family.name} models")
    metadata: dict[str, Any] = {"rope.dimension_count": dim, "rope.freq_base": base}
    local = every.get("sliding_attention")
    if local is not None:
        if local.get("rope_type", "default") != "default":
            raise ExportError(f"{where}: rope_type {local['rope_type']!r} in sliding layers; llama.cpp scales full layers only")
        metadata["rope.freq_base_swa"] = float(local["rope_theta"])
    if kind == "default":
        return metadata, {}, None
    if kind == "linear":
        return metadata | {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}, {}, None
    if kind == "yarn":
        return metadata | _yarn(rope, where), {}, None
    if kind == "llama3" and family.rotary_factors:
        return metadata, {"rope_freqs.weight": llama3_factors(rope, base, dim)}, None
    if kind == "longrope" and family.fused:
        scaling, factors = _longrope(rope, config, dim, where)
        return metadata | scaling, factors, int(rope["original_max_position_embeddings"])
    raise ExportError(
        f"{where}: rope_type {kind!r} cannot be exported for {family.name} models; llama.cpp knows default, linear and yarn, "
        "llama3 for Llama and Mistral, and longrope for Phi-3"
    )


def _yarn(rope: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key, value in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True), ("mscale", None), ("mscale_all_dim", None)):
        if rope.get(key, value) not in (value, None):
            raise ExportError(f"{where}: yarn with {key} {rope[key]}; llama.cpp computes this architecture with {value}")
    factor = float(rope["factor"])
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
    }
    if rope.get("attention_factor") is not None:
        usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        keys["rope.scaling.attn_factor"] = float(rope["attention_factor"]) / usual
    return keys


def llama3_factors(rope: Mapping[str, Any], base: float, dim: int) -> list[float]:
    """What llama.cpp divides each of the dim/2 rotary frequencies by, for Llama 3.1's way to longer contexts."""
    import numpy as np

    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    trained = rope["original_max_position_embeddings"]
    frequencies = np.float32(1.0) / np.float32(base) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    factors = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _longrope(
    rope: Mapping[str, Any], config: Mapping[str, Any], dim: int, where: str
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    trained = int(rope["original_max_position_embeddings"])
    factors = {"rope_factors_long.weight": rope["long_factor"], "rope_factors_short.weight": rope["short_factor"]}
    for name, values in factors.items():
        if len(values) != dim // 2:
            raise ExportError(f"{where}: {len(values)} values for {name}, not {dim // 2}; correct rope_parameters in config.json")
    attention = rope.get("attention_factor")
    if attention is None:
        # transformers: by the ratio of contexts (Phi-3 keeps no `factor`), 1 when there is nothing to stretch
        ratio = rope.get("factor") or config["max_position_embeddings"] / trained
        attention = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(trained))
    keys = {"rope.scaling.original_context_length": trained, "rope.scaling.attn_factor": float(attention)}
    return keys, {name: [float(value) for value in values] for name, values in factors.items()}


def _tensors(family: Family, config: Mapping[str, Any], query_scale: float) -> list[PlannedTensor]:
    hidden, width, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], _head_dim(config)
    query, key = heads * head_dim, kv_heads * head_dim
    norm_add = 1.0 if family.sandwich_norms else 0.0
    tensors = [PlannedTensor("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden), "embedding")]
    turn = (heads, kv_heads) if family.rotary_interleaved else (0, 0)
    fold_in_norm = family.qk_norm and query_scale != 1.0

    for i in range(config["num_hidden_layers"]):
        here, there = f"blk.{i}", f"model.layers.{i}"

        def norm(name: str, source: str, size: int, scale: float = 1.0, here: str = here, there: str = there) -> PlannedTensor:
            return PlannedTensor(
                f"{here}.{name}.weight", f"{there}.{source}.weight", (size,), "vector", add=norm_add, scale=scale
            )

        def matrix(name: str, source: str, rows: int, columns: int, bias: bool = False, turned: int = 0, scale: float = 1.0,
                   here: str = here, there: str = there) -> list[PlannedTensor]:  # fmt: skip
            weight = PlannedTensor(f"{here}.{name}.weight", f"{there}.{source}.weight", (rows, columns),
                                   rotary_heads=turned, scale=scale)  # fmt: skip
            if not bias:
                return [weight]
            return [weight, PlannedTensor(f"{here}.{name}.bias", f"{there}.{source}.bias", (rows,), "vector",
                                          rotary_heads=turned, scale=scale)]  # fmt: skip

        tensors.append(norm("attn_norm", "input_layernorm", hidden))
        tensors += _attention(family, config, matrix, hidden, query, key, turn, 1.0 if fold_in_norm else query_scale)
        if family.qk_norm:
            tensors.append(norm("attn_q_norm", "self_attn.q_norm", head_dim, query_scale))
            tensors.append(norm("attn_k_norm", "self_attn.k_norm", head_dim))
        if family.sandwich_norms:
            tensors.append(norm("post_attention_norm", "post_attention_layernorm", hidden))
            tensors.append(norm("ffn_norm", "pre_feedforward_layernorm", hidden))
            tensors.append(norm("post_ffw_norm", "post_feedforward_layernorm", hidden))
        else:
            tensors.append(norm("ffn_norm", "post_attention_layernorm", hidden))
        mlp_bias = bool(config.get("mlp_bias")) and "mlp" in family.biases
        if family.fused:
            tensors += matrix("ffn_up", "mlp.gate_up_proj", 2 * width, hidden)
        else:
            tensors += matrix("ffn_gate", "mlp.gate_proj", width, hidden, mlp_bias)
            tensors += matrix("ffn_up", "mlp.up_proj", width, hidden, mlp_bias)
        tensors += matrix("ffn_down", "mlp.down_proj", hidden, width, mlp_bias)

    tensors.append(PlannedTensor("output_norm.weight", "model.norm.weight", (hidden,), "vector", add=norm_add))
    if not config.get("tie_word_embeddings"):
        tensors.append(PlannedTensor("output.weight", "lm_head.weight", (vocab, hidden), "head"))
    return tensors


def _attention(
    family: Family,
    config: Mapping[str, Any],
    matrix: Callable[..., list[PlannedTensor]],
    hidden: int,
    query: int,
    key: int,
    turn: tuple[int, int],
    query_scale: float,
) -> list[PlannedTensor]:
    if family.fused:
        return [
            *matrix("attn_qkv", "self_attn.qkv_proj", query + 2 * key, hidden),
            *matrix("attn_output", "self_attn.o_proj", hidden, query),
        ]
    # Qwen2 has these three biases whatever its configuration says.
    bias = "qkv" in family.biases and (family.name == "Qwen2" or bool(config.get("attention_bias")))
    return [
        *matrix("attn_q", "self_attn.q_proj", query, hidden, bias, turn[0], query_scale),
        *matrix("attn_k", "self_attn.k_proj", key, hidden, bias, turn[1]),
        *matrix("attn_v", "self_attn.v_proj", key, hidden, bias),
        *matrix("attn_output", "self_attn.o_proj", hidden, query, bias and "o" in family.biases),
    ]

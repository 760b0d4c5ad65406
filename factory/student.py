"""The small model that learns: a hub name, a directory, or a Llama made from scratch for this task.

Does: list known students, check licence, reach and memory before any cost, make a from-scratch model with its own tokenizer.
Does not: train (`train.py`) or choose prompts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from factory.memory import Memory, available
from factory.settings import Adapter, StudentSettings
from factory.tasks.task import Dialect


class StudentError(Exception):
    """A student that cannot be used: one sentence with the value, the choices and the next step."""


@dataclass(frozen=True)
class Student:
    """A public base model. `parameters` in millions; `tokenizer` names the family (equal names: equal tokenizers, still probed)."""

    hub_id: str
    license: str
    parameters: float
    hidden: int
    layers: int
    vocab: int
    tokenizer: str


STUDENTS: dict[str, Student] = {
    "smollm2-135m": Student("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", 134.5, 576, 30, 49152, "smollm2"),
    "smollm2-360m": Student("HuggingFaceTB/SmolLM2-360M-Instruct", "apache-2.0", 361.8, 960, 32, 49152, "smollm2"),
    "smollm2-1.7b": Student("HuggingFaceTB/SmolLM2-1.7B-Instruct", "apache-2.0", 1711.4, 2048, 24, 49152, "smollm2"),
    "qwen2.5-0.5b": Student("Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0", 494.0, 896, 24, 151936, "qwen2"),
    "qwen2.5-1.5b": Student("Qwen/Qwen2.5-1.5B-Instruct", "apache-2.0", 1543.7, 1536, 28, 151936, "qwen2"),
    "qwen2.5-coder-0.5b": Student("Qwen/Qwen2.5-Coder-0.5B-Instruct", "apache-2.0", 494.0, 896, 24, 151936, "qwen2"),
    "qwen2.5-coder-1.5b": Student("Qwen/Qwen2.5-Coder-1.5B-Instruct", "apache-2.0", 1543.7, 1536, 28, 151936, "qwen2"),
    "qwen3-0.6b": Student("Qwen/Qwen3-0.6B", "apache-2.0", 596.0, 1024, 28, 151936, "qwen3"),
    "qwen3-1.7b": Student("Qwen/Qwen3-1.7B", "apache-2.0", 1720.6, 2048, 28, 151936, "qwen3"),
    "danube3-500m": Student("h2oai/h2o-danube3-500m-chat", "apache-2.0", 513.6, 1536, 16, 32000, "mistral"),
    "danube3-4b": Student("h2oai/h2o-danube3-4b-chat", "apache-2.0", 3961.8, 3840, 24, 32000, "mistral"),
    "gemma3-270m": Student("google/gemma-3-270m-it", "gemma", 268.1, 640, 18, 262144, "gemma3"),
}
"""Tested names; any other model goes as `hub:org/name` or a directory."""


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


@dataclass(frozen=True)
class StudentPlan:
    """A student that was checked. Nothing has been downloaded or written."""

    spec: str
    kind: Literal["scratch", "hub", "directory"]
    model_id: str
    """hub id, directory, or scratch size"""
    license: str
    parameters: float
    """millions"""
    hidden: int
    layers: int
    vocab: int
    tokenizer: str
    dialect: Dialect
    adapter: Adapter
    learning_rate: float
    need_gb: float
    """memory to train it as asked"""
    have: Memory
    download_gb: float
    """0 when it is here already"""

    @property
    def title(self) -> str:
        where = {"scratch": "from scratch", "hub": self.model_id, "directory": "local directory"}[self.kind]
        return f"{self.spec} ({where}, {self.parameters:.1f} M parameters, licence {self.license})"


def resolve_student(spec: str, settings: StudentSettings) -> StudentPlan:
    """Check a student spec against this machine: a name of STUDENTS, `hub:org/name`, a directory, `scratch:tiny|small|base`.

    Raises StudentError: unknown, unreachable, not a model directory, or more memory needed than there is. Costs at most one
    small request to the hub.
    """
    if spec.startswith("scratch:"):
        size = spec.removeprefix("scratch:")
        if size not in SCRATCH:
            raise StudentError(f"student {spec!r}: no such size; choose from {', '.join(f'scratch:{s}' for s in SCRATCH)}")
        shape = SCRATCH[size]
        facts = Student(size, "none (trained here)", shape.parameters, shape.hidden, shape.layers, shape.vocab, "own")
        return _plan(spec, "scratch", facts, settings, "compact", 0.0)
    if spec in STUDENTS:
        return _plan(spec, "hub", STUDENTS[spec], settings, "plain", _to_download(spec, STUDENTS[spec]))
    if spec.startswith("hub:"):
        facts = _hub_facts(spec)
        return _plan(spec, "hub", facts, settings, "plain", _to_download(spec, facts))
    path = Path(spec)
    if path.is_dir():
        facts, dialect = _directory_facts(path)
        return _plan(spec, "directory", facts, settings, dialect, 0.0)
    near = difflib.get_close_matches(spec, [*STUDENTS, *(f"scratch:{s}" for s in SCRATCH)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names = ", ".join([*(f"scratch:{s}" for s in SCRATCH), *STUDENTS])
    raise StudentError(f"unknown student {spec!r}{hint} Choose from {names}, hub:org/name, or a model directory")


def _plan(
    spec: str,
    kind: Literal["scratch", "hub", "directory"],
    facts: Student,
    settings: StudentSettings,
    dialect: Dialect,
    download: float,
) -> StudentPlan:
    adapter: Adapter = settings.adapter if settings.adapter is not None else ("none" if dialect == "compact" else "lora")
    have = available()
    need = training_gb(facts, adapter, settings.batch, settings.max_length, settings.rank, have.device, dialect)
    if need > have.free_gb:
        smaller = "" if adapter == "qlora" else ", --adapter qlora" if adapter in ("lora", "dora") else ", --adapter lora"
        raise StudentError(
            f"student {spec!r} with adapter {adapter} and batch {settings.batch} needs about {need:.1f} GB to train and {have.where} has "
            f"{have.free_gb:.1f} GB free; choose a smaller student, a smaller --batch (with --accumulate) or --max-length{smaller}"
        )
    rate = settings.learning_rate
    if rate is None:
        rate = 1.5e-3 if dialect == "compact" else 2e-5 if adapter == "none" else 2e-4
    return StudentPlan(spec, kind, facts.hub_id, facts.license, facts.parameters, facts.hidden, facts.layers, facts.vocab,
                       facts.tokenizer, dialect, adapter, rate, need, have, download)  # fmt: skip


def training_gb(facts: Student, adapter: Adapter, batch: int, max_length: int, rank: int, device: str, dialect: Dialect) -> float:
    """Memory to train, in GB: weights, gradients and AdamW states in fp32, activations of one batch, and the program itself.

    Full: 16 bytes a parameter. Adapters: 2 (GPU) or 4 (CPU) bytes a frozen parameter, 0.6 for nf4; adapters about 1 % of it at
    16 bytes. Activations: 40 bytes per token, layer and hidden unit without checkpointing; pretrained students are trained with
    checkpointing (4). Rows are taken as half of `max_length` but at most 512 tokens, completions as 64 of them.
    """
    millions = facts.parameters * 1e6
    frozen = {"none": 16.0, "qlora": 0.6}.get(adapter, 2.0 if device == "cuda" else 4.0)
    trained = 0.0 if adapter == "none" else 16.0 * facts.layers * 14 * facts.hidden * rank * 1.5
    tokens = batch * min(max_length // 2, 512) if dialect == "plain" else batch * min(max_length, 256)
    activations = tokens * facts.layers * facts.hidden * (40.0 if dialect == "compact" else 4.0) + tokens * facts.hidden * 40.0
    logits = batch * min(max_length, 64) * facts.vocab * 12.0
    return (millions * frozen + trained + activations + logits) / 1e9 + 0.6


def _to_download(spec: str, facts: Student) -> float:
    """GB to fetch, 0 when cached. Raises StudentError when it is neither cached nor reachable."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    cached = try_to_load_from_cache(facts.hub_id, "config.json")
    weights = [try_to_load_from_cache(facts.hub_id, n) for n in ("model.safetensors", "model.safetensors.index.json")]
    if isinstance(cached, str) and any(isinstance(w, str) for w in weights):
        return 0.0
    try:
        HfApi().auth_check(facts.hub_id) if facts.license == "gemma" else HfApi().model_info(facts.hub_id, timeout=10)
    except GatedRepoError:
        raise StudentError(
            f"student {spec!r}: {facts.hub_id} is behind a licence ({facts.license}); accept it on its hub page and log in with `hf auth login`"
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise StudentError(
            f"student {spec!r}: {facts.hub_id} is not in the local cache and the hub cannot be reached ({_short(error)}); "
            "connect once to download it, give a model directory, or choose scratch:tiny"
        ) from None
    return facts.parameters * 2e6 / 1e9


def _short(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else repr(error)


def _hub_facts(spec: str) -> Student:
    """What the hub (or the cache) says about a model that is not in STUDENTS. Raises StudentError."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    model_id = spec.removeprefix("hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id):
        raise StudentError(f"student {spec!r}: {model_id!r} is not a hub name; write hub:org/name")
    try:
        config = json.loads(Path(hf_hub_download(model_id, "config.json")).read_text(encoding="utf-8"))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise StudentError(
            f"student {spec!r}: its config.json cannot be read ({_short(error)}); check the name and the connection"
        ) from None
    license_name = "unknown"
    try:
        card = HfApi().model_info(model_id, timeout=10).card_data
        license_name = str(card.get("license") or "unknown") if card is not None else "unknown"
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        pass  # A cached model stays usable without the hub; its licence is then unknown and shown as such.
    return _config_facts(model_id, config, license_name, spec)


def _directory_facts(path: Path) -> tuple[Student, Dialect]:
    config_path = path / "config.json"
    if not config_path.is_file():
        found = (
            "it is an adapter; merge it first or give its base"
            if (path / "adapter_config.json").is_file()
            else "it has no config.json"
        )
        raise StudentError(f"student {str(path)!r} is not a model directory: {found}")
    if not list(path.glob("*.safetensors")):
        raise StudentError(f"student {str(path)!r} has no .safetensors weights; other formats are not read")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    card = path / "card.json"
    dialect: Dialect = "plain"
    license_name = "unknown"
    if card.is_file():
        dialect = json.loads(card.read_text(encoding="utf-8")).get("dialect", "plain")
    elif (path / "student.json").is_file():
        dialect = "compact"
    facts = _config_facts(str(path), config, license_name, str(path))
    size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    width = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    return Student(**{**facts.__dict__, "parameters": size / width / 1e6}), dialect


def _config_facts(model_id: str, config: dict[str, Any], license_name: str, spec: str) -> Student:
    config = config.get("text_config", config)
    try:
        hidden, layers, vocab = int(config["hidden_size"]), int(config["num_hidden_layers"]), int(config["vocab_size"])
    except KeyError as error:
        raise StudentError(
            f"student {spec!r}: its config.json has no {error}; only decoder-only language models can be students"
        ) from None
    inner = int(config.get("intermediate_size", 4 * hidden))
    heads = int(config.get("num_attention_heads", 1))
    kv = int(config.get("num_key_value_heads", heads)) * int(config.get("head_dim") or hidden // heads)
    each = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner * int(config.get("num_local_experts", 1))
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings", True) else 2)
    return Student(
        model_id,
        license_name,
        (embeddings + layers * each) / 1e6,
        hidden,
        layers,
        vocab,
        str(config.get("model_type", "unknown")),
    )


def prepare_student(plan: StudentPlan, corpus: Sequence[str], special_tokens: Sequence[str], out_dir: Path, seed: int) -> Path:
    """The model directory training starts from.

    From scratch: written to `out_dir` (tokenizer trained on `corpus`, random weights), whole or not at all, the same bytes for the
    same corpus and seed; an `out_dir` made from the same inputs is reused. Hub: downloaded to the cache. A directory: itself.
    """
    if plan.kind == "directory":
        return Path(plan.model_id)
    if plan.kind == "hub":
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(plan.model_id, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"])
            )
        except OSError as error:
            raise StudentError(
                f"student {plan.spec!r}: the download stopped ({_short(error)}); run again, it continues"
            ) from None
    made_from = _fingerprint(plan, corpus, special_tokens, seed)
    mark = out_dir / "student.json"
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == made_from:
        return out_dir
    tmp = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    shape = SCRATCH[plan.model_id]
    tokenizer = train_tokenizer(corpus, special_tokens, shape.vocab)
    model = new_model(shape, tokenizer)
    init_weights(model, seed)
    model.save_pretrained(tmp)
    tokenizer.save_pretrained(tmp)
    (tmp / "student.json").write_text(json.dumps(made_from), encoding="utf-8")
    shutil.rmtree(out_dir, ignore_errors=True)
    tmp.rename(out_dir)
    return out_dir


def _fingerprint(plan: StudentPlan, corpus: Sequence[str], special_tokens: Sequence[str], seed: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for text in [*special_tokens, *corpus]:
        digest.update(text.encode() + b"\0")
    shape = SCRATCH[plan.model_id]
    return {"scratch": plan.model_id, "shape": list(shape.__dict__.values()), "seed": seed, "text": digest.hexdigest()}


def train_tokenizer(corpus: Sequence[str], special_tokens: Sequence[str], vocab: int) -> Any:
    """Byte-level BPE of at most `vocab` tokens, pre-tokenized by GPT-2's pattern (llama.cpp: `gpt-2`).

    Ids: end, pad and role tokens, then the 256 bytes and merges, then `special_tokens` whole, as ordinary text (not special: they
    survive decoding). No normalizer and no BOS. Returns a transformers tokenizer with a minimal chat template.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    if special_tokens:
        # Merges must be learned from the text between whole tokens only.
        split = re.compile("|".join(re.escape(t) for t in sorted(special_tokens, key=len, reverse=True)))
        texts = (part for text in corpus for part in split.split(text) if part)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in special_tokens])
    return PreTrainedTokenizerFast(
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


def init_weights(model: Any, seed: int, mimetic: bool = False) -> None:
    """Set every weight of a Llama: N(0, 0.02), output projections scaled by 1 / sqrt(2 layers) (GPT-2), norms 1.

    `mimetic` starts attention near what trained models show (Trockman & Kolter 2023): per head W_q' W_k = 0.7 I + noise, and
    W_o W_v = -0.4 I + noise.
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
        if mimetic:
            for layer in model.model.layers:
                _mimetic(layer.self_attn, random)


def _mimetic(attention: Any, random: Any) -> None:
    import torch

    hidden = attention.q_proj.weight.shape[1]
    width = attention.head_dim
    groups = attention.q_proj.weight.shape[0] // attention.k_proj.weight.shape[0]
    for head in range(attention.k_proj.weight.shape[0] // width):
        noise = torch.randn(hidden, hidden, generator=random) / hidden**0.5
        u, s, v = torch.linalg.svd(0.7 * torch.eye(hidden) + 0.7 * noise)
        root = s[:width].sqrt()
        rows = slice(head * width, (head + 1) * width)
        attention.k_proj.weight[rows] = root[:, None] * v[:width]
        for group in range(groups):
            at = (head * groups + group) * width
            attention.q_proj.weight[at : at + width] = root[:, None] * u[:, :width].T
    if groups == 1 and attention.v_proj.weight.shape == attention.o_proj.weight.shape:
        noise = torch.randn(hidden, hidden, generator=random) / hidden**0.5
        u, s, v = torch.linalg.svd(0.4 * noise - 0.4 * torch.eye(hidden))
        attention.v_proj.weight.copy_(s.sqrt()[:, None] * v)
        attention.o_proj.weight.copy_(u * s.sqrt())

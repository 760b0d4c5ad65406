"""The small model that learns: a hub name, a directory, or a Llama made from scratch for this task.

Does: list known students, check licence, reach, memory and disk before any cost, hand over the directory training starts from.
Does not: make a model from scratch (`scratch.py`), train (`train.py`) or choose prompts.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from factory.chat_template import accept_system_turns
from factory.embedded import NAME as EMBEDDED
from factory.embedded import embedded_dir
from factory.machine import HubState, Machine, hub_state, look_at_machine, model_dir
from factory.scratch import MARK, SCRATCH, write_scratch
from factory.settings import Adapter, StudentSettings
from factory.tasks.task import Dialect

Kind = Literal["scratch", "hub", "directory"]


class StudentError(Exception):
    """A student that cannot be used: one sentence with the value, the choices and the next step."""


@dataclass(frozen=True)
class Student:
    """A public base model. `parameters` in millions; `tokenizer` names the family (agreement is still probed)."""

    model_id: str
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
class StudentPlan:
    """A student that was checked. Nothing has been downloaded or written."""

    spec: str
    kind: Kind
    model_id: str
    """hub id, directory, or scratch size"""
    revision: str
    """hub commit; empty for others"""
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
    have_gb: float
    device: str
    download_gb: float
    """0 when it is here already"""

    @property
    def title(self) -> str:
        where = {"scratch": "from scratch", "hub": self.model_id, "directory": "local directory"}[self.kind]
        return f"{self.spec} ({where}, {self.parameters:.1f} M parameters, licence {self.license})"


def resolve_student(spec: str, settings: StudentSettings) -> StudentPlan:
    """Check a student spec against this machine: a name of STUDENTS, `hub:org/name`, a directory, `embedded`,
    `scratch:tiny|small|base`.

    Raises StudentError: unknown, unreachable, not a model directory, or more memory needed than there is. Asks the hub at most
    once, briefly; downloads nothing but a config.
    """
    if spec.startswith("scratch:"):
        size = spec.removeprefix("scratch:")
        if size not in SCRATCH:
            raise StudentError(f"student {spec!r}: no such size; choose from {', '.join(f'scratch:{s}' for s in SCRATCH)}")
        shape = SCRATCH[size]
        facts = Student(size, "none (trained here)", shape.parameters, shape.hidden, shape.layers, shape.vocab, "own")
        return _plan(spec, "scratch", facts, settings, "compact", None)
    if spec == EMBEDDED:
        path = embedded_dir("base")
        if path is None:
            raise StudentError(f"student {spec!r}: this installation has no embedded base; choose scratch:tiny, or make one with "
                               "python -m factory.pretrain --recipe base")  # fmt: skip
        facts, dialect = _directory_facts(path)
        return _plan(spec, "directory", facts, settings, dialect, None)
    if spec in STUDENTS:
        _fit(spec, STUDENTS[spec], settings, "plain")  # before the hub is asked
        return _plan(spec, "hub", STUDENTS[spec], settings, "plain", _reach(spec, STUDENTS[spec].model_id))
    if spec.startswith("hub:"):
        state = _reach(spec, spec.removeprefix("hub:"))
        return _plan(spec, "hub", _hub_facts(spec, state), settings, "plain", state)
    if Path(spec).is_dir() or spec.startswith(("./", "/", "../")):
        facts, dialect = _directory_facts(Path(spec))
        return _plan(spec, "directory", facts, settings, dialect, None)
    near = difflib.get_close_matches(spec, [*STUDENTS, EMBEDDED, *(f"scratch:{s}" for s in SCRATCH)], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    names = ", ".join([*(f"scratch:{s}" for s in SCRATCH), EMBEDDED, *STUDENTS])
    raise StudentError(f"unknown student {spec!r}{hint}; choose from {names}, hub:ORG/NAME, or a model directory")


def with_tokenizer(plan: StudentPlan, settings: StudentSettings, vocab: int, dialect: Dialect) -> StudentPlan:
    """A from-scratch student with its teacher's tokenizer (of `vocab` entries) and dialect. Raises StudentError (memory)."""
    shape = replace(SCRATCH[plan.model_id], vocab=vocab)
    facts = Student(plan.model_id, plan.license, shape.parameters, shape.hidden, shape.layers, vocab, "the teacher's")
    return _plan(plan.spec, "scratch", facts, settings, dialect, None)


def _plan(
    spec: str, kind: Kind, facts: Student, settings: StudentSettings, dialect: Dialect, state: HubState | None
) -> StudentPlan:
    adapter, machine, need = _fit(spec, facts, settings, dialect, kind == "scratch")
    rate = settings.learning_rate
    if rate is None:
        rate = 1.5e-3 if dialect == "compact" or kind == "scratch" else 2e-5 if adapter == "none" else 2e-4
    download = facts.parameters * 2e6 / 1e9 if state is not None and not state.cached else 0.0
    if download > machine.disk_gb:
        raise StudentError(
            f"student {spec!r} is a download of {download:.1f} GB and {machine.cache_dir} has {machine.disk_gb:.1f} GB free; "
            "free some, or set HF_HOME to another disk"
        )
    license_name = state.license if state is not None and state.license != "not stated" else facts.license
    have, device = (machine.gpu_gb, "cuda") if machine.gpu_gb else (machine.ram_gb, "cpu")
    return StudentPlan(
        spec, kind, facts.model_id, state.revision if state is not None else "", license_name, facts.parameters, facts.hidden,
        facts.layers, facts.vocab, facts.tokenizer, dialect, adapter, rate, need, have, device, download,
    )  # fmt: skip


def _fit(
    spec: str, facts: Student, settings: StudentSettings, dialect: Dialect, scratch: bool = False
) -> tuple[Adapter, Machine, float]:
    """What would be trained, on what, and the GB it needs. Raises StudentError when that is more than there is."""
    usual: Adapter = "none" if (dialect == "compact" or scratch) and settings.adapter_from is None else "lora"
    adapter = settings.adapter if settings.adapter is not None else usual
    machine = look_at_machine()
    have = machine.gpu_gb or machine.ram_gb
    need = training_gb(facts, adapter, settings.batch, settings.max_length, settings.rank, dialect)
    if need > have:
        cheaper = {"none": "--adapter lora, ", "lora": "--adapter qlora, ", "dora": "--adapter qlora, "}.get(adapter, "")
        raise StudentError(
            f"student {spec!r} with adapter {adapter} and batch {settings.batch} needs about {need:.1f} GB to train and "
            f"{'the GPU' if machine.gpu_gb else 'this machine'} has {have:.1f} GB free; choose a smaller student, {cheaper}"
            "a smaller --batch or a smaller --max-length"
        )
    return adapter, machine, need


def training_gb(facts: Student, adapter: Adapter, batch: int, max_length: int, rank: int, dialect: Dialect) -> float:
    """Memory to train, in GB (1e9 bytes): weights, gradients and AdamW states, activations of one batch, the program itself.

    All weights: 16 bytes a parameter. Frozen under an adapter: 2, or 0.6 and 16-bit embeddings in nf4; an adapter of rank r
    has about 21 r hidden weights a layer, at 16 bytes. Activations: 40 bytes per token, layer and hidden unit, a tenth of it
    where they are recomputed (above 100 M parameters). Rows are taken as `max_length` but at most 256 tokens (compact) or 512,
    of which 64 carry loss.
    """
    parameters = facts.parameters * 1e6
    embedding = facts.vocab * facts.hidden
    frozen = {"none": 16.0 * parameters, "qlora": 0.6 * (parameters - embedding) + 2.0 * embedding}.get(adapter, 2.0 * parameters)
    trained = 0.0 if adapter == "none" else 1e9 * adapter_gb(facts.layers, facts.hidden, rank)
    tokens = batch * min(max_length, 256 if dialect == "compact" else 512)
    kept = 40.0 if facts.parameters < 100 else 4.0
    activations = tokens * facts.hidden * (facts.layers * kept + 40.0)
    logits = batch * min(max_length, 64) * facts.vocab * 12.0
    return (frozen + trained + activations + logits) / 1e9 + 0.6


def adapter_gb(layers: int, hidden: int, rank: int) -> float:
    """Memory of an adapter in training, in GB."""
    return 16.0 * 21 * layers * hidden * rank / 1e9


def _reach(spec: str, model_id: str) -> HubState:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id):
        raise StudentError(f"student {spec!r}: {model_id!r} is not a hub name; write hub:ORG/NAME")
    state = hub_state(model_id)
    if state.problem is not None:
        raise StudentError(f"student {spec!r}: {model_id} {state.problem}; or choose scratch:tiny, which needs no download")
    return state


def _hub_facts(spec: str, state: HubState) -> Student:
    """Sizes of a model that is not in STUDENTS, from its config. Raises StudentError."""
    from huggingface_hub import hf_hub_download

    model_id = spec.removeprefix("hub:")
    try:
        config = json.loads(Path(hf_hub_download(model_id, "config.json")).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(f"student {spec!r}: its config.json cannot be read ({_short(error)}); check the name") from None
    return _config_facts(model_id, config, state.license, state.billions * 1e3, spec)


def _directory_facts(path: Path) -> tuple[Student, Dialect]:
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise StudentError(f"student {str(path)!r} is an adapter; merge it into its base first and give that directory")
    try:
        weights, _ = model_dir(path)
    except ValueError as error:
        raise StudentError(f"student {str(path)!r}: {error}") from None
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    dialect: Dialect = "plain"
    if (path / "card.json").is_file():
        dialect = json.loads((path / "card.json").read_text(encoding="utf-8")).get("dialect", "plain")
    elif (path / MARK).is_file():
        dialect = "compact"
    return _config_facts(str(path), config, weights.license, weights.billions * 1e3, str(path)), dialect


def _config_facts(model_id: str, config: dict[str, Any], license_name: str, millions: float, spec: str) -> Student:
    config = config.get("text_config", config)
    try:
        hidden, layers, vocab = int(config["hidden_size"]), int(config["num_hidden_layers"]), int(config["vocab_size"])
    except KeyError as error:
        raise StudentError(
            f"student {spec!r}: its config.json has no {error}; only decoder-only language models can be students"
        ) from None
    return Student(model_id, license_name, millions, hidden, layers, vocab, str(config.get("model_type", "unknown")))


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:120]


def prepare_student(
    plan: StudentPlan, corpus: Sequence[str], special_tokens: Sequence[str], out_dir: Path, seed: int, tokenizer: Any = None
) -> Path:
    """The model directory training starts from.

    From scratch: made in `out_dir` (`factory.scratch`), deterministic, around `tokenizer` when one is given. Hub: downloaded to
    the cache. A directory: itself.
    When a chat template refuses system messages, `out_dir` gets links to the weights and a template that moves those messages
    into the user's turn.
    """
    if plan.kind == "scratch":
        made = write_scratch(plan.model_id, corpus, special_tokens, out_dir, seed, tokenizer)
        if tokenizer is not None:
            _check_kept(tokenizer, made, plan.spec)
        return made
    directory = Path(plan.model_id) if plan.kind == "directory" else _download(plan)
    return _with_system_turns(directory, out_dir, plan.spec)


def _check_kept(tokenizer: Any, directory: Path, spec: str) -> None:
    """Model types decide how transformers reads a tokenizer's files: the student's must still read them as the teacher's does."""
    from factory.tokenizer_match import compare_tokenizers
    from factory.train import load_tokenizer

    report = compare_tokenizers(tokenizer, load_tokenizer(directory))
    if not report.agree:
        raise StudentError(f"student {spec!r} cannot keep its teacher's tokenizer: {report}; choose --method sft")


def _download(plan: StudentPlan) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(plan.model_id, revision=plan.revision or None, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise StudentError(f"student {plan.spec!r}: the download stopped ({_short(error)}); run again, it continues") from None


def _with_system_turns(directory: Path, out_dir: Path, spec: str) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise StudentError(f"student {spec!r} has no chat template; choose an instruct model")
    if not accept_system_turns(tokenizer):
        return directory
    tmp = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    for path in directory.iterdir():
        if path.is_file():
            (tmp / path.name).symlink_to(path.resolve())
    for name in ("tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
        (tmp / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp)
    shutil.rmtree(out_dir, ignore_errors=True)
    tmp.rename(out_dir)
    return out_dir

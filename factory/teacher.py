"""Teacher names and specs -> a checked plan -> a ChatModel; everything that can fail cheaply fails here, before any cost.

Does: know teachers by name, read specs, compare memory, disk, hub, licence, endpoint and backend with what is there.
Does not: load weights (`teachers_local.py`), compare tokenizers (`tokenizer_match.py`) or ask anything (`generate.py`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from agents.card import FILE_NAME, Card
from agents.chat import ChatModel, ModelError, Request, Usage
from agents.models.gguf_file import read_gguf
from factory.embedded import NAME as EMBEDDED
from factory.embedded import embedded_dir
from factory.ledger import answer_key
from factory.machine import Machine, file_sha256, file_stamp, hub_state, look_at_machine, model_dir, ping
from factory.ngrams import is_ngrams
from factory.recorded import RecordedModel, check_answers, read_answers, references
from factory.scratch import MARK
from factory.settings import DistillSettings
from factory.tasks.task import Dialect, Example

Kind = Literal["local", "http", "gguf", "recorded", "templates"]


class TeacherError(Exception):
    """A teacher that cannot be had here: one sentence with the value, the choices and the next step."""


@dataclass(frozen=True)
class Teacher:
    """A model known by name. Billions of parameters; `embedding` is the part (input and output) that stays in 16 bit."""

    model_id: str
    license: str
    total: float
    active: float
    embedding: float
    tokenizer: str
    """family; `compare_tokenizers` decides whether a student's agrees"""
    context: int
    """tokens"""

    @property
    def gb_16(self) -> float:
        """GB (1e9 bytes) of the weights in 16 bit."""
        return 2.0 * self.total

    @property
    def gb_4(self) -> float:
        """GB of the weights in nf4 with compressed statistics (4.127 bit each), embeddings in 16 bit."""
        return 0.516 * (self.total - self.embedding) + 2.0 * self.embedding


TEACHERS: dict[str, Teacher] = {
    "mixtral": Teacher("mistralai/Mixtral-8x7B-Instruct-v0.1", "Apache-2.0", 46.7, 12.9, 0.26, "mistral-v1", 32_768),
    "mixtral-8x22b": Teacher("mistralai/Mixtral-8x22B-Instruct-v0.1", "Apache-2.0", 140.6, 39.1, 0.40, "mistral-v3", 65_536),
    "mistral-small": Teacher("mistralai/Mistral-Small-24B-Instruct-2501", "Apache-2.0", 23.6, 23.6, 1.34, "tekken", 32_768),
    "mistral-7b": Teacher("mistralai/Mistral-7B-Instruct-v0.2", "Apache-2.0", 7.24, 7.24, 0.26, "mistral-v1", 32_768),
    "qwen3-32b": Teacher("Qwen/Qwen3-32B", "Apache-2.0", 32.8, 32.8, 1.56, "qwen2", 40_960),
    "qwen3-30b-a3b": Teacher("Qwen/Qwen3-30B-A3B-Instruct-2507", "Apache-2.0", 30.5, 3.3, 0.62, "qwen2", 262_144),
    "qwen3-coder-30b": Teacher("Qwen/Qwen3-Coder-30B-A3B-Instruct", "Apache-2.0", 30.5, 3.3, 0.62, "qwen2", 262_144),
    "qwen2.5-coder-32b": Teacher("Qwen/Qwen2.5-Coder-32B-Instruct", "Apache-2.0", 32.8, 32.8, 1.56, "qwen2", 32_768),
    "qwen2.5-coder-14b": Teacher("Qwen/Qwen2.5-Coder-14B-Instruct", "Apache-2.0", 14.8, 14.8, 1.56, "qwen2", 32_768),
    "qwen2.5-coder-7b": Teacher("Qwen/Qwen2.5-Coder-7B-Instruct", "Apache-2.0", 7.6, 7.6, 1.09, "qwen2", 32_768),
}

SPECS = "recorded[:FILE.jsonl], templates, hub:ORG/NAME, ./DIR, ensemble:DIR,DIR, gguf:FILE, http://HOST/v1#NAME[,http://HOST2/v1#NAME]"
WAYS_ON = (
    "serve it elsewhere and give --teacher http://HOST/v1#NAME, run its Q4_K_M GGUF with GPU offload through "
    "--teacher gguf:FILE, or start without it: --teacher recorded"
)
BLADES_KNOW_MORE = ("route", "tools")
"""Tasks of which a shipped adapter learned more than the embedded teacher (docs/embedded.md)."""
OPEN_LICENSES = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0"})


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher that passed every check; nothing is loaded yet. Sizes in GB (1e9 bytes), prices in dollars per million tokens."""

    spec: str
    kind: Kind
    name: str
    """what the ledger, rows and report call it"""
    revision: str
    """commit, file hash or "" (an endpoint); part of every ledger key"""
    location: str
    """directory (an ensemble: of its first member), hub id, file or endpoints"""
    license: str = "not stated"
    bits: int = 16
    device: Literal["cuda", "cpu", "remote", "none"] = "none"
    need_gb: float = 0.0
    have_gb: float = 0.0
    download_gb: float = 0.0
    parameters: float = 0.0
    """billions, 0 when unknown"""
    active: float = 0.0
    tokenizer: str | None = None
    context: int | None = None
    price_in: float | None = None
    price_out: float | None = None
    in_flight: int = 1
    dialect: Dialect = "plain"
    """how it is asked: one of our own models in the dialect it learned"""
    constrained: bool = False
    """whether it is asked under the task's grammar"""
    members: tuple[str, ...] = ()
    """of an ensemble: the directories whose probabilities are averaged"""
    notes: tuple[str, ...] = ()
    """what the user should know before going on"""

    @property
    def replays(self) -> bool:
        """Whether answers are looked up rather than made: free, one for each example."""
        return self.kind in ("recorded", "templates")

    def key(self, request: Request, purpose: str) -> str:
        """The ledger key of one request."""
        by_id = request.id if self.replays else ""
        if request.constraint is not None and not self.replays:
            grammar = hashlib.sha256(request.constraint.model_dump_json().encode()).hexdigest()
            purpose = f"{purpose}/{grammar}"
        return answer_key(self.name, self.revision, request.messages, request.sampling, purpose, by_id)

    def cost(self, usage: Usage, request: Request) -> float | None:
        """Dollars of one answer: as the endpoint said, else by price; without token counts, the most it can have cost."""
        if usage.cost_usd is not None:
            return usage.cost_usd
        if self.kind != "http":
            return 0.0
        if self.price_in is None or self.price_out is None:
            return None
        if usage.prompt_tokens + usage.completion_tokens == 0:
            return self.worst_cost(request)
        return (usage.prompt_tokens * self.price_in + usage.completion_tokens * self.price_out) / 1e6

    def worst_cost(self, request: Request) -> float:
        """Dollars one request can cost at most: every second prompt byte a token, and the longest answer."""
        if self.price_in is None or self.price_out is None or self.kind != "http":
            return 0.0
        prompt = sum(len(message.content.encode()) for message in request.messages) / 2 + 64
        return (prompt * self.price_in + request.sampling.max_tokens * self.price_out) / 1e6


def resolve_teacher(spec: str, settings: DistillSettings, machine: Machine | None = None) -> TeacherPlan:
    """Check a teacher against this machine. Raises TeacherError with one sentence; loads and downloads nothing."""
    scheme, _, rest = spec.partition(":")
    if settings.method != "sft" and scheme in ("recorded", "templates", "http", "https", "gguf"):
        raise TeacherError(f"--method {settings.method} needs every token's probabilities, which --teacher {spec!r} does not "
                           "give: choose --method sft, or a teacher that runs here (a name, hub:ORG/NAME or ./DIR)")  # fmt: skip
    if scheme in ("recorded", "templates"):
        plan = _replayed(spec, scheme, rest)
    elif scheme in ("http", "https"):
        plan = _endpoint(spec, settings)
    elif scheme == "gguf":
        plan = _gguf(spec, Path(rest), machine or look_at_machine())
    elif spec == EMBEDDED:
        path = embedded_dir("teacher")
        if path is None:
            raise TeacherError(f"--teacher {spec!r}: this installation has no embedded teacher; give --teacher recorded, or make "
                               "one with python -m factory.pretrain --recipe teacher and give its directory")  # fmt: skip
        plan = _directory(spec, path, machine or look_at_machine(), settings.teacher_bits)
        if settings.task in BLADES_KNOW_MORE:
            plan = replace(plan, notes=(*plan.notes, f"the blade that ships answers better: python -m factory.embedded blade "
                                        f"{settings.task} DIR writes it as a teacher"))  # fmt: skip
    elif spec in TEACHERS:
        plan = _local(spec, spec, TEACHERS[spec], machine or look_at_machine(), settings.teacher_bits)
    elif scheme == "ensemble":
        from factory.teacher_ensemble import resolve_ensemble

        plan = resolve_ensemble(spec, rest, settings, machine or look_at_machine())
    elif scheme == "hub" and rest.count("/") == 1:
        plan = _local(spec, rest, None, machine or look_at_machine(), settings.teacher_bits)
    elif scheme == "hub":
        raise TeacherError(f"--teacher {spec!r}: a hub model is named hub:ORG/NAME")
    elif spec.startswith((".", "/", "~")) or Path(spec).is_dir():
        plan = _directory(spec, Path(spec).expanduser(), machine or look_at_machine(), settings.teacher_bits)
    else:
        near = difflib.get_close_matches(spec, TEACHERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise TeacherError(f"unknown teacher {spec!r}{hint} choose from {', '.join(TEACHERS)}, or give {SPECS}")
    if settings.teacher_bits is not None and plan.kind != "local":
        raise TeacherError(f"--teacher-bits {settings.teacher_bits} is for weights loaded here, and --teacher {spec!r} has none: "
                           "leave it away, or give a name, hub:ORG/NAME or ./DIR")  # fmt: skip
    constrained = plan.kind in ("local", "gguf") if settings.constrain_teacher is None else settings.constrain_teacher
    return replace(plan, constrained=constrained and not plan.replays)


def open_teacher(plan: TeacherPlan, examples: Sequence[Example] = ()) -> ChatModel:
    """The teacher, ready to answer. `examples` are needed by `recorded` and `templates`: their references are the stored answers.

    Raises TeacherError when the weights turn out not to be what was planned, ModelError from the backend.
    """
    if plan.replays:
        if not plan.location:
            return RecordedModel(references(examples), plan.name)
        stored, unused = read_answers(Path(plan.location), examples)
        return RecordedModel(stored, plan.name, unused)
    if plan.kind == "local":
        from factory.teachers_local import load_teacher

        return load_teacher(plan)
    from agents.models import open_model

    opened: ChatModel = open_model(plan.spec, in_flight=plan.in_flight) if plan.kind == "http" else open_model(plan.spec)
    return opened


def _replayed(spec: str, scheme: str, file: str) -> TeacherPlan:
    if scheme == "templates" and file:
        raise TeacherError(f"--teacher {spec!r}: templates takes no file; choose from {SPECS}")
    if ":" in spec and not file:
        raise TeacherError(
            f"--teacher {spec!r}: the file is missing; give recorded:FILE.jsonl, or recorded for the data's own answers"
        )
    kind: Kind = "templates" if scheme == "templates" else "recorded"
    if not file:
        note = (
            "replays the answers that came with the data" if kind == "recorded" else "questions and answers are made by templates"
        )
        return TeacherPlan(spec, kind, kind, "references", "", license="as the data", notes=(note,))
    path = Path(file).expanduser()
    try:
        count = check_answers(path)
    except ModelError as error:
        raise TeacherError(str(error)) from None
    return TeacherPlan(spec, kind, f"recorded:{path.name}", file_sha256(path), str(path), notes=(f"{count} stored answers",))


def _endpoint(spec: str, settings: DistillSettings) -> TeacherPlan:
    parts = [part.strip() for part in spec.split(",")]
    models = []
    for part in parts:
        url, mark, model = part.partition("#")
        if not mark or not model or not url.startswith(("http://", "https://")):
            raise TeacherError(f"--teacher {part!r}: an endpoint is written http://HOST/v1#MODEL, several joined by commas")
        models.append(model)
    if len(set(models)) > 1:
        raise TeacherError(f"--teacher {spec!r}: the servers must serve one model, not {', '.join(dict.fromkeys(models))}")
    if settings.budget_usd is not None and (settings.price_in is None or settings.price_out is None):
        raise TeacherError("--budget-usd needs --price-in and --price-out (dollars per million tokens) to know when it is spent")
    notes = []
    for part in parts:
        url, _, model = part.partition("#")
        state, served = ping(url, model)
        if state == "unreachable":
            raise TeacherError(f"--teacher {part!r}: nothing answers at {url} ({served}); start the server or check the address")
        if state == "other":
            raise TeacherError(f"--teacher {part!r}: the server at {url} does not serve {model!r} but {served}")
        if state == "unsure":
            notes.append(f"{url} does not list its models ({served}); the first request will tell")
    known = next((t for t in TEACHERS.values() if t.model_id.lower() == models[0].lower()), None)
    if known is None:
        notes.append(f"the licence of {models[0]!r} is not known here: check that it allows training on its answers")
    return TeacherPlan(
        spec, "http", models[0], "", ", ".join(part.partition("#")[0] for part in parts), device="remote",
        license=known.license if known else "not stated", price_in=settings.price_in, price_out=settings.price_out,
        in_flight=settings.in_flight, notes=tuple(notes), tokenizer=known.tokenizer if known else None,
        context=known.context if known else None,
    )  # fmt: skip


def _gguf(spec: str, path: Path, machine: Machine) -> TeacherPlan:
    path = path.expanduser()
    if not path.is_file():
        raise TeacherError(f"--teacher {spec!r}: there is no file {path}; give gguf:FILE")
    try:
        parameters = sum(math.prod(tensor.shape) for tensor in read_gguf(path).tensors)
    except ModelError as error:
        raise TeacherError(f"--teacher {spec!r}: {error}") from None
    if importlib.util.find_spec("llama_cpp") is None:
        raise TeacherError(f"--teacher {spec!r}: needs llama.cpp's Python package; install it with: pip install 'penknife[gguf]'")
    size = path.stat().st_size / 1e9
    need, have = size * 1.1 + 1.0, machine.ram_gb + machine.gpu_gb
    if need > have:
        raise TeacherError(f"--teacher {spec!r}: needs {need:.1f} GB of RAM and GPU memory together and this machine has "
                           f"{have:.1f} GB free: take a smaller quant type, or give --teacher http://HOST/v1#NAME")  # fmt: skip
    device: Literal["cuda", "cpu"] = "cuda" if machine.gpu_gb else "cpu"
    return TeacherPlan(spec, "gguf", path.stem, file_stamp([path]), str(path), device=device, need_gb=need, have_gb=have,
                       parameters=parameters / 1e9,
                       notes=("the licence is the base model's: check that it allows training on its answers",))  # fmt: skip


def _directory(spec: str, path: Path, machine: Machine, bits: int | None) -> TeacherPlan:
    if is_ngrams(path):
        raise TeacherError(
            f"--teacher {spec!r}: n-grams teach beside a language model only; give ensemble:{EMBEDDED}-base,{path}"
        )
    known, revision = directory_teacher(spec, path)
    plan = fit(TeacherPlan(spec, "local", path.resolve().name, revision, str(path)), known, machine, bits)
    return replace(plan, tokenizer=None, dialect=dialect_of(path), notes=(*plan.notes, *license_note(known.license)))


def directory_teacher(spec: str, path: Path) -> tuple[Teacher, str]:
    """(sizes and licence of a model directory, hash of its contents). Raises TeacherError."""
    try:
        found, revision = model_dir(path)
    except ValueError as error:
        raise TeacherError(f"--teacher {spec!r}: {error}") from None
    return Teacher(str(path), found.license, found.billions, found.billions, found.embedding, "", found.context), revision


def dialect_of(path: Path) -> Dialect:
    """What a model directory of ours learned, by its card (or, untrained, by its mark); any other model is asked plainly."""
    if (path / FILE_NAME).is_file():
        return Card.load(path).dialect
    return "compact" if (path / MARK).is_file() else "plain"


def _local(spec: str, name: str, teacher: Teacher | None, machine: Machine, bits: int | None) -> TeacherPlan:
    """A hub model; memory comes first since it needs no network when the name is known."""
    model_id = teacher.model_id if teacher is not None else name
    plan = TeacherPlan(spec, "local", name, "", model_id)
    if teacher is not None:
        plan = fit(plan, teacher, machine, bits)
    state = hub_state(model_id)
    if state.problem is not None:
        raise TeacherError(f"teacher {name!r} ({model_id}): {state.problem}")
    if teacher is None:
        teacher = Teacher(model_id, state.license, state.billions, state.billions, 0.0, "", 0)
        plan = fit(plan, teacher, machine, bits)
    notes = (*plan.notes, *license_note(teacher.license))
    download = 0.0 if state.cached else teacher.gb_16
    if download > machine.disk_gb:
        raise TeacherError(f"teacher {name!r} ({model_id}): the download of {download:.0f} GB does not fit the "
                           f"{machine.disk_gb:.0f} GB free at {machine.cache_dir}: free some, set HF_HOME to a larger disk, "
                           f"or {WAYS_ON}")  # fmt: skip
    return replace(plan, revision=state.revision, download_gb=download, notes=notes)


def fit(plan: TeacherPlan, teacher: Teacher, machine: Machine, bits: int | None) -> TeacherPlan:
    """Choose device and precision: the GPU in 16 bit, in 4 bit, then the CPU likewise; `bits` leaves that choice out."""
    wide, narrow = (weights_gb * 1.1 + 1.0 for weights_gb in (teacher.gb_16, teacher.gb_4))
    options: list[tuple[Literal["cuda", "cpu"], int, float, float]] = [
        ("cuda", 16, wide, machine.gpu_gb),
        ("cuda", 4, narrow, machine.gpu_gb),
        ("cpu", 16, wide, machine.ram_gb),
        ("cpu", 4, narrow, machine.ram_gb),
    ]
    for device, width, wanted, have in options:
        if wanted <= have and bits in (None, width):
            notes = plan.notes
            if device == "cpu":
                notes = (*notes, "runs on the CPU: slow beyond small models")
            return replace(plan, device=device, bits=width, need_gb=wanted, have_gb=have, license=teacher.license,
                           parameters=teacher.total, active=teacher.active, tokenizer=teacher.tokenizer or None,
                           context=teacher.context or None, notes=notes)  # fmt: skip
    gpu = f"{machine.gpu_gb:.1f} GB of GPU memory" if machine.gpu_gb else "no GPU"
    needs = [f"{wanted:.1f} GB in {width} bit" for width, wanted in ((4, narrow), (16, wide)) if bits in (None, width)]
    raise TeacherError(
        f"teacher {plan.name!r} ({plan.location}, {teacher.total:g} B parameters) needs {' or '.join(needs)} and this "
        f"machine has {gpu} and {machine.ram_gb:.1f} GB of free RAM: {WAYS_ON}"
    )


def license_note(name: str) -> tuple[str, ...]:
    if name.lower() in OPEN_LICENSES:
        return ()
    return (f"licence {name!r}: check that it allows training on its answers",)

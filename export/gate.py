"""Whether an exported file may be used for its source: measured in a process of its own, decided here.

Does: have the source write its reference once (kept, so that several files are compared with one evaluation), have a child
process open the file through its own engine and measure it, decide from ids, distributions and the difference of task scores.
Does not: convert, rename or write the card into the file; a rejected file is the caller's to name so.

    report = gate(Source.open("runs/sql/model"), "gguf:sql-Q4_0.gguf", GateSettings(max_drop=0.5))
    report.verdict, report.sentence
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agents.card import CalibrationEntry, Card, FileEntry, ScoreEntry, program
from agents.chat import Adapter, ModelError
from export.child import Outcome, missing_backend, run_probe
from export.paired import Paired, compare_answers
from export.parity import Distance, Parity, sliding_window
from export.probe import Job
from export.questions import QuestionSettings, questions_of
from export.reference import Measured, measured_source
from factory.events import EventLog

if TYPE_CHECKING:
    from export.source import Source

Verdict = Literal["kept", "rejected", "unchecked", "failed"]
"""failed: the check itself broke off, so that nothing is known of the file, and it may not carry its name either."""
FULL_PRECISION_KLD = 1e-3
"""Mean KLD above which a file with 16- or 32-bit weights computes something else than its source."""
BROKEN_KLD = 0.5
"""Mean KLD above which a file is refused where no task score can tell."""
WINDOW_KLD = 0.05
"""Mean KLD past a sliding window above which, and five times that inside it, the file does not keep to the window."""


class GateSettings(QuestionSettings):
    """What a file must keep to, and how it is measured."""

    max_drop: float = Field(0.5, ge=0, le=100)
    """points of task score a file may lose against its source"""
    max_kld: float | None = Field(None, gt=0)
    """mean KLD to the source, nats per token, a file may have; default: no limit where a task score decides"""
    threads: int | None = Field(None, ge=1)
    """threads of the file's engine; default: its own choice"""
    batch: int = Field(64, ge=1)
    """questions in flight"""
    patience_s: float = Field(900, gt=0)
    """seconds without any progress after which the process that measures is ended"""


class GateReport(BaseModel):
    """One file against its source."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str
    """name of the file or directory"""
    verdict: Verdict
    sentence: str
    """why, in numbers"""
    source: str
    source_sha256: str
    size_bytes: int | None = None
    strings: int = 0
    """strings whose token ids were compared"""
    string_mismatches: int = 0
    prompts: int = 0
    """chat prompts whose ids were compared"""
    prompt_mismatches: int = 0
    differences: tuple[str, ...] = ()
    """the first of them, in words"""
    parity: Parity | None = None
    bfloat16: Distance | None = None
    """the source's own, with weights and sums in bfloat16, on the same texts"""
    score: ScoreEntry | None = None
    """of the file, None where nothing says what it should be scored on"""
    source_score: ScoreEntry | None = None
    paired: Paired | None = None
    """the difference on the same questions, source minus file"""
    errors_by_kind: dict[str, int] = {}
    """kind of error -> the file's wrong answers of that kind"""
    calibration: tuple[CalibrationEntry, ...] = ()
    calibration_error: float | None = None
    dataset: str = ""
    data_sha256: str = ""
    origin: str = ""
    """where the choice of questions comes from, or why there are none"""
    left_out: int = 0
    """questions without a reference answer"""
    failed: int = 0
    """questions the file's engine gave no answer to"""
    max_drop: float = 0.5
    seconds: float = 0.0
    """wall-clock time, the source's part included when it was not kept from an earlier file"""
    created_by: str = Field(default_factory=program)

    @property
    def ok(self) -> bool:
        """Whether the file may carry its name: "rejected" and "failed" may not."""
        return self.verdict not in ("rejected", "failed")


def gate(
    source: Source,
    file_spec: str,
    settings: GateSettings | None = None,
    *,
    adapters: Sequence[Adapter] = (),
    full_precision: bool | None = None,
    events: EventLog | None = None,
) -> GateReport:
    """Measure the file that `file_spec` names (a .gguf, an ONNX directory, "gguf:…", "onnx:…") against `source`, and decide.

    `adapters` are added to the file for everything measured (for an adapter file, `file_spec` is its base's file).
    `full_precision`: whether all weights have 16 bits or more; of a GGUF file it is found out. A crash, an abort or silence of
    the measuring process rejects the file; an error of the check itself makes the verdict
    "failed". Raises TaskError or ExportError when questions or source cannot be used.
    """
    settings = settings if settings is not None else GateSettings()
    events = events if events is not None else EventLog()
    started = time.monotonic()
    path = file_path(file_spec)
    named = Path(adapters[-1].path) if adapters else path
    questions, remark = questions_of(source, settings)
    about: dict[str, Any] = {
        "file": named.name,
        "source": str(source.path),
        "source_sha256": source.sha256,
        "max_drop": settings.max_drop,
        "size_bytes": size_of(named),
        "origin": questions.origin if questions is not None else remark,
    }
    missing = missing_backend(file_spec, path)
    if missing is not None:
        return GateReport(verdict="unchecked", sentence=f"not checked against its source: {missing}", **about)
    loaded = questions.load() if questions is not None else None
    ours = measured_source(source, questions, loaded, sliding_window(source.config), settings.batch, settings.patience_s, events)
    job = Job(
        model=file_spec,
        options=_options(file_spec, path, settings),
        adapters=tuple(adapters),
        reference=ours.directory,
        questions=questions,
        batch=settings.batch,
    )
    outcome = run_probe(job, settings.patience_s, events, f"check {named.name}")
    found, answers = outcome.found, outcome.answers
    paired = compare_answers(ours.answers.right(), answers.right()) if answers.predictions else None
    full = full_precision if full_precision is not None else not adapters and is_full_precision(path)
    verdict, sentence = judge(outcome, ours, paired, settings, full)
    calibration, error = answers.calibration()
    return GateReport(
        verdict=verdict,
        sentence=f"{sentence}; {remark}" if questions is None else sentence,
        strings=found.strings,
        string_mismatches=found.string_mismatches,
        prompts=found.prompts,
        prompt_mismatches=found.prompt_mismatches,
        differences=tuple(found.examples),
        parity=found.parity,
        bfloat16=_plain(ours.bfloat16),
        score=answers.entry(loaded),
        source_score=ours.answers.entry(loaded),
        paired=paired,
        errors_by_kind=answers.errors_by_kind(),
        calibration=calibration,
        calibration_error=error,
        dataset=loaded.dataset if loaded is not None else "",
        data_sha256=loaded.sha256 if loaded is not None else "",
        left_out=loaded.left_out if loaded is not None else 0,
        failed=answers.failed,
        seconds=round(time.monotonic() - started, 3),
        **about,
    )


def distance(source: Source, file_spec: str, settings: GateSettings, events: EventLog) -> tuple[float | None, float | None]:
    """(mean KLD of a file, that of the source in bfloat16) on the texts `gate` compares, without asking a question.

    None where its engine is missing or cannot use it. Raises what `gate` raises.
    """
    path = file_path(file_spec)
    if missing_backend(file_spec, path) is not None:
        return None, None
    questions, _ = questions_of(source, settings)
    loaded = questions.load() if questions is not None else None
    ours = measured_source(source, questions, loaded, sliding_window(source.config), settings.batch, settings.patience_s, events)
    job = Job(model=file_spec, options=_options(file_spec, path, settings), reference=ours.directory)
    parity = run_probe(job, settings.patience_s, events, f"compare {path.name}").found.parity
    return parity.kld if parity is not None else None, ours.bfloat16.kld if ours.bfloat16 is not None else None


def judge(
    outcome: Outcome, ours: Measured, paired: Paired | None, settings: GateSettings, full_precision: bool
) -> tuple[Verdict, str]:
    """The verdict on what was found, and the sentence that says why."""
    found, parity = outcome.found, outcome.found.parity
    if found.failure is not None:
        return "failed", (
            f"the check itself failed while {found.step} ({found.failure}), which says nothing about the file; "
            "give the same command again, and report it if it fails again"
        )
    if outcome.died is not None:
        return "rejected", f"its engine {outcome.died}"
    if found.error is not None:
        return "rejected", f"its engine cannot use it: {found.error}"
    if found.string_mismatches or found.prompt_mismatches:
        return "rejected", (
            f"{found.string_mismatches} of {found.strings} texts and {found.prompt_mismatches} of {found.prompts} chat prompts "
            f"get other token ids than the source's: {'; '.join(found.examples[:2])}"
        )
    if parity is None:
        return "rejected", f"its distributions were not compared: it ended while {found.step}"
    distance = (
        f"KLD {parity.kld:.2g} ± {parity.kld_error:.1g} (at most {parity.max_kld:.2g}), top-1 {parity.top1:.1%} over "
        f"{parity.tokens:,} tokens"
    )
    if ours.bfloat16 is not None:
        distance += f" (the source in bfloat16: KLD {ours.bfloat16.kld:.2g} ± {ours.bfloat16.kld_error:.1g})"
    if parity.beyond_context:
        distance += f" ({parity.beyond_context:,} more lie beyond the file's context and were not compared)"
    past, inside = parity.past_window, parity.conversations
    if past is not None and past.kld > WINDOW_KLD and (inside is None or past.kld > 5 * inside.kld):
        return "rejected", (
            f"past its sliding window of {ours.reference.window} tokens its distributions are others (KLD {past.kld:.2g}, inside "
            f"{inside.kld if inside is not None else 0:.2g}): its engine does not keep to the window"
        )
    limit = settings.max_kld
    if full_precision and parity.kld > FULL_PRECISION_KLD:
        limit = min(limit or FULL_PRECISION_KLD, FULL_PRECISION_KLD)
    elif limit is None and paired is None:
        limit = BROKEN_KLD
    if limit is not None and parity.kld > limit:
        return (
            "rejected",
            f"{distance}: more than {limit:g}{', which no 16-bit file of this model has' if full_precision else ''}",
        )
    if paired is None:
        return "kept", distance
    if outcome.answers.failed:
        return "rejected", f"its engine gave no answer to {outcome.answers.failed} of {paired.n} questions; {distance}"
    file, source = outcome.answers.summary or {}, ours.answers.summary or {}
    change = f"loses {paired.drop:.2f}" if paired.drop > 0 else f"gains {-paired.drop:.2f}" if paired.drop < 0 else "loses 0"
    scores = (
        f"{100 * file['score']:.2f} % of {paired.n:,} questions right, the source {100 * source['score']:.2f} %: {change} points "
        f"(95 % interval of the loss {paired.low:.2f} to {paired.high:.2f})"
    )
    if paired.drop > settings.max_drop:
        return "rejected", f"{scores}, more than --max-drop {settings.max_drop:g}; {distance}"
    return "kept", f"{scores}; {distance}"


def card_for_file(card: Card, entry: FileEntry, report: GateReport | None) -> Card:
    """The card that goes into a file: its source's, with the file, and where the gate measured it, its distance, score and
    calibration. Calibration that belongs to other weights is taken out."""
    if report is not None and report.parity is not None:
        parity = report.parity
        entry = entry.model_copy(update={"kld": parity.kld, "top1": parity.top1, "tokens": parity.tokens})
    scores = dict(card.scores)
    if report is not None and report.score is not None:
        scores[entry.name] = report.score
    return card.model_copy(
        update={
            "file": entry,
            "scores": scores,
            "calibration": report.calibration if report is not None else (),
            "calibration_error": report.calibration_error if report is not None else None,
        }
    )


def _plain(parity: Parity | None) -> Distance | None:
    return Distance(**parity.model_dump(include=set(Distance.model_fields))) if parity is not None else None


def file_path(spec: str) -> Path:
    """The file or directory of a spec."""
    kind, colon, rest = spec.partition(":")
    return Path(rest if colon and kind in ("hf", "gguf", "onnx") else spec)


def size_of(path: Path) -> int | None:
    """Bytes of a file, or of all files of a directory; None when it is not there."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else None


def is_full_precision(path: Path) -> bool:
    """Whether every tensor of a GGUF file has 16 or 32 bits; False for anything else."""
    from agents.models.gguf_file import read_gguf

    try:
        return path.is_file() and all(tensor.type_name in ("F32", "F16", "BF16") for tensor in read_gguf(path).tensors)
    except ModelError:
        return False


def _options(spec: str, path: Path, settings: GateSettings) -> dict[str, Any]:
    if settings.threads is None or spec.startswith("hf:"):
        return {}
    return {"threads": settings.threads}

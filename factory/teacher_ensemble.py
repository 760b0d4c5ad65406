"""`--teacher ensemble:DIR,DIR`: several model directories as one teacher, checked before any weights are read.

Does: find the members, see that dialects and token ids agree and that all fit this machine together, on one device at one width.
Does not: load weights (`teachers_local.py`) or average (`ensemble.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents.card import Card
from factory.embedded import NAME as EMBEDDED
from factory.embedded import embedded_dir
from factory.machine import Machine, called
from factory.ngrams import is_ngrams
from factory.settings import DistillSettings
from factory.teacher import Teacher, TeacherError, TeacherPlan, dialect_of, directory_teacher, fit, license_note

OWN = {EMBEDDED: "teacher", f"{EMBEDDED}-base": "base"}
"""Names that stand for embedded models."""


def resolve_ensemble(spec: str, rest: str, settings: DistillSettings, machine: Machine) -> TeacherPlan:
    """Several directories as one teacher; `embedded` stands for the embedded teacher, `embedded-base` for the base. Beside one or
    more language models a directory may hold n-grams (`ngrams.py`).

    Raises TeacherError with one sentence; loads tokenizers and nothing else."""
    names = [part.strip() for part in rest.split(",") if part.strip()]
    if len(names) < 2:
        raise TeacherError(f"--teacher {spec!r}: an ensemble is two model directories or more, ensemble:DIR,DIR")
    if settings.method == "on-policy":
        raise TeacherError(f"--teacher {spec!r}: an ensemble cannot grade on-policy, it has no hidden states; choose --method "
                           "logits or sft")  # fmt: skip
    paths = [_path(spec, name) for name in names]
    if len({path.resolve() for path in paths}) < len(paths):
        raise TeacherError(f"--teacher {spec!r}: the same model twice says nothing new; give different directories")
    counting = {path for path in paths if is_ngrams(path)}
    if len(counting) == len(paths):
        raise TeacherError(f"--teacher {spec!r}: n-gram models have no tokenizer; give a language model beside them, such as "
                           f"ensemble:{EMBEDDED}-base,{names[0]}")  # fmt: skip
    # Language models first: the first member's tokenizer is the teacher's.
    order = sorted(range(len(paths)), key=lambda n: paths[n] in counting)
    names, paths = [names[n] for n in order], [paths[n] for n in order]
    for path in counting:
        _same_task(spec, path, settings.task)
    found = [directory_teacher(spec, path) for path in paths]
    dialects = [dialect_of(path) for path in paths]
    if len(set(dialects)) > 1:
        said = ", ".join(f"{name}: {dialect}" for name, dialect in zip(names, dialects, strict=True))
        raise TeacherError(f"--teacher {spec!r}: its members learned different dialects ({said}); give models of one dialect")
    speaking = [n for n, path in enumerate(paths) if path not in counting]
    _one_tokenizer(spec, [names[n] for n in speaking], [paths[n] for n in speaking])
    members = [member for member, _ in found]
    whole = Teacher(
        str(paths[0]), " and ".join(dict.fromkeys(member.license for member in members)), sum(m.total for m in members),
        sum(m.active for m in members), sum(m.embedding for m in members), "",
        min((m.context for m in members if m.context), default=0),
    )  # fmt: skip
    revision = hashlib.sha256("+".join(hash for _, hash in found).encode()).hexdigest()[:16]
    plan = TeacherPlan(spec, "local", "+".join(map(called, paths)), revision, str(paths[0]))
    plan = fit(plan, whole, machine, settings.teacher_bits)
    notes = dict.fromkeys(note for member in members for note in license_note(member.license))
    return replace(plan, tokenizer=None, dialect=dialects[0], members=tuple(map(str, paths)), notes=(*plan.notes, *notes))


def _path(spec: str, name: str) -> Path:
    if name in OWN:
        own = embedded_dir(OWN[name])
        if own is None:
            raise TeacherError(f"--teacher {spec!r}: this installation has no {name} model; give its directory, or make one with "
                               f"python -m factory.pretrain --recipe {OWN[name]}")  # fmt: skip
        return own
    path = Path(name).expanduser()
    if not path.is_dir():
        raise TeacherError(f"--teacher {spec!r}: there is no directory {name}; an ensemble's members are model directories, or "
                           f"{', '.join(OWN)}")  # fmt: skip
    return path


def _same_task(spec: str, path: Path, task: str) -> None:
    learned = Card.load(path).task
    if learned != task:
        raise TeacherError(f"--teacher {spec!r}: the n-grams of {path} learned the task {learned!r}, not {task!r}; make others "
                           f"with python -m factory.ngrams --task {task}")  # fmt: skip


def _one_tokenizer(spec: str, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Every member must mean the same by a token id, added ones included, and by a conversation."""
    from factory.teachers_local import load_tokenizer
    from factory.tokenizer_match import compare_tokenizers

    try:
        first, *others = [load_tokenizer(str(path)) for path in paths]
    except (OSError, ValueError) as error:
        raise TeacherError(f"--teacher {spec!r}: a tokenizer cannot be read ({str(error).splitlines()[0]})") from None
    for name, other in zip(names[1:], others, strict=True):
        report = compare_tokenizers(first, other)
        why = "" if report.agree else str(report)
        for what, of in (
            ("their sizes", len),
            ("their added tokens", lambda one: one.get_added_vocab()),
            ("their end tokens", lambda one: one.eos_token_id),
            ("their chat templates", lambda one: one.chat_template),
        ):
            if not why and of(first) != of(other):
                why = f"{what} differ"
        if why:
            raise TeacherError(f"--teacher {spec!r}: token ids of {names[0]} and {name} mean different things, {why}; give "
                               "models of one tokenizer")  # fmt: skip

"""`--teacher ensemble:DIR,DIR`: several model directories as one teacher, checked before any weights are read.

Does: plan every member, see that dialects and token ids agree and that all fit this machine together.
Does not: load weights (`teachers_local.py`) or average (`ensemble.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from factory.embedded import NAME as EMBEDDED
from factory.embedded import embedded_dir
from factory.machine import Machine
from factory.settings import DistillSettings
from factory.teacher import TeacherError, TeacherPlan, directory_plan


def resolve_ensemble(spec: str, rest: str, settings: DistillSettings, machine: Machine) -> TeacherPlan:
    """Several directories as one teacher; `embedded` stands for the embedded teacher, `embedded-base` for the base.

    Raises TeacherError with one sentence; loads tokenizers and nothing else."""
    names = [part.strip() for part in rest.split(",") if part.strip()]
    if len(names) < 2:
        raise TeacherError(f"--teacher {spec!r}: an ensemble is two model directories or more, ensemble:DIR,DIR")
    own = {EMBEDDED: "teacher", f"{EMBEDDED}-base": "base"}
    paths = [embedded_dir(own[name]) or Path(name) if name in own else Path(name).expanduser() for name in names]
    if len({path.resolve() for path in paths}) < len(paths):
        raise TeacherError(f"--teacher {spec!r}: the same model twice says nothing new; give different directories")
    plans = [directory_plan(spec, path, machine, settings.teacher_bits) for path in paths]
    if len({plan.dialect for plan in plans}) > 1:
        said = ", ".join(f"{name}: {plan.dialect}" for name, plan in zip(names, plans, strict=True))
        raise TeacherError(f"--teacher {spec!r}: its members learned different dialects ({said}); give models of one dialect")
    _one_tokenizer(spec, names, paths)
    need = sum(plan.need_gb for plan in plans)
    if need > plans[0].have_gb:
        raise TeacherError(f"--teacher {spec!r}: its members need {need:.1f} GB together and this machine has "
                           f"{plans[0].have_gb:.1f} GB free; give fewer or smaller ones")  # fmt: skip
    return replace(
        plans[0], name="+".join(plan.name for plan in plans), need_gb=need, parameters=sum(plan.parameters for plan in plans),
        active=sum(plan.active for plan in plans), members=tuple(str(path) for path in paths),
        revision=hashlib.sha256("+".join(plan.revision for plan in plans).encode()).hexdigest()[: len(plans[0].revision) or 16],
        license=" and ".join(dict.fromkeys(plan.license for plan in plans)),
        context=min((plan.context for plan in plans if plan.context), default=None),
        notes=tuple(dict.fromkeys(note for plan in plans for note in plan.notes)),
    )  # fmt: skip


def _one_tokenizer(spec: str, names: Sequence[str], paths: Sequence[Path]) -> None:
    from factory.teachers_local import load_tokenizer
    from factory.tokenizer_match import compare_tokenizers

    try:
        first, *others = [load_tokenizer(str(path)) for path in paths]
    except (OSError, ValueError) as error:
        raise TeacherError(f"--teacher {spec!r}: a tokenizer cannot be read ({str(error).splitlines()[0]})") from None
    for name, other in zip(names[1:], others, strict=True):
        report = compare_tokenizers(first, other)
        if not report.agree:
            raise TeacherError(f"--teacher {spec!r}: token ids of {names[0]} and {name} mean different things, {report}; give "
                               "models of one tokenizer")  # fmt: skip

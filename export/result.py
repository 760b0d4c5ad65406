"""What an export leaves behind: the result a caller gets, the report files, and what a person reads at the end.

Does: hold it, write export_report.json beside the file and the document of --json, print the table and the verdict.
Does not: measure or decide anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agents.card import program
from export.gate import GateReport

REPORT_FILE = "export_report.json"


@dataclass(frozen=True)
class ExportResult:
    """What an export left behind."""

    path: Path
    """the file; its name ends in .rejected when it lost too much"""
    kept: bool
    """False for a rejected file, and where the check itself failed"""
    checked: bool
    """False with --no-gate and where llama.cpp is missing"""
    sentence: str
    """the gate's, or why there was none"""
    bytes: int
    bits_per_weight: float
    gate: GateReport | None
    report: Path
    """export_report.json"""
    notes: tuple[str, ...]
    """what a user must know, one sentence each"""
    why: str = ""
    """auto: why this one"""
    candidates: tuple[dict[str, Any], ...] = ()
    """auto: everything that was tried"""
    document: dict[str, Any] = field(default_factory=dict)
    """what --json writes"""


def record(result: ExportResult, json_file: Path | None) -> ExportResult:
    """Write export_report.json beside the file, and the whole document to `json_file`.

    export_report.json is {"version": …, "files": {file name: what its export found, "gate" being the `GateReport`}}; what earlier
    exports wrote of other files stays. A rejected file has the entry of the name it would have had.
    """
    gate = result.gate.model_dump(mode="json") if result.gate is not None else None
    document = {**result.document, "gate": gate}
    target = result.path.parent / REPORT_FILE
    name = result.path.name.removesuffix(".rejected")
    with _locked(result.path.parent):
        _write(target, {"version": program(), "files": {**read_entries(result.path.parent), name: document}})
    if json_file is not None:
        _write(json_file, document)
    return replace(result, report=target)


def read_entries(directory: Path) -> dict[str, dict[str, Any]]:
    """File name -> what its export recorded in `directory`; empty where none did."""
    try:
        found = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)} if isinstance(found, dict) else {}


def read_report(directory: Path, name: str) -> GateReport | None:
    """The gate's report on the file `name`; None where it was not gated, or by another version of this program."""
    try:
        return GateReport.model_validate_json(json.dumps(read_entries(directory).get(name, {}).get("gate")))
    except ValidationError:
        return None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Exports of one directory add to its report one after another. Without locks (Windows) the last one wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def print_result(result: ExportResult) -> None:
    """What a person wants to see at the end: the candidates, the verdict, the file, what it would do on the target."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # the table is as wide wherever its text goes
    if result.candidates:
        table = Table(title="candidates", title_justify="left", header_style="bold")
        for column in ("file", "bytes", "bits/weight", "KLD", "score", "lost, 95 % interval", "tokens/s", ""):
            table.add_column(column, justify="left" if column in ("file", "") else "right")
        for one in result.candidates:
            table.add_row(*_cells(one))
        console.print(table)
    for text in (*result.notes, result.why, result.document.get("prediction", {}).get("sentence", "")):
        if text:
            console.print(text, markup=False, soft_wrap=True)
    verdict = "kept" if result.kept and result.checked else "not checked" if result.kept else "rejected"
    if result.gate is not None and result.gate.verdict == "failed":
        verdict = "check failed"
    sentence = result.sentence.removeprefix("not checked against its source: ") if verdict == "not checked" else result.sentence
    console.print(f"{verdict}: {sentence}", markup=False, soft_wrap=True)
    size = f"{result.bytes / 1e6:.2f} MB, {result.bits_per_weight:.2f} bits per weight"
    console.print(f"written: {result.path} ({size}); {result.report.name}", markup=False, soft_wrap=True)


def _cells(one: dict[str, Any]) -> list[str]:
    def number(value: float | None, how: str) -> str:
        return "" if value is None else format(value, how)

    low, high = one["drop_interval"] or (None, None)
    lost = "" if low is None else f"{one['drop']:+.2f} ({low:+.2f} to {high:+.2f})"
    score = "" if one["score"] is None else f"{100 * one['score']:.2f} %"
    return [one["recipe"], f"{one['bytes']:,}", f"{one['bits_per_weight']:.2f}", number(one["kld"], ".2g"), score, lost,
            number(one["decode_tokens_per_s"], ",.0f"), one["verdict"]]  # fmt: skip

"""Files of questions and tables, plain or .xz: one JSON value a line, errors that name file and line.

Does: find a split's file by the layout rule, read lines, keep a fingerprint of the bytes read.
Does not: know what a row means; `wikisql.py` and `sources.py` do.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.tasks.task import TaskError

SUFFIXES = (".jsonl.xz", ".jsonl")
_ID = b'{"id":"'


class Fingerprint:
    """sha256 over the bytes of all files read, in reading order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self._hash.update(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def read_bytes(path: Path, seen: Fingerprint) -> bytes:
    """A file's bytes, decompressed when it ends in .xz; raises TaskError when it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}); give a file that exists and is readable") from None
    seen.add(data)
    if path.suffix != ".xz":
        return data
    try:
        return lzma.decompress(data)
    except (lzma.LZMAError, EOFError) as error:
        raise TaskError(f"{path}: not a whole .xz file ({error}); copy it again") from None


def read_json(path: Path, seen: Fingerprint) -> Any:
    """A whole JSON file; raises TaskError."""
    try:
        return json.loads(read_bytes(path, seen))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: not valid JSON ({error}); expected the data set's own file") from None


def read_lines(path: Path, seen: Fingerprint, ids: set[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSONL file, blank lines left out; raises TaskError naming file and line.

    With `ids`, lines that begin with another "id" are passed over unread: a validation part needs few of the tables."""
    for n, line in enumerate(read_bytes(path, seen).split(b"\n"), start=1):
        if not line.strip():
            continue
        if ids is not None and line.startswith(_ID):
            id = line[len(_ID) : line.find(b'"', len(_ID))]
            if b"\\" not in id and id.decode("utf-8", "replace") not in ids:
                continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TaskError(f"{path}, line {n}: not valid JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise TaskError(f"{path}, line {n}: {str(row)[:40]!r} is not an object; expected one object a line")
        yield n, row


def field(path: Path, n: int, row: dict[str, Any], *names: str) -> Any:
    """The first of these keys that the row has; raises TaskError naming file, line and keys."""
    for name in names:
        if name in row:
            return row[name]
    raise TaskError(f"{path}, line {n}: no {' or '.join(map(repr, names))}; keys are {', '.join(map(repr, row)) or 'none'}")


def text_field(path: Path, n: int, row: dict[str, Any], *names: str) -> str:
    """`field` as text with white space collapsed; raises TaskError when it is empty or no text."""
    value = field(path, n, row, *names)
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{path}, line {n}: {names[0]!r} is {value!r}; expected text")
    return " ".join(value.split())


def question_files(data_dir: Path) -> dict[str, Path]:
    """Name -> file of every question file (NAME.jsonl[.xz]) of a directory; raises TaskError when there is no directory."""
    if not data_dir.is_dir():
        raise TaskError(f"--data-dir {data_dir}: no such directory; give the one that holds NAME.jsonl.xz")
    found: dict[str, Path] = {}
    for suffix in reversed(SUFFIXES):
        for path in sorted(data_dir.glob(f"*{suffix}")):
            if not path.name.startswith("tables_"):
                found[path.name.removesuffix(suffix)] = path
    return found


def find_split(data_dir: Path, split: str, seen: Fingerprint) -> tuple[Path, list[tuple[int, dict[str, Any]]]]:
    """The file and the rows of a split: NAME.jsonl[.xz] (its rows marked NAME when any row carries a mark, else all), or the
    rows marked NAME of another question file. Raises TaskError with the splits there are."""
    files = question_files(data_dir)
    if split in files:
        path = files[split]
        rows = list(read_lines(path, seen))
        return path, [r for r in rows if r[1].get("split") == split] if any("split" in row for _, row in rows) else rows
    names = set(files)
    for path in files.values():
        other = Fingerprint()
        rows = list(read_lines(path, other))
        marked = [r for r in rows if r[1].get("split") == split]
        if marked:
            seen.add(path.read_bytes())
            return path, marked
        names |= {str(row["split"]) for _, row in rows if "split" in row}
    there = f"choose from {', '.join(sorted(names))}" if names else "there is no NAME.jsonl.xz in it"
    raise TaskError(f"--split {split}: not in {data_dir}; {there}")

"""Make the bundled part of WikiSQL out of a directory that holds all of it.

Does: keep the train questions whose form selects a row of a table with rows, and all questions of the validation part
`xdev`; keep only the tables they ask about; write the same file layout, xz -9e, byte for byte the same on every run; copy the
licence files.
Does not: change a question, a table or a logical form.

    python -m factory.data.make_wikisql DATA_DIR [--out factory/data/wikisql]
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LICENSES = ("LICENSE-WikiSQL", "LICENSE-TabFact", "LICENSE-wikisql_noise")
QUESTION_KEYS = ("table_id", "question", "sql", "split", "exec")


def read(path: Path) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Bytes written. The check sum is CRC32, a few bytes shorter than the default."""
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    return path.write_bytes(lzma.compress(text.encode(), check=lzma.CHECK_CRC32, filters=filters))


def make(data_dir: Path, out: Path) -> dict[str, int]:
    """Write the bundle; counts of questions by part, tables, rows and bytes."""
    tables = {row["id"]: row for row in read(data_dir / "tables_train.jsonl.xz")}
    questions = [
        {key: row[key] for key in QUESTION_KEYS}
        for row in read(data_dir / "train.jsonl.xz")
        if tables[row["table_id"]]["rows"] and (row["exec"] or row["split"] == "xdev")
    ]
    wanted = {row["table_id"] for row in questions}
    # Tables with like headers side by side compress better; the reader does not mind their order.
    kept = sorted((tables[id] for id in wanted), key=lambda row: (row["header"], row["id"]))
    out.mkdir(parents=True, exist_ok=True)
    size = write(out / "train.jsonl.xz", questions) + write(out / "tables_train.jsonl.xz", kept)
    for name in LICENSES:
        shutil.copyfile(data_dir / name, out / name)
    parts = Counter(row["split"] for row in questions)
    return {**parts, "tables": len(kept), "rows": sum(len(row["rows"]) for row in kept), "bytes": size}


def main() -> int:
    parser = argparse.ArgumentParser(description="make the bundled part of WikiSQL")
    parser.add_argument("data_dir", type=Path, help="directory with train.jsonl.xz, tables_train.jsonl.xz and the licence files")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "wikisql", help="directory to write; default: %(default)s"
    )
    args = parser.parse_args()
    try:
        counts = make(args.data_dir, args.out)
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}; give WikiSQL's directory and a place to write\n")
        return 2
    sys.stdout.write(", ".join(f"{name} {count:,}" for name, count in counts.items()) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

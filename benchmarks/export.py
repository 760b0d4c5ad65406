"""Speed of exported files against transformers, one thread, processor time, all in one run on one machine.

Does: make a random model of SmolLM2-135M's shape (fixed seed), or take a checkpoint; export F16, Q8_0, Q4_0, Q4_K_M and ONNX
fp32, int8, int4 without the gate; time prefill and decode of each in fresh processes, in turns; measure the memory bandwidth of
one core in between; time the F16 conversion and its peak memory.
Does not: score anything.

    python -m benchmarks.export [CKPT …] [--rounds 3] [--json FILE] [--skip onnx,Q4_K_M,smol] [--work DIR] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SMOL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "max_position_embeddings": 2048, "initializer_range": 0.04}  # fmt: skip
ROWS = 49152
WANTED = {"F16": None, "Q8_0": 5.0, "Q4_0": 7.0, "Q4_K_M": 7.0, "onnx fp32": None, "onnx int8": None, "onnx int4": 7.0}
"""What is exported -> the decode speed to reach, as a multiple of transformers float32."""
CONVERT = """
import json, sys, time
from pathlib import Path
import psutil
from export.convert import convert
from export.source import Source
from export.speed import peak_rss
source = Source.open(sys.argv[1])
source.tokenizer, source.sha256
before = psutil.Process().memory_info().rss
wall, cpu = time.perf_counter(), time.process_time()
convert(source, Path(sys.argv[2]), sys.argv[3])
peak = peak_rss()
print(json.dumps({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_bytes": max(peak - before, 0),
                  "interpreter_bytes": before, "parameters": source.parameters}))
"""


def smol(directory: Path) -> Path:
    """A random model of SmolLM2-135M's shape: 134.5 M weights, tied, in bfloat16 as such checkpoints are."""
    from tests.export.tiny_families import make_family

    if not (directory / "config.json").is_file():
        # The tokenizer learns a few hundred tokens; the other rows of the embedding only take their time and space.
        from tests.export.tiny_families import make_family_tokenizer

        rows = len(make_family_tokenizer("smollm"))
        make_family("smollm2", directory, dtype="bfloat16", vocab_padding=ROWS - rows, **SMOL)
    return directory


def child(*command: str) -> str:
    """Run a command of ours; its stdout. Raises RuntimeError with its last words."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, errors="replace", cwd=ROOT)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(said[-1] if said else f"exit status {done.returncode}")
    return done.stdout


def export(model: Path, work: Path, skip: set[str]) -> tuple[dict[str, Path], dict[str, Any], dict[str, str]]:
    """(name -> file or directory, what the F16 conversion took, name -> why it was not made)."""
    made: dict[str, Path] = {}
    why: dict[str, str] = {}
    conversion: dict[str, Any] = {}
    for name in WANTED:
        if name in skip or name.split()[0] in skip:
            why[name] = "skipped"
            continue
        try:
            if name.startswith("onnx"):
                out = work / name.replace(" ", "-")
                if not out.exists():
                    child("-m", "export.onnx", str(model), "--precision", name.split()[1], "--no-gate", "--out", str(out))
            elif name == "F16":
                out = work / "F16.gguf"
                conversion = json.loads(child("-c", CONVERT, str(model), str(out), "F16").splitlines()[-1])
            else:
                out = work / f"{name}.gguf"
                if not out.exists():
                    child("-m", "export.gguf", str(model), "--quant", name, "--no-gate", "--out", str(out))
            made[name] = out
        except RuntimeError as error:
            why[name] = str(error)
    return made, conversion, why


def bench(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every measurement on one model."""
    from export.errors import ExportError
    from export.gate import size_of
    from export.inspect import inspect_file
    from export.speed import Speed, measure_speed, read_bandwidth

    skip = set(filter(None, args.skip.split(",")))
    made, conversion, why = export(model, work, skip)
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "transformers fp32": (f"hf:{model}", {"dtype": "float32"}),
        "transformers bf16": (f"hf:{model}", {"dtype": "bfloat16"}),
        **{name: (f"{'onnx' if file.is_dir() else 'gguf'}:{file}", {}) for name, file in made.items()},
    }
    best: dict[str, Speed] = {}
    bandwidth = 0.0
    for number in range(args.rounds):
        bandwidth = max(bandwidth, read_bandwidth())
        for name, (spec, more) in runs.items():
            if name in why:
                continue
            try:
                speed = measure_speed(spec, threads=args.threads, prefill=args.prefill, decode=args.decode, rounds=2, **more)
            except ExportError as error:
                why[name] = str(error)
                continue
            old = best.get(name)
            best[name] = speed if old is None else speed.model_copy(update={
                "decode_tokens_per_s": max(speed.decode_tokens_per_s, old.decode_tokens_per_s),
                "prefill_tokens_per_s": max(speed.prefill_tokens_per_s, old.prefill_tokens_per_s),
                "first_token_ms": min(speed.first_token_ms, old.first_token_ms)})  # fmt: skip
            sys.stderr.write(f"round {number + 1}: {name}: decode {speed.decode_tokens_per_s:,.1f}/s\n")
    fp32, rows = best.get("transformers fp32"), []
    for name, speed in best.items():
        file = made.get(name)
        wanted = WANTED.get(name)
        ratio = speed.decode_tokens_per_s / fp32.decode_tokens_per_s if fp32 is not None else None
        rows.append({
            "name": name,
            "file_bytes": size_of(file) if file is not None else None,
            "bits_per_weight": inspect_file(file).bits_per_weight if file is not None else None,
            **{key: getattr(speed, key) for key in ("decode_tokens_per_s", "prefill_tokens_per_s", "first_token_ms", "rss_bytes",
                                                    "peak_bytes", "weight_bytes")},
            "decode_ratio": ratio,
            "prefill_ratio": speed.prefill_tokens_per_s / fp32.prefill_tokens_per_s if fp32 is not None else None,
            "bytes_per_s": speed.bytes_per_s,
            "bandwidth_share": speed.bytes_per_s / bandwidth,
            "wanted_ratio": wanted,
            "reached": None if wanted is None or ratio is None else ratio >= wanted,
        })  # fmt: skip
    if conversion:
        checkpoint = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        conversion |= {"checkpoint_bytes": checkpoint, "peak_ratio": conversion["peak_bytes"] / checkpoint}
    return {"model": str(model), "threads": args.threads, "rounds": args.rounds, "prefill": args.prefill, "decode": args.decode,
            "bandwidth_bytes_per_s": bandwidth, "conversion": conversion, "rows": rows, "missing": why}  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print one model's table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']}, {result['threads']} thread", title_justify="left")
    table.add_column("")
    for name in ("MB", "bits", "decode/s", "ratio", "prefill/s", "ratio", "first ms", "RAM MB", "GB/s", "of bandwidth", "wanted"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        reached = {None: "", True: "reached", False: "missed"}[row["reached"]]
        table.add_row(
            row["name"], f"{row['file_bytes'] / 1e6:.1f}" if row["file_bytes"] else "",
            f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else "", f"{row['decode_tokens_per_s']:,.1f}",
            f"{row['decode_ratio']:.2f}" if row["decode_ratio"] else "", f"{row['prefill_tokens_per_s']:,.0f}",
            f"{row['prefill_ratio']:.2f}" if row["prefill_ratio"] else "", f"{row['first_token_ms']:,.0f}",
            f"{row['rss_bytes'] / 1e6:,.0f}", f"{row['bytes_per_s'] / 1e9:.1f}", f"{row['bandwidth_share']:.0%}",
            f"{row['wanted_ratio']:g}x {reached}" if row["wanted_ratio"] else "",
        )  # fmt: skip
    console = Console(width=130)
    console.print(table)
    console.print(f"one core reads {result['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s")
    if (made := result["conversion"]) and "wall_s" in made:
        peak = f"{made['peak_bytes'] / 1e6:.0f} MB = {made['peak_ratio']:.2f} x the checkpoint"
        took = f"{made['wall_s']:.1f} s ({made['cpu_s']:.1f} s of processor time)"
        console.print(f"F16 conversion: {made['parameters'] / 1e6:.1f} M weights in {took}, peak memory {peak}")
    for name, reason in result["missing"].items():
        console.print(f"{name}: not measured: {reason}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of exported files against transformers.")
    parser.add_argument("models", nargs="*", type=Path, help="checkpoints beside the 135M-shaped random model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="processes per file, in turns; the best counts")
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--skip", default="", help="comma-separated: F16,Q8_0,Q4_0,Q4_K_M,onnx,smol")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="keep the exported files here, and use those that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penknife-bench-") as scratch:
        work = args.work or Path(scratch)
        results = []
        models = list(args.models)
        if "smol" not in args.skip.split(","):
            (work / "smol").mkdir(parents=True, exist_ok=True)
            models.append(smol(work / "smol" / "model"))
        for number, model in enumerate(models):
            place = work / f"files-{number}-{model.resolve().parent.name}"
            place.mkdir(parents=True, exist_ok=True)
            results.append(bench(model.resolve(), place, args))
            show(results[-1])
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

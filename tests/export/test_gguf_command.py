"""`python -m export.gguf` from end to end on tiny models, and every input that must end in one line with nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import export
from agents.card import BaseEntry, Card, sha256_of_weights
from agents.models.gguf_file import card_of, verify
from export import gguf as command
from export.gate import GateReport
from export.gguf import main
from export.result import read_entries, read_report
from factory.cli import run_cli
from tests.export.tiny_families import TEXTS, make_family

NEEDS_LLAMA = 'needs llama.cpp: pip install "penknife[gguf]"'
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a card, in a run directory with training rows."""
    run = tmp_path_factory.mktemp("command") / "run"
    model = make_family("smollm2", run / "model", hidden_size=128, num_hidden_layers=2)
    card = Card(name="shop", task="sql", task_version=1, dialect="plain", prompt_template="sql/plain/1", constraint="lark",
                parser="sql/plain", base=BaseEntry(id="scratch:tiny"), weights_sha256=sha256_of_weights(model),
                created_by="test")  # fmt: skip
    card.save(model)
    rows = [{"prompt": [{"role": "user", "content": text}], "completion": "SELECT 1"} for text in TEXTS]
    (run / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.toml").write_text('db = "gone.sqlite"\n')  # no questions: only distributions are compared
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def left_behind(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*") if ".tmp" in path.name or ".gguf" in path.name)


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error; progress lines above it do not count."""
    said = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(said)
    return said[-1]


def test_a_checked_file_with_the_card_inside(run, capsys):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    assert run_cli(main, [str(run), "--quant", "q4_k_m", "--json", str(run / "all.json")]) == 0
    file = run / "model" / "shop-q4_k_m.gguf"
    found, card = verify(file), card_of(file)
    assert found.sealed
    assert card is not None and card.file is not None
    assert (card.file.precision, card.file.name, card.task) == ("Q4_K_M", file.name, "sql")
    assert card.file.source_sha256 == sha256_of_weights(run / "model")
    assert card.file.bits_per_weight == pytest.approx(found.bits_per_weight)
    assert card.file.kld is not None and 0 < card.file.kld < 0.5
    assert card.file.tokens >= 512
    printed = " ".join(capsys.readouterr().out.split())
    assert "Q4_K -> IQ4_NL in rows of 128" in printed
    assert f"kept: KLD {card.file.kld:.2g}" in printed
    assert f"importance from {len(TEXTS)} of {len(TEXTS)} rows" in printed
    document = json.loads((run / "all.json").read_text())
    assert document["recipe"]["predicted_bits_per_weight"] == pytest.approx(found.bits_per_weight, abs=1e-3)
    assert document["importance"]["rows"] == len(TEXTS)
    report = json.loads((run / "model" / "export_report.json").read_text())
    assert set(report["files"]) == {file.name}
    assert report["files"][file.name] == document and document["gate"]["verdict"] == "kept"
    half = document["gate"]["bfloat16"]
    assert half["tokens"] == document["gate"]["parity"]["tokens"] and half["kld"] > 0
    assert f"the source in bfloat16: KLD {half['kld']:.2g}" in printed
    assert left_behind(run) == [file.name]
    Card.load(run / "model")  # the source's own card still holds beside the file


@pytest.mark.slow
def test_an_adapter_file_is_checked_on_its_base(run, capsys):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(run / "model"), LoraConfig(r=4, init_lora_weights=False))
    peft.save_pretrained(run / "model" / "adapter")
    out = run / "adapter.gguf"
    assert run_cli(main, [str(run), "--lora", "adapter", "--out", str(out)]) == 0
    found = verify(out)
    assert found.metadata["penknife.base.sha256"] == sha256_of_weights(run / "model")
    assert "checked on a Q8_0 file of its base" in " ".join(capsys.readouterr().out.split())
    assert left_behind(run) == [out.name]
    other = make_family("smollm2", run / "other", seed=5)
    assert run_cli(main, [str(other), "--no-gate", "--out", str(run / "other.gguf")]) == 0
    assert run_cli(main, [str(run), "--lora", "adapter", "--out", str(out), "--base", str(run / "other.gguf")]) == 2
    assert "was made from other weights" in line_of(capsys)


def test_a_file_that_loses_too_much_is_named_rejected(run, capsys, monkeypatch):
    def lose(source, spec, settings, **_):
        return GateReport(file="shop-q8_0.gguf", verdict="rejected", sentence="loses 3.00 points", source="s", source_sha256="0")

    monkeypatch.setattr("export.workshop.gate", lose)
    with pytest.raises(SystemExit) as ended:
        run_cli(main, [str(run)])
    assert ended.value.code == 1
    assert "rejected: loses 3.00 points" in capsys.readouterr().out
    assert left_behind(run) == ["shop-q8_0.gguf.rejected"]
    monkeypatch.undo()
    result = command.export(run, gate=False)
    assert (result.kept, result.checked) == (True, False)
    assert left_behind(run) == ["shop-q8_0.gguf"]


def test_a_check_that_failed_itself_publishes_nothing_as_kept(run, tmp_path, capsys, monkeypatch):
    def fail(source, spec, settings, **_):
        return GateReport(file="a.gguf", verdict="failed", sentence="the check itself failed", source="s", source_sha256="0")

    monkeypatch.setattr("export.workshop.gate", fail)
    with pytest.raises(SystemExit) as ended:
        run_cli(main, [str(run), "--out", str(tmp_path / "a.gguf")])
    assert ended.value.code == 1
    assert "check failed: the check itself failed" in capsys.readouterr().out
    assert not (tmp_path / "a.gguf").exists() and (tmp_path / "a.gguf.rejected").is_file()
    assert read_entries(tmp_path)["a.gguf"]["verdict"] == "failed"


def test_a_report_keeps_what_other_exports_recorded(run, tmp_path):
    """Two GGUF files and an entry of another command in one directory, each with all its export found."""
    place = run / "model"
    (place / "export_report.json").write_text(json.dumps({"files": {"onnx-int8": {"precision": "int8", "new key": [1]}}}))
    first = export.gguf(run, gate=False)
    second = export.gguf(run, quant="F16", gate=False)
    again = export.gguf(run, gate=False)
    entries = read_entries(place)
    assert entries["onnx-int8"] == {"precision": "int8", "new key": [1]}
    assert entries[second.path.name] == {**second.document, "gate": None}
    assert entries[first.path.name] == {**again.document, "gate": None}
    assert len(entries) == 3 and read_report(place, first.path.name) is None
    for torn in ("{", "[]", '{"files": [{"file": 3}]}', '{"files": {"a": 3}}'):
        (place / "export_report.json").write_text(torn)
        assert read_entries(place) == {}


def test_calls_before_and_after_the_modules_are_imported_and_nothing_heavy_loads():
    program = (
        "import sys, export\n"
        "assert callable(export.gguf) and callable(export.onnx)\n"
        "import export.gguf as module\n"
        "assert module is export.gguf and module.run and module.export\n"
        "print({'torch', 'transformers', 'llama_cpp', 'onnxruntime', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_without_llama_cpp_our_types_are_written_and_said_to_be_unchecked(run, capsys, monkeypatch):
    monkeypatch.setattr("export.quants.find_spec", lambda name: None)
    monkeypatch.setattr("export.child.find_spec", lambda name: None)
    assert run_cli(main, [str(run), "--quant", "Q4_0"]) == 0
    assert "not checked: GGUF files need llama-cpp-python: pip install" in " ".join(capsys.readouterr().out.split())
    assert read_entries(run / "model")["shop-q4_0.gguf"]["gate"]["verdict"] == "unchecked"
    for quant in ("IQ4_NL", "auto"):
        assert run_cli(main, [str(run), "--quant", quant]) == 2
        said = line_of(capsys)
        assert "pip install 'penknife[gguf]'" in said and "GGML_NATIVE=OFF" in said and "C++ compiler" in said
    assert left_behind(run) == ["shop-q4_0.gguf"]


REFUSED = {
    "unknown quant": (["--quant", "Q4_K_X"], r"unknown quant type 'Q4_K_X'; did you mean Q4_K_"),
    "unknown head": (["--quant", "Q4_K_M", "--head", "Q9"], "unknown tensor type 'Q9'; choose from F32"),
    "head of an exact type": (["--head", "Q6_K"], "--head Q6_K goes with types below 8 bits, not Q8_0"),
    "unknown target": (["--target", "tablet"], "--target cannot be 'tablet'; give phone, pi, laptop"),
    "too small a target": (["--target", "0.05"], "is more than the 0.1 MB asked for; choose a smaller --quant"),
    "no calibration file": (["--quant", "Q4_0", "--calibration", "none.txt"], "--calibration none.txt: is not there"),
    "out in no directory": (["--out", "nowhere/a.gguf"], "there is no directory nowhere"),
    "out is a directory": (["--out", "."], "is a directory; give a file name"),
    "json in no directory": (["--json", "nowhere/a.json"], "--json nowhere/a.json: cannot be written there"),
    "no adapter there": (["--lora", "adapter"], "holds no adapter"),
    "type of no adapter": (["--adapter-type", "F16"], "--adapter-type F16 is for --lora adapter"),
    "auto without the gate": (["--quant", "auto", "--no-gate"], "cannot be combined with --no-gate"),
    "unknown option": (["--quants", "Q8_0"], "did you mean --quant"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_in_one_line_before_anything_is_written(made, tmp_path, capsys, monkeypatch, case):
    options, said = REFUSED[case]
    if case == "auto without the gate":
        pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    monkeypatch.chdir(tmp_path)
    before = left_behind(made)
    assert run_cli(main, [str(made), *options]) == 2
    assert said in line_of(capsys)
    assert left_behind(made) == before
    assert list(tmp_path.iterdir()) == []


def damage(run: Path, how: str) -> None:
    model = run / "model"
    weights = model / "model.safetensors"
    match how:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "header":
            weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
        case "pickle":
            weights.rename(model / "pytorch_model.bin")
        case "tokenizer":
            (model / "tokenizer.json").unlink()
        case "architecture":
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
        case "nothing":
            shutil.rmtree(model)


@pytest.mark.parametrize(("how", "said"), [("cut", "damaged"), ("header", "damaged"), ("pickle", "safetensors"),
                                           ("tokenizer", "no tokenizer.json"), ("architecture", "cannot be exported"),
                                           ("nothing", "config.json")])  # fmt: skip
def test_a_damaged_source_is_refused_in_one_line(run, capsys, how, said):
    damage(run, how)
    assert run_cli(main, [str(run)]) == 2
    assert said in line_of(capsys)
    assert left_behind(run) == []


def test_an_earlier_file_stays_until_the_new_one_is_finished(run, capsys):
    import torch
    from safetensors.torch import load_file, save_file

    file = run / "model" / "shop-q8_0.gguf"
    file.write_bytes(b"earlier")
    weights = load_file(run / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    (run / "model" / "card.json").unlink()
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    assert run_cli(main, [str(run), "--out", str(file)]) == 2
    assert "model.norm.weight holds values that are not finite" in line_of(capsys)
    assert file.read_bytes() == b"earlier"
    assert left_behind(run) == [file.name]


def limited(code: str, limit: int) -> subprocess.CompletedProcess[str]:
    """Python code in a process that may write files of `limit` bytes only, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_full_disk_stops_the_conversion_in_one_line(run):
    code = f"""
from export.gguf import main
from factory.cli import run_cli
raise SystemExit(run_cli(main, [{str(run)!r}, "--no-gate"]))
"""
    done = limited(code, 100_000)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "the file would be larger than this process may write" in done.stderr.splitlines()[-1]
    assert left_behind(run) == []


def test_a_full_disk_stops_the_quantization_in_one_line(run, tmp_path):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    command.export(run, quant="F32", gate=False, out=tmp_path / "exact.gguf")
    code = f"""
from pathlib import Path
from export.errors import ExportError
from export.quant_types import Recipe
from export.quants import quantize
try:
    quantize(Path({str(tmp_path / "exact.gguf")!r}), Path({str(tmp_path / "small.gguf")!r}), Recipe("Q4_K_M"))
except ExportError as error:
    print(error)
"""
    done = limited(code, 100_000)
    assert "could not be written whole (the disk is full" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_refused(run, capsys):
    (run / "model").chmod(0o555)
    assert run_cli(main, [str(run)]) == 2
    assert "cannot be written; choose another --out" in line_of(capsys)


def test_what_a_killed_export_left_is_swept(run):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = run / "model" / f".shop-q8_0.gguf.{gone.pid}.abc.tmp"
    left.mkdir()
    (left / "exact.gguf").write_bytes(b"x")
    command.export(run, gate=False)
    assert left_behind(run) == ["shop-q8_0.gguf"]


def test_exports_at_the_same_time_each_leave_their_entry(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from export.result import ExportResult, record

    def one(number: int) -> None:
        record(
            ExportResult(tmp_path / f"{number}.gguf", True, False, "", 1, 8.5, None, tmp_path, (), document={"n": number}), None
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(48)))
    assert {name: entry["n"] for name, entry in read_entries(tmp_path).items()} == {f"{n}.gguf": n for n in range(48)}

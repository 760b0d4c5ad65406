"""The run's report and the model's Hugging Face card, written from the files of the run.

Does: write report.md with its plots, and README.md beside the weights; says plainly how good the student is and what is missing.
Does not: measure anything; every number was written by a stage.

Run: python -m factory.report RUN
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from factory.facts import RunFacts, gather
from factory.markdown import block, code, table, words
from factory.predictions import Prediction, calibration
from factory.progress import duration, percent
from factory.tasks.task import Example, Task

WORST = 10
ANSWERS = 3


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.md and RUN/report/*.png; returns the former's path.

    Parts that are missing are named in it. Raises OSError.
    """
    from factory import plots

    facts = gather(Path(run_dir))
    drawn = plots.draw_all(facts, facts.run_dir / "report")
    text = _render(
        "report.md.jinja",
        name=words(facts.run_dir.resolve().name),
        summary=[words(sentence, 1000) for sentence in summary(facts)],
        scores=_scores(facts),
        answers=_answers(facts.answers),
        figures=_figures(facts.scores.get("student", {})),
        confusions=_confusions(facts.scores.get("student", {})),
        errors=_counts("error", facts.scores.get("student", {}).get("errors_by_kind")),
        worst=_worst(facts.predictions),
        calibration=_calibration(facts.predictions),
        gate=_gate(facts),
        drops=_drops(facts),
        data=_data(facts),
        teacher_cost=_teacher_cost(facts),
        stages=table(["stage", "time"], [[words(n), duration(s)] for n, s in facts.seconds.items()], [1])
        if facts.seconds
        else "",
        settings=table(
            ["setting", "value"], [[words(n), code(json.dumps(v, ensure_ascii=False))] for n, v in facts.config.items()]
        )
        if facts.config
        else "",
        warnings=[words(warning, 400) for warning in facts.warnings],
        missing=[f"{code(name)}: {words(why)}" for name, why in facts.missing.items()],
        plots={name: f"report/{path.name}" for name, path in drawn.items()},
        next_command=block(next_command(facts), "sh"),
    )
    return _write(facts.run_dir / "report.md", text)


def write_model_card(run_dir: Path) -> Path:
    """Write RUN/model/README.md, the Hugging Face model card; returns its path. Raises OSError."""
    facts = gather(Path(run_dir))
    card, sentences = facts.card, summary(facts)
    text = _render(
        "model_card.md.jinja",
        front=_front_matter(facts),
        title=words(card.name if card is not None and card.name else facts.run_dir.resolve().name),
        summary=[words(sentence, 1000) for sentence in sentences],
        scores=_scores(facts),
        card=card,
        words=words,
        code=code,
        data=_data(facts),
        calibration=_calibration(facts.predictions),
        usage=block("python -m factory.evaluate . --task " + (card.task if card is not None else "sql"), "sh"),
    )
    (facts.run_dir / "model").mkdir(exist_ok=True)
    return _write(facts.run_dir / "model" / "README.md", text)


def answered(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], n: int = ANSWERS
) -> list[dict[str, Any]]:
    """The first `n` questions whose answer runs and returns something (or is one, in a task whose answers do not run), right
    or wrong, as `Task.show` gives them with "correct".

    Not the best ones: the first ones, so that nobody is misled. JSON-ready, for RUN/answers.json and the terminal.
    """
    by_id = {example.id: example for example in examples}
    chosen: list[dict[str, Any]] = []
    for prediction in predictions:
        if len(chosen) == n:
            break
        if prediction.answer is None or prediction.id not in by_id:
            continue
        shown = task.show(by_id[prediction.id], prediction.answer)
        if shown.get("rows", "error" not in shown):
            rows = [[cell if isinstance(cell, (int, float)) or cell is None else str(cell) for cell in row]
                    for row in shown.get("rows", ())]  # fmt: skip
            chosen.append({**shown, "rows": rows, "correct": prediction.correct, "reference": prediction.reference})
    return chosen


def summary(facts: RunFacts) -> list[str]:
    """How good the student is, in plain sentences made from the numbers."""
    student = facts.scores.get("student")
    if student is None:
        return ["The student has not been scored: the run did not get that far, so nothing is known about its answers."]
    name = f" {facts.config['student']}" if "student" in facts.config else ""
    score, low, high = student["score"], student["low"], student["high"]
    out = [
        f"The student{name} answers {percent(score)} of {student['n']:,} questions correctly "
        f"({student['metric']}, {student['decoding']}; 95 % interval {percent(low)} to {percent(high)})."
    ]
    judges = min(int(facts.config.get("validation", 0)), student["n"])
    if judges and len(facts.step_scores) > 1:
        out.append(
            f"Of these questions {judges:,} also chose among {len(facts.step_scores)} checkpoints: the score leans up a little."
        )
    if untrained := facts.scores.get("untrained"):
        if low > untrained["high"]:
            out.append(f"Before training it answered {_of(untrained, student)}: training is what made the difference.")
        else:
            out.append(f"That is not clearly better than before training ({_of(untrained, student)}): training did not help.")
    if teacher := facts.scores.get("teacher"):
        if high < teacher["low"]:
            share = f", of which it keeps {percent(score / teacher['score'])}" if teacher["score"] else ""
            out.append(f"Its teacher answers {_of(teacher, student)}{share}.")
        elif low > teacher["high"]:
            out.append(f"It is better than its teacher, which answers {_of(teacher, student)}.")
        else:
            out.append(f"It cannot be told apart from its teacher, which answers {_of(teacher, student)}: the intervals overlap.")
    out.append(_verdict(score))
    if student.get("errors_by_kind"):
        kind, n = max(student["errors_by_kind"].items(), key=lambda pair: pair[1])
        out.append(f"Its most frequent error is {kind} ({n:,} of {sum(student['errors_by_kind'].values()):,} wrong answers).")
    return out


def _of(other: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    """A score, with the number of questions where it is not the student's."""
    return percent(other["score"]) + ("" if other["n"] == student["n"] else f" of {other['n']:,} questions")


def _verdict(score: float) -> str:
    wrong = 1 - score
    if score < 0.5:
        return "It is wrong more often than right: good for seeing how the parts work, not for answering real questions."
    if score < 0.8:
        return f"About one answer in {max(2, round(1 / wrong))} is wrong: show its answers to somebody who checks them."
    if wrong > 0:
        return f"About one answer in {round(1 / wrong)} is wrong."
    return "It made no mistake here; on other questions it will make some."


def next_command(facts: RunFacts) -> str:
    """What to type next: score the model on other questions."""
    parts = ["python -m factory.evaluate", shlex.quote(str(facts.run_dir / "model"))]
    parts += ["--task", str(facts.config.get("task", "sql"))]
    for name in ("dataset", "data_dir", "db", "functions", "questions", "labels"):
        if facts.config.get(name) is not None:
            parts += ["--" + name.replace("_", "-"), shlex.quote(str(facts.config[name]))]
    made = facts.run_dir / "questions.jsonl"
    own = facts.config.get("db") is not None or facts.config.get("functions") is not None
    if own and facts.config.get("questions") is None and made.exists():
        parts += ["--questions", shlex.quote(str(made))]  # the database, or functions, came without any; these were made for it
    if own and facts.card is not None and "student" in facts.card.scores:
        parts += ["--split", facts.card.scores["student"].split]  # without it, the questions trained on are scored too
    return " ".join([*parts, "--json", shlex.quote(str(facts.run_dir / "scores-again.json"))])


def _scores(facts: RunFacts) -> str:
    from factory.plots import count_text

    rows = []
    for name, found in facts.scores.items():
        rows.append(
            [
                words(name),
                words(found.get("model", "")),
                percent(found["score"]),
                f"{percent(found['low'])} to {percent(found['high'])}",
                f"{found['n']:,}",
                words(found.get("metric", "")),
                words(found.get("decoding", "")),
                "" if found.get("seconds_per_example") is None else f"{found['seconds_per_example']:.3f} s",
                count_text(found["parameters"]) if found.get("parameters") else "",
                "" if not found.get("model_bytes") else f"{found['model_bytes'] / 1e6:,.1f} MB",
                words(", ".join(f"{metric} {percent(value)}" for metric, value in (found.get("metrics") or {}).items())),
            ]
        )
    header = [
        "",
        "model",
        "correct",
        "95 % interval",
        "n",
        "metric",
        "decoding",
        "per question",
        "parameters",
        "weights",
        "all metrics",
    ]
    return table(header, rows, [2, 4, 7, 8, 9]) if rows else ""


def _counts(name: str, counts: Mapping[str, int] | None) -> str:
    if not counts:
        return ""
    total = sum(counts.values())
    rows = sorted(counts.items(), key=lambda pair: -pair[1])
    return table([name, "number", "share"], [[words(kind), f"{n:,}", percent(n / total)] for kind, n in rows], [1, 2])


def _figures(student: Mapping[str, Any]) -> str:
    """The task's own figures of the student's evaluation."""
    rows = [[words(name), f"{found['value']:.3f}", "" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}",
             f"{found['n']:,}", words(found["about"], 200)]
            for name, found in student.get("figures", {}).items()]  # fmt: skip
    return table(["figure", "value", "95 % interval", "n", "how to read it"], rows, [1, 3]) if rows else ""


def _confusions(student: Mapping[str, Any]) -> str:
    rows = [[code(c["expected"]), code(c["answer"]), f"{c['n']:,}"] for c in student.get("confusions", ())[:WORST]]
    return table(["expected", "answered", "number"], rows, [2]) if rows else ""


def _drops(facts: RunFacts) -> str:
    rows = [[words(stage), words(reason), f"{n:,}"] for stage, reasons in facts.drops.items() for reason, n in reasons.items()]
    for entry in facts.data if "data" not in facts.drops else ():
        label = f"reading {entry.get('name')} {entry.get('split')}"
        rows += [[words(label), words(reason), f"{n:,}"] for reason, n in (entry.get("skipped") or {}).items()]
    return table(["stage", "reason", "rows lost"], rows, [2]) if rows else ""


def _data(facts: RunFacts) -> str:
    rows = [
        [words(d.get("name", "")), words(d.get("split", "")), f"{d.get('n', 0):,}", words(d.get("license", "unknown")),
         words(d.get("source", "")), code(str(d.get("sha256", ""))[:16])]
        for d in facts.data
    ]  # fmt: skip
    return table(["data", "split", "rows", "licence", "source", "SHA-256 begins"], rows, [2]) if rows else ""


def _gate(facts: RunFacts) -> str:
    """The teacher gate as the run remembered it: who scored what on the small sample."""
    gate = facts.state.get("gate")
    if not isinstance(gate, dict):
        return ""
    rows = [[words(name), percent(found["score"]), f"{percent(found['low'])} to {percent(found['high'])}", f"{found['n']:,}"]
            for name, found in gate.items()
            if isinstance(found, dict) and {"score", "low", "high", "n"} <= found.keys()]  # fmt: skip
    return table(["", "correct", "95 % interval", "n"], rows, [1, 3]) if rows else ""


def _teacher_cost(facts: RunFacts) -> str:
    totals = facts.totals
    if totals is None or not totals.calls:
        return ""
    cost = "nothing is known of their cost" if totals.unpriced == totals.calls else f"they cost {totals.cost_usd:.2f} dollars"
    if 0 < totals.unpriced < totals.calls:
        cost += f", {totals.unpriced:,} of unknown price not counted"
    return (f"The ledger holds {totals.calls:,} answers of the teacher: {totals.prompt_tokens:,} prompt and "
            f"{totals.completion_tokens:,} completion tokens; {cost}.")  # fmt: skip


def _worst(predictions: Sequence[Prediction]) -> str:
    """The mistakes it was surest of."""
    wrong = sorted((p for p in predictions if not p.correct), key=lambda p: -(p.confidence if p.confidence is not None else -1.0))
    rows = [
        [
            words(p.question),
            code(p.reference or ""),
            code(p.answer if p.answer is not None else p.completion) or "(nothing)",
            words(p.error or "wrong"),
            "" if p.confidence is None else percent(p.confidence),
        ]
        for p in wrong[:WORST]
    ]
    return table(["question", "expected", "got", "kind", "confidence"], rows, [4]) if rows else ""


def _calibration(predictions: Sequence[Prediction]) -> str:
    found = calibration(predictions)
    if found is None:
        return ""
    rows = [[f"{row.threshold:.3f}", percent(row.kept), percent(row.accuracy)] for row in found.thresholds]
    thresholds = table(["confidence at least", "answers kept", "of these correct"], rows, [0, 1, 2])
    curve = ("too few for a reliability curve." if found.reliability_ece is None else
             f"{found.reliability_ece:.3f} for the probabilities that the card's reliability curve makes of it, each judged "
             "on answers the curve was not fitted to.")  # fmt: skip
    return f"{thresholds}\n\nExpected calibration error {found.ece:.3f} over {found.n:,} answers (0 is perfect); {curve}"


def _answers(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for answer in answers[:ANSWERS]:
        columns = [words(column, 60) for column in answer.get("columns", ())]
        rows = [[words("NULL" if cell is None else cell, 60) for cell in row] for row in answer.get("rows", ())]
        verdict = {True: "correct", False: "wrong"}.get(answer.get("correct", "unknown"), "not checked")
        out.append({"question": words(answer.get("question", "")), "answer": block(*_code(str(answer.get("answer", "")))),
                    "verdict": verdict, "rows": table(columns, rows) if columns else words(answer.get("error", ""))})  # fmt: skip
    return out


def _code(answer: str) -> tuple[str, str]:
    return answer, "json" if answer.startswith(("[", "{")) else "sql"


def _front_matter(facts: RunFacts) -> str:
    """YAML for the Hub; each value is JSON, which YAML reads, so no text can break out of it."""
    card = facts.card
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["penknife"]}
    if card is None:
        return _yaml(front)
    front["tags"] += [card.task]
    if card.license is not None:
        front["license"] = card.license.lower()
    else:
        front |= {"license": "other", "license_name": "see-data-and-base-model"}
    names = list(dict.fromkeys(entry.name for entry in card.data))
    if names:
        front["datasets"] = names
    if re.fullmatch(r"[\w.-]+/[\w.-]+", card.base.id):
        front["base_model"] = card.base.id
    if (student := card.scores.get("student")) is not None:
        data = names[0] if names else card.task
        front["metrics"] = [student.metric]
        result = {
            "task": {"type": "text-generation", "name": card.task},
            "dataset": {"type": data, "name": data, "split": student.split},
            "metrics": [
                {"type": student.metric, "value": round(student.score, 4), "name": f"{student.metric}, {student.decoding}"}
            ],
        }
        front["model-index"] = [{"name": card.name or facts.run_dir.resolve().name, "results": [result]}]
    return _yaml(front)


def _yaml(front: Mapping[str, Any]) -> str:
    # ensure_ascii also escapes the line separators that YAML, unlike JSON, would break a line at.
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items())


def _render(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                                     keep_trailing_newline=True)  # fmt: skip
    source = resources.files("factory").joinpath("templates", template).read_text(encoding="utf-8")
    return re.sub(r"\n{3,}", "\n\n", environment.from_string(source).render(**values))


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m factory.report RUN`: write the report of a run again."""
    import argparse

    from rich.console import Console

    from factory.settings import SettingsError

    parser = argparse.ArgumentParser(prog="python -m factory.report", description="Write a run's report again.")
    parser.add_argument("run", type=Path, help="run directory")
    run_dir: Path = parser.parse_args(argv).run
    if not (run_dir / "config.toml").is_file():
        raise SettingsError(
            f"{run_dir}: not a run directory (no config.toml); give one that factory.distill or factory.finetune made"
        )
    writers: list[Callable[[Path], Path]] = [write_report]
    if (run_dir / "model").is_dir():
        writers.append(write_model_card)
    for write in writers:
        Console().print(f"written: {write(run_dir)}", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))

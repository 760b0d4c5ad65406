"""Questions that nobody asked: spliced from those somebody did, or sampled from a small model that learned to write prompts.

Does: join beginnings and ends of questions, or let the model write on from where a question begins; keep what ended and is new,
as the JSONL that `--unlabelled` takes.
Does not: answer them (the teacher does) or train the model: any run with `--prompt-loss 1` makes one.

Run: python -m factory.imagine splices --task route --dataset clinc150 --n 20000 --out spliced.jsonl
     python -m factory.imagine runs/writer/model --task route --dataset clinc150 --n 20000 --out imagined.jsonl

A model of its own training questions recombines them: not all of it is English, most of it is near what people ask, and a teacher
is less sure of it than of the rows it was trained on, which is what a student can learn from (cf. Kumar et al. 2020, "Data
augmentation using pre-trained transformer models").
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from agents.card import ANY_TASK, Card
from factory.events import EventLog
from factory.rows import write_jsonl
from factory.settings import DataSettings, SettingsError, parse
from factory.tasks.task import DataSource, Example, OpensPrompts, TaskError

SPLICES = "splices"
SAME = 2 / 3
"""Share of splices whose halves have one answer; the others may lie between two."""
BATCH = 512
"""Questions written at once."""
FRUITLESS = 20
"""Batches in a row without a new question after which a model has no more to say."""


class ImagineSettings(DataSettings):
    """`python -m factory.imagine MODEL`."""

    model: str
    """splices, or the directory of a model that was trained on prompts too (--prompt-loss 1) in the compact dialect"""
    n: int = Field(10_000, ge=1)
    """questions to write, as many for each label set where the data has several"""
    temperature: float = Field(1.0, gt=0)
    """above 1 for stranger questions, below for more usual ones"""
    longest: int = Field(40, ge=2)
    """tokens (splices: words) of a question; longer ones are dropped"""
    out: Path = Path("imagined.jsonl")
    """file to write, at the end and whole"""


def run(settings: ImagineSettings, events: EventLog | None = None) -> Counter[str]:
    """Write the questions; returns what became of all that were sampled: "written", "twice", "known" (from the data), "unended"
    (splices: "no-splice", one too long or of one question alone), "surplus". A run that is stopped writes nothing.

    Raises SettingsError, TaskError.
    """
    from factory.tasks import get_task

    task = get_task(settings.task)
    if not isinstance(task, OpensPrompts):
        raise TaskError(f"--task {settings.task}: a question of it needs more than its words; only route's can be imagined")
    card = _check(settings)
    if card is None and settings.temperature != 1.0:
        raise SettingsError(f"--temperature {settings.temperature}: splices have none; leave it out, or give a model's directory")
    source = DataSource(
        dataset=settings.dataset, data_dir=settings.data_dir, questions=settings.questions, labels=settings.labels
    )
    examples, _ = task.load(source)
    contexts = {example.context_id: example for example in reversed(examples)}
    learned = [one["id"] for one in card.task_data.get("sets", ())] if card is not None else []
    if strange := [name for name in contexts if learned and name not in learned]:
        raise TaskError(f"{settings.model} never learned the set {strange[0]!r}, only {', '.join(learned)}; name its own data")
    events = events or EventLog()
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    each = -(-settings.n // len(contexts))
    model, tokenizer = _open(settings) if card is not None else (None, None)
    unended = "unended" if card is not None else "no-splice"
    with events.stage("imagine", total=each * len(contexts), unit="questions") as stage:
        for name, example in contexts.items():
            opening = task.opening(example).content

            def said(example: Example, opening: str = opening) -> str:
                return _words(task.messages(example, "compact")[-1].content.removeprefix(opening))

            known = {said(e) for e in examples}
            found: set[str] = set()
            fruitless = 0
            if card is None:
                batches = _spliced([e for e in examples if e.context_id == name], settings)
            else:
                batches = _written(model, tokenizer, opening, settings)
            for batch in batches:
                before = len(found)
                for text in batch:
                    spelt = said(replace(example, question=text)) if text is not None else ""
                    if text is None:
                        counts[unended] += 1
                    elif spelt in known:
                        counts["known"] += 1
                    elif spelt in found:
                        counts["twice"] += 1
                    elif len(found) >= each:
                        counts["surplus"] += 1
                    else:
                        counts["written"] += 1
                        found.add(spelt)
                        rows.append({"question": text, "set": name})
                stage.advance(len(found) - before)
                fruitless = fruitless + 1 if len(found) == before else 0
                if len(found) >= each or fruitless >= FRUITLESS:
                    break
        for reason in (unended, "known", "twice"):
            stage.drop(reason, counts[reason])
        if len(rows) < each * len(contexts):
            stage.warn(f"there are {len(rows):,} different questions to write, not {each * len(contexts):,}")
    if not rows and card is None:
        raise SettingsError(f"no two questions of the data make another of at most {settings.longest} words; give more "
                            "--questions, or --longest")  # fmt: skip
    if not rows:
        raise SettingsError(f"{settings.model} wrote no question that ended within {settings.longest} tokens; train it with "
                            "--prompt-loss 1, or give --longest")  # fmt: skip
    write_jsonl(settings.out, rows)
    return counts


def _check(settings: ImagineSettings) -> Card | None:
    """The card of a model that may have learned this task's prompts, None for splices. Raises SettingsError before anything is
    loaded."""
    if not settings.out.parent.is_dir() or settings.out.is_dir():
        raise SettingsError(f"--out {settings.out}: is a directory, or lies in none; give a file in a directory that is there")
    if settings.model == SPLICES:
        return None
    if not (Path(settings.model) / "config.json").is_file():
        raise SettingsError(f"{settings.model!r} is no model directory; give one that factory.finetune --prompt-loss 1 has made, "
                            f"or {SPLICES}")  # fmt: skip
    card = Card.load(settings.model)
    if card.task not in (settings.task, ANY_TASK) or card.dialect != "compact":
        raise SettingsError(f"{settings.model!r} learned the task {card.task!r} in the {card.dialect} dialect; give a model that "
                            f"learned {settings.task!r} in the compact one")  # fmt: skip
    return card


def _spliced(examples: Sequence[Example], settings: ImagineSettings) -> Iterator[list[str | None]]:
    """Batches without end of the beginning of one question and the end of another, some third to two thirds of each."""
    dice = Random(f"{settings.seed} {SPLICES}")
    words = [example.question.split() for example in examples]
    alike: defaultdict[str | None, list[int]] = defaultdict(list)
    for n, example in enumerate(examples):
        alike[example.reference].append(n)
    while True:
        batch: list[str | None] = []
        for _ in range(BATCH):
            first = dice.randrange(len(words))
            mates = alike[examples[first].reference] if dice.random() < SAME else range(len(words))
            second = dice.choice(mates)
            a, b = (round(len(words[n]) * dice.uniform(1 / 3, 2 / 3)) for n in (first, second))
            made = [*words[first][:a], *words[second][b:]]
            batch.append(" ".join(made) if a and b < len(words[second]) and len(made) <= settings.longest else None)
        yield batch


def _open(settings: ImagineSettings) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from factory.train import has_bf16, load_tokenizer, quiet

    torch.manual_seed(settings.seed)
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=torch.bfloat16 if has_bf16() else torch.float32, trust_remote_code=False
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), load_tokenizer(Path(settings.model))


def _written(model: Any, tokenizer: Any, opening: str, settings: ImagineSettings) -> Iterator[list[str | None]]:
    """Batches of questions without end; None for one that did not end, or holds a special token."""
    import torch

    marker = "\x00"
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": opening + marker}], add_generation_prompt=True, tokenize=False
    )
    begin, after = whole.split(marker)
    ids = tokenizer(begin, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    end = tokenizer(after, add_special_tokens=False).input_ids[0]
    special = frozenset(tokenizer.get_added_vocab().values())
    batch = ids.expand(BATCH, -1)
    while True:
        with torch.inference_mode():
            made = model.generate(
                input_ids=batch, attention_mask=torch.ones_like(batch), do_sample=True, temperature=settings.temperature, top_k=0,
                max_new_tokens=settings.longest + 1, eos_token_id=end, pad_token_id=end,
            )  # fmt: skip
        yield [_question(tokenizer, row, end, special) for row in made[:, ids.shape[1] :].tolist()]


def _question(tokenizer: Any, row: Sequence[int], end: int, special: frozenset[int]) -> str | None:
    if end not in row or not special.isdisjoint(said := row[: row.index(end)]):
        return None
    return _words(tokenizer.decode(said)) or None


def _words(text: str) -> str:
    return " ".join(text.split())


def main(argv: Sequence[str] | None = None) -> None:
    from factory.progress import ProgressView

    settings = parse(ImagineSettings, argv, "python -m factory.imagine", "Sample questions from a model that learned prompts.")
    with ProgressView() as view:
        counts = run(settings, EventLog(None, view))
    sys.stdout.write(f"{settings.out}: {', '.join(f'{n:,} {what}' for what, n in counts.most_common())}\n")


if __name__ == "__main__":
    from factory.cli import run_cli

    sys.exit(run_cli(main))

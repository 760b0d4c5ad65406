"""The settings of a run: one object that is the command line, the `--config` file and the Python call.

Does: hold every setting with its meaning, check values, read TOML, write it resolved, build the argument parser.
Does not: look at files, hardware or models; `distill` checks those before anything costly.
"""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Method = Literal["sft", "logits", "on-policy"]
Adapter = Literal["lora", "qlora", "dora", "none"]
Answers = Literal["teacher", "both", "labels"]
Divergence = Literal["forward", "reverse", "js"]
Optimizer = Literal["adamw", "muon"]


class SettingsError(Exception):
    """A setting that cannot be: one sentence with the value, the choices and the next step."""


class DataSettings(BaseModel):
    """Which data: shared by every command."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    task: str = "sql"
    """task to learn; `python -m factory.tasks` lists them"""
    dataset: str | None = None
    """dataset name; default: the one bundled with the task, or none with --db"""
    data_dir: Path | None = None
    """directory holding NAME.jsonl.xz and what belongs to it; default: the bundled copy"""
    db: Path | None = None
    """SQLite file to ask questions about (sql)"""
    functions: str | None = None
    """functions to call (tools): FILE.json, an OpenAI-style list or JSON schema, or MODULE:OBJECT of @tool functions"""
    questions: Path | None = None
    """JSONL of {"question": …} with "sql" (for --db) or "calls" (for --functions), both optional, or "label" (route)"""
    labels: Path | None = None
    """labels that --questions may have (route): JSON or a line each, with descriptions; default: those the rows use"""
    seed: int = 0
    """seed of every random choice"""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.db is not None and self.dataset is not None:
            raise ValueError("give --dataset or --db, not both")
        if self.functions is not None and self.task != "tools":
            raise ValueError(f"--functions {self.functions!r} is for the task 'tools', not {self.task!r}; give --task tools")
        if self.functions is not None and self.dataset is not None:
            raise ValueError("give --dataset or --functions, not both")
        if self.db is not None and self.task == "tools":
            raise ValueError("--db is for the task 'sql'; the task 'tools' takes --functions")
        if self.questions is not None and self.db is None and self.task == "sql":
            raise ValueError("--questions needs --db, the database they ask about")
        if self.labels is not None and self.questions is None:
            raise ValueError(f"--labels {self.labels} needs --questions, the rows they label")
        return self

    @property
    def own(self) -> Path | str | None:
        """What the user brought to ask about, a database or functions; None for a data set."""
        return self.db if self.db is not None else self.functions


class StudentSettings(DataSettings):
    """Which student and how it trains: shared by distill and finetune."""

    student: str = "scratch:tiny"
    """student name, directory, embedded, or scratch:tiny|small|base"""
    adapter: Adapter | None = None
    """what is trained; default: none (all weights) for scratch and finetune on CPU-sized models, lora for the others"""
    rank: int = Field(16, ge=1, le=1024)
    """rank of the adapter; with --adapter-from it is that one's"""
    adapter_from: str | None = None
    """adapter to go on training from: a directory, a GGUF adapter, or embedded (the one that ships for the task)"""
    split: str = "train"
    """split to train on"""
    validation_split: str | None = None
    """split to validate on; default: the dataset's own"""
    validation: int = Field(500, ge=1)
    """validation questions for choosing the checkpoint (the final score uses all, see --final)"""
    final: int | None = Field(None, ge=1)
    """validation questions for the final score; default: all"""
    gate: int = Field(64, ge=1)
    """validation questions asked of teacher and untrained student before anything costly"""
    examples: int | None = Field(None, ge=1)
    """questions to use of the data, or to make; default: all (--unlabelled ones are always all used)"""
    copies: int = Field(1, ge=1, le=64)
    """how often each row is taken; every copy after the first in another form, where the task has them (words lost for route,
    columns in another order for sql, functions in another order and words lost for tools)"""
    epochs: float = Field(3.0, gt=0)
    """passes over the kept rows; --minutes may end training earlier"""
    minutes: float | None = Field(None, gt=0)
    """wall-clock minutes for the training stage: speed is measured first and the schedule fitted to it"""
    learning_rate: float | None = Field(None, gt=0)
    """peak learning rate; default: by student and adapter"""
    optimizer: Optimizer | None = None
    """adamw, or muon (orthogonalized momentum); default: muon for all weights of a from-scratch student, else adamw"""
    batch: int = Field(32, ge=1)
    """rows per optimizer step on one device"""
    accumulate: int = Field(1, ge=1)
    """batches accumulated per optimizer step"""
    max_length: int = Field(1024, ge=16)
    """longest row in tokens; longer ones are counted and left out"""
    checkpoints: int = Field(4, ge=1)
    """checkpoints scored on the validation questions during training"""
    prompt_loss: float = Field(0.0, ge=0, le=1)
    """weight of the loss on prompt tokens (completion tokens weigh 1)"""
    ema: float | None = Field(None, gt=0, lt=1)
    """decay of a moving average of the weights, which is then scored and shipped instead of the last ones"""
    out: Path | None = None
    """run directory; default: runs/TASK-STUDENT-TEACHER"""
    force: bool = False
    """go on although the teacher is not better, or the directory holds other settings (it is moved aside)"""
    dry_run: bool = False
    """print the plan and stop"""


class DistillSettings(StudentSettings):
    """`python -m factory.distill`: from a task and a teacher to a small trained model."""

    teacher: str = "recorded"
    """name, hub:org/name, ./dir, ensemble:dir,dir, gguf:file, http://host/v1#name[,…], recorded[:FILE.jsonl], templates"""
    teacher_bits: Literal[4, 16] | None = None
    """bits of a local teacher's weights; default: 16 where they fit, else 4"""
    constrain_teacher: bool | None = None
    """ask the teacher under the task's grammar; default: yes for a teacher that runs here, no for an endpoint"""
    method: Method = "sft"
    """sft: verified answers; logits: stored top-k log-probabilities; on-policy: the teacher grades the student's own text"""
    answers: Answers = "teacher"
    """teacher: its own, where they prove right; both: the data's where the teacher's did not; labels: only the data's, whose
    probabilities the teacher says token by token (logits)"""
    unlabelled: Path | None = None
    """more questions to learn from, which the teacher answers (route): JSONL of {"question": …}, with "set", one of the data's
    label sets, where it has several"""
    samples: int = Field(1, ge=1, le=64)
    """answers asked per question (rejection sampling, majority)"""
    temperature: float = Field(0.7, ge=0)
    """teacher's sampling temperature when --samples is above 1 (one sample is greedy)"""
    in_flight: int = Field(64, ge=1)
    """requests to an endpoint at once"""
    budget_usd: float | None = Field(None, gt=0)
    """stop asking the teacher when this is spent"""
    price_in: float | None = Field(None, ge=0)
    """dollars per million prompt tokens of the endpoint"""
    price_out: float | None = Field(None, ge=0)
    """dollars per million completion tokens of the endpoint"""
    top_k: int = Field(32, ge=1, le=256)
    """teacher log-probabilities stored per token (logits)"""
    divergence: Divergence = "forward"
    """what logits and on-policy minimise: forward KL, reverse KL or Jensen-Shannon"""
    distill_weight: float = Field(0.5, ge=0, le=1)
    """share of the distillation loss against the label loss (logits)"""

    @field_validator("teacher_bits", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """A Literal takes no text, and the command line has nothing else."""
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.own is not None and self.questions is None and (self.split != "train" or self.validation_split is not None):
            raise ValueError(
                f"--split and --validation-split choose among questions, and {self.own} without --questions has none yet: "
                "leave them out, or give --questions"
            )
        if self.own is not None and self.questions is None and self.teacher.split(":")[0] == "recorded":
            raise ValueError(
                f"--teacher {self.teacher!r} has no answers for {self.own}: give --questions with their answers, "
                "--teacher templates (questions in plain words, no model), or a teacher that is a model"
            )
        if self.answers == "labels" and self.method != "logits":
            raise ValueError(
                f"--answers labels is for --method logits, not {self.method!r}: give it, or train on labels alone with "
                "python -m factory.finetune"
            )
        if self.unlabelled is not None and self.answers == "labels":
            raise ValueError(
                f"--unlabelled {self.unlabelled} has no labels for --answers labels: give --answers both, or teacher"
            )
        if self.unlabelled is not None and self.teacher in ("recorded", "templates"):
            raise ValueError(f"--unlabelled {self.unlabelled}: --teacher {self.teacher!r} answers nothing new; choose a model, "
                             "or recorded:FILE.jsonl with their answers")  # fmt: skip
        if self.answers != "teacher" and self.own is not None and self.questions is None:
            raise ValueError(f"--answers {self.answers} needs questions with answers, and {self.own} has none: give --questions")
        if self.method != "sft" and self.teacher.split(":")[0] in ("recorded", "templates"):
            raise ValueError(
                f"--method {self.method} needs a teacher that gives probabilities; --teacher {self.teacher!r} only replays text: "
                "choose --method sft, or a teacher that is a model"
            )
        return self


class FinetuneSettings(StudentSettings):
    """`python -m factory.finetune`: labelled rows in, student out, no teacher."""


class EvaluateSettings(DataSettings):
    """`python -m factory.evaluate MODEL`: one score, one decoding setting, whatever runs the model."""

    model: str
    """HF directory, adapter directory, .gguf file, ONNX directory, ensemble:dir,dir, or http://host/v1#name"""
    split: str | None = None
    """split to score; default: the dataset's validation split"""
    table: str | None = None
    """table or view of --db that is asked about; a model trained on one-table questions needs it where there are several"""
    limit: int | None = Field(None, ge=1)
    """score the first N after a seeded shuffle; default: all"""
    constrained: bool = True
    """decode under the task's grammar"""
    execution_guided: int = Field(1, ge=1)
    """candidates per question; above 1, those that fail to run or return nothing are passed over"""
    batch: int = Field(64, ge=1)
    """questions decoded together"""
    json_file: Path | None = Field(None, alias="json")
    """write the scores here, and predictions to a JSONL beside it"""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        if self.table is not None and self.db is None:
            raise ValueError(f"--table {self.table!r} needs --db, the database it is in")
        return self


S = TypeVar("S", bound=BaseModel)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal annotation (optional or not); empty for other types."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(value for part in get_args(annotation) for value in choices(part))
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def build(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """Settings from plain values; raises SettingsError with one line that shows value, choices and next step."""
    names = {field.alias or name: name for name, field in cls.model_fields.items()}
    unknown = [key for key in values if key not in names and key not in names.values()]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(f"{where}: unknown setting {unknown[0]!r}; {hint}known ones: {', '.join(sorted(names))}")
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        field = cls.model_fields.get(names.get(name, name))
        allowed = choices(field.annotation) if field is not None else ()
        hint = f"choose from {', '.join(map(str, allowed))}" if allowed else first["msg"].lower()
        raise SettingsError(f"{where}: {name.replace('_', '-')} cannot be {first['input']!r}: {hint}") from None


class Parser(argparse.ArgumentParser):
    """Raises SettingsError, one line, where argparse prints every option there is."""

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        unknown = next((word for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(unknown, options, n=1) if message.startswith("unrecognized") else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"{message}; {hint}--help lists every option")


def parser(cls: type[BaseModel], prog: str, about: str) -> argparse.ArgumentParser:
    """The command line of a settings class: one option per field, its docstring as help; `model` and tuples are positional."""
    out = Parser(prog=prog, description=about, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    out.add_argument("--config", type=Path, metavar="FILE.toml", help="settings as TOML; options given beside it win")
    for name, field in cls.model_fields.items():
        flag = "--" + (field.alias or name).replace("_", "-")
        shown = "" if field.is_required() or field.default is None else f" (default: {field.default})"
        text = ((field.description or "") + shown).replace("%", "%%")
        if field.is_required():
            out.add_argument(name, help=text, nargs="?")
        elif get_origin(field.annotation) is tuple:
            out.add_argument(name, help=text, nargs="*")
        elif field.annotation in (bool, bool | None):
            out.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
        else:
            allowed = choices(field.annotation)
            metavar = "|".join(map(str, allowed)) if allowed else name.upper()
            out.add_argument(flag, dest=name, metavar=metavar, help=text)
    return out


def parse(cls: type[S], argv: Sequence[str] | None, prog: str, about: str = "") -> S:
    """Command line (and `--config`) -> settings. Raises SettingsError; `--help` exits as argparse does."""
    # Positional arguments may stand on both sides of an option.
    given = vars(parser(cls, prog, about).parse_intermixed_args(argv))
    config = given.pop("config", None)
    given = {name: value for name, value in given.items() if value is not None}
    from_file: dict[str, Any] = {}
    if config is not None:
        try:
            from_file = tomllib.loads(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"--config {config}: cannot be read ({error.strerror}); give a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(
                f'--config {config}: not valid TOML ({error}); expected lines like: teacher = "mixtral"'
            ) from None
        build(cls, {**from_file, **{n: "-" for n, f in cls.model_fields.items() if f.is_required()}}, str(config))
    for name, field in cls.model_fields.items():
        if field.is_required() and name not in given and name not in from_file:
            raise SettingsError(f"{prog}: {name.upper()} is missing; see --help")
    return build(cls, {**from_file, **given}, prog)


def to_toml(settings: BaseModel) -> str:
    """Settings as TOML that `--config` reads back; fields that are None are left out (None is every such default)."""
    lines = []
    for name, value in settings.model_dump(mode="json").items():
        if value is not None:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"

"""What a base model or teacher is made of: its shape, its tokenizer, what it reads and how it trains, as one TOML file.

Does: read and check a recipe. Does not: read data (`mixture.py`) or train (`pretrain.py`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from factory.scratch import Shape
from factory.settings import Optimizer, SettingsError

RECIPES = Path(__file__).with_name("recipes")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskPart(_Part):
    """Rows of one task's data set."""

    task: str
    dataset: str
    folder: str | None = None
    """its directory below --data-dir; None: the copy in the package"""
    split: str = "train"
    copies: int = Field(1, ge=1)
    """how often each row is taken; every copy after the first in another variant, where the task has them"""
    examples: int | None = Field(None, ge=1)
    """rows to take; None: all"""
    judged: int = Field(0, ge=0)
    """validation questions that choose the checkpoint; each part with some weighs the same"""


class TextPart(_Part):
    """Running text."""

    file: str
    """a .txt or .txt.xz below --data-dir, documents divided by <|endoftext|>"""
    license: str
    tokens: int = Field(ge=1)
    """tokens to take, from its beginning"""
    window: int = Field(128, ge=8)
    """tokens a row"""


class Recipe(_Part):
    """A model to make. Widths that are multiples of 256 allow every GGUF quantization."""

    name: str
    hidden: int = Field(ge=64)
    inner: int = Field(ge=64)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    vocab: int = Field(ge=512)
    license: str = "Apache-2.0"
    """SPDX name of the weights' licence: share-alike data asks for its own"""
    tokenizer_chars: int = Field(3_000_000, ge=0)
    """characters of running text the tokenizer is trained on, beside the tasks' own"""
    tokenizer_files: tuple[str, ...] = ()
    """more files below --data-dir whose texts the tokenizer is trained on, each up to `tokenizer_chars`: the strings of JSON
    lines, the lines of others"""
    reserved_tokens: tuple[str, ...] = ()
    """tokens held whole beside those of the parts' tasks, for tasks that join later"""
    induction: bool = False
    """first weights that can look things up (`factory.induction`; needs as many key heads as heads)"""
    parts: tuple[TaskPart, ...] = Field(min_length=1)
    texts: tuple[TextPart, ...] = ()
    epochs: float = Field(1.0, gt=0)
    minutes: float | None = Field(None, gt=0)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    optimizer: Optimizer = "muon"
    max_length: int = Field(512, ge=16)
    prompt_loss: float = Field(0.0, ge=0, le=1)
    ema: float | None = Field(None, gt=0, lt=1)
    checkpoints: int = Field(4, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"{self.hidden} does not divide into {self.heads} heads, or those into {self.kv_heads} key heads")
        if self.induction and self.heads != self.kv_heads:
            raise ValueError(f"induction needs as many key heads as heads ({self.heads}); set kv_heads, or induction = false")
        return self

    @property
    def shape(self) -> Shape:
        return Shape(self.hidden, self.inner, self.layers, self.heads, self.kv_heads, self.vocab)


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(spec: str) -> Recipe:
    """A recipe by name or file; raises SettingsError with one line."""
    path = Path(spec) if spec.endswith(".toml") else RECIPES / f"{spec}.toml"
    if not path.is_file():
        raise SettingsError(f"unknown recipe {spec!r}; choose from {', '.join(recipes())}, or give a FILE.toml")
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"recipe {spec}: not valid TOML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "recipe"
        raise SettingsError(f"recipe {spec}: {where}: {first['msg'].removeprefix('Value error, ')}") from None

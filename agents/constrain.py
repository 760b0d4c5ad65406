"""Constraints on what a model may write: data here, compiled by one grammar engine (llguidance) for every backend.

Does: describe a constraint (choice, regex, JSON schema, Lark grammar, copy-from-text), compile it for a vocabulary, say which
tokens may come next; fails closed: a bad grammar or a failing mask raises ConstraintError, decoding never goes on unconstrained.
Does not: know SQL or tools; those build a Lark grammar or a schema and hand it over. It holds no model and no logits.

    engine = Engine(tokenizer, vocab_size=model.config.vocab_size)     # or Engine.from_bytes(token_bytes, eos_ids)
    matcher = engine.start(choice(["yes", "no"]))
    mask = engine.bitmask(1)                                           # (1, ceil(vocab/32)) int32, bit = token may come next
    engine.fill([matcher], mask)
    matcher.consume(token_id); matcher.finished
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["choice", "regex", "json_schema", "lark"]

CACHED_GRAMMARS = 512
"""Compiled grammars an engine keeps; one over a table and a question takes 1 ms to compile and about 80 kB."""
ROWS_WORTH_THREADS = 16
"""From this many rows on, masks (10-60 us each) are filled by several threads, where there are at least `THREADS_WORTH_IT`."""
THREADS_WORTH_IT = 4
"""With two threads the hand-over costs what it saves."""


class Constraint(BaseModel):
    """A grammar as data: `source` is Lark text, a regex, compact JSON of a schema, or compact JSON of a list of choices."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: Kind
    source: str


class ConstraintError(Exception):
    """A grammar that does not compile, or a text it refuses. Decoding never goes on unconstrained."""


def choice(texts: Iterable[str]) -> Constraint:
    """Exactly one of `texts`; repeated ones count once. Raises ConstraintError when there are none."""
    options = list(dict.fromkeys(texts))
    if not options:
        raise ConstraintError("a choice of nothing allows nothing; give at least one text")
    return Constraint(kind="choice", source=_compact(options))


def regex(pattern: str) -> Constraint:
    """A text that matches `pattern` as a whole (Rust regex syntax; `.` does not match a newline)."""
    return Constraint(kind="regex", source=pattern)


def json_schema(schema: dict[str, Any] | type[BaseModel]) -> Constraint:
    """Compact JSON of this schema: no free white space, which weak models repeat for ever. Pydantic models give their schema."""
    return Constraint(kind="json_schema", source=_compact(schema if isinstance(schema, dict) else schema.model_json_schema()))


def lark(grammar: str) -> Constraint:
    """A grammar in llguidance's Lark dialect with a rule `start`."""
    return Constraint(kind="lark", source=grammar)


def copy_from(text: str, *, words: bool = False) -> Constraint:
    """Any non-empty span of `text`, cut anywhere or (`words`) only between words. Raises ConstraintError for an empty text."""
    if not text:
        raise ConstraintError("an empty text has nothing to copy; give at least one character")
    node = json.dumps({"substring_words" if words else "substring_chars": text}, ensure_ascii=False)
    return lark(f"start: SPAN\nSPAN: RUN & /(?s:.+)/\nRUN: %regex {node}\n")


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether `text` as a whole satisfies `constraint`, byte by byte, without any model's tokenizer. Raises ConstraintError."""
    return _byte_engine().start(constraint).accepts(text)


class Matcher:
    """Where one text stands in its grammar. Made by `Engine.start`; belongs to one text."""

    def __init__(self, engine: Engine, inner: Any) -> None:
        self._engine = engine
        self.inner = inner
        """llguidance.LLMatcher, for backends that drive it themselves"""

    def consume(self, token: int) -> None:
        """Advance by one token, or by an end token where the grammar may end. Raises ConstraintError if it is not allowed."""
        if not self.inner.consume_token(token):
            raise ConstraintError(f"token {token} is not allowed by the grammar here: {_first_line(self.inner.get_error())}")

    @property
    def finished(self) -> bool:
        """Nothing but the end can follow: the text is complete, no end token needs to be generated."""
        return bool(self.inner.is_stopped()) and not self.inner.is_error()

    @property
    def accepting(self) -> bool:
        """The text so far is complete, though it may go on."""
        return bool(self.inner.is_accepting())

    def allowed(self) -> list[int]:
        """Ids of the tokens that may come next, ascending (slow: for tests and messages). Raises ConstraintError."""
        import numpy as np

        mask = self._engine.bitmask(1)
        self._engine.fill([self], mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        return [int(token) for token in np.flatnonzero(bits)]

    def accepts(self, text: str) -> bool:
        """Whether the text so far followed by `text`, and then the end, satisfies the grammar. Leaves the matcher as it is."""
        trial = self.inner.deep_copy()
        tokens = self._engine.tokenize(text)
        return bool(trial.try_consume_tokens(tokens) == len(tokens) and trial.is_accepting() and not trial.is_error())

    def copy(self) -> Matcher:
        """An independent matcher at the same place (beams, several samples of one prompt)."""
        return Matcher(self._engine, self.inner.deep_copy())


class Engine:
    """Compiles constraints for one vocabulary and fills masks for a batch; one per loaded model."""

    def __init__(self, tokenizer: Any, vocab_size: int | None = None, eos_ids: Sequence[int] | None = None) -> None:
        """`tokenizer`: a fast Hugging Face tokenizer. `vocab_size`: width of the model's logits (default: the tokenizer's size).

        `eos_ids`: ids that end a text (default: the tokenizer's). Raises ConstraintError for a slow tokenizer, or no end token.
        """
        from llguidance import LLTokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConstraintError(f"{type(tokenizer)!r} is not a fast tokenizer; constraints need one with tokenizer.json")
        ends = list(eos_ids) if eos_ids is not None else [tokenizer.eos_token_id]
        if not ends or None in ends:
            raise ConstraintError("the tokenizer has no end-of-text token; set eos_token, or pass eos_ids")
        plain = type(backend).from_str(backend.to_str())
        plain.no_padding()
        plain.no_truncation()
        size = max(vocab_size or 0, len(tokenizer))
        inner = LLTokenizer(plain.to_str(), n_vocab=size, eos_token=ends)
        # llguidance takes every added token that looks like <this> for a control token, which no text can spell; the
        # tokenizer says which ones really are, and the others (<c0>, <think>) are ordinary text.
        text = {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items() if not token.special}
        if any(inner.is_special_token(i) for i in text):
            special = {i for i in range(size) if inner.is_special_token(i) and i not in text}
            tokens = [text[i] if i in text else b"" if i in special else inner.decode_bytes([i]) for i in range(size)]
            for i in special:
                tokens[i] = (tokenizer.convert_ids_to_tokens(i) or "").encode()
            inner = _wrapped(tokens, ends, special, lambda part: plain.encode(part, add_special_tokens=False).ids)
        self._open(inner, size)

    @classmethod
    def from_bytes(
        cls,
        tokens: Sequence[bytes],
        eos_ids: Sequence[int],
        special_ids: Iterable[int] = (),
        vocab_size: int | None = None,
        tokenize: Callable[[str], Sequence[int]] | None = None,
    ) -> Engine:
        """An engine from a bare vocabulary: bytes of every token by id (llama.cpp, ONNX). `special_ids` never spell text.

        `tokenize` is the model's own way to cut text, which forced texts then follow; without it they are cut greedily.
        """
        if not eos_ids:
            raise ConstraintError("the vocabulary has no end-of-text token; pass eos_ids")
        engine = cls.__new__(cls)
        size = max(vocab_size or 0, len(tokens))
        padded = [*tokens, *[b""] * (size - len(tokens))]
        engine._open(_wrapped(padded, eos_ids, special_ids, tokenize), size)
        return engine

    def _open(self, inner: Any, size: int) -> None:
        from llguidance import LLExecutor, LLParserLimits

        self.vocab_size = size
        self.inner = inner
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._lock = threading.Lock()
        threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._executor = LLExecutor(threads) if threads >= THREADS_WORTH_IT else None

    def tokenize(self, text: str) -> list[int]:
        """Ids that spell exactly `text`, no special ones added. Raises ConstraintError when the vocabulary cannot."""
        tokens = list(self.inner.tokenize_str(text))
        if self.inner.decode_bytes(tokens) != text.encode():
            raise ConstraintError(f"the vocabulary cannot spell {text[:80]!r}")
        return tokens

    def start(self, constraint: Constraint) -> Matcher:
        """A matcher before the first token; a grammar seen before is not compiled again. Any thread may call it.

        Raises ConstraintError for a bad grammar.
        """
        with self._lock:
            compiled = self._compiled.pop(constraint, None)
            if compiled is None:
                compiled = self._compile(constraint)
            self._compiled[constraint] = compiled
            if len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
            return Matcher(self, compiled.deep_copy())

    def _compile(self, constraint: Constraint) -> Any:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self.inner, _grammar(constraint), log_level=0, limits=self._limits)
        except ValueError as error:
            raise ConstraintError(f"the {constraint.kind} constraint is not well formed: {_first_line(str(error))}") from None
        if matcher.is_error():
            message = _first_line(matcher.get_error())
            raise ConstraintError(
                f"the {constraint.kind} constraint does not compile ({message}); it begins {constraint.source[:80]!r}"
            )
        return matcher

    def bitmask(self, rows: int) -> NDArray[np.int32]:
        """A fresh (rows, ceil(vocab/32)) int32 array that allows everything; bit t % 32 of word t // 32 stands for token t."""
        import numpy as np

        return np.full((rows, (self.vocab_size + 31) // 32), -1, dtype=np.int32)

    def fill(self, matchers: Sequence[Matcher | None], mask: NDArray[np.int32]) -> None:
        """Write what each matcher allows next into its row of `mask` (rows, ceil(vocab/32)); None allows everything.

        Raises ConstraintError when a matcher is in error or allows nothing at all; use `failures` to know which.
        """
        failed = self.failures(matchers, mask)
        if failed:
            row, message = next(iter(failed.items()))
            raise ConstraintError(f"row {row}: {message}")

    def failures(self, matchers: Sequence[Matcher | None], mask: NDArray[np.int32]) -> dict[int, str]:
        """Like `fill`, but returns row -> sentence for the rows that failed; their rows of `mask` are all zero."""
        import numpy as np

        if mask.shape[0] < len(matchers) or not mask.flags["C_CONTIGUOUS"] or mask.shape[1] * 32 < self.vocab_size:
            raise ValueError(f"mask of shape {mask.shape} does not fit {len(matchers)} rows of {self.vocab_size} tokens")
        pairs = [(matcher.inner, row) for row, matcher in enumerate(matchers) if matcher is not None]
        if len(pairs) < len(matchers):
            mask[[row for row, matcher in enumerate(matchers) if matcher is None]] = -1
        width = mask.shape[1] * mask.itemsize
        if self._executor is not None and len(pairs) >= ROWS_WORTH_THREADS:
            self._executor.unsafe_compute_mask_ptr(pairs, mask.ctypes.data, width, mask.shape[0])
        else:
            for inner, row in pairs:
                inner.unsafe_compute_mask_ptr(mask.ctypes.data + row * width, width)
        failed = {row: _first_line(inner.get_error()) for inner, row in pairs if inner.is_error()}
        for row in failed:
            mask[row] = 0
        for stuck in np.flatnonzero(~mask[: len(matchers)].any(axis=1)):
            failed.setdefault(int(stuck), "the grammar allows no token here")
        return failed


class _Vocabulary:
    """What llguidance asks of a tokenizer. Calling it cuts text, never raising: what a token cannot spell is left out."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        eos_id: int,
        special_ids: Sequence[int],
        tokenize: Callable[[str], Sequence[int]] | None,
    ) -> None:
        self.tokens, self.eos_token_id, self.special_token_ids = tokens, eos_id, special_ids
        self.bos_token_id = None
        self._tokenize = tokenize
        hidden = set(special_ids)
        self._hidden = hidden
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token and i not in hidden}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        if self._tokenize is not None:
            try:
                ids = list(self._tokenize(text.decode()))
            except UnicodeDecodeError:
                ids = []
            # Some tokenizers put a space first, and any may find a control token in the text: then it is cut greedily.
            if not self._hidden.intersection(ids) and b"".join(self.tokens[i] for i in ids) == text:
                return ids
        out, at = [], 0
        while at < len(text):
            for size in range(min(self._longest, len(text) - at), 0, -1):
                token = self._ids.get(text[at : at + size])
                if token is not None:
                    out.append(token)
                    break
            else:
                size = 1
            at += size
        return out


def _wrapped(
    tokens: Sequence[bytes],
    eos_ids: Sequence[int],
    special_ids: Iterable[int],
    tokenize: Callable[[str], Sequence[int]] | None,
) -> Any:
    """llguidance's tokenizer over a bare vocabulary; ids in `special_ids` and `eos_ids` never spell text."""
    from llguidance import LLTokenizer, TokenizerWrapper

    vocabulary = _Vocabulary(tokens, eos_ids[0], sorted({*special_ids, *eos_ids}), tokenize)
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=list(eos_ids))


@functools.cache
def _byte_engine() -> Engine:
    return Engine.from_bytes([*(bytes([i]) for i in range(256)), b"<end>"], [256])


def _grammar(constraint: Constraint) -> str:
    """llguidance's own JSON form of a constraint. Raises ValueError for JSON that is not what the kind needs."""
    from llguidance import LLMatcher

    if constraint.kind == "lark":
        return str(LLMatcher.grammar_from_lark(constraint.source))
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(constraint.source))
    if constraint.kind == "json_schema":
        # pydantic writes discriminated unions as oneOf; its alternatives exclude each other, so anyOf says the same.
        rules: Any = {"whitespace_flexible": False, "coerce_one_of": True}
        return str(LLMatcher.grammar_from_json_schema(constraint.source, overrides=rules))
    options = json.loads(constraint.source)
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise ValueError("a choice's source is a JSON list of texts")
    return str(LLMatcher.grammar_from_regex("|".join(map(_literal, options))))


def _literal(text: str) -> str:
    """A regex for exactly `text`; Lark strings refuse some control characters, code points do not."""
    return "".join(c if c.isalnum() or c == " " else f"\\x{{{ord(c):x}}}" for c in text)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0] or "unknown reason"

from __future__ import annotations

import json
import random
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agents import constrain
from agents.constrain import Constraint, ConstraintError, Engine, accepts, choice, copy_from, json_schema, lark, regex
from tests.agents.conftest import make_tokenizer


class Add(BaseModel):
    tool: Literal["add"]
    a: int
    b: int


class Say(BaseModel):
    tool: Literal["say"]
    text: str
    loud: bool | None = None


class Call(BaseModel):
    call: Annotated[Add | Say, Field(discriminator="tool")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> Engine:
    return Engine(tokenizer, vocab_size=len(tokenizer) + 5)


ODD = ["a", "ab", "", 'é\n"q"', "tab\tnul\x01del\x7f", "a/b\\c.*|(", "日本 \u2028 🦆", "'; DROP TABLE t; --"]


def test_choice_takes_exactly_its_texts_whatever_is_in_them() -> None:
    constraint = choice(ODD)
    for text in ODD:
        assert accepts(constraint, text), text
        assert not accepts(choice([other for other in ODD if other != text]), text), text
    for text in ("b", "abc", "aab", "é", "日本"):
        assert not accepts(constraint, text)
    assert choice(["a", "b", "a"]) == choice(["a", "b"])


def test_regex_matches_the_whole_text() -> None:
    constraint = regex(r"[0-9]{2}/(x|y)")
    assert accepts(constraint, "12/x")
    assert not any(accepts(constraint, text) for text in ("1/x", "12/x ", " 12/x", "123/x", "12/z", "12"))


def test_json_is_compact_and_follows_pydantic_unions() -> None:
    constraint = json_schema(Call)
    good = [
        Call(call=Add(tool="add", a=-1, b=20)),
        Call(call=Say(tool="say", text='q"\n é')),
        Call(call=Say(tool="say", text="", loud=True)),
    ]
    for call in good:
        text = json.dumps(json.loads(call.model_dump_json()), separators=(",", ":"), ensure_ascii=False)
        assert accepts(constraint, text), text
        assert not accepts(constraint, json.dumps(json.loads(text))), "white space is not allowed"
    for text in (
        '{"call":{"tool":"add","a":1}}',
        '{"call":{"tool":"mul","a":1,"b":2}}',
        '{"call":{"tool":"add","a":"1","b":2}}',
        "{}",
        "",
    ):
        assert not accepts(constraint, text), text


def test_copy_takes_any_span_and_nothing_else() -> None:
    text = "Wie heißt 'Bad \"Elster\"' noch?"
    dice = random.Random(0)
    for _ in range(50):
        start = dice.randrange(len(text))
        span = text[start : dice.randrange(start + 1, len(text) + 1)]
        assert accepts(copy_from(text), span), span
        assert not accepts(copy_from(text), span + "#")
        assert not accepts(copy_from(text), "x" + span)
    assert not accepts(copy_from(text), "")
    assert accepts(copy_from(text, words=True), "heißt") and not accepts(copy_from(text, words=True), "heiß")


@pytest.mark.parametrize(
    "bad",
    [
        lark("start: %%x"),
        lark('other: "a"'),
        lark("start: <no_such_token>"),
        regex("(("),
        Constraint(kind="json_schema", source="{"),
        Constraint(kind="json_schema", source='{"type":"nonsense"}'),
        Constraint(kind="json_schema", source='{"not":{"type":"string"}}'),
        Constraint(kind="choice", source="[1]"),
        Constraint(kind="choice", source="[]"),
        Constraint(kind="choice", source="a"),
    ],
)
def test_bad_grammars_are_refused_in_one_line(bad: Constraint, engine: Engine) -> None:
    for start in (engine.start, lambda constraint: accepts(constraint, "a")):
        with pytest.raises(ConstraintError) as caught:
            start(bad)
        assert "\n" not in str(caught.value) and bad.kind in str(caught.value)
    with pytest.raises(ConstraintError):
        choice([])
    with pytest.raises(ConstraintError):
        copy_from("")


def test_a_grammar_that_allows_nothing_fails_closed(engine: Engine) -> None:
    nothing = engine.start(lark("start: A\nA: /a/ & /b/"))
    mask = engine.bitmask(3)
    failed = engine.failures([engine.start(choice(["a"])), nothing, None], mask)
    assert list(failed) == [1]
    assert not mask[1].any() and mask[0].any() and (mask[2] == -1).all()
    with pytest.raises(ConstraintError, match="row 1"):
        engine.fill([None, engine.start(lark("start: A\nA: /a/ & /b/")), None], mask)


def walk(engine: Engine, constraint: Constraint, dice: random.Random, ends: set[int], pieces: Any) -> str:
    """A random text token by token under the mask."""
    matcher, out = engine.start(constraint), []
    while not matcher.finished:
        token = dice.choice(matcher.allowed())
        matcher.consume(token)
        if token in ends:
            break
        out.append(token)
    return pieces(out)


def test_random_walks_under_the_mask_are_always_accepted(engine: Engine, tokenizer: Any) -> None:
    dice = random.Random(1)
    constraints = [
        choice(ODD),
        regex(r"(ab?){1,4}|<c1>"),
        json_schema({"enum": [1, None, "é"]}),
        copy_from("how many rivers <c2>?"),
    ]
    constraints.append(lark('start: S (" " S){0,3}\nS: "<c0>" | "<c1>" | /[a-c]{1,3}/'))
    for constraint in constraints:
        texts = set()
        for _ in range(30):
            text = walk(engine, constraint, dice, {tokenizer.eos_token_id}, tokenizer.decode)
            assert accepts(constraint, text), (constraint, text)
            texts.add(text)
        assert len(texts) > 2, "the walk should reach more than one text"


def test_masks_never_offer_special_or_absent_tokens(engine: Engine, tokenizer: Any) -> None:
    anything = engine.start(regex(r"(?s:.*)"))
    allowed = set(anything.allowed())
    special = set(tokenizer.all_special_ids)
    assert allowed & special == {tokenizer.eos_token_id}
    assert max(allowed) < len(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<c0>") in allowed


def test_the_end_is_offered_where_the_grammar_may_end_and_only_there(engine: Engine, tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    matcher = engine.start(choice(["a", "ab"]))
    assert end not in matcher.allowed() and not matcher.accepting
    with pytest.raises(ConstraintError, match="not allowed"):
        matcher.copy().consume(end)
    matcher.consume(a)
    assert set(matcher.allowed()) == {b, end} and matcher.accepting and not matcher.finished
    other = matcher.copy()
    other.consume(end)
    assert other.finished
    matcher.consume(b)
    assert matcher.finished and matcher.allowed() == [end]
    with pytest.raises(ConstraintError):
        matcher.consume(a)
    assert not matcher.finished


def test_matcher_accepts_says_whether_the_rest_completes_it(engine: Engine) -> None:
    matcher = engine.start(choice(["texas", "the state of texas"]))
    assert matcher.accepts("texas") and not matcher.accepts("tex") and not matcher.accepts("texas texas")
    for token in engine.tokenize("the state"):
        matcher.consume(token)
    assert matcher.accepts(" of texas") and not matcher.accepts("texas")
    assert matcher.accepts(" of texas"), "asking does not move it"


def test_several_end_tokens_and_a_bare_vocabulary() -> None:
    tokens = [b"a", b"b", b"ab", b"<s>", b"</s>", b"<end>", "é".encode(), b"\xc3", b"\xa9"]
    engine = Engine.from_bytes(tokens, eos_ids=[4, 5], special_ids=[3], vocab_size=40)
    assert engine.bitmask(2).shape == (2, 2)
    assert set(engine.start(regex("(ab|b|é)+")).allowed()) == {0, 1, 2, 6, 7}
    matcher = engine.start(regex("(ab|b|é)+"))
    for token in (7, 8):
        matcher.consume(token)
    assert set(matcher.allowed()) == {0, 1, 2, 4, 5, 6, 7}
    matcher.consume(5)
    assert matcher.finished
    assert engine.start(choice(["aé"])).accepts("aé")
    assert set(engine.start(regex("<s>|a")).allowed()) == {0}, "special tokens spell no text"
    with pytest.raises(ConstraintError, match="cannot spell"):
        engine.start(choice(["x"])).accepts("x")
    with pytest.raises(ConstraintError, match="end-of-text"):
        Engine.from_bytes(tokens, eos_ids=[])


def test_many_rows_at_once_give_each_its_own_mask(engine: Engine, tokenizer: Any) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    matchers = [engine.start(choice([letter])) if i % 3 else None for i, letter in enumerate(letters)]
    mask = engine.bitmask(len(letters))
    mask[:] = 0
    assert engine.failures(matchers, mask) == {}
    for i, letter in enumerate(letters):
        bits = [t for t in range(len(tokenizer)) if mask[i, t // 32] >> (t % 32) & 1]
        assert bits == ([tokenizer.convert_tokens_to_ids(letter)] if i % 3 else list(range(len(tokenizer))))
    with pytest.raises(ValueError, match="does not fit"):
        engine.failures(matchers, engine.bitmask(3))


def test_a_grammar_is_compiled_once_and_the_cache_is_bounded(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tokenizer)
    compiled: list[Constraint] = []
    real = engine._compile
    monkeypatch.setattr(engine, "_compile", lambda constraint: (compiled.append(constraint), real(constraint))[1])
    monkeypatch.setattr(constrain, "CACHED_GRAMMARS", 2)
    one, two, three = (choice([text]) for text in "abc")
    first = engine.start(one)
    first.consume(tokenizer.convert_tokens_to_ids("a"))
    assert not engine.start(one).finished, "a cached grammar starts afresh"
    for constraint in (two, one, three, one, two):
        engine.start(constraint)
    assert compiled == [one, two, three, two]


def test_a_slow_tokenizer_or_one_without_end_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConstraintError, match="not a fast tokenizer"):
        Engine(object())
    with pytest.raises(ConstraintError, match="no end-of-text token"):
        Engine(tokenizer, eos_ids=[])

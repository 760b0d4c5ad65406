"""Variants of a request: its functions and their arguments in another order, the same calls in other numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from random import Random
from typing import Any

from factory.tasks import get_task
from factory.tasks.task import HasVariants
from factory.tasks.tools.functions import Argument, Function
from tests.factory.tasks.tools.worlds import TOOLSET, call, example

TASK: Any = get_task("tools")


def test_a_variant_offers_the_functions_in_another_order_and_means_the_same() -> None:
    assert isinstance(TASK, HasVariants)
    case = example(
        'mail maria@example.com about "winter boots", then list mails of March 8th',
        call("send_mail", recipient_email="maria@example.com", subject="winter boots"),
        call("listMails", date="2019-03-08"),
    )
    orders, completions, lost = set(), set(), set()
    random = Random(1)
    for _ in range(40):
        question, (message,), completion = TASK.variant(case, case.reference, "compact", random)
        shown = shown_in(message.content)
        lost.add(len(case.question.split()) - len(question.split()))
        words = iter(case.question.split())
        assert all(word in words for word in question.split()), "words in their order, none new"
        assert all(part in question for part in ("maria@example.com", '"winter boots"', "list mails", "March 8th"))
        assert f"<t{[function.name for function in shown].index('listMails')}> list mails" in message.content
        read = TASK.decode(replace(case, context=replace(TOOLSET, functions=tuple(shown))), completion, "compact")
        assert json.loads(read) == json.loads(case.reference or "")
        orders.add(tuple(function.name for function in shown))
        completions.add(completion)
    assert len(orders) > 1 and len(completions) > 1 and 0 in lost and max(lost) in (1, 2)
    assert TASK.variant(case, case.reference, "compact", Random(3)) == TASK.variant(case, case.reference, "compact", Random(3))


def shown_in(prompt: str) -> list[Function]:
    """The functions with their arguments, as a prompt orders them: ` send mail<t0> subject<c0><req> budget<int><c1>`."""
    functions = {function.words: function for function in TOOLSET.functions}
    order: list[tuple[Function, list[Argument]]] = []
    words_of: dict[str, str] = {}
    words = ""
    for part in re.findall(r"<[^>]+>|[^<]+", prompt.split("<q>")[0]):
        if re.match(r"<[tc]\d", part):
            if part[1] == "t":
                order.append((functions[words], []))
            else:
                own, arguments = order[-1]
                arguments.append(next(a for a in own.arguments if a.words == words_of.setdefault(part, words)))
            words = ""
        elif part == "<req>":
            words = ""
        elif not words:
            words = part
    return [replace(function, arguments=tuple(arguments)) for function, arguments in order]


def test_a_variant_shows_arguments_in_any_order_and_may_lack_those_nobody_gives() -> None:
    case = example(
        "a table for 4 at Sino tomorrow, outdoors",
        call("bookTable", restaurant_name="Sino", party_size=4, date="2019-03-02", outdoor_seating=True),
    )
    random = Random(6)
    orders: dict[str, set[tuple[str, ...]]] = {"bookTable": set(), "send_mail": set()}
    for _ in range(80):
        _, (message,), completion = TASK.variant(case, case.reference, "compact", random)
        shown = shown_in(message.content)
        for function in shown:
            names = tuple(argument.name for argument in function.arguments)
            required = {argument.name for argument in TOOLSET.by_name[function.name].arguments if argument.required}
            assert set(names[: len(required)]) == required and len(set(names)) == len(names)
            if function.name in orders:
                orders[function.name].add(names)
        assert "outdoor_seating" in {a.name for function in shown for a in function.arguments}, "what is given stays"
        read = TASK.decode(replace(case, context=replace(TOOLSET, functions=tuple(shown))), completion, "compact")
        assert json.loads(read) == json.loads(case.reference or "")
    assert len(orders["bookTable"]) > 10 and {len(names) for names in orders["bookTable"]} == {4, 5}
    assert {len(names) for names in orders["send_mail"]} >= {3, 4}


def test_a_variant_reorders_the_schemas_of_the_plain_dialect_too() -> None:
    case = example(
        "a table for 4 at Sino tomorrow, outdoors",
        call("bookTable", restaurant_name="Sino", party_size=4, date="2019-03-02", outdoor_seating=True),
    )
    random = Random(7)
    orders = set()
    for _ in range(40):
        _, (_, message), completion = TASK.variant(case, case.reference, "plain", random)
        listed = [json.loads(line) for line in message.content.splitlines() if line.startswith("{")]
        properties = next(function for function in listed if function["name"] == "bookTable")["parameters"]["properties"]
        answered = json.loads(completion)[0]["arguments"]
        assert list(answered) == [name for name in properties if name in answered], "said in the order of the schema"
        assert answered == json.loads(case.reference or "")[0]["arguments"]
        assert properties.items() <= TOOLSET.by_name["bookTable"].parameters["properties"].items()
        orders.add(tuple(properties))
    assert len(orders) > 10


def test_a_variant_of_a_conversation_is_one_and_keeps_what_answers() -> None:
    case = example(
        "User: could I have a table at Sino some day soon\n"
        "System: For how many of you, and when would that be?\nUser: no, 3, tomorrow",
        call("bookTable", restaurant_name="Sino", party_size=3, date="2019-03-02"),
    )
    random = Random(2)
    questions = {TASK.variant(case, case.reference, "compact", random)[0] for _ in range(60)}
    assert len(questions) > 10
    for question in questions:
        first, second, third = question.split("\n")
        assert (
            first.startswith("User: ") and "Sino" in first and second.startswith("System: ") and third == "User: no, 3, tomorrow"
        )


def test_a_value_spelt_with_a_lost_word_brings_the_whole_request_back() -> None:
    case = example(
        "mail maria@example.com the old story", call("send_mail", recipient_email="maria@example.com", subject="the old story")
    )
    for dialect in ("compact", "plain"):
        random = Random(4)
        assert {TASK.variant(case, case.reference, dialect, random)[0] for _ in range(60)} == {case.question}


def test_a_variant_keeps_its_spans_and_short_forms() -> None:
    case = example("I don't want two or three mails from Berlin via Paris to maria@example.com, just list mails")
    random = Random(5)
    for _ in range(60):
        question = TASK.variant(case, "[]", "compact", random)[0]
        assert "don't" in question and "two or three" in question and "Berlin via Paris" in question

"""Variants of a request: its functions in another order, the same calls in other numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

from factory.tasks import get_task
from factory.tasks.task import HasVariants
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
        shown = sorted(TOOLSET.functions, key=lambda function: message.content.index(function.words + "<t"))
        lost.add(len(case.question.split()) - len(question.split()))
        words = iter(case.question.split())
        assert all(word in words for word in question.split()), "words in their order, none new"
        assert all(part in question for part in ("maria@example.com", '"winter boots"', "list mails", "March 8th"))
        assert f"<t{shown.index(TOOLSET.by_name['listMails'])}> list mails" in message.content
        read = TASK.decode(replace(case, context=replace(TOOLSET, functions=tuple(shown))), completion, "compact")
        assert json.loads(read) == json.loads(case.reference or "")
        orders.add(tuple(function.name for function in shown))
        completions.add(completion)
    assert len(orders) > 1 and len(completions) > 1 and 0 in lost and max(lost) in (1, 2)
    assert TASK.variant(case, case.reference, "compact", Random(3)) == TASK.variant(case, case.reference, "compact", Random(3))


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

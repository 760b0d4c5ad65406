"""Variants of a request: its functions in another order, the same calls in other numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from random import Random
from typing import Any

from factory.tasks import get_task
from factory.tasks.task import HasVariants
from tests.factory.tasks.tools.worlds import TOOLSET, call, example

TASK: Any = get_task("tools")


def said(prompt: str) -> str:
    """The conversation without the marks of functions and arguments, whose numbers follow their order."""
    return re.sub(r"<[tc]\d+>", "", prompt.split("<q>")[1])


def test_a_variant_offers_the_functions_in_another_order_and_means_the_same() -> None:
    assert isinstance(TASK, HasVariants)
    case = example(
        'mail maria@example.com about "winter boots", then list mails of March 8th',
        call("send_mail", recipient_email="maria@example.com", subject="winter boots"),
        call("listMails", date="2019-03-08"),
    )
    orders, completions = set(), set()
    random = Random(1)
    for _ in range(20):
        question, (message,), completion = TASK.variant(case, case.reference, "compact", random)
        shown = sorted(TOOLSET.functions, key=lambda function: message.content.index(function.words + "<t"))
        assert question == case.question
        assert said(message.content) == said(TASK.messages(case, "compact")[0].content)
        assert f"<t{shown.index(TOOLSET.by_name['listMails'])}> list mails of" in message.content
        read = TASK.decode(replace(case, context=replace(TOOLSET, functions=tuple(shown))), completion, "compact")
        assert json.loads(read) == json.loads(case.reference or "")
        orders.add(tuple(function.name for function in shown))
        completions.add(completion)
    assert len(orders) > 1 and len(completions) > 1
    assert TASK.variant(case, case.reference, "compact", Random(3)) == TASK.variant(case, case.reference, "compact", Random(3))

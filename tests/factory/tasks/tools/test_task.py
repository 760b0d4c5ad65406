"""The tools task: both dialects say the same calls, grammars let exactly those through, answers are judged by their meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agents.constrain import accepts
from factory.tasks import get_task
from factory.tasks.task import AnswerError, Dialect, Example
from factory.tasks.tools import calls
from factory.tasks.tools.compact import TOKENS
from factory.tasks.tools.functions import Toolset, from_spec, read_tools
from factory.tasks.tools.view import MAX_VALUES
from tests.factory.tasks.tools.worlds import FUNCTIONS, SPECS, TODAY, TOOLSET, call, example

TASK: Any = get_task("tools")
BOOK = "Book a table for two at Blue Horizon next Monday at half past 7 in the evening, outdoors"
CASES = [
    example(
        BOOK,
        call("bookTable", restaurant_name="Blue Horizon", party_size=2, date="2019-03-04", time="19:30", outdoor_seating=True),
    ),
    example(
        'mail maria@example.com about "winter boots", very high priority, then list mails of March 8th',
        call("send_mail", recipient_email="maria@example.com", subject="winter boots", priority="very high"),
        call("listMails", date="2019-03-08"),
    ),
    example("mail maria@example.com the old story, we have 19.1 for it",
            call("send_mail", recipient_email="maria@example.com", subject="the old story", budget=19.1)),
    example("tell me a joke"),
    example("User: a table at Sino\nSystem: For how many, and when?\nUser: 3 people, tomorrow",
            call("bookTable", restaurant_name="Sino", party_size=3, date="2019-03-02")),
]  # fmt: skip


@pytest.mark.parametrize("dialect", ["plain", "compact"])
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_answers_come_back_and_the_grammar_takes_them(case: Example, dialect: Dialect) -> None:
    completion = TASK.encode(case, case.reference, dialect)
    assert json.loads(TASK.decode(case, completion, dialect)) == json.loads(case.reference or "")
    assert accepts(TASK.constraint(case, dialect), completion)
    assert TASK.verify(case, TASK.decode(case, completion, dialect)).ok


def test_the_compact_dialect_points() -> None:
    prompt = TASK.messages(CASES[0], "compact")[0].content
    assert prompt.startswith(
        " book table<t0> date<date><c0> party size<int><c1> restaurant name<c2><req> outdoor seating<true><c3> time<time><c4>"
    )
    assert prompt.endswith("<q><usr><t0> book a<t0> table for<v0> two at<v1> blue horizon<v2> next monday at"
                           "<v3> half past 7 in the evening ,<c3> outdoors")  # fmt: skip
    assert TASK.encode(CASES[0], CASES[0].reference, "compact") == "<call><t0><c0><v2><c1><v0><c2><v1><c3><true><c4><v3>"
    assert TASK.encode(CASES[3], "[]", "compact") == "<none>"


@pytest.mark.parametrize(
    "completion",
    [
        "", "<call>", "<call><t0>", "<call><t3>", "<none><none>", "<call><t0><c0><v1><c1><v0>",
        "<call><t0><c0><v1><c1><v1><c2><v2>", "<call><t0><c1><v0><c0><v1><c2><v2>", "<call><t0><c0> red horizon<c1><v0><c2><v2>",
        "<call><t0><c0><v1><c1><v0><c2><v2><c4> yes",
        "<call><t0><c0><v1><c1> 13<c2><v2>", "<call><t0><c0><v1><c1><v0><c2> horizon",
        "<call><t0><c0><x0><c1><v0><c2><v2>", "<call><t2><c2><v0>", "<call><t0><c0><v9><c1><v0><c2><v2>",
    ],
)  # fmt: skip
def test_the_compact_grammar_refuses_what_fits_no_schema(completion: str) -> None:
    assert not accepts(TASK.constraint(CASES[0], "compact"), completion)


def test_a_function_that_lacks_what_it_requires_cannot_be_called() -> None:
    made = example("mails please")
    assert accepts(TASK.constraint(made, "compact"), "<call><t2>")
    assert not accepts(TASK.constraint(made, "compact"), "<call><t0><c0> mails<c1> 2<c2> please")
    toolset = Toolset("t", FUNCTIONS[:1], TODAY)
    bare = Example("q", "a table", toolset, "t", "[]")
    assert accepts(TASK.constraint(bare, "compact"), "<none>")


@pytest.mark.parametrize(
    "completion",
    [
        "[{}]", '[{"name":"fly","arguments":{}}]', '[{"name":"listMails","arguments":{"day":"2019-03-01"}}]',
        '[{"name":"bookTable","arguments":{"restaurant_name":"X","party_size":"2","date":"2019-03-01"}}]',
        '[{"name":"bookTable","arguments":{"restaurant_name":"X","party_size":13,"date":"2019-03-01"}}]',
        '[{"name":"bookTable","arguments":{"restaurant_name":"X","date":"2019-03-01"}}]',
        '[{"name":"bookTable","arguments":{"restaurant_name":"X","party_size":2,"date":"2019-03-01","time":"7 pm"}}]',
    ],
)  # fmt: skip
def test_the_plain_grammar_refuses_what_fits_no_schema(completion: str) -> None:
    assert not accepts(TASK.constraint(CASES[0], "plain"), completion)
    assert accepts(TASK.constraint(CASES[0], "plain"), "[]")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (call("bookTable", restaurant_name="Red Door", party_size=2, date="2019-03-04"), "value-not-in-request"),
        (call("bookTable", party_size=2, date="2019-03-04"), "missing-argument"),
        (call("listMails", day="x"), "extra-argument"),
        (call("flyAway"), "unknown-function"),
        (call("listMails", date="2019-05-05"), "not-a-date"),
        (call("bookTable", restaurant_name="Blue Horizon", party_size=13, date="2019-03-04"), "not-a-number"),
        (call("send_mail", recipient_email="Blue Horizon", subject="table", priority="huge"), "not-a-choice"),
    ],
)
def test_what_the_compact_dialect_cannot_say_has_a_reason(made: calls.Call, reason: str) -> None:
    with pytest.raises(AnswerError) as error:
        TASK.encode(CASES[0], calls.write([made]), "compact")
    assert error.value.reason == reason


def test_models_may_write_calls_in_the_ways_they_know() -> None:
    want = [{"name": "listMails", "arguments": {"date": "2019-03-08"}}]
    one = json.dumps(want[0])
    for text in (
        one,
        f"```json\n[{one}]\n```",
        f"<tool_call>\n{one}\n</tool_call>",
        json.dumps([{"type": "function", "function": {"name": "listMails", "arguments": '{"date": "2019-03-08"}'}}]),
        f"<think>hm {{ no }}</think>\n[{one}]",
        f"Sure: [{one}]",
    ):
        assert json.loads(TASK.decode(CASES[1], text, "plain")) == want, text
    with pytest.raises(AnswerError):
        TASK.decode(CASES[1], "I cannot do that", "plain")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([call("bookTable", restaurant_name="BLUE horizon", party_size="2", date="March 4th", time="7:30 pm",
               outdoor_seating=True)], None),
        ([], "none-false"),
        ([call("listMails")], "wrong-function"),
        ([call("bookTable", restaurant_name="Blue Horizon", party_size=2, date="2019-03-04", time="19:30")], "missing-argument"),
        ([call("bookTable", restaurant_name="Blue Horizon", party_size=3, date="2019-03-04", time="19:30", outdoor_seating=True)],
         "wrong-value"),
    ],
)  # fmt: skip
def test_scores_name_what_is_wrong(answer: list[calls.Call], error: str | None) -> None:
    score = TASK.score(CASES[0], calls.write(answer))
    assert (score.correct, score.error) == (error is None, error)
    assert score.metrics["exact_call"] == (error is None) and "none" not in score.metrics


def test_more_errors_and_defaults() -> None:
    assert TASK.score(CASES[3], calls.write([call("listMails")])).error == "none-missed"
    assert TASK.score(CASES[3], "[]").metrics == {"exact": True, "none": True, "valid": True}
    said = call("send_mail", recipient_email="maria@example.com", subject="winter boots", priority="very high", budget=1)
    assert TASK.score(CASES[1], calls.write([said, call("listMails", date="2019-03-08")])).error == "extra-argument"
    mail = example("mail a@b.com about x", call("send_mail", recipient_email="a@b.com", subject="x"))
    default = call("send_mail", recipient_email="a@b.com", subject="X", priority="normal")
    assert TASK.score(mail, calls.write([default])).correct
    assert TASK.vote_key(mail, calls.write([default])) == TASK.vote_key(mail, mail.reference)


def test_the_order_of_calls_does_not_count() -> None:
    turned = calls.write(list(reversed(calls.read(CASES[1].reference or ""))))
    assert TASK.score(CASES[1], turned).correct
    assert TASK.vote_key(CASES[1], turned) == TASK.vote_key(CASES[1], CASES[1].reference)


def test_spellings_of_the_data_set_are_one_value() -> None:
    wanted = call("bookTable", restaurant_name="San Francisco Grill", party_size=2, date="2019-03-01")
    made = example("a table at SF Grill for 2 today", wanted, also={"bookTable.restaurant_name": ["SF Grill"]})
    completion = TASK.encode(made, made.reference, "compact")
    assert completion == "<call><t0><c0><v2><c1><v1><c2><v0>"
    decoded = TASK.decode(made, completion, "compact")
    assert calls.read(decoded)[0].arguments["restaurant_name"] == "SF Grill"
    assert TASK.score(made, decoded).correct


def test_groups_of_services_have_metrics_of_their_own() -> None:
    for seen, name in ((True, "exact_call_seen"), (False, "exact_call_unseen")):
        made = example(BOOK, *calls.read(CASES[0].reference or ""), seen=seen)
        assert TASK.score(made, made.reference).metrics[name] is True
        assert TASK.score(made, "[]").metrics[name] is False


def test_argument_f1_counts_arguments() -> None:
    half = [call("bookTable", restaurant_name="Blue Horizon", party_size=3)]
    found = TASK.set_metrics([(CASES[0], calls.write(half)), (CASES[3], None)])
    assert found["argument_f1"] == pytest.approx(2 * 1 / (2 + 5))


def test_a_long_conversation_keeps_what_was_said_within_its_budget() -> None:
    turns = ["User: a table at Sino, it is for 4 people"]
    for n in range(12):
        turns += [f"System: There is option {n} with many words in it that nobody will need again, at $ {n}5.", "User: ok, next"]
    question = "\n".join([*turns, "System: When shall it be?", "User: March 8th"])
    made = example(question, call("bookTable", restaurant_name="Sino", party_size=4, date="2019-03-08"))
    prompt = TASK.messages(made, "compact")[0].content
    assert TASK.score(made, TASK.decode(made, TASK.encode(made, made.reference, "compact"), "compact")).correct
    assert len(prompt.split()) < 110 and "many words" not in prompt


def test_more_spans_than_tokens_keep_the_latest() -> None:
    names = [f"Name{chr(65 + i)}{chr(97 + i)}" for i in range(MAX_VALUES + 3)]
    made = example("a table for 2 today at " + ", then at ".join(n[:5] for n in names))
    values = TASK.view(made).values
    assert len(values) == MAX_VALUES and values[-1][1] == names[-1][:5]


def test_lists_have_no_compact_form_and_are_counted_as_such() -> None:
    from agents.chat import ToolSpec

    schema = {"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}}
    toolset = Toolset("t", (from_spec(ToolSpec(name="sort", description="", parameters=schema)),), TODAY)
    made = Example("q", "sort B and A", toolset, "t", calls.write([call("sort", names=["B", "A"])]))
    with pytest.raises(AnswerError) as error:
        TASK.encode(made, made.reference, "compact")
    assert error.value.reason == "no-such-type"
    assert accepts(TASK.constraint(made, "plain"), TASK.encode(made, made.reference, "plain"))


def test_definitions_of_two_functions_do_not_mix_in_the_plain_grammar() -> None:
    from agents.chat import ToolSpec

    def schema(*words: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/Outer"}},
            "required": ["a"],
            "$defs": {
                "Word": {"enum": list(words)},
                "Outer": {"type": "object", "properties": {"w": {"$ref": "#/$defs/Word"}}, "required": ["w"]},
            },
        }

    specs = [ToolSpec(name=name, description="", parameters=schema(*words)) for name, words in (("f", "xy"), ("g", "z"))]
    toolset = Toolset("t", tuple(map(from_spec, specs)), TODAY)
    made = Example("q", "x", toolset, "t", "[]")
    for name, word, right in (("f", "x", True), ("f", "z", False), ("g", "z", True), ("g", "y", False)):
        text = json.dumps([{"name": name, "arguments": {"a": {"w": word}}}], separators=(",", ":"))
        assert accepts(TASK.constraint(made, "plain"), text) is right


def test_special_tokens_cover_prompts_and_completions() -> None:
    import re

    whole = set(TOKENS)
    for text in TASK.corpus(CASES, "compact"):
        assert set(re.findall(r"<\w+>", text)) <= whole


def test_answers_are_shown_as_a_table_of_calls() -> None:
    shown = TASK.show(CASES[1], CASES[1].reference)
    assert [row[0] for row in shown["rows"]] == ["send_mail", "listMails"] and "date='2019-03-08'" in shown["rows"][1][1]
    assert "needs 'date'" in TASK.show(CASES[0], calls.write([call("bookTable")]))["error"]


def test_the_order_of_a_schema_s_properties_changes_neither_prompt_nor_grammar() -> None:
    def backwards(spec: dict[str, Any]) -> dict[str, Any]:
        body = spec.get("function", spec)
        parameters = dict(body["parameters"])
        parameters["properties"] = dict(reversed(parameters["properties"].items()))
        return {**body, "parameters": parameters}

    other = Toolset(TOOLSET.id, read_tools([backwards(spec) for spec in SPECS], "backwards"), TOOLSET.today)
    assert [list(f.parameters["properties"]) for f in other.functions] != [
        list(f.parameters["properties"]) for f in TOOLSET.functions
    ]
    for case in CASES:
        turned = replace(case, context=other)
        assert TASK.messages(turned, "compact") == TASK.messages(case, "compact")
        assert TASK.constraint(turned, "compact") == TASK.constraint(case, "compact")


def test_two_functions_of_one_name_are_refused() -> None:
    from factory.tasks.task import TaskError

    with pytest.raises(TaskError, match="two functions are called 'bookTable'"):
        Toolset("t", (FUNCTIONS[0], FUNCTIONS[0]))
    assert TOOLSET.by_name["bookTable"] is FUNCTIONS[0]

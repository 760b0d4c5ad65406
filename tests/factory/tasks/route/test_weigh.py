"""A label's probability against sums worked out from a model's own logits; figures of an evaluation against plain counting."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from agents.card import BaseEntry, Card
from agents.chat import Reply, TokenLogprob
from agents.choose import tokens_of
from agents.models.scripted import Scripted
from agents.persona import Persona
from factory.evaluate import evaluate
from factory.predictions import Prediction, calibration
from factory.tasks import get_task
from factory.tasks.route import summary as figures
from factory.tasks.route.labels import OUT_OF_SCOPE, make_set
from factory.tasks.route.summary import summarize
from factory.tasks.route.weigh import outside, probabilities, weigh
from factory.tasks.runtime import answerer
from factory.tasks.task import Example, TaskError
from tests.agents.conftest import llama as llama
from tests.agents.conftest import model_dir as model_dir
from tests.agents.test_choose import exact

TASK = get_task("route")
LABELS = make_set("desk", "desk", ["billing", "sales", "opening hours", "transfer"], True, "x")


def questions(n: int, reference: str = "billing") -> list[Example]:
    return [Example(str(i), f"how many rivers {i}", LABELS, LABELS.id, reference) for i in range(n)]


@pytest.mark.parametrize("dialect", ["plain", "compact"])
def test_probabilities_are_the_models(llama: Any, dialect) -> None:
    """Against every way of cutting every label into tokens, followed without the grammar engine or the kept log-probabilities."""
    examples = questions(4)
    scored = evaluate(TASK, llama, examples, dialect)
    texts = LABELS.completions(dialect)
    for example, prediction in zip(examples, scored.predictions):
        assert prediction.answer in LABELS.answers
        expected = dict(zip(LABELS.answers, exact(llama, TASK.messages(example, dialect), texts).values()))
        assert sum(expected.values()) == pytest.approx(1.0, abs=1e-6)
        best = max(p for label, p in expected.items() if label != OUT_OF_SCOPE)
        # A walk is one way of cutting a label; a random model spreads a little over the others.
        assert prediction.confidence == pytest.approx(expected[prediction.answer], abs=0.05)
        assert prediction.measures["doubt"] == pytest.approx(1 - best, abs=0.05)
        outside = expected[OUT_OF_SCOPE] / (expected[OUT_OF_SCOPE] + best)
        assert prediction.measures["outside"] == pytest.approx(outside, abs=0.05)


def test_a_persona_is_as_sure_as_the_evaluation(llama: Any) -> None:
    example = questions(1)[0]
    prediction = evaluate(TASK, llama, [example], "compact").predictions[0]
    from agents.chat import Request, Sampling, answer

    request = Request(messages=TASK.messages(example, "compact"), sampling=Sampling(logprobs=True),
                      constraint=TASK.constraint(example, "compact"))  # fmt: skip
    assert TASK.sure(answer(llama, [request])[0].logprobs) == pytest.approx(prediction.confidence, abs=1e-6)
    assert TASK.sure(()) is None


def test_mass_goes_where_the_walk_left() -> None:
    walk = [(b" b", -0.6931471805599453, ((b"<oos>", -1.3862943611198906), (b" s", -1.3862943611198906))), (b"illing", 0.0, ())]
    found = probabilities(LABELS, "compact", "billing", walk)
    assert found == pytest.approx({"billing": 0.5, "sales": 0.25, "opening hours": 0, "transfer": 0, OUT_OF_SCOPE: 0.25})
    assert weigh(LABELS, "compact", "billing", walk) == pytest.approx({"confidence": 0.5, "outside": 1 / 3, "doubt": 0.5})


def test_what_is_known_without_alternatives() -> None:
    assert weigh(LABELS, "compact", "billing", []) == {}
    walk = tokens_of(None, [TokenLogprob(token=" billing", logprob=-0.5)])
    assert weigh(LABELS, "compact", "billing", walk) == {"confidence": pytest.approx(0.6065, abs=1e-4)}
    closed = make_set("desk", "desk", ["billing", "sales"], False, "x")
    found = weigh(closed, "compact", "sales", [(b" sales", -0.1, ((b" billing", -2.352),))])
    assert found["outside"] == found["doubt"] == pytest.approx(1 - 0.9048, abs=1e-3)


class Says:
    """A model that gives these answers in turn, without log-probabilities, as an endpoint might."""

    name = "says"

    def __init__(self, *texts: str) -> None:
        self.texts, self.requests = texts, []

    def generate(self, requests):
        self.requests.extend(requests)
        for i, text in enumerate(self.texts[: len(requests)]):
            yield i, Reply(text=text)

    def close(self) -> None: ...


def test_out_of_scope_is_scored_apart() -> None:
    examples = [
        *questions(3),
        Example("o", "weather", LABELS, LABELS.id, OUT_OF_SCOPE),
        Example("p", "x", LABELS, LABELS.id, OUT_OF_SCOPE),
    ]
    model = Says("billing", "sales", OUT_OF_SCOPE, OUT_OF_SCOPE, "nonsense")
    found = evaluate(TASK, model, examples, "plain")
    assert (found.n, found.apart, found.score) == (3, 2, pytest.approx(1 / 3))
    assert found.metric == "in-scope accuracy"
    assert found.metrics == {"in-scope accuracy": pytest.approx(1 / 3), "out-of-scope recall": 0.5}
    assert found.errors_by_kind == {"wrong-label": 1, "false-alarm": 1, "unknown-label": 1}
    assert found.figures["out-of-scope recall"].value == 0.5
    assert found.figures["false alarms"].value == pytest.approx(1 / 3)
    assert figures.RECALL not in found.figures  # nothing is known of probabilities
    pairs = [(c.expected, c.answer, c.n) for c in found.confusions]
    assert pairs == [("billing", "out_of_scope", 1), ("billing", "sales", 1), ("out_of_scope", "(no label)", 1)]
    assert all(request.sampling.top_logprobs == 0 for request in model.requests)
    assert calibration(found.predictions) is None
    with pytest.raises(TaskError, match="none of 2 questions counts towards in-scope accuracy"):
        evaluate(TASK, model, examples[3:], "plain")


def prediction(i: int, outside: float, inside: bool, correct: bool = True, confidence: float = 0.9) -> Prediction:
    return Prediction(id=str(i), question="", context_id="", reference="a" if inside else OUT_OF_SCOPE, completion="", answer="a",
                      correct=correct, metrics={}, confidence=confidence, counted=inside,
                      measures={"outside": outside, "doubt": 1 - outside})  # fmt: skip


def test_figures_are_what_counting_gives() -> None:
    dice = random.Random(3)
    inside = [dice.betavariate(1, 4) for _ in range(200)]
    outside = [dice.betavariate(2, 2) for _ in range(50)]
    predictions = [prediction(i, s, True) for i, s in enumerate(inside)] + [
        prediction(i, s, False) for i, s in enumerate(outside)
    ]
    found = summarize(predictions).figures
    # Try every threshold: the best recall among those with at most ten of two hundred false alarms.
    allowed = [t for t in [*inside, *outside, 0.0] if sum(s > t for s in inside) <= 10]
    best = max(sum(s > t for s in outside) / 50 for t in allowed)
    assert found[figures.RECALL].value == pytest.approx(best)
    assert found[figures.RECALL].low < best < found[figures.RECALL].high
    pairs = [(a < b) + 0.5 * (a == b) for a in inside for b in outside]
    assert found[figures.AUROC].value == pytest.approx(sum(pairs) / len(pairs))
    assert found[f"{figures.AUROC}, by doubt alone"].value == pytest.approx(1 - found[figures.AUROC].value)


def test_the_calibration_error_is_that_of_the_cards_probability() -> None:
    predictions = [prediction(i, 0.1, True, correct=i % 2 == 0, confidence=0.9) for i in range(100)]
    raw = summarize(predictions).figures
    assert raw[figures.RAW_ERROR].value == pytest.approx(0.4)
    assert figures.ERROR not in raw
    assert summarize(predictions, ((0.9, 0.5),)).figures[figures.ERROR].value == pytest.approx(0.0)


def test_constant_scores_tell_nothing() -> None:
    found = summarize([prediction(0, 0.5, True), prediction(1, 0.5, False)]).figures
    assert found[figures.RECALL].value == 0.0
    assert found[figures.AUROC].value == 0.5
    assert figures.RECALL not in summarize([prediction(0, 0.5, True)]).figures


def test_thresholds_let_through_what_they_say() -> None:
    dice = random.Random(5)
    inside = [dice.random() for _ in range(300)]
    predictions = [prediction(i, s, True) for i, s in enumerate(inside)]
    assert figures.thresholds(predictions) == {}  # nothing out of scope was measured
    found = figures.thresholds([*predictions, prediction(-1, 0.9, False)])
    for name, edge in found.items():
        assert sum(s > edge for s in inside) == int(float(name) * 300)


def logprobs(*steps: tuple[str, dict[str, float]]) -> list[TokenLogprob]:
    """Tokens written, each with the probabilities of all that were allowed there."""
    return [TokenLogprob(token=taken, logprob=math.log(allowed[taken]),
                         top=tuple((None, text, math.log(p)) for text, p in allowed.items()))
            for taken, allowed in steps]  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "edge", "said"),
    [
        (" sales", 0.3, None),  # 0.2 / (0.2 + 0.5) = 0.286
        (" sales", 0.25, (OUT_OF_SCOPE, 0.2 / 0.7)),
        ("<oos>", 0.25, None),
        ("<oos>", 0.3, ("sales", 0.5)),
    ],
)
def test_the_rule_overrules_what_it_must(taken: str, edge: float, said) -> None:
    allowed = {" sales": 0.5, " billing": 0.3, "<oos>": 0.2}
    answer = LABELS.decode(taken, "compact")
    found = outside(LABELS, "compact", answer, logprobs((taken, allowed)), edge)
    assert found == (None if said is None else (said[0], pytest.approx(said[1])))
    assert outside(LABELS, "compact", answer, [TokenLogprob(token=taken, logprob=-0.1)], edge) is None


def test_a_persona_may_be_told_how_many_false_alarms_are_fine(tmp_path: Path) -> None:
    measured = [*(prediction(i, i / 100, True) for i in range(100)), prediction(-1, 0.9, False)]
    data = TASK.card_data(questions(1), [p.model_copy(update={"context_id": "desk"}) for p in measured])
    assert data["sets"][0]["outside_above"]["0.05"] == pytest.approx(0.94)
    data["sets"][0]["outside_above"]["0.1"] = 0.25
    card = Card(task="route", task_version=1, dialect="compact", prompt_template="route/compact/1", constraint="lark",
                parser="route/compact", base=BaseEntry(id="scratch:tiny"), created_by="penknife", task_data=data,
                reliability=((0.2, 0.1), (0.8, 0.7)))  # fmt: skip
    card.save(tmp_path)
    reply = Reply(text=" sales", logprobs=tuple(logprobs((" sales", {" sales": 0.5, " billing": 0.3, "<oos>": 0.2}))))
    model = Scripted([reply], repeat=True)
    usual = Persona.from_artifact(tmp_path, model=model, task=answerer)("sing")
    bound = Persona.from_artifact(tmp_path, model=model, task=answerer).task
    assert bound.ask("a").constraint is bound.ask("b").constraint  # read from the card once
    assert (usual.text, usual.confidence, usual.probability) == ("sales", pytest.approx(0.5), pytest.approx(0.4))
    assert model.requests[-1].sampling.top_logprobs == 0
    strict = Persona.from_artifact(tmp_path, model=model, task=answerer, false_alarms=0.1)("sing")
    assert (strict.text, strict.confidence, strict.probability) == (OUT_OF_SCOPE, pytest.approx(0.2 / 0.7), None)
    assert model.requests[-1].sampling.top_logprobs == TASK.alternatives
    with pytest.raises(TaskError, match=r"false_alarms=0\.3: choose from 0\.01, 0\.02, 0\.05, 0\.1"):
        Persona.from_artifact(tmp_path, model=model, task=answerer, false_alarms=0.3)

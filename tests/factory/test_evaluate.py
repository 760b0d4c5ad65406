"""`evaluate` on a toy task (answers are numbers) with a model that replies from a table."""

import math
from collections import Counter

import pytest

from agents.chat import Message, ModelError, Reply, TokenLogprob, Usage
from agents.constrain import Constraint
from factory.evaluate import evaluate
from factory.events import EventLog
from factory.predictions import calibration, keep_predictions, read_predictions
from factory.tasks.task import AnswerError, Example, Score, TaskError, Verdict


class Sums:
    """Questions like "2+3"; an answer is a number; zero "returns nothing" and negatives do not run."""

    name, version, metric = "sums", 1, "equal"

    def messages(self, example, dialect):
        return (Message(role="user", content=example.question),)

    def constraint(self, example, dialect):
        return Constraint(kind="regex", source="-?[0-9]+")

    def decode(self, example, completion, dialect):
        if not completion.strip().lstrip("-").isdigit():
            raise AnswerError("no-number", f"not a number: {completion}")
        return completion.strip()

    def score(self, example, answer):
        right = answer == example.reference
        parity = int(answer) % 2 == int(example.reference) % 2
        return Score(correct=right, metrics={"equal": right, "parity": parity}, error=None if right else "wrong-sum")

    def verify(self, example, answer):
        assert example.reference is None  # decoding must not see it
        return Verdict(ok=int(answer) > 0)

    def show(self, example, answer):
        if int(answer) < 0:
            return {"question": example.question, "answer": answer, "error": "negative"}
        return {"question": example.question, "answer": answer, "columns": ["sum"], "rows": [] if answer == "0" else [(answer,)]}


class Table:
    """Replies by question; a list gives one reply per candidate. Later requests finish first."""

    name = "table"

    def __init__(self, replies):
        self.replies, self.requests, self.asked = replies, [], {}

    def generate(self, requests):
        self.requests.extend(requests)
        for index in reversed(range(len(requests))):
            question = requests[index].messages[-1].content
            reply = self.replies[question]
            if isinstance(reply, list):
                # Candidates are told apart by their seed; the greedy one has none.
                number = 0 if requests[index].sampling.seed is None else requests[index].sampling.seed % 1000
                reply = reply[number]
            yield index, reply if isinstance(reply, Reply) else Reply(text=reply, usage=Usage(completion_tokens=len(reply)))

    def close(self):
        pass


def examples(*questions):
    return [Example(str(i), q, None, "none", reference=str(eval(q))) for i, q in enumerate(questions)]


def test_counts_scores_and_errors():
    model = Table(
        {
            "1+1": "2",
            "2+2": "6",
            "3+3": "three",
            "4+4": Reply(stop_reason="error", error="no route to host"),
            "5+5": Reply(text="1 0 1 0", stop_reason="length", truncated_prompt_tokens=7),
        }
    )
    log = EventLog()
    heard = []
    result = evaluate(Sums(), model, examples("1+1", "2+2", "3+3", "4+4", "5+5"), "plain", events=log, on_prediction=heard.append)
    assert (result.n, result.score) == (5, 0.2)
    assert result.errors_by_kind == {"wrong-sum": 1, "no-number": 1, "model-error": 1, "cut-off": 1}
    # Three answers never decoded: they are wrong in every metric.
    assert result.metrics == {"equal": 0.2, "parity": 0.4}
    assert result.interval == pytest.approx((0.0362, 0.6245), abs=1e-4)
    assert (result.truncated, result.cut) == (1, 1)
    assert [p.question for p in result.predictions] == ["1+1", "2+2", "3+3", "4+4", "5+5"]
    assert result.predictions[3].detail == "no route to host"
    assert sorted(p.id for p in heard) == ["0", "1", "2", "3", "4"]
    assert sum(e["kind"] == "warning" for e in log.events) == 2
    assert [e["score"] for e in log.events if e["kind"] == "metric"] == [0.2]
    assert set(result.summary()) == set(type(result).model_fields) - {"predictions"}


@pytest.mark.parametrize("constrained", [True, False])
def test_requests_are_greedy_and_constrained_as_asked(constrained):
    model = Table({"1+1": "2"})
    result = evaluate(Sums(), model, examples("1+1"), "plain", constrained=constrained, max_tokens=9)
    (request,) = model.requests
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.logprobs) == (0.0, 9, True)
    assert (request.constraint is not None) is constrained
    assert result.decoding == f"greedy, {'constrained' if constrained else 'unconstrained'}"


def test_a_server_that_takes_no_grammar_is_not_called_constrained():
    server = Table({"1+1": "2"})
    server.unconstrained = Counter({"lark": 1})
    log = EventLog()
    result = evaluate(Sums(), server, examples("1+1"), "plain", events=log)
    assert (result.constrained, result.decoding) == (False, "greedy, unconstrained")
    assert any("without their grammar" in e["message"] for e in log.events if e["kind"] == "warning")


def test_metric_that_does_not_apply_is_left_out_of_its_mean():
    class Partly(Sums):
        def score(self, example, answer):
            score = super().score(example, answer)
            return score if example.id == "0" else score.model_copy(update={"metrics": {"equal": score.correct}})

    result = evaluate(Partly(), Table({"1+1": "4", "2+2": "4"}), examples("1+1", "2+2"), "plain")
    assert result.metrics == {"equal": 0.5, "parity": 1.0}


def test_the_metric_that_decided_is_named():
    class NoRows(Sums):
        metric = "execution"

        def score(self, example, answer):
            score = super().score(example, answer)
            return score.model_copy(update={"metrics": {"a-parity": score.metrics["parity"], "equal": score.correct}})

    assert evaluate(NoRows(), Table({"1+1": "2", "2+2": "6"}), examples("1+1", "2+2"), "plain").metric == "equal"
    assert evaluate(NoRows(), Table({"1+1": "x"}), examples("1+1"), "plain").metric == "execution"


def test_execution_guided_takes_the_first_that_runs_and_returns_something():
    model = Table(
        {
            "1+1": ["2", "9", "9"],  # greedy runs: nobody else is asked
            "2+2": ["-4", "0", "4"],  # does not run; returns nothing; good
            "3+3": ["x", "-6", "0"],  # the best of a bad lot is the one that runs
            "4+4": ["0", "0", "0"],  # ties go to the greedy one
        }
    )
    result = evaluate(Sums(), model, examples("1+1", "2+2", "3+3", "4+4"), "plain", execution_guided=3, temperature=0.5, seed=1)
    assert [(p.answer, p.candidate) for p in result.predictions] == [("2", 0), ("4", 2), ("0", 2), ("0", 0)]
    assert len(model.requests) == 4 + 3 * 2
    assert {r.sampling.temperature for r in model.requests} == {0.0, 0.5}
    assert result.decoding == "execution-guided, 3 candidates, constrained"


def test_confidence_is_length_normalised():
    tokens = (TokenLogprob(token="1", logprob=math.log(0.5)), TokenLogprob(token="0", logprob=math.log(0.125)))
    model = Table({"5+5": Reply(text="10", logprobs=tokens), "1+1": "2"})
    result = evaluate(Sums(), model, examples("5+5", "1+1"), "plain")
    assert result.predictions[0].confidence == pytest.approx(0.25)  # geometric mean of 1/2 and 1/8
    assert result.predictions[1].confidence is None
    assert calibration(result.predictions).n == 1
    assert calibration(result.predictions).ece == pytest.approx(0.75)


def test_known_predictions_are_not_asked_again(tmp_path):
    questions = examples("1+1", "2+2", "3+3")
    replies = {"1+1": "2", "2+2": "5", "3+3": "6"}
    whole = evaluate(Sums(), Table(replies), questions, "plain")
    file = tmp_path / "predictions.jsonl"
    with keep_predictions(file, {"model": 1}) as (known, keep):
        assert known == []
        for prediction in whole.predictions[:2]:
            keep(prediction)
    with file.open("a") as opened:
        opened.write('{"id": "2", "quest')  # torn by a kill
    model = Table(replies)
    with keep_predictions(file, {"model": 1}) as (known, keep):
        again = evaluate(Sums(), model, questions, "plain", known=known, on_prediction=keep)
    assert [r.id for r in model.requests] == ["2"]
    assert [p.model_copy(update={"seconds": 0}) for p in again.predictions] == [
        p.model_copy(update={"seconds": 0}) for p in whole.predictions
    ]

    assert [p.id for p in read_predictions(file)] == ["0", "1", "2"]
    with keep_predictions(file, {"model": 2}) as (known, _):
        assert known == []


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match=r"predictions.jsonl, line 1: not a prediction"):
        read_predictions(file)


def test_a_first_batch_without_answers_stops():
    dead = Reply(stop_reason="error", error="connection refused")
    with pytest.raises(ModelError, match=r"table: not one of the first 2 questions got an answer \(connection refused\)"):
        evaluate(Sums(), Table(dict.fromkeys(("1+1", "2+2", "3+3"), dead)), examples("1+1", "2+2", "3+3"), "plain", batch=2)


def test_bad_examples_are_refused():
    model = Table({})
    with pytest.raises(TaskError, match="no questions"):
        evaluate(Sums(), model, [], "plain")
    with pytest.raises(TaskError, match="'7' has no reference"):
        evaluate(Sums(), model, [Example("7", "1+1", None, "none")], "plain")
    with pytest.raises(TaskError, match="two questions have the id '0'"):
        evaluate(Sums(), model, examples("1+1") + examples("2+2"), "plain")
    assert model.requests == []


def test_seconds_add_up():
    result = evaluate(Sums(), Table({"1+1": "2", "2+2": "4"}), examples("1+1", "2+2"), "plain", batch=1)
    assert result.seconds_per_example == pytest.approx(sum(p.seconds for p in result.predictions) / 2)
    assert all(p.seconds > 0 for p in result.predictions)

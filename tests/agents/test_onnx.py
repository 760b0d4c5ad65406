"""ONNX directories as models, against the transformers model they were made from."""

import pytest

pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")

from agents.chat import Message, ModelError, Request, Sampling, StreamingModel, answer
from agents.constrain import choice, json_schema, regex
from agents.models import open_model
from export.onnx import export
from tests.export.onnx_here import build_here
from tests.export.tiny_families import make_family

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n", "ok"],
          "additionalProperties": False}  # fmt: skip
TEXTS = ("hi", "how many rivers run through texas, and which is the longest of them?", "x", "the state of texas", "a b c d e f g")


def ask(text: str, **more) -> Request:
    sampling = Sampling(**{"max_tokens": 24, "logprobs": True, "top_logprobs": 3, **more.pop("sampling", {})})
    return Request(messages=(Message(role="user", content=text),), sampling=sampling, **more)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same model through transformers and through onnxruntime."""
    place = tmp_path_factory.mktemp("pair")
    model = make_family("smollm2", place / "model", seed=3)
    with pytest.MonkeyPatch.context() as patch:
        build_here(patch)
        made = export(model, precision="fp32", gate=False)
    ours = open_model(f"onnx:{made.path}", threads=1, batch=3)
    yield open_model(str(model)), ours
    ours.close()


def requests() -> list[Request]:
    out = [ask(text) for text in TEXTS]
    out += [ask(text, constraint=json_schema(SCHEMA)) for text in TEXTS]
    out += [ask(text, constraint=choice(["yes", "no", "perhaps later"])) for text in TEXTS]
    out += [ask(text, constraint=regex("[a-z ]{3,9}")) for text in TEXTS]
    return out


def same(ours, theirs) -> None:
    assert ours.text == theirs.text
    assert ours.stop_reason == theirs.stop_reason
    assert [token.id for token in ours.logprobs] == [token.id for token in theirs.logprobs]
    assert [token.token for token in ours.logprobs] == [token.token for token in theirs.logprobs]
    assert [token.logprob for token in ours.logprobs] == pytest.approx([t.logprob for t in theirs.logprobs], abs=1e-3)
    for one, other in zip(ours.logprobs, theirs.logprobs):
        assert [entry[2] for entry in one.top] == pytest.approx([entry[2] for entry in other.top], abs=1e-3)
    assert ours.usage == theirs.usage


def test_replies_are_those_of_transformers(pair):
    theirs, ours = pair
    asked = requests()
    for one, other in zip(answer(ours, asked), answer(theirs, asked), strict=True):
        same(one, other)


def test_sampled_with_a_seed_replies_are_those_of_transformers(pair):
    theirs, ours = pair
    asked = [ask(text, sampling={"temperature": 0.9, "top_p": p, "seed": i}) for i, text in enumerate(TEXTS) for p in (1.0, 0.7)]
    for one, other in zip(answer(ours, asked), answer(theirs, asked), strict=True):
        same(one, other)


def test_a_batch_answers_as_one_by_one(pair):
    _, ours = pair
    asked = requests()
    together = answer(ours, asked)
    alone = [answer(ours, [request])[0] for request in asked]
    assert [reply.text for reply in together] == [reply.text for reply in alone]


def test_stop_texts_cut_and_end(pair):
    theirs, ours = pair
    free = answer(ours, [ask("hi")])[0].text
    stop = free[6:9]
    asked = ask("hi", sampling={"stop": (stop,)})
    one, other = answer(ours, [asked])[0], answer(theirs, [asked])[0]
    same(one, other)
    assert one.stop_reason == "stop" and one.text == free[: free.index(stop)]


def test_streamed_pieces_are_the_reply(pair):
    _, ours = pair
    assert isinstance(ours, StreamingModel)
    for request in [*requests(), ask("hi", sampling={"stop": ("zq", "e")})]:
        *pieces, reply = ours.stream(request)
        assert "".join(pieces) == reply.text == answer(ours, [request])[0].text
    *pieces, reply = ours.stream(ask("hi", constraint=choice(["naïve — 東京 🌊 ok"])))
    assert len(pieces) > 5 and "".join(pieces) == reply.text == "naïve — 東京 🌊 ok"
    stream = ours.stream(ask("hi"))
    next(stream)
    stream.close()


def test_long_prompts_are_cut_and_counted(pair):
    theirs, ours = pair
    asked = ask("many rivers " * 400)
    one, other = answer(ours, [asked])[0], answer(theirs, [asked])[0]
    assert one.truncated_prompt_tokens == other.truncated_prompt_tokens > 0
    same(one, other)
    refused = answer(ours, [ask("hi", sampling={"max_tokens": 10**6})])[0]
    assert refused.stop_reason == "error" and "leaves no room" in (refused.error or "")


def test_static_beginnings_are_kept_and_change_nothing(pair):
    _, ours = pair
    system = Message(role="system", content="You answer questions about rivers and states, briefly and in lower case. " * 2)
    asked = [ask(text).model_copy(update={"messages": (system, Message(role="user", content=text))}) for text in TEXTS]
    plain = answer(ours, asked)
    kept = answer(ours, [request.model_copy(update={"static_messages": 1}) for request in asked])
    assert [reply.text for reply in kept] == [reply.text for reply in plain]
    reused = sorted(reply.usage.reused_tokens for reply in kept)
    assert reused[0] == 0 < 16 <= reused[1] == reused[-1] < kept[0].usage.prompt_tokens
    assert all(reply.usage.reused_tokens == 0 for reply in plain)


def test_time_limit_and_bad_constraints(pair):
    _, ours = pair
    late = answer(ours, [ask("hi", timeout_s=1e-9)])[0]
    assert late.stop_reason == "timeout" and late.usage.completion_tokens == 1
    from agents.constrain import Constraint

    bad = answer(ours, [ask("hi", constraint=Constraint(kind="lark", source="start: nowhere")), ask("hi")])
    assert bad[0].stop_reason == "error" and bad[0].error and bad[1].stop_reason != "error"


def test_what_cannot_be_opened_says_so(pair, tmp_path):
    with pytest.raises(ModelError, match="is no directory"):
        open_model(f"onnx:{tmp_path / 'nowhere'}")
    with pytest.raises(ModelError, match=r"no model.onnx there"):
        open_model(f"onnx:{tmp_path}")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    (tmp_path / "penknife.json").write_text('{"eos_ids": [1]}')
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        open_model(f"onnx:{tmp_path}")
    (tmp_path / "other.onnx").write_bytes(b"not a graph either")
    with pytest.raises(ModelError, match=r"other\.onnx: is not the graph this directory runs.*runs model\.onnx"):
        open_model(f"onnx:{tmp_path / 'other.onnx'}")
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": []}}')
    with pytest.raises(ModelError, match=r"genai_config\.json: its model is no JSON object"):
        open_model(f"onnx:{tmp_path}")
    (tmp_path / "genai_config.json").unlink()
    (tmp_path / "tokenizer.json").write_bytes((pair[1].directory.path / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        open_model(f"onnx:{tmp_path}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: is not UTF-8"):
        open_model(f"onnx:{tmp_path}")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"unknown option 'thread'; did you mean 'threads'"):
        open_model(f"onnx:{tmp_path}", thread=1)


def test_a_closed_model_says_so(pair):
    again = open_model(f"onnx:{pair[1].directory.path}", threads=1)
    again.close()
    again.close()
    with pytest.raises(ModelError, match="was closed"):
        answer(again, [ask("hi")])


def test_threads_share_one_model(pair):
    from concurrent.futures import ThreadPoolExecutor

    _, ours = pair
    asked = requests()[:10]
    alone = [reply.text for reply in answer(ours, asked)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [reply.text for reply in answer(ours, asked)], range(8)))
    assert found == [alone] * 8

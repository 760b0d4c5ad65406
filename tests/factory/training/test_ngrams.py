"""Models over n-grams: their counts and their fit by other means, and what they say token by token beside a language
model."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.models.decode import Batch, Row
from factory import ngrams
from factory.cli import run_cli
from factory.dataset import tokenize
from factory.ensemble import Ensemble
from factory.evaluate import main as evaluate_main
from factory.machine import Machine
from factory.ngram_member import NgramMember
from factory.ngram_model import NgramSet, fit, grams_of, load, save, vectors
from factory.ngrams import NgramSettings, is_ngrams, run
from factory.scratch import MARK
from factory.settings import DistillSettings, SettingsError, build
from factory.tasks import get_task
from factory.tasks.task import DataSource, TaskError
from factory.teacher import TeacherError, resolve_teacher
from factory.teachers_local import load_planned
from factory.topk import TopkStore, store_topk
from tests.factory.desk import SAID, write_questions
from tests.factory.tiny_models import make_model, make_tokenizer

ASKED = {**SAID, "billing address": ("change where bill {} goes", "send invoice {} to my new flat")}
"""With a label that another begins."""
OPENING = "<route> desk<q>"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("desk") / "desk.jsonl", ASKED)


@pytest.fixture(scope="module")
def made(questions: Path) -> Path:
    out = questions.parent / "ngrams"
    scores = run(build(NgramSettings, {"task": "route", "questions": questions, "out": out}, "test"))
    assert scores["desk"] > 0.95
    return out


@pytest.fixture(scope="module")
def speaker(questions: Path) -> tuple[Any, Path]:
    task: Any = get_task("route")
    examples, _ = task.load(DataSource(questions=questions))
    tokenizer = make_tokenizer(task.corpus(examples, "compact"))
    place = make_model("llama", tokenizer, questions.parent / "speaker", 0)
    (place / MARK).touch()  # asked in the compact dialect
    return tokenizer, place


def ids_of(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": OPENING + question}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_grams_are_words_pairs_and_the_characters_inside_words() -> None:
    found = list(grams_of(" my card", True))
    assert found[:3] == ["my", "card", "my card"]
    assert Counter(found[3:]) == Counter(
        "\t" + padded[i : i + n] for padded in (" my ", " card ") for n in (2, 3, 4, 5) for i in range(len(padded) - n + 1)
    )
    assert list(grams_of(" my card", False)) == ["my", "card", "my card"]


def test_a_fit_is_that_of_plain_gradient_descent() -> None:
    """The same TF-IDF by hand, the same loss by full-batch descent: Adam's answer must be close to as good, and agree."""
    asked = [("a b", "x"), ("a c", "x"), ("b d", "y"), ("c d", "y"), ("a d d", "y"), ("a b c", "x")] * 3
    model = fit(OPENING, asked, ["x", "y", "never"], False, 80, 0)
    counts = Counter(gram for text, _ in asked for gram in set(grams_of(text, False)))
    assert set(model.vocabulary) == {gram for gram, n in counts.items() if n >= 2}
    rows = []
    for text, _ in asked:
        row = torch.zeros(len(model.vocabulary))
        for gram, n in Counter(grams_of(text, False)).items():
            row[model.vocabulary[gram]] = (1 + math.log(n)) * (math.log((1 + len(asked)) / (1 + counts[gram])) + 1)
        rows.append(row / row.norm())
    dense = torch.stack(rows)
    ids, values, offsets = vectors([model.row(text) for text, _ in asked])
    ours = torch.zeros_like(dense)
    for n, start in enumerate(offsets.tolist()):
        end = offsets.tolist()[n + 1] if n + 1 < len(offsets) else len(ids)
        ours[n, ids[start:end]] = values[start:end]
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(
        model.log_probabilities([text for text, _ in asked]), (dense @ model.weight + model.bias).log_softmax(-1)
    )
    answers = torch.tensor(["xy".index(answer) for _, answer in asked])
    weight = torch.zeros(len(model.vocabulary), 3, requires_grad=True)
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(dense @ weight, answers)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            weight -= weight.grad
            weight.grad = None
    assert model.log_probabilities([text for text, _ in asked]).argmax(-1).tolist() == (dense @ weight).argmax(-1).tolist()
    ours_loss = float(-model.log_probabilities([text for text, _ in asked])[range(len(asked)), answers].mean())
    assert ours_loss < 0.3 and loss.item() < 0.3
    assert model.log_probabilities(["a"])[0, 2] < math.log(0.2), "an answer that never was right is unlikely"


def test_a_hidden_layer_learns_what_no_sum_over_grams_can_say() -> None:
    """Which of two words comes first and which of two last, apart: right where exactly one is the second of its pair."""
    asked = [(f" {a} so {b}", "y" if (a == "red") != (b == "old") else "x") for a in ("red", "tan") for b in ("old", "new")] * 60
    texts = sorted({text for text, _ in asked})
    wanted = [dict(asked)[text] for text in texts]

    def right(hidden: int) -> list[bool]:
        model = fit(OPENING, asked, ["x", "y"], False, 40, 0, hidden)
        best = model.log_probabilities(texts).argmax(-1).tolist()
        return [model.completions[i] == answer for i, answer in zip(best, wanted)]

    assert right(16) == [True] * 4
    assert sum(right(0)) < 4


def test_a_hidden_layer_is_computed_as_written_and_fitted_the_same_again(tmp_path: Path) -> None:
    asked = [("a b", "x"), ("a c", "x"), ("b d", "y"), ("c d", "y"), ("a d d", "y"), ("a b c", "x")] * 3
    model, again = (fit(OPENING, asked, ["x", "y", "never"], True, 5, 7, 8) for _ in range(2))
    assert model.head is not None and model.weight.shape == (len(model.vocabulary), 8) and model.head.shape == (8, 3)
    torch.testing.assert_close(again.weight, model.weight, rtol=0, atol=0)
    ids, values = model.row("a d c")
    inner = sum(value * model.weight[i] for i, value in zip(ids, values))
    gelu = inner * (1 + torch.special.erf(inner / math.sqrt(2))) / 2
    torch.testing.assert_close(model.log_probabilities(["a d c"])[0], (gelu @ model.head + model.bias).log_softmax(-1))
    save([model], tmp_path / "made")
    [read] = load(tmp_path / "made")
    texts = ["a d c", "d", "b a", ""]
    torch.testing.assert_close(read.log_probabilities(texts), model.log_probabilities(texts), rtol=0, atol=0)
    for i, broken in enumerate(
        (
            replace(model, head=model.head[:4]),
            replace(model, head=None),
            replace(model, bias=model.bias[:2]),
            replace(model, head=model.head[:, :2]),
        )
    ):
        save([broken], tmp_path / str(i))
        with pytest.raises(ValueError, match="its weights do not fit its grams"):
            load(tmp_path / str(i))


def test_what_was_written_is_read_back_and_damage_is_told(made: Path, tmp_path: Path) -> None:
    [one] = load(made)
    assert is_ngrams(made) and not is_ngrams(tmp_path) and one.characters and one.opening == OPENING
    assert set(one.completions) == {" billing", " billing address", " support"}
    again = tmp_path / "again"
    shutil.copytree(made, again)
    listed = json.loads((again / "grams.json").read_text())
    listed[0][0], listed[0][1] = listed[0][1], listed[0][0]
    (again / "grams.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"grams.json is not the one it was made with; make it again with python -m factory"):
        load(again)
    (again / "config.json").write_text('{"model_type": "penknife-ngrams"}')
    shutil.copyfile(made / "grams.json", again / "grams.json")
    shutil.copyfile(made / "config.json", again / "config.json")
    (again / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a whole n-gram model"):
        load(again)
    (again / "config.json").write_text('{"model_type": "penknife-ngrams"}')
    with pytest.raises(ValueError, match="not a whole n-gram model"):
        load(again)


def chain(member: NgramMember, tokenizer: Any, question: str, completion: str) -> float:
    """Log-probability of a whole completion and its end, by the product over its tokens."""
    prompt = ids_of(tokenizer, question)
    said = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    logits = member(input_ids=torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
    return float(sum(logits[len(prompt) - 1 + n, token] for n, token in enumerate(said)))


def test_the_tokens_of_an_answer_multiply_to_its_probability(made: Path, speaker: tuple[Any, Path]) -> None:
    """Also where one answer (billing) begins another (billing address)."""
    tokenizer, _ = speaker
    sets = load(made)
    member = NgramMember(sets, tokenizer)
    for question in (" invoice 3 is wrong", " the app crashed", " something else"):
        whole = sets[0].log_probabilities([question])[0]
        for completion, expected in zip(sets[0].completions, whole.tolist()):
            assert chain(member, tokenizer, question, completion) == pytest.approx(expected, abs=1e-3)


def test_it_says_nothing_about_prompts_and_of_others_prompts(made: Path, speaker: tuple[Any, Path]) -> None:
    tokenizer, _ = speaker
    member = NgramMember(load(made), tokenizer)
    prompt = ids_of(tokenizer, " refund payment 1")
    logits = member(input_ids=torch.tensor([prompt])).logits[0]
    assert logits[:-1].isnan().all() and not logits[-1].isnan().any() and member.silent == len(prompt) - 1
    other = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False)
    assert member(input_ids=tokenizer(other, add_special_tokens=False, return_tensors="pt").input_ids).logits.isnan().all()
    strange = [*prompt, prompt[0], prompt[1]]
    assert member(input_ids=torch.tensor([strange])).logits[0, -1].isnan().all(), "an answer that is none"


def test_where_it_says_nothing_the_language_model_speaks_alone(made: Path, speaker: tuple[Any, Path]) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer, place = speaker
    language: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    both = Ensemble([language, NgramMember(load(made), tokenizer)], len(tokenizer), geometric=True)
    prompt = torch.tensor([ids_of(tokenizer, " refund payment 1")])
    with torch.inference_mode():
        alone = language(input_ids=prompt).logits[0].log_softmax(-1)
        found = both(input_ids=prompt).logits[0]
    torch.testing.assert_close(found[:-1], alone[:-1])
    assert (found[-1] - alone[-1]).abs().max() > 1


def test_beside_a_language_model_it_decodes_and_grades_as_anew(made: Path, speaker: tuple[Any, Path], tmp_path: Path) -> None:
    """Left-padded, cached, rows ending apart; and the stored probabilities are the normalized geometric mean."""
    from transformers import AutoModelForCausalLM

    tokenizer, place = speaker
    language: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    sets = load(made)
    both = Ensemble([language, NgramMember(sets, tokenizer)], len(tokenizer), geometric=True)

    def mean(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            one = language(input_ids=torch.tensor([ids])).logits[0, :, : len(tokenizer)].log_softmax(-1)
            other = NgramMember(sets, tokenizer)(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return torch.where(other.isnan(), one, ((one + other) / 2).log_softmax(-1))

    asked = (" refund payment 3", " the app crashed 7 times", " send invoice 2 to my new flat")
    rows, wanted = [], []
    for question, length in zip(asked, (2, 4, 3)):
        prompt = ids_of(tokenizer, question)
        ids = list(prompt)
        for _ in range(length):
            ids.append(int(mean(ids)[-1].argmax()))
        wanted.append(ids[len(prompt) :])
        rows.append(Row(prompt, length))
    batch = Batch(both, rows, pad_id=0)
    for _ in range(4):
        batch.forward()
        batch.choose(None)
        batch.drop({i for i, row in enumerate(batch.rows) if len(row.tokens) >= row.max_tokens})
    assert [row.tokens for row in rows] == wanted

    given = [{"id": q, "prompt": [{"role": "user", "content": OPENING + q}], "completion": " billing address"} for q in asked]
    tokens = tokenize(given, tokenizer, 64)
    store_topk(tokens, both, tmp_path, 6, len(tokenizer), "both", batch=2)
    store = TopkStore.open(tmp_path)
    for i in range(3):
        ids_, logprobs = store.row(tokens.key(i))
        best = mean(tokens.row(i).tolist())[int(tokens.prompt_lengths[i]) - 1 : -1].topk(6, -1)
        torch.testing.assert_close(torch.from_numpy(logprobs.copy()).float(), best.values, rtol=2e-3, atol=2e-2)
        assert ids_[:, 0].tolist() == best.indices[:, 0].tolist()


def test_a_spec_takes_it_beside_language_models_only(made: Path, speaker: tuple[Any, Path], tmp_path: Path) -> None:
    _, place = speaker
    settings = DistillSettings(task="route", teacher="x", method="logits")
    plan = resolve_teacher(f"ensemble:{made},{place}", settings)
    assert plan.members == (str(place), str(made)) and plan.location == str(place), "the language model comes first"
    model, tokenizer = load_planned(plan)
    assert isinstance(model, Ensemble) and model.geometric and isinstance(model.members[1], NgramMember)
    assert len(tokenizer) == model.vocab
    with pytest.raises(TeacherError, match="n-grams teach beside a language model only; give ensemble:embedded-base,"):
        resolve_teacher(str(made), settings)
    shutil.copytree(made, tmp_path / "other")
    with pytest.raises(TeacherError, match="n-gram models have no tokenizer; give a language model beside them"):
        resolve_teacher(f"ensemble:{made},{tmp_path / 'other'}", settings)
    with pytest.raises(TeacherError, match=r"learned the task 'route', not 'sql'; make others with python -m factory.ngrams"):
        resolve_teacher(f"ensemble:{place},{made}", DistillSettings(teacher="x", method="logits"))


def test_n_grams_of_other_data_are_refused(made: Path, questions: Path, tmp_path: Path) -> None:
    """Before any language model is loaded: another set, and the same with a label that they never learned."""
    task: Any = get_task("route")
    examples, _ = task.load(DataSource(questions=questions))
    ngrams.check_learned(made, task, examples)
    with pytest.raises(TeacherError, match=r"never learned the set 'clinc150'; make them from the same data: python -m factory"):
        ngrams.check_learned(made, task, [*examples, *task.load(DataSource(dataset="clinc150", limit=1))[0]])
    grown = tmp_path / "desk.jsonl"
    grown.write_text(questions.read_text() + '{"question": "who works today", "label": "staff"}\n' * 2)
    with pytest.raises(TeacherError, match="never learned the answer 'staff' of 'desk'"):
        ngrams.check_learned(made, task, task.load(DataSource(questions=grown))[0])


def test_an_ensemble_is_scored_by_its_spec(
    made: Path, speaker: tuple[Any, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random language model beside the n-grams: their score is near that of the n-grams, not near chance."""
    _, place = speaker
    document = tmp_path / "scores.json"
    spec = f"ensemble:{place},{made}"
    assert run_cli(evaluate_main, [spec, "--task", "route", "--questions", str(questions), "--json", str(document)]) == 0
    said = json.loads(document.read_text())
    assert said["n"] == 240 and said["score"] > 0.8 and said["model"] == spec and said["model_bytes"] > 10_000
    assert run_cli(evaluate_main, [f"ensemble:{place},nothing", "--task", "route", "--questions", str(questions)]) == 2
    said = capsys.readouterr().err
    assert "error: 'ensemble:" in said and "there is no directory nothing" in said and "--teacher" not in said
    damaged = tmp_path / "damaged"
    shutil.copytree(made, damaged)
    (damaged / "grams.json").write_text("[]")
    assert run_cli(evaluate_main, [f"ensemble:{place},{damaged}", "--task", "route", "--questions", str(questions)]) == 2
    said = capsys.readouterr().err
    assert "its grams.json is not the one it was made with" in said and "make it again with" in said and "--teacher" not in said


def test_a_teacher_is_as_wide_as_the_processor_wants(speaker: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bfloat16 in hardware in float32, where that fits twice as much memory."""
    _, place = speaker
    plan = resolve_teacher(str(place), DistillSettings(task="route", teacher="x"), Machine(0.0, 16.0, 100.0, place))
    for bf16, have, expected in ((True, 16.0, torch.bfloat16), (False, 16.0, torch.float32), (False, 1.0, torch.bfloat16)):
        monkeypatch.setattr("factory.train.cpu_has_bf16", lambda bf16=bf16: bf16)
        model, _ = load_planned(replace(plan, have_gb=have))
        assert model.dtype == expected


def test_what_cannot_be_learned_or_written_is_refused(questions: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="its answers are no closed set"):
        run(build(NgramSettings, {"task": "sql", "out": tmp_path / "a"}, "test"))
    with pytest.raises(SettingsError, match="is there already; give another directory, or remove it"):
        run(build(NgramSettings, {"task": "route", "questions": questions, "out": made}, "test"))
    with pytest.raises(SettingsError, match="hidden"):
        ngrams.main(["--task", "route", "--hidden", "-1"])
    with pytest.raises(SettingsError, match="letters"):
        ngrams.main(["--task", "route", "--grams", "letters"])
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"question": f"who is number {i}"}) + "\n" for i in range(30)))
    (tmp_path / "labels.json").write_text(json.dumps(["one", "two"]))
    settings = build(
        NgramSettings, {"task": "route", "questions": bare, "labels": tmp_path / "labels.json", "out": tmp_path / "a"}, "t"
    )
    with pytest.raises(TaskError, match=r"bare.jsonl: none of \d+ questions can be learned from.*; give rows with a label"):
        run(settings)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bare.jsonl", "labels.json"]


def test_a_model_that_cannot_be_written_leaves_nothing(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("factory.ngram_model.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run(build(NgramSettings, {"task": "route", "questions": questions, "epochs": 1, "out": tmp_path / "a"}, "t"))
    assert not list(tmp_path.iterdir())


def test_a_set_without_a_question_has_every_answer(tmp_path: Path) -> None:
    model: NgramSet = fit(OPENING, [("a b", "x"), ("a b", "x")], ["x", "y"], True, 1, 0)
    assert model.log_probabilities(["", "unknown words"]).exp().sum(-1).tolist() == pytest.approx([1.0, 1.0])

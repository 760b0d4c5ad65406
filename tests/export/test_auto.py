"""What auto tries and takes: recipes against what they become, the choice against measurements given by hand, one real search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.auto import RECIPES, candidates, choose, pick
from export.errors import ExportError
from export.gate import GateReport, GateSettings
from export.paired import Paired
from export.quant_types import Recipe, predict
from export.source import Source
from export.target import parse_target
from export.workshop import Made, Workshop, exact_type
from factory.events import EventLog
from tests.export.tiny_families import TEXTS, make_family

NEEDS_LLAMA = 'needs llama.cpp: pip install "penknife[gguf]"'


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Source:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    return Source.open(make_family("smollm2", tmp_path_factory.mktemp("auto") / "even", **shape))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source.open(make_family("smollm2", tmp_path_factory.mktemp("auto") / "odd"))


def made(source: Source, recipe: Recipe, size: int, drop: float | None, decode: float | None = None) -> Made:
    """A file that was measured: `drop` None is one its engine could not use."""
    paired = None if drop is None else Paired(n=1000, only_source=1, only_file=1, drop=drop, low=drop - 1, high=drop + 1, p=1.0)
    bad = drop is None or drop > 0.5
    report = GateReport(file="f", verdict="rejected" if bad else "kept", source="s", source_sha256="0", paired=paired,
                        sentence=f"loses {drop}" if drop is not None else "its engine died")  # fmt: skip
    return Made(Path("f"), recipe, predict(source.plan, recipe), size, 4.5, (), report, decode)


def test_candidates_go_from_large_to_small_and_none_is_another_one(even):
    trials, left_out = candidates(even.plan, True, None)
    sizes = [prediction.tensor_bytes for _, prediction in trials]
    assert sizes == sorted(sizes, reverse=True)
    assert {recipe for recipe, _ in trials} == {recipe for recipe in RECIPES if recipe.fallback == "same"}
    assert left_out == []
    assert len({tuple(sorted(prediction.types.items())) for _, prediction in trials}) == len(trials)


def test_types_that_fall_back_to_one_another_are_tried_once(odd):
    trials, left_out = candidates(odd.plan, True, None)
    labels = [recipe.quant for recipe, _ in trials]
    reasons = dict(left_out)
    assert "Q6_K" not in labels
    assert {recipe.label for recipe, _ in trials} >= {"Q4_K_M", "Q4_K_M, larger fall-backs"}
    assert reasons["Q6_K"] == "every tensor becomes what it is in Q8_0"


def test_without_calibration_rows_no_candidate_uses_importance(even):
    trials, left_out = candidates(even.plan, False, None)
    assert not any(recipe.importance for recipe, _ in trials)
    assert ("IQ3_XXS", "needs an importance matrix, and there are no calibration rows") in left_out


def test_with_a_target_only_what_fits_is_tried(even):
    limit = predict(even.plan, Recipe("Q5_0")).tensor_bytes / 1e6
    trials, left_out = candidates(even.plan, True, parse_target(str(limit)))
    assert all(prediction.tensor_bytes <= limit * 1e6 for _, prediction in trials)
    assert {label for label, _ in left_out} >= {"Q8_0", "Q6_K"}
    assert "MB asked for" in dict(left_out)["Q8_0"]


def test_the_smallest_good_file_is_taken_and_the_fastest_of_about_its_size(even):
    large, near, small = Recipe("Q8_0"), Recipe("Q4_K_M"), Recipe("IQ4_XS")
    tried = [made(even, large, 400, 0.0, 500.0), made(even, near, 205, 0.4, 130.0), made(even, small, 200, 0.3, 100.0),
             made(even, Recipe("Q3_K_M"), 150, 0.9), made(even, Recipe("IQ3_XXS"), 120, None)]  # fmt: skip
    picked, why = pick(tried, 0.5)
    assert picked.recipe == near
    assert "fastest (130 tokens/s; IQ4_XS 100)" in why
    assert "smaller ones are worse (Q3_K_M 0.90, IQ3_XXS: its engine died)" in why and "questions" not in why
    assert pick([tried[0], tried[2], tried[3]], 0.5)[0].recipe == small


@pytest.mark.parametrize(("n", "high", "said"), [(100, 3.7, True), (100, 0.9, False), (499, 1.01, True), (500, 3.7, False)])
def test_few_questions_are_said_with_the_choice(even, n, high, said):
    file = made(even, Recipe("Q8_0"), 400, 0.0)
    paired = file.report.paired.model_copy(update={"n": n, "high": high})
    picked, why = pick([replace(file, report=file.report.model_copy(update={"paired": paired}))], 0.5)
    assert picked.recipe == file.recipe
    assert (f"only {n} questions were asked, so that it may lose up to {high:.2f} points" in why) is said


def test_when_none_is_good_enough_the_best_is_named(even):
    with pytest.raises(
        ExportError, match=r"not one of 2 files stays within --max-drop 0.5; the best, Q8_0: loses 0.6; give a larger"
    ):
        pick([made(even, Recipe("Q8_0"), 400, 0.6), made(even, Recipe("Q4_0"), 200, 3.0)], 0.5)


class Bench(Workshop):
    """A workshop whose files were measured beforehand."""

    def __init__(self, source: Source, drops: dict[str, float]) -> None:
        super().__init__(source, Path("out.gguf"), Path(), Path("rows.jsonl"), 1, EventLog())
        self.drops, self.asked = drops, []

    def make(self, recipe: Recipe) -> Made:
        self.asked.append(recipe.quant)
        return made(self.source, recipe, predict(self.source.plan, recipe).tensor_bytes, self.drops.get(recipe.quant, 5.0))

    def check(self, made: Made, settings: GateSettings) -> Made:
        return made


def test_two_bad_files_in_a_row_end_the_search(even):
    drops = {"Q8_0": 0.0, "Q6_K": 0.1, "Q5_0": 0.7, "Q5_K_M": 0.2}
    bench = Bench(even, drops)
    choice = choose(bench, GateSettings(), None, lambda file: 100.0)
    order = [recipe.quant for recipe, _ in candidates(even.plan, True, None)[0]]
    assert bench.asked == order[: order.index("Q5_K_M") + 3]
    assert choice.picked.recipe.quant == "Q5_K_M"
    assert all("2 larger files in a row" in why for label, why in choice.skipped)
    assert len(choice.tried) + len(choice.skipped) == len([recipe for recipe in RECIPES if recipe.fallback == "same"])


def test_the_intermediate_file_loses_nothing(even, tmp_path):
    assert exact_type(even) == "F32"
    assert exact_type(Source.open(make_family("qwen2", tmp_path / "b", dtype="bfloat16"))) == "BF16"
    assert exact_type(Source.open(make_family("gemma2", tmp_path / "g", dtype="bfloat16", query_pre_attn_scalar=64))) == "F32"


@pytest.mark.slow
def test_a_real_search_takes_a_file_that_was_measured(even, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    from export.gguf import export

    monkeypatch.setattr("export.auto.RECIPES", (Recipe("Q8_0"), Recipe("Q4_K_M", importance=True)))
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS))
    result = export(even.path, quant="auto", calibration=tmp_path / "rows.txt", out=tmp_path / "auto.gguf", threads=1)
    assert result.kept and result.checked
    assert [row["recipe"] for row in result.candidates] == ["Q8_0", "Q4_K_M"]
    assert all(row["decode_tokens_per_s"] > 0 and row["kld"] > 0 for row in result.candidates)
    assert result.bytes == min(row["bytes"] for row in result.candidates)

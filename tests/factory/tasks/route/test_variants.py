"""An utterance in other ways: some words lost, never its label, never all of it."""

from __future__ import annotations

from random import Random

from factory.tasks import get_task
from factory.tasks.route.task import lose_words
from factory.tasks.task import DataSource, HasVariants


def test_a_variant_asks_for_the_same_label_with_some_of_the_words() -> None:
    task = get_task("route")
    assert isinstance(task, HasVariants)
    examples, _ = task.load(DataSource(dataset="banking77", split="validation", limit=50, seed=1))
    random, thinner = Random(3), 0
    for example in examples:
        assert example.reference is not None
        _, messages, completion = task.variant(example, example.reference, "compact", random)
        said = messages[-1].content.split()
        whole = task.messages(example, "compact")[-1].content.split()
        assert task.decode(example, completion, "compact") == example.reference
        left = iter(whole)
        assert all(word in left for word in said), "the words that stay keep their order"
        thinner += len(said) < len(whole)
    assert 10 < thinner < 50


def test_short_texts_stay_whole() -> None:
    assert all(lose_words("thanks", Random(seed)) == "thanks" for seed in range(20))
    assert all(len(lose_words("where is it", Random(seed), 0.9).split()) >= 2 for seed in range(20))

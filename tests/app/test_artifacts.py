"""Models there are to ask: adapters on the base they share, and the three-blade graph on one loaded base."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agents.chat import ModelError
from app import artifacts
from app.blades import ACCOUNTS, BladesState
from app.wiring import BUNDLED, Setup, Workshop

needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


def test_a_shipped_adapter_is_a_model_on_the_base_it_was_trained_on(tmp_path: Path) -> None:
    found, left_out = artifacts.find_artifacts(tmp_path / "none")
    laid = {one.card.task: one for one in found if one.base is not None}
    assert left_out == [] and set(laid) == {"route", "tools", "sql"}
    for one in laid.values():
        assert one.opened is one.base and one.spec == f"gguf:{one.base.path}"
        assert one.card.file is not None and one.base.card.file is not None
        assert one.card.file.base_sha256 == one.base.card.file.source_sha256
        assert one.base.path.name in one.label


def test_an_adapter_without_its_base_is_no_model(tmp_path: Path) -> None:
    alone = tmp_path / "embedded"
    alone.mkdir()
    sql = next(one for one in artifacts.find_artifacts(tmp_path / "none")[0] if one.base is not None)
    (alone / sql.path.name).write_bytes(sql.path.read_bytes())
    assert artifacts.find_artifacts(tmp_path / "none", alone) == ([], [])


def test_another_adapter_must_be_one_of_the_base(tmp_path: Path) -> None:
    whole = next(one for one in artifacts.find_artifacts(tmp_path / "none")[0] if one.base is None and one.kind == "gguf")
    with pytest.raises(ModelError, match="is no adapter for"):
        artifacts.on_one_base(whole.path)


@needs_llama
def test_three_personas_answer_on_one_loaded_base() -> None:
    shared = artifacts.on_one_base()
    assert shared is not None
    shop = Workshop()
    try:
        setup = Setup(shared["sql"], BUNDLED, graph="blades", route=shared["route"], tools=shared["tools"])
        graph = shop.graph(setup)
        asked = graph.run(BladesState(**setup.first_state("How many moons does Saturn have?"))).state
        assert shop.models_open == 1
        with closing(sqlite3.connect(f"file:{BUNDLED}?mode=ro", uri=True)) as db:
            assert asked.rows == [list(row) for row in db.execute(asked.sql)]
        called = graph.run(BladesState(**setup.first_state("what is the balance of my savings account"))).state
        assert called.label == "balance" and called.sql == "" and called.answer == f"{ACCOUNTS['savings']:.2f}"
        assert shop.models_open == 1
    finally:
        shop.close()

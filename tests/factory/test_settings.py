"""One settings object: command line, configuration file and Python call agree, and every wrong value is one sentence."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from factory.settings import (
    DistillSettings,
    EvaluateSettings,
    FinetuneSettings,
    SettingsError,
    StudentSettings,
    build,
    choices,
    parse,
    parser,
    to_toml,
)

CLASSES = [DistillSettings, FinetuneSettings, EvaluateSettings]


def parsed(*arguments: str, cls: type = DistillSettings):
    return parse(cls, arguments, "python -m factory.distill")


def test_command_line_file_and_call_are_one_object(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(
        'teacher = "mixtral"\nrank = 8\nbudget_usd = 2.5\nprice_in = 1\nprice_out = 2\nforce = true\ndb = "a.sqlite"\n'
    )
    line = ["--teacher", "mixtral", "--rank", "8", "--budget-usd", "2.5", "--price-in", "1", "--price-out", "2", "--force",
            "--db", "a.sqlite"]  # fmt: skip
    call = {"teacher": "mixtral", "rank": 8, "budget_usd": 2.5, "price_in": 1, "price_out": 2, "force": True, "db": "a.sqlite"}
    made = build(DistillSettings, call, "factory.distill")
    assert made == parsed(*line) == parsed("--config", str(file))
    assert made.db == Path("a.sqlite")


def test_what_is_typed_wins_over_the_file(tmp_path):
    (tmp_path / "my.toml").write_text("rank = 8\nseed = 3\nforce = true\n")
    made = parsed("--config", str(tmp_path / "my.toml"), "--rank", "4", "--no-force")
    assert (made.rank, made.seed, made.force) == (4, 3, False)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_is_an_option_with_help(cls):
    text = parser(cls, "prog", "about").format_help()
    for name, field in cls.model_fields.items():
        assert ("--" + (field.alias or name).replace("_", "-") in text) or field.is_required()
        assert field.description


def test_settings_written_as_toml_are_read_back(tmp_path):
    made = DistillSettings(
        db=Path('odd "name" \\ ü.sqlite'),
        questions=Path("q.jsonl"),
        minutes=7,
        learning_rate=1e-5,
        dry_run=True,
        adapter="lora",
        epochs=0.5,
    )
    file = tmp_path / "config.toml"
    file.write_text(to_toml(made), encoding="utf-8")
    assert parsed("--config", str(file)) == made
    assert tomllib.loads(to_toml(DistillSettings())).keys() >= {"task", "teacher", "rank"}
    assert "minutes" not in tomllib.loads(to_toml(DistillSettings()))


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        DistillSettings().rank = 4


def test_every_default_but_none_survives_the_file(tmp_path):
    """None is left out of the file, so it must be the default wherever it is allowed."""
    for cls in (DistillSettings, FinetuneSettings):
        for name, field in cls.model_fields.items():
            if "None" in str(field.annotation):
                assert field.default is None, name


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rank": "zz"}, "call: rank cannot be 'zz'"),
        ({"rank": 0}, "rank cannot be 0: input should be greater than or equal to 1"),
        ({"answers": "labels"}, "--answers labels is for --method logits, not 'sft'"),
        ({"answers": "both", "db": "shop.sqlite", "teacher": "templates"}, "--answers both needs questions with answers"),
        ({"method": "dpo"}, "method cannot be 'dpo': choose from sft, logits, on-policy"),
        ({"adapter": 3}, "adapter cannot be 3: choose from lora, qlora, dora, none"),
        ({"epochs": float("inf")}, "epochs cannot be inf"),
        ({"learning_rate": float("nan")}, "learning-rate cannot be nan"),
        ({"force": "maybe"}, "force cannot be 'maybe'"),
        ({"db": "a", "dataset": "b"}, "give --dataset or --db, not both"),
        ({"questions": "a"}, "--questions needs --db"),
        ({"method": "on-policy"}, "--method on-policy needs a teacher that gives probabilities"),
        ({"rnak": 4}, "unknown setting 'rnak'; did you mean 'rank'? known ones: "),
        ({"zzz": 4}, "unknown setting 'zzz'; known ones: "),
    ],
)
def test_a_wrong_value_is_one_sentence(values, says):
    with pytest.raises(SettingsError) as error:
        build(DistillSettings, values, "call")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_settings_of_one_command_are_unknown_to_another():
    with pytest.raises(SettingsError, match="unknown setting 'teacher'"):
        build(FinetuneSettings, {"teacher": "mixtral"}, "call")
    with pytest.raises(SettingsError, match="did you mean --teacher"):
        parsed("--teachr", "x")


def test_the_model_of_evaluate_is_positional(tmp_path):
    assert parsed("ckpt/", "--json", "s.json", cls=EvaluateSettings).json_file == Path("s.json")
    (tmp_path / "my.toml").write_text('model = "ckpt/"\njson = "s.json"\n')
    assert parsed("--config", str(tmp_path / "my.toml"), cls=EvaluateSettings).model == "ckpt/"
    with pytest.raises(SettingsError, match="MODEL is missing"):
        parsed(cls=EvaluateSettings)


def test_options_are_not_guessed_from_their_beginning():
    with pytest.raises(SettingsError, match="--teach"):
        parsed("--teach", "mixtral")


def test_help_lists_choices_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sft|logits|on-policy" in text
    assert "(default: scratch:tiny)" in text


def test_choices_of_optional_literals():
    assert choices(StudentSettings.model_fields["adapter"].annotation) == ("lora", "qlora", "dora", "none")
    assert choices(StudentSettings.model_fields["rank"].annotation) == ()


def test_the_quickstart_file_is_valid():
    file = Path(__file__).parents[2] / "factory" / "quickstart.toml"
    made = parsed("--config", str(file))
    assert json.loads(made.model_dump_json())["student"] == "embedded"

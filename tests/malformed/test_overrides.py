"""Malformed `key=value` overrides."""

from pathlib import Path

import pytest

from tests.malformed.case import Case, check, parametrized
from unmask import config
from unmask.errors import SettingsError
from unmask.settings.recipe import Recipe


def _refused(name: str, override: str, message: str) -> Case:
    return Case(name, lambda _: config.load(Recipe, overrides=[override]), message, SettingsError)


CASES = [
    _refused("no equals sign", "training.steps", "has the form key=value"),
    _refused("no key", "=3", "has the form key=value"),
    _refused("an unknown key", "training.stepz=3", "training.steps"),
    _refused("text where a number stands", "training.steps=many", "must be an integer"),
    _refused("only dashes before the sign", "--=3", "has the form key=value"),
    _refused("an empty part of a key", "training..steps=3", "Unknown key `training.`"),
    _refused("a key that begins with a point", ".steps=3", "Unknown key ``"),
    _refused("a key that ends with a point", "training.=3", "Unknown key `training.`"),
    _refused("an unknown group", "x.y=1", "Unknown key `x`"),
    _refused("a key without its group", "learning_rate=3", "Did you mean `training.learning_rate`"),
    _refused("a key below a text", "name.x=1", "`name` is text and has no keys of its own, got `name.x`"),
    _refused("a key below a number", "training.steps.x=1", "is an integer or null and has no keys of its own"),
    _refused("a key below a list", "data.train.0=a", "`data.train` is a list of text and has no keys"),
    _refused("a key far below a value", "seed.a.b.c=1", "`seed` is an integer and has no keys"),
    _refused("a value for a group", "training=5", "must hold `key: value` pairs, got 5"),
    _refused("null for a group", "training=null", "must hold `key: value` pairs, got null"),
    _refused("an unknown key in braces", "training={stepz: 1}", "Unknown key `training.stepz`"),
    _refused("two signs", "training.steps==3", "must be an integer or null, got '=3'"),
    _refused("no value for a text", "name=", "`name` must be text, got null"),
    _refused("null for a text", "name=null", "`name` must be text, got null"),
    _refused("a number for a text", "name=123", "`name` must be text, got 123. In quotes it is text."),
    _refused("an exponent for a text", "name=1e3", "`name` must be text, got 1000.0"),
    _refused("a date for a text", "name=2024-01-01", "`name` must be text, got 2024-01-01"),
    _refused("on for a text", "name=on", "`name` must be text, got true"),
    _refused("a list for a text", "name=[a]", "`name` must be text, got [a]"),
    _refused("a list for a number", "training.steps=[3]", "must be an integer or null, got [3]"),
    _refused("a list in a list", "data.train=[[a]]", "must be a list of text, got [[a]]"),
    _refused("null in a list", "data.train=[null]", "must be a list of text, got [null]"),
    _refused("a number in a list of texts", "training.run_tags=[1]", "must be a list of text, got [1]"),
    _refused("a group for a list", "data.train={a: b}", "must be a list of text, got {a: b}"),
    _refused("a point for a count", "training.steps=1.5", "must be an integer or null, got 1.5"),
    _refused("true for a count", "training.steps=true", "must be an integer or null, got true"),
    _refused("octal", "training.steps=010", "must be an integer or null, got '010'"),
    _refused("base 60", "training.steps=1:30", "must be an integer or null, got '1:30'"),
    _refused("NaN for a count", "training.steps=.nan", "and finite, got nan"),
    _refused("infinity", "training.learning_rate=.inf", "and finite, got inf"),
    _refused("minus infinity", "training.learning_rate=-.inf", "and finite, got -inf"),
    _refused("more than a float holds", "training.learning_rate=1e400", "and finite, got inf"),
    _refused("nan as a word", "training.learning_rate=nan", "must be a number, got 'nan'"),
    _refused("a number of 5,000 digits", f"seed={'9' * 5000}", "a number or date that cannot be read"),
    _refused("a number of 5,000 digits in quotes", f"seed='{'9' * 5000}'", "and finite, got inf"),
    _refused("2^63", f"seed={2**63}", "of at most 64 bits"),
    _refused("-2^63 - 1", f"seed={-(2**63) - 1}", "of at most 64 bits"),
    _refused("lists without end", f"name={'[' * 100_000}", "nested more than 16 levels deep"),
    _refused("groups without end", f"name={'{a: ' * 3_000}", "nested more than 16 levels deep"),
    _refused("anchors that expand", f"name=[&a [{'x, ' * 99}x], {'*a, ' * 99}*a]", "more than 4,000 values"),
    _refused(
        "an unknown choice", "training.lr_schedule=cos", "must be one of cosine, linear, wsd, constant, got 'cos'"
    ),
    _refused("a word for true", "training.compile=maybe", "must be true or false, got 'maybe'"),
    _refused("a pair for a list of pairs", "objective.block_curriculum=[0, 4]", "a list of [a number, an integer]"),
    _refused("betas of 2", "training.adam_betas=[2,2]", "adam_betas must be two shares"),
    _refused("a negative head_dim", "model.head_dim=-2", "head_dim must be at least 2"),
    _refused("10^12 channels", "model.hidden_size=1000000000000", "hidden_size must be at most"),
]

RIGHT = [
    Case(f"`{text}` as a text", lambda _, text=text: config.load(Recipe, overrides=[f"name={text}"]).name, value=text)
    for text in ("a #b", "#b", "*.txt", "&x", "!x", "@x", "`x`", "%x", "a: b: c", "100%", "=", "nan", "a  b")
]
RIGHT += [
    Case("white space", lambda _: config.load(Recipe, overrides=["data.separator= "]).data.separator, value=" "),
    Case("a line end", lambda _: config.load(Recipe, overrides=["data.separator=\n\n"]).data.separator, value="\n\n"),
    Case("quotes", lambda _: config.load(Recipe, overrides=['data.separator="\\t"']).data.separator, value="\t"),
    Case("a number in quotes", lambda _: config.load(Recipe, overrides=["name='12'"]).name, value="12"),
    Case("null for a number", lambda _: config.load(Recipe, overrides=["training.steps=null"]).training.steps),
    Case("the last one counts", lambda _: config.load(Recipe, overrides=["seed=1", "seed=2"]).seed, value=2),
]


@parametrized(CASES)
def test_an_override_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(RIGHT)
def test_text_stays_what_it_is(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_a_hang_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.malformed import case

    monkeypatch.setattr(case, "CPU_SECONDS", 0.2)

    def loop(_: Path) -> None:
        while True:
            pass

    with pytest.raises(case.Hung):
        check(Case("a loop", loop), tmp_path)

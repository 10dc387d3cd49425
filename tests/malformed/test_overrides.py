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
]


@parametrized(CASES)
def test_an_override_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_a_hang_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.malformed import case

    monkeypatch.setattr(case, "CPU_SECONDS", 0.2)

    def loop(_: Path) -> None:
        while True:
            pass

    with pytest.raises(case.Hung):
        check(Case("a loop", loop), tmp_path)

"""What a run's end needs, found out before its first step."""

from pathlib import Path

import pytest

from tests.training.recipes import tree, write_text
from unmask import config
from unmask.errors import SettingsError
from unmask.settings.recipe import Recipe
from unmask.training.run import train


@pytest.mark.usefixtures("quick_runs")
def test_a_short_context_needs_no_word_about_samples(tmp_path: Path) -> None:
    write_text(tmp_path)
    fields = tree(tmp_path, steps=2)
    del fields["sampling"]
    run = train(config.from_tree(Recipe, fields)).run
    assert (run.samples / "final.md").read_text(encoding="utf-8").startswith("# Samples of tiny")
    assert "max_new_tokens: 128" in run.config.read_text(encoding="utf-8"), "what the recipe says stays"


def test_a_length_of_samples_that_somebody_chose_is_kept_or_refused(tmp_path: Path) -> None:
    write_text(tmp_path)
    fields = tree(tmp_path, steps=2) | {"sampling": {"max_new_tokens": 127}}
    with pytest.raises(SettingsError, match=r"max_new_tokens must leave room .* in the model's 64 positions, got 127"):
        train(config.from_tree(Recipe, fields))
    assert not (tmp_path / "tiny").exists()

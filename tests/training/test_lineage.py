"""A resumed run is the same run: what it takes over, what it may change, what needs another run; and forks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.training import recipes
from tests.training.test_opening import changed, files_of
from unmask import config
from unmask.errors import CheckpointError, SettingsError
from unmask.lm import DiffusionLM
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.settings.resuming import CLASSES, class_of
from unmask.training import lineage
from unmask.training.run import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipes.write_text(tmp_path)
    return tmp_path


def bpe(folder: Path, **training: Any) -> Recipe:
    """A recipe with a tokenizer of its text, kept in the run folder as by default."""
    tree = recipes.tree(folder, **training)
    tree["data"] |= {"tokenizer": "bpe", "vocabulary_size": 300, "cache_dir": None}
    return config.from_tree(Recipe, tree)


def with_group(made: Recipe, group: str, **values: Any) -> Recipe:
    return dataclasses.replace(made, **{group: dataclasses.replace(getattr(made, group), **values)})


def append_rows(folder: Path) -> None:
    """More text of the same words in another mixture, of which a tokenizer would have other merges."""
    words = recipes.WORDS.split()[::-1]
    rows = [{"text": " ".join([words[number % 5]] * 3 + words[number % 7 : number % 7 + 6])} for number in range(300)]
    with (folder / "text.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


# --- classes ----------------------------------------------------------------------------------------------------------


def test_every_key_of_a_recipe_has_a_class() -> None:
    keys = [key for key, *_ in config.documented(Recipe)]
    assert [key for key in keys if class_of(key) is None] == [], (
        "say in settings/resuming.py what a resume does with it"
    )
    groups = {key.partition(".")[0] for key in keys}
    assert [key for key in CLASSES if key not in keys and key not in groups] == [], "there is no such key"
    assert {class_of(key) for key in keys} == {"free", "fork", "new", "place"}


def test_what_may_change_is_what_the_issue_of_a_run_is_not() -> None:
    for key in (
        "training.steps", "training.epochs", "training.logging_steps", "training.save_steps", "training.learning_rate",
        "training.micro_batch_size", "training.report_to", "training.keep_checkpoints", "data.cache_dir",
        "sampling.max_new_tokens",
    ):  # fmt: skip
        assert class_of(key) == "free", key
    for key in ("objective.method", "training.batch_size", "training.ema_decay", "seed", "data.train", "data.split"):
        assert class_of(key) == "fork", key
    for key in ("data.tokenizer", "data.vocabulary_size", "model.hidden_size", "model.from_pretrained", "adapter.rank"):
        assert class_of(key) == "new", key


# --- a changed recipe -------------------------------------------------------------------------------------------------

REFUSED = {
    "objective.method: masked_diffusion -> autoregressive": ("objective", {"method": "autoregressive"}),
    "objective.schedule: linear -> cosine": ("objective", {"schedule": "cosine"}),
    "data.tokenizer: bpe -> byte": ("data", {"tokenizer": "byte"}),
    "data.vocabulary_size: 300 -> 400": ("data", {"vocabulary_size": 400}),
    "data.validation_fraction: 0.2 -> 0.3": ("data", {"validation_fraction": 0.3}),
    "data.context_length: 24 -> 20": ("data", {"context_length": 20}),
    "model.hidden_size: 16 -> 32": ("model", {"hidden_size": 32}),
    "model.tie_word_embeddings: False -> True": ("model", {"tie_word_embeddings": True}),
    "model.from_pretrained: None -> elsewhere": ("model", {"from_pretrained": "elsewhere"}),
    "model.dtype: float64 -> float32": ("model", {"dtype": "float32"}),
    "training.ema_decay: None -> 0.9": ("training", {"ema_decay": 0.9}),
    "training.batch_size: 8 -> 4": ("training", {"batch_size": 4}),
    "adapter.rank: None -> 2": ("adapter", {"rank": 2}),
    "evaluation.max_rows: 4 -> 2": ("evaluation", {"max_rows": 2}),
}


def test_what_a_run_keeps_is_refused_with_both_values(folder: Path) -> None:
    made = bpe(folder)
    run = train(made).run
    before = files_of(run.root)
    for message, (group, values) in REFUSED.items():
        with pytest.raises(SettingsError) as caught:
            train(with_group(made, group, **values), resume="auto")
        assert message in str(caught.value) and f"unmask train --resume {run.root}" in str(caught.value)
        kind = class_of(message.partition(":")[0])
        assert ("--fork NEW_NAME" in str(caught.value)) == (kind == "fork"), message
        assert ("name=NEW_NAME" in str(caught.value)) == (kind == "new"), message
    with pytest.raises(SettingsError, match=r"seed: 0 -> 1; data\.supervise|seed: 0 -> 1"):
        train(dataclasses.replace(made, seed=1), resume="auto")
    assert files_of(run.root) == before, "also config.yaml"


def test_what_may_change_is_reported_and_written_down(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bpe(folder)
    run = train(made).run
    capsys.readouterr()
    train(changed(made, steps=8, learning_rate=0.5, micro_batch_size=4, keep_checkpoints=1), resume="auto")
    told = capsys.readouterr().err
    for line in (
        "steps: 6 -> 8",
        "learning_rate: 0.01 -> 0.5",
        "micro_batch_size: None -> 4",
        "keep_checkpoints: None -> 1",
    ):
        assert f"changed: training.{line}" in told
    assert yaml.safe_load(run.config.read_text())["training"]["learning_rate"] == 0.5
    train(changed(made, steps=8, learning_rate=0.5, micro_batch_size=4, keep_checkpoints=1), resume="auto")
    assert "changed:" not in capsys.readouterr().err


def test_a_recipe_that_claims_another_model_than_the_checkpoint_is_refused(folder: Path) -> None:
    """As a `config.yaml` does that was written before recipes were compared."""
    made = bpe(folder)
    run = train(made).run
    wrong = with_group(made, "model", hidden_size=32)
    run.config.write_text(config.to_yaml(wrong))
    with pytest.raises(SettingsError, match=r"describes another model than .*step-6.*model\.hidden_size: 16 -> 32"):
        train(wrong, resume="auto")
    run.config.write_text(config.to_yaml(with_group(made, "objective", method="autoregressive")))
    with pytest.raises(SettingsError, match=r"objective\.method: masked_diffusion -> autoregressive"):
        train(with_group(made, "objective", method="autoregressive"), resume="auto")


def test_the_recipe_in_the_folder_claims_no_shape_that_it_does_not_make(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(bpe(folder)).run
    made = with_group(dataclasses.replace(bpe(folder, steps=3), name="second"), "data", tokenizer=None)
    made = with_group(made, "model", from_pretrained=str(first.root), hidden_size=999, head_dim=10)
    run = train(made).run
    assert "model.hidden_size=999, " in capsys.readouterr().err
    assert yaml.safe_load(run.config.read_text())["model"] == {"from_pretrained": str(first.root), "dtype": "float64"}
    assert "999" not in (run.final / "README.md").read_text()
    train(changed(made, steps=4), resume="auto")
    train(changed(with_group(made, "model", hidden_size=16), steps=5), resume="auto")


# --- text that has grown ----------------------------------------------------------------------------------------------


def test_a_run_keeps_its_tokenizer_when_its_text_has_grown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bpe(folder, steps=120, eval_steps=40, save_steps=40, learning_rate=0.02, probe_rows=0)
    run = train(made).run
    kept = (run.checkpoints / "step-120" / "tokenizer.json").read_bytes()
    append_rows(folder)
    other = train(dataclasses.replace(changed(made, steps=1), name="other")).run
    assert (other.final / "tokenizer.json").read_bytes() != kept, "the new text makes another tokenizer"
    capsys.readouterr()
    train(changed(made, steps=130), resume="auto")
    assert (run.checkpoints / "step-130" / "tokenizer.json").read_bytes() == kept
    assert len(list(run.data.glob("bpe-*"))) == 1
    losses = dict(recipes.records(run, "train/loss"))
    # The same words in another mixture: worse than before, and far from ids whose meanings have changed.
    assert losses[121] < losses[1] - 1.5
    told = capsys.readouterr().err
    assert "changed: the training text: " in told and "the tokenizer stays" in told
    assert "changed: the held-out text: " in told


def test_scores_of_held_out_text_that_has_grown_do_not_compare(folder: Path) -> None:
    made = recipes.recipe(folder, keep_checkpoints=None)
    run = train(made).run
    path = run.checkpoints / "step-6" / "training" / "progress.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"best_score": 1e-9}))  # no later score is lower
    train(changed(made, steps=9), resume="auto")
    assert run.checkpoint("best") == (run.checkpoints / "step-6").resolve()
    append_rows(folder)
    train(changed(made, steps=12), resume="auto")
    assert run.checkpoint("best") == (run.checkpoints / "step-12").resolve()
    train(changed(made, steps=12), resume="auto")
    assert run.checkpoint("best") == (run.checkpoints / "step-12").resolve()


# --- forks ------------------------------------------------------------------------------------------------------------


def test_a_fork_starts_from_the_weights_at_its_own_first_step(folder: Path) -> None:
    made = bpe(folder)
    run = train(made).run
    before = files_of(run.root)
    for source in (run.checkpoints / "step-3", run.root / "best"):
        still = changed(with_group(made, "objective", schedule="cosine"), steps=2, learning_rate=0.0)
        forked = lineage.forked(still, source, f"from-{source.name}")
        new = train(forked).run
        assert new.root == folder / f"from-{source.name}"
        weights, theirs = load_file(new.final / "model.safetensors"), load_file(source / "model.safetensors")
        assert all(weights[name].equal(value) for name, value in theirs.items())
        assert (new.final / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
        assert [step for step, _ in recipes.records(new, "train/loss")] == [1, 2]
        assert DiffusionLM.from_pretrained(new.root).backbone.diffusion.schedule == "cosine"
        written = yaml.safe_load(new.config.read_text())
        assert written["model"]["from_pretrained"] == str(source) and "hidden_size" not in written["model"]
        train(changed(lineage.recipe_of(new), steps=3), resume="auto")
    assert files_of(run.root) == before


def test_a_fork_has_the_model_of_its_checkpoint(folder: Path) -> None:
    made = bpe(folder)
    run = train(made).run
    for message, (group, values) in REFUSED.items():
        if class_of(message.partition(":")[0]) == "new":
            with pytest.raises(SettingsError) as caught:
                lineage.forked(with_group(made, group, **values), run.root / "best", "other")
            assert message in str(caught.value) and "without --fork" in str(caught.value)
    with pytest.raises(SettingsError, match="name must be that of one folder"):
        lineage.forked(made, run.root / "best", "../other")
    with pytest.raises(CheckpointError, match="exists already"):
        train(lineage.forked(made, run.root / "best", "tiny"))


def test_a_fork_of_an_adapter_goes_on_with_the_adapter(folder: Path) -> None:
    base = train(recipes.recipe(folder, steps=1)).run
    tree = recipes.tree(folder, steps=2) | {"name": "lora", "adapter": {"rank": 2}}
    tree["model"] = {"from_pretrained": str(base.final), "dtype": "float64"}
    made = config.from_tree(Recipe, tree)
    run = train(made).run
    forked = train(lineage.forked(changed(made, learning_rate=0.0), run.root / "latest", "forked")).run
    ours, theirs = (load_file(one / "adapter_model.safetensors") for one in (forked.final, run.root / "latest"))
    assert all(ours[name].equal(value) for name, value in theirs.items())


def test_a_run_without_its_recipe_is_not_resumed_blindly(folder: Path) -> None:
    made = recipes.recipe(folder)
    run: RunFolder = train(made).run
    run.config.unlink()
    with pytest.raises(
        CheckpointError, match=r"recipe of the run .* cannot be read: .*config\.yaml.*Put the file back"
    ):
        train(made, resume="auto")

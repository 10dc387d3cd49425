"""Settings: precedence, round trips, and errors that name key, value and what is allowed."""

from pathlib import Path

import pytest
import yaml

from unmask import config
from unmask.errors import SettingsError
from unmask.settings.decoding import SamplingParams
from unmask.settings.pipeline import PipelineRecipe
from unmask.settings.recipe import Recipe

_FOLDER = Path(__file__).parents[1] / "recipes"
# Those of downstream evaluation have a form of their own: tests/evaluation/test_recipes.py.
RECIPES = sorted(file for file in _FOLDER.rglob("*.yaml") if file.parent.name != "evaluation")


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: filed\ntraining: {steps: 7, learning_rate: 1e-4}\n")
    recipe = config.load(Recipe, file=file, overrides=["training.steps=9", "data.train=[a.txt, b.txt]"])
    assert (recipe.name, recipe.training.steps, recipe.training.learning_rate) == ("filed", 9, 1e-4)
    assert recipe.data.train == ("a.txt", "b.txt")
    assert recipe.training.batch_size == Recipe().training.batch_size
    assert config.load(Recipe, overrides=["data.train=one.txt"]).data.train == ("one.txt",)
    assert config.load(Recipe, overrides=["data.tokenizer=null"]).data.tokenizer is None


def test_of_several_files_the_later_ones_win(tmp_path: Path) -> None:
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text("name: below\ntraining: {steps: 7, learning_rate: 1e-4}\ndata: {train: [a.txt]}\n")
    above.write_text("training: {steps: 9}\ndata: {train: [b.txt, c.txt]}\n")
    recipe = config.load(Recipe, file=[below, above])
    assert (recipe.name, recipe.training.steps, recipe.training.learning_rate) == ("below", 9, 1e-4)
    assert recipe.data.train == ("b.txt", "c.txt")
    assert config.load(Recipe, file=[above, below], overrides=["name=x"]).training.steps == 7
    assert config.load(Recipe, file=[]) == Recipe()
    above.write_text("training: {stepz: 9}\n")
    with pytest.raises(SettingsError, match=rf"Unknown key `training.stepz` in {above}"):
        config.load(Recipe, file=[below, above])


def arms() -> dict[str, dict[str, object]]:
    """Every arm's recipe as text says it."""
    files = sorted((_FOLDER / "data-constrained").glob("*.yaml"))
    return {file.stem: config.read_yaml(file) for file in files if file.stem != "gpu"}


def test_the_arms_of_the_data_constrained_study_differ_in_what_they_are_called_after() -> None:
    found = arms()
    assert len(found) == 7
    for tree in found.values():
        for name in ("name", "objective"):
            del tree[name]
        for name in ("weight_decay", "dropout"):
            tree["training"].pop(name, None)  # type: ignore[attr-defined]
    first, *others = found.values()
    assert all(other == first for other in others)


@pytest.mark.parametrize("arm", [*arms()])
def test_the_gpu_size_goes_over_every_arm(arm: str) -> None:
    folder = _FOLDER / "data-constrained"
    small = config.load(Recipe, file=folder / f"{arm}.yaml")
    large = config.load(Recipe, file=[folder / f"{arm}.yaml", folder / "gpu.yaml"])
    assert (large.name, large.objective) == (small.name, small.objective)
    assert (large.training.dropout, large.training.weight_decay) == (
        small.training.dropout,
        small.training.weight_decay,
    )
    assert (large.model.hidden_size, large.model.num_hidden_layers, large.training.precision) == (384, 8, "bf16")
    assert large.data.context_length <= large.model.max_position_embeddings


def test_the_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = config.load(Recipe, overrides=["training.adam_betas=[0.9, 0.99]", "sampling.stop=[a, b]", "name=x"])
    file = tmp_path / "again.yaml"
    file.write_text(config.to_yaml(recipe))
    assert config.load(Recipe, file=file) == recipe


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_repository_is_valid(file: Path) -> None:
    config.load(PipelineRecipe if file.stem.endswith("-pipeline") else Recipe, file=file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=3", "Unknown key `training.stepz` in the command line. Did you mean `training.steps`"),
        ("learning_rate=3", "Did you mean `training.learning_rate`?"),
        ("objective.shedule=linear", "`objective.schedule`"),
        ("training.steps=many", "`training.steps` must be an integer or null, got 'many'."),
        ("training.lr_schedule=cos", "`training.lr_schedule` must be one of cosine, linear, wsd, constant, got 'cos'."),
        ("training.batch_size=null", "`training.batch_size` must be an integer, got null."),
        ("training.lr_schedule=", "must be one of cosine, linear, wsd, constant, got null."),
        ("training.steps=0", "steps must be at least 1, got 0."),
        ("training=5", "`training` in the command line must hold"),
        ("steps", "An override has the form key=value, got `steps`"),
        ("model.hidden_size=30", "hidden_size must be a multiple of num_attention_heads (4), got 30"),
        ("data.validation_fraction=2", "validation_fraction must lie between 0 and 0.9, got 2.0."),
    ],
)
def test_wrong_settings_say_what_is_wrong_and_allowed(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config.load(Recipe, overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_changed_and_compared() -> None:
    recipe = Recipe()
    changed = config.changed(recipe, ["training.steps=9", "data.train=[a, b]", "name=other"])
    assert (changed.training.steps, changed.data.train, changed.name) == (9, ("a", "b"), "other")
    assert list(config.differences(recipe, recipe)) == []
    assert list(config.differences(recipe, changed)) == [
        "name: run -> other",
        "data.train: [] -> ['a', 'b']",
        "training.steps: None -> 9",
    ]
    with pytest.raises(SettingsError, match="Unknown key"):
        config.changed(recipe, ["training.stepz=9"])


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="either steps or epochs"):
        config.load(Recipe, overrides=["training.steps=3", "training.epochs=1"])


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("name: x\n")
    with pytest.raises(SettingsError, match=r"no recipe file .*gone\.yaml\. Recipes there: .*there\.yaml"):
        config.load(Recipe, file=tmp_path / "gone.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(SettingsError, match="not valid YAML"):
        config.load(Recipe, file=tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingsError, match="key: value"):
        config.load(Recipe, file=tmp_path / "list.yaml")


def test_every_setting_is_described() -> None:
    keys = list(config.documented(Recipe))
    assert len(keys) > 70
    assert not [key for key, _, _, text in keys if not text]
    assert yaml.safe_load(config.to_yaml(Recipe()))["training"]["lr_schedule"] == "cosine"


def test_options_of_another_decoding_are_refused() -> None:
    for options, decoding in (
        ({"cfg_scale": 0.5}, "autoregressive"),
        ({"denoising_steps": 5}, "autoregressive"),
        ({"unmasking": "random"}, "autoregressive"),
    ):
        with pytest.raises(SettingsError, match="is not used by"):
            SamplingParams(**options).resolved({}, decoding)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="needs confidence_threshold"):
        SamplingParams(unmasking="threshold").resolved({}, "canvas")
    with pytest.raises(SettingsError, match="used by unmasking `threshold` or `low_confidence_dynamic` only"):
        SamplingParams(confidence_threshold=0.5).resolved({}, "canvas")
    with pytest.raises(SettingsError, match="at most the places of a block"):
        SamplingParams(max_new_tokens=4, denoising_steps=5).resolved({}, "canvas")
    for bad in ({"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0.0}, {"n": 0}, {"stop": ("",)}):
        with pytest.raises(SettingsError):
            SamplingParams(**bad)  # type: ignore[arg-type]


def test_a_checkpoints_defaults_come_before_the_decodings() -> None:
    params = SamplingParams().resolved({"unmasking": "random", "denoising_steps": 3}, "canvas")
    assert (params.unmasking, params.denoising_steps) == ("random", 3)
    assert (
        SamplingParams(unmasking="low_confidence").resolved({"unmasking": "random"}, "canvas").unmasking
        == "low_confidence_static"
    )

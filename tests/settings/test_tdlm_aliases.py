"""TDLM's YAML as a recipe: every key of its own example, its defaults, what contradicts itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from unmask import config
from unmask.errors import SettingsError
from unmask.settings.recipe import Recipe
from unmask.settings.tdlm_aliases import DEFAULTS, RENAMED, TRANSLATED, UNUSED, in_our_words, is_theirs, recipe_of

EXAMPLE = """
model:
  max_seq_length: 128
  hidden_size: 64
  num_layers: 2
  num_heads: 4
  dropout: 0.1
  training_mode: "diffusion"
  vocab_size: 50257
  mask_token_id: 50256
advanced:
  attention_dropout: 0.1
  layer_norm_eps: 1e-5
  ignore_index: -100
diffusion:
  single_ratio_per_sequence: false
  min_mask_ratio: 0.1
  max_mask_ratio: 0.9
  confidence_threshold: 0.8
  max_loss_weight: 5.0
training:
  batch_size: 8
  gradient_accumulation_steps: 4
  num_epochs: 5
  save_every_n_steps: 50
  save_every_n_epochs: 1
  eval_every_n_steps: 25
  logging_steps: 25
  detailed_metrics_steps: 25
  attention_analysis_steps: 50
  generation_eval_steps: 2000
  learning_rate: 2e-4
  min_learning_rate: 1e-5
  warmup_ratio: 0.005
  warmup_start_factor: 0.001
  warmup_end_factor: 1.0
  weight_decay: 0.2
  gradient_clip: 0.5
  beta1: 0.8
  beta2: 0.99
  eps: 1e-7
  checkpoint_map_location: "cuda"
  cleanup_checkpoints: true
  perplexity_cap: 15.0
data:
  num_workers: 2
sampling:
  num_steps: 10
  temperature: 0.9
  top_k: 40
  top_p: 0.8
  confidence_threshold: 0.8
  max_length: 100
  seed: 7
  schedule_type: "cosine"
enhanced_evaluation:
  include_downstream: true
  max_eval_batches: 3
monitoring:
  wandb:
    enabled: true
    project: "tdlm-quick-test"
    entity: "somebody"
    tags: ["quick-test", "all-graphs-working"]
    metric_groups:
      tier1_essential: ["mask_prediction_accuracy"]
reproducibility:
  seed: 43
"""
"""Every key of TDLM's configuration files, with values that are none of our defaults."""


def read(text: str, *, alone: bool = True, **changes: Any) -> tuple[Recipe, list[str]]:
    tree = yaml.safe_load(text)
    for path, value in changes.items():
        group, _, name = path.partition("__")
        tree.setdefault(group, {})[name] = value
    found, notes = recipe_of(tree, source="example.yaml", alone=alone)
    return config.load(Recipe, over=found), notes


def test_every_key_of_its_example_is_known_and_used_or_told() -> None:
    recipe, notes = read(EXAMPLE)
    model, data, objective, training = recipe.model, recipe.data, recipe.objective, recipe.training
    assert (recipe.seed, recipe.output_dir) == (43, "experiments")
    assert (model.family, model.hidden_size, model.num_hidden_layers) == ("llama", 64, 2)
    assert (model.num_attention_heads, model.num_key_value_heads) == (4, 4)
    assert model.intermediate_size == 192, "8/3 of 64 is 170, rounded up to a multiple of 64"
    assert (data.context_length, model.max_position_embeddings) == (128, 128)
    assert data.train == ("hf:Salesforce/wikitext:wikitext-2-raw-v1",)
    assert data.tokenizer == "openai-community/gpt2"
    assert (objective.method, objective.t_granularity) == ("masked_diffusion", "sequence")
    assert (objective.mask_ratio_range, objective.weighting) == ((0.1, 0.9), "elbo")
    assert (training.batch_size, training.micro_batch_size) == (32, 8)
    assert (training.epochs, training.steps, training.dropout) == (5, None, 0.1)
    assert (training.learning_rate, training.min_lr_ratio, training.lr_schedule) == (2e-4, 0.05, "cosine")
    assert (training.warmup_ratio, training.warmup_steps) == (0.005, None)
    assert (training.weight_decay, training.max_grad_norm) == (0.2, 0.5)
    assert (training.adam_betas, training.adam_epsilon) == ((0.8, 0.99), 1e-7)
    assert (training.save_steps, training.save_epochs, training.eval_steps) == (50, 1, 25)
    assert (training.logging_steps, training.detailed_metrics_steps, training.attention_analysis_steps) == (25, 25, 50)
    assert training.keep_checkpoints == 1
    assert training.report_to == ("wandb",)
    assert (training.project, training.run_tags) == ("tdlm-quick-test", ("quick-test", "all-graphs-working"))
    assert recipe.evaluation.max_rows == 24
    sampling = recipe.sampling
    assert (sampling.denoising_steps, sampling.reveal_schedule) == (10, "cosine_squared")
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.9, 40, 0.8, 7)
    assert sampling.max_new_tokens == 99, "BOS is one of the 100"
    sampling.resolved({}, "canvas")
    assert not any("unknown key" in note for note in notes)
    told = {note.partition("`")[2].partition("`")[0] for note in notes}
    assert told == {*UNUSED, "model.dropout"}


def test_every_leaf_is_either_renamed_or_translated_or_refused() -> None:
    assert len({*RENAMED, *TRANSLATED, *UNUSED}) == len(RENAMED) + len(TRANSLATED) + len(UNUSED)
    assert DEFAULTS.keys() <= {*RENAMED, *TRANSLATED}


def test_what_the_file_leaves_out_has_tdlms_default() -> None:
    recipe, notes = read("model: {training_mode: diffusion}")
    assert notes == []
    assert (recipe.model.hidden_size, recipe.model.num_hidden_layers, recipe.data.context_length) == (128, 3, 256)
    assert recipe.objective.t_granularity == "batch", "the default of its code, whatever its documents advise"
    assert recipe.objective.mask_ratio_range == (0.0, 1.0)
    training = recipe.training
    assert (training.epochs, training.batch_size, training.keep_checkpoints) == (100, 16, None)
    assert (training.logging_steps, training.detailed_metrics_steps, training.attention_analysis_steps) == (
        100,
        500,
        2000,
    )
    assert (training.save_steps, training.save_epochs, training.eval_steps) == (1000, 5, 1000)
    assert (training.report_to, training.project) == ((), "tdlm")
    assert (recipe.sampling.denoising_steps, recipe.sampling.max_new_tokens) == (20, 255)
    assert (recipe.evaluation.max_rows, recipe.seed) == (None, 42)


def test_autoregression_leaves_out_what_only_diffusion_has() -> None:
    recipe, _ = read(EXAMPLE, model__training_mode="autoregressive")
    assert recipe.objective.method == "autoregressive"
    assert (recipe.sampling.temperature, recipe.sampling.top_k) == (0.9, 40)
    recipe.sampling.resolved({}, "autoregressive")


@pytest.mark.parametrize(("shared", "granularity"), [(True, "batch"), (False, "sequence")])
def test_a_single_ratio_is_one_for_the_whole_batch(shared: bool, granularity: str) -> None:
    """TDLM's word says `per_sequence`, and its code draws one for all sequences."""
    assert read(EXAMPLE, diffusion__single_ratio_per_sequence=shared)[0].objective.t_granularity == granularity


def test_a_recipe_below_keeps_what_the_file_does_not_say() -> None:
    tree, _ = recipe_of({"diffusion": {"min_mask_ratio": 0.2}, "training": {"num_epochs": 2}}, source="x", alone=False)
    assert tree == {"objective": {"mask_ratio_range": [0.2, 1.0]}, "training": {"epochs": 2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__training_mode": "both"}, "training_mode must be diffusion or autoregressive, got 'both'"),
        ({"sampling__schedule_type": "poly"}, "schedule_type must be cosine or linear, got 'poly'"),
        ({"model__hidden_size": "wide"}, "model.hidden_size must be a whole number of at least 1, got 'wide'"),
        ({"training__batch_size": 0}, "training.batch_size must be a whole number of at least 1, got 0"),
        ({"training__min_learning_rate": 1.0}, "is the lowest rate below training.learning_rate, got 1.0 and 0.0002"),
        ({"diffusion__max_mask_ratio": 0.1}, "mask_ratio_range must be two shares between 0 and 1, the lower first"),
        ({"model__hidden_size": 66}, "hidden_size must be a multiple of num_attention_heads"),
        ({"model__num_layers": "many"}, "`model.num_hidden_layers` must be an integer, got 'many'"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(EXAMPLE, **changes)


def test_batches_are_counted_in_batches_that_are_known() -> None:
    for group, key in (("training", "gradient_accumulation_steps"), ("enhanced_evaluation", "max_eval_batches")):
        with pytest.raises(SettingsError, match=f"{group}.{key} counts batches of training.batch_size"):
            recipe_of({group: {key: 2}}, source="x", alone=False)


def test_unknown_keys_are_told_by_name() -> None:
    _, notes = read(EXAMPLE, training__num_epoch=3)
    assert any(note.startswith("example.yaml: unknown key `training.num_epoch`. Did you mean") for note in notes)
    _, notes = read("model: {training_mode: diffusion}", training__perplexity_cap=None, advanced__attention_dropout=0.0)
    assert notes == [], "what is off is not told"


def test_files_are_told_apart_by_their_groups() -> None:
    assert is_theirs(yaml.safe_load(EXAMPLE))
    assert is_theirs({"model": {"training_mode": "diffusion"}, "training": {"num_epochs": 3}})
    assert is_theirs({"monitoring": {}})
    assert not is_theirs({"model": {"hidden_size": 8}, "training": {"steps": 3}, "sampling": {}, "data": {}})
    assert not is_theirs({"name": "mine", "model": {"training_mode": "diffusion"}})
    assert not is_theirs({})


def test_a_recipe_may_say_training_mode() -> None:
    for tree in ({"training_mode": "diffusion"}, {"model": {"training_mode": "diffusion"}}):
        before = copy.deepcopy(tree)
        found = in_our_words(tree, source="x")
        assert tree == before
        assert config.from_tree(Recipe, found).objective.method == "masked_diffusion"
    both = {"training_mode": "autoregressive", "objective": {"method": "autoregressive", "weighting": "elbo"}}
    assert in_our_words(both, source="x") == {"objective": both["objective"]}
    with pytest.raises(SettingsError, match=r"means objective\.method=masked_diffusion, and the recipe has"):
        in_our_words({"training_mode": "diffusion", "objective": {"method": "tidar"}}, source="x")
    with pytest.raises(SettingsError, match="training_mode must be diffusion or autoregressive, got 3"):
        in_our_words({"training_mode": 3}, source="x")

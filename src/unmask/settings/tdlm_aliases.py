"""TDLM under its own names: the YAML file of its `main.py --config`.

In: the groups of that file (model, advanced, diffusion, training, data, sampling, enhanced_evaluation, monitoring,
reproducibility). Out: keys of a recipe, and what there is to tell about names that have no place here.
`docs/migration.md` lists them all. In a recipe of ours the word `training_mode` means `objective.method`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from unmask.errors import SettingsError, nearest

METHODS = {"diffusion": "masked_diffusion", "autoregressive": "autoregressive"}
"""TDLM's `training_mode` -> `objective.method`."""
SCHEDULES = {"cosine": "cosine_squared", "linear": "linear"}
"""TDLM's `schedule_type` -> `sampling.reveal_schedule`: its cosine is the cos^2 of Zhang & Syed."""
MODE_WORDS = ("training_mode", "model.training_mode")
_GROUPS = ("advanced", "diffusion", "enhanced_evaluation", "monitoring", "reproducibility")
_EXPONENT = re.compile(r"[\d.]+[eE][+-]?\d+")
_OURS = ("name", "output_dir", "seed", "objective", "adapter", "evaluation")

DEFAULTS: dict[str, Any] = {
    "model.training_mode": "diffusion",
    "model.hidden_size": 128,
    "model.num_layers": 3,
    "model.num_heads": 4,
    "model.max_seq_length": 256,
    "diffusion.single_ratio_per_sequence": True,
    "diffusion.min_mask_ratio": 0.0,
    "diffusion.max_mask_ratio": 1.0,
    "training.batch_size": 16,
    "training.gradient_accumulation_steps": 1,
    "training.num_epochs": 100,
    "training.learning_rate": 2e-4,
    "training.weight_decay": 0.1,
    "training.gradient_clip": 1.0,
    "training.eval_every_n_steps": 1000,
    "training.save_every_n_steps": 1000,
    "training.save_every_n_epochs": 5,
    "training.logging_steps": 100,
    "training.detailed_metrics_steps": 500,
    "training.attention_analysis_steps": 2000,
    "training.cleanup_checkpoints": False,
    "sampling.num_steps": 20,
    "sampling.temperature": 1.0,
    "sampling.top_k": 50,
    "sampling.top_p": 0.9,
    "sampling.schedule_type": "cosine",
    "enhanced_evaluation.max_eval_batches": None,
    "monitoring.wandb.project": "tdlm",
    "reproducibility.seed": 42,
}
"""What TDLM does where its file says nothing, and the values of its example where its code has none."""
BASE: dict[str, Any] = {
    "output_dir": "experiments",
    "model": {"family": "llama"},
    "data": {"train": ["hf:Salesforce/wikitext:wikitext-2-raw-v1"], "tokenizer": "openai-community/gpt2"},
    "training": {"lr_schedule": "cosine", "min_lr_ratio": 0.1},
}
"""What TDLM does whatever its file says."""
RENAMED = {
    "model.num_layers": "model.num_hidden_layers",
    "model.dropout": "training.dropout",
    "training.num_epochs": "training.epochs",
    "training.learning_rate": "training.learning_rate",
    "training.weight_decay": "training.weight_decay",
    "training.gradient_clip": "training.max_grad_norm",
    "training.warmup_ratio": "training.warmup_ratio",
    "training.eps": "training.adam_epsilon",
    "training.eval_every_n_steps": "training.eval_steps",
    "training.save_every_n_steps": "training.save_steps",
    "training.logging_steps": "training.logging_steps",
    "training.detailed_metrics_steps": "training.detailed_metrics_steps",
    "training.attention_analysis_steps": "training.attention_analysis_steps",
    "sampling.temperature": "sampling.temperature",
    "sampling.top_k": "sampling.top_k",
    "sampling.top_p": "sampling.top_p",
    "sampling.seed": "sampling.seed",
    "monitoring.wandb.project": "training.project",
    "monitoring.wandb.tags": "training.run_tags",
    "reproducibility.seed": "seed",
}
"""Keys that only have another name or group here."""
TRANSLATED = (
    "model.training_mode",
    "model.hidden_size",
    "model.num_heads",
    "model.max_seq_length",
    "diffusion.single_ratio_per_sequence",
    "diffusion.min_mask_ratio",
    "diffusion.max_mask_ratio",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.min_learning_rate",
    "training.beta1",
    "training.beta2",
    "training.save_every_n_epochs",
    "training.cleanup_checkpoints",
    "sampling.num_steps",
    "sampling.max_length",
    "sampling.schedule_type",
    "enhanced_evaluation.max_eval_batches",
    "monitoring.wandb.enabled",
)
"""Keys that mean several of ours, or depend on others."""
_NEVER_USED = (
    "TDLM's sampler prints it and never uses it. To reveal by confidence: sampling.unmasking=threshold "
    "sampling.confidence_threshold=0.8 sampling.denoising_steps=null"
)
_ITS_OWN_COURSE = "the warm-up is a straight line from its first step's share to the peak"
UNUSED = {
    "model.vocab_size": "the vocabulary is that of the tokenizer (data.tokenizer)",
    "model.mask_token_id": "the mask token is a new one behind the tokenizer's; 50256 is GPT-2's end of text",
    "advanced.attention_dropout": "attention weights are not dropped; training.dropout drops what attention gives",
    "advanced.layer_norm_eps": "the network is a stock one, whose norms have their own",
    "advanced.ignore_index": "what is not learned is marked as such and needs no number",
    "diffusion.max_loss_weight": (
        "under a capped weight the loss bounds no likelihood, and the weight that TDLM caps, (1 - r) / r, is not that "
        "of its bound, 1 / r. objective.corruption=count, the default, lowers the variance and keeps the bound"
    ),
    "diffusion.confidence_threshold": _NEVER_USED,
    "sampling.confidence_threshold": _NEVER_USED,
    "training.warmup_start_factor": _ITS_OWN_COURSE,
    "training.warmup_end_factor": _ITS_OWN_COURSE,
    "training.generation_eval_steps": "samples are written when the run ends; a checkpoint writes with unmask generate",
    "training.checkpoint_map_location": (
        "checkpoints are safetensors, mapped into memory and never unpickled, and accelerate chooses the device"
    ),
    "training.perplexity_cap": "perplexities come from the evaluator, as they are",
    "data.num_workers": "rows are looked up by number in mapped files, so no workers are needed",
    "enhanced_evaluation.include_downstream": (
        "tasks are asked of a trained model: unmask evaluate RUN --tasks hellaswag,mmlu, or unmask compare A B --tasks "
        "hellaswag,mmlu"
    ),
    "monitoring.wandb.entity": "wandb reads it from the environment: WANDB_ENTITY",
    "monitoring.wandb.metric_groups": "a metric's group is the part of its name before the slash",
}
"""Keys that have no place here, with the reason."""


def is_theirs(tree: Mapping[str, Any]) -> bool:
    """Whether a YAML file is TDLM's: it has groups of TDLM's, or its word for the method, and none of a recipe."""
    model = tree.get("model")
    named = isinstance(model, Mapping) and "training_mode" in model
    return not any(key in _OURS for key in tree) and (named or any(group in tree for group in _GROUPS))


def in_our_words(tree: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """A recipe in which `training_mode`, alone or in `model`, is put as `objective.method`.

    Raises:
        SettingsError: it is no mode of TDLM's, or the recipe names another method.
    """
    found = copy.deepcopy(dict(tree))
    model = found.get("model")
    homes = [home for home in (found, model) if isinstance(home, dict) and "training_mode" in home]
    for home in homes:
        method = method_of(home.pop("training_mode"), source=source)
        objective = found.setdefault("objective", {})
        if not isinstance(objective, dict) or objective.setdefault("method", method) != method:
            raise SettingsError(
                f"{source}: training_mode means objective.method={method}, and the recipe has the objective "
                f"{objective}. Leave one of them out."
            )
    return found


def method_of(mode: object, *, source: str) -> str:
    """The method that a `training_mode` means."""
    if mode not in METHODS:
        raise SettingsError(f"{source}: training_mode must be {' or '.join(METHODS)}, got {mode!r}.")
    return METHODS[str(mode)]


def recipe_of(config: Mapping[str, Any], *, source: str, alone: bool) -> tuple[dict[str, Any], list[str]]:
    """What TDLM's file says, as nested keys of a recipe, and what there is to tell about it.

    Args:
        config: the file's content.
        source: its name.
        alone: whether there is no recipe below it: then TDLM's defaults fill in what it does not say.

    Raises:
        SettingsError: a value has no meaning here.
    """
    every = dict(_leaves(config))
    known = [*RENAMED, *TRANSLATED, *UNUSED]
    told = [key for key in every if key in UNUSED and every[key] not in (None, False)]
    notes = [f"{source}: `{key}` is not used: {UNUSED[key]}" for key in told]
    notes += [f"{source}: unknown key `{key}`. {nearest(key, known)}" for key in every if key not in known]
    optional = ("enhanced_evaluation.max_eval_batches",)
    given = {key: _number(value) for key, value in every.items() if value is not None or key in optional}
    if alone:
        given = DEFAULTS | given
    tree: dict[str, Any] = copy.deepcopy(BASE) if alone else {}
    method = method_of(given["model.training_mode"], source=source) if "model.training_mode" in given else None
    for key, ours in RENAMED.items():
        if key in given:
            _set(tree, ours, given[key])
    if given.get("model.dropout"):
        notes.append(f"{source}: `model.dropout` drops the outputs of attention and MLP here, and no embeddings")
    _set_network(tree, given, source)
    _set_training(tree, given, source)
    if method is not None:
        _set(tree, "objective.method", method)
    if method != "autoregressive":
        _set_diffusion(tree, given, source)
    return tree, notes


def _set_network(tree: dict[str, Any], given: Mapping[str, Any], source: str) -> None:
    """Width, with TDLM's width of the MLP (8/3 of it, rounded up to a multiple of 64), heads and rows."""
    if "model.hidden_size" in given:
        width = _whole(given, "model.hidden_size", source)
        _set(tree, "model.hidden_size", width)
        _set(tree, "model.intermediate_size", (8 * width // 3 + 63) // 64 * 64)
    if "model.num_heads" in given:
        _set(tree, "model.num_attention_heads", given["model.num_heads"])
        _set(tree, "model.num_key_value_heads", given["model.num_heads"])
    if "model.max_seq_length" in given:
        _set(tree, "data.context_length", given["model.max_seq_length"])
        _set(tree, "model.max_position_embeddings", given["model.max_seq_length"])
    for key in ("sampling.max_length", "model.max_seq_length"):
        if key in given:
            # A row begins with BOS, which TDLM does not have and which is not generated.
            _set(tree, "sampling.max_new_tokens", _whole(given, key, source) - 1)
            break


def _set_training(tree: dict[str, Any], given: Mapping[str, Any], source: str) -> None:
    """Batches, the course of the learning rate, checkpoints, evaluation and trackers."""
    counted = ("training.gradient_accumulation_steps", "enhanced_evaluation.max_eval_batches")
    batch, several = "training.batch_size", {key: given[key] for key in counted if given.get(key) is not None}
    for key in several if batch not in given else ():
        raise SettingsError(f"{source}: {key} counts batches of {batch}, which is not given. Give it.")
    each = _whole(given, batch, source) if batch in given else 0
    several = {key: _whole(given, key, source) * each for key in several}
    if batch in given:
        _set(tree, "training.batch_size", several.get(counted[0], each))
        _set(tree, "training.micro_batch_size", each)
    if counted[1] in given:
        _set(tree, "evaluation.max_rows", several.get(counted[1]))
    if "training.min_learning_rate" in given:
        low, peak = given["training.min_learning_rate"], given.get("training.learning_rate")
        if not isinstance(low, int | float) or not isinstance(peak, int | float) or not 0 <= low <= peak or not peak:
            raise SettingsError(
                f"{source}: training.min_learning_rate is the lowest rate below training.learning_rate, got {low} and "
                f"{peak}."
            )
        _set(tree, "training.min_lr_ratio", low / peak)
    if "training.beta1" in given or "training.beta2" in given:
        betas = [given.get("training.beta1", 0.9), given.get("training.beta2", 0.95)]
        _set(tree, "training.adam_betas", betas)
    if "training.save_every_n_epochs" in given:
        _set(tree, "training.save_epochs", given["training.save_every_n_epochs"] or None)
    if "training.cleanup_checkpoints" in given:
        _set(tree, "training.keep_checkpoints", 1 if given["training.cleanup_checkpoints"] else None)
    if "monitoring.wandb.enabled" in given:
        _set(tree, "training.report_to", ["wandb"] if given["monitoring.wandb.enabled"] else [])


def _set_diffusion(tree: dict[str, Any], given: Mapping[str, Any], source: str) -> None:
    """What only masked diffusion has: one time for the batch or one for each sequence, the range, the canvas."""
    if "diffusion.single_ratio_per_sequence" in given:
        shared = given["diffusion.single_ratio_per_sequence"]
        _set(tree, "objective.t_granularity", "batch" if shared else "sequence")
    bounds = [given.get(f"diffusion.{name}_mask_ratio") for name in ("min", "max")]
    if bounds != [None, None]:
        low, high = bounds
        _set(tree, "objective.mask_ratio_range", [0.0 if low is None else low, 1.0 if high is None else high])
    if "sampling.num_steps" in given:
        _set(tree, "sampling.denoising_steps", given["sampling.num_steps"])
    if "sampling.schedule_type" in given:
        schedule = given["sampling.schedule_type"]
        if schedule not in SCHEDULES:
            raise SettingsError(
                f"{source}: sampling.schedule_type must be {' or '.join(SCHEDULES)}, got {schedule!r}. "
                "sampling.reveal_schedule has others."
            )
        _set(tree, "sampling.reveal_schedule", SCHEDULES[schedule])
        _set(tree, "sampling.confidence", "filtered")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key by its dotted path; a known key is a leaf whatever it holds."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        key = "model.training_mode" if key == "training_mode" else key
        if isinstance(value, Mapping) and key not in UNUSED:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _number(value: Any) -> Any:
    """YAML reads 2e-4 as text, of which TDLM makes a number."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _whole(given: Mapping[str, Any], key: str, source: str) -> int:
    value = given[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"{source}: {key} must be a whole number of at least 1, got {value!r}.")
    return value


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value

"""What a run needs from its first step to its end, found out before the first step.

In: a recipe, and later the model and the text made of it. Out: nothing, or an error that says what is missing: a folder
that cannot be written, a login, memory, disk, a prompt for the samples that are written when all is trained.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
from pathlib import Path

from unmask.destinations import check_folder
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, outline
from unmask.runs import locate
from unmask.settings.checks import is_true
from unmask.settings.decoding import SamplingParams
from unmask.settings.model import ModelSettings
from unmask.settings.recipe import Recipe
from unmask.training.preparation import TrainingText
from unmask.training.samples import sample_prompts

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_WANDB_OFFLINE = ("offline", "disabled", "dryrun")


def check_start(recipe: Recipe, *, resumes: bool) -> None:
    """What can be known from the recipe and this machine, before any text is read.

    Args:
        recipe: of the run.
        resumes: whether the run goes on from a checkpoint of its own, which then is the model, whatever it was made of.

    Raises:
        SettingsError: something does not go together, or is missing here.
        CheckpointError: there is no such checkpoint to start from.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # the first process looks for all: it may still be writing the checkpoint that this run starts from
    check_folder(Path(recipe.output_dir) / recipe.name, "The run folder")
    if recipe.data.cache_dir:
        check_folder(recipe.data.cache_dir, "data.cache_dir")
    is_true(
        not recipe.sampling.infill_length,
        "sampling.infill_length fills gaps, and samples have none. Set sampling.max_new_tokens instead.",
    )
    if not resumes:
        _check_model(recipe)
    if "wandb" in recipe.training.report_to:
        _check_wandb()


def _check_model(recipe: Recipe) -> None:
    """A new model fits the memory, one to start from is there, and either has positions for the text."""
    if recipe.model.from_pretrained is None:
        is_true(
            recipe.adapter.rank is None,
            "adapter.rank needs a checkpoint below the adapter: set model.from_pretrained.",
        )
        _check_memory(recipe.model)
        positions = recipe.model.max_position_embeddings
    else:
        positions = outline(locate(recipe.model.from_pretrained)).backbone.context_length
    is_true(
        recipe.data.context_length <= positions,
        f"data.context_length must be at most the model's {positions} positions, got "
        f"{recipe.data.context_length}. Lower it, or raise model.max_position_embeddings of a new model.",
    )


def with_room(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe with samples that leave half of a short context to their prompts, if their length is the default.

    Nobody chose that one, so a model with few positions is no reason to refuse a run.
    """
    most = max(1, checkpoint.backbone.context_length // 2)
    if recipe.sampling.max_new_tokens != SamplingParams.max_new_tokens or recipe.sampling.max_new_tokens <= most:
        return recipe
    return dataclasses.replace(recipe, sampling=dataclasses.replace(recipe.sampling, max_new_tokens=most))


def check_end(recipe: Recipe, checkpoint: Checkpoint, text: TrainingText) -> None:
    """What the end of the run asks of its model and text: samples that can be made, and room for a checkpoint.

    Raises:
        PromptError: the samples need a prompt, which text does not have.
        SettingsError: the sampling does not fit the model, or the disk not the checkpoint.
    """
    lm = DiffusionLM(checkpoint)
    params = lm.resolved(recipe.sampling)
    context = checkpoint.backbone.context_length
    prompts = sample_prompts(recipe, lm, text)
    # Where no prompt of a conversation leaves room, the page of samples says so and the run ends well.
    longest = 0 if prompts == [] else max(map(len, lm.codec.encode_all(prompts)))
    is_true(
        prompts == [] or longest + params.max_new_tokens <= context,
        f"sampling.max_new_tokens must leave room for a prompt of {longest} tokens in the model's {context} positions, "
        f"got {params.max_new_tokens}. Lower it: the samples at the end of the run could not be made.",
    )
    _check_disk(recipe, checkpoint)


def _check_memory(model: ModelSettings) -> None:
    """The weights of a new network, without its embeddings, must fit the memory of this machine."""
    if not hasattr(os, "sysconf"):
        return
    width = model.head_dim or model.hidden_size // model.num_attention_heads
    attention = 2 * model.hidden_size * width * (model.num_attention_heads + model.num_key_value_heads)
    weights = model.num_hidden_layers * (attention + 3 * model.hidden_size * model.intermediate_size)
    needed, there = weights * _BYTES[model.dtype], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    is_true(
        needed <= there,
        f"The network would have {weights:,} weights, {needed / 2**30:,.0f} GiB in {model.dtype}, and this machine has "
        f"{there / 2**30:,.0f} GiB of memory. Lower model.hidden_size, intermediate_size or num_hidden_layers.",
    )


def _check_disk(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """A checkpoint (weights, two moments, an average) must fit the disk, else the run would end at its first save."""
    weights = list(checkpoint.backbone.network.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    needed = sum(weight.nbytes for weight in weights) + trained * (12 if recipe.training.ema_decay is not None else 8)
    folder = Path(recipe.output_dir).absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    is_true(
        needed <= free,
        f"A checkpoint takes about {needed / 2**30:,.2f} GiB, and output_dir has {free / 2**30:,.2f} GiB free. Free "
        "some space, or set output_dir to a folder on another disk.",
    )


def _check_wandb() -> None:
    """A run that is to be sent to wandb's server needs a login there."""
    import wandb

    if os.environ.get("WANDB_MODE") in _WANDB_OFFLINE or not hasattr(wandb, "login"):
        return
    if "prompt" not in inspect.signature(wandb.login).parameters:  # an older version, which would ask on the terminal
        return
    try:
        is_known, reason = wandb.login(prompt=False), "no API key is configured"
    except wandb.Error as error:
        is_known, reason = False, " ".join(str(error).split())
    if not is_known:
        raise SettingsError(
            f"training.report_to=wandb: {reason}. Log in with `wandb login`, keep the run on this machine with "
            "WANDB_MODE=offline, or leave wandb out."
        )

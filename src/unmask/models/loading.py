"""Checkpoints: a folder or hub id -> network, tokenizer and diffusion entry; and back.

Loading is strict: a tensor that is missing, left over or of another shape is an error that names it. Published formats
(LLaDA, Dream) become stock networks as they are read, tensor by tensor. Saving writes a folder that plain
`transformers` opens; our one addition is the `diffusion` entry of its `config.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from unmask import noise
from unmask.errors import CheckpointError
from unmask.models import adapters, quantization
from unmask.models.adapters import SavedAdapter
from unmask.models.backbone import ATTENTION_NAME, AttentionBackend, Backbone
from unmask.models.families import FAMILIES
from unmask.models.files import GENERATION_CONFIG, fetched
from unmask.models.json_files import read_json
from unmask.models.placement import dtype_of, placed
from unmask.models.published.format import PublishedFormat
from unmask.models.source import Source, read_source, weights_of
from unmask.models.tied import named_once
from unmask.models.tokenizer_files import has_tokenizer
from unmask.models.tokenizers import MASK, limited, load_tokenizer, vocabulary_size
from unmask.noise import Purpose
from unmask.settings.adapter import Quantization
from unmask.settings.model import DEFAULT_BLOCK_LENGTH, DEFAULT_DRAFT_LENGTH, DiffusionConfig, ModelSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.typed import fitted

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
# What `transformers` raises on configurations that contradict themselves, and on damaged files.
_LOADING_ERRORS = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be trained, decoded and saved.

    Attributes:
        backbone: the network under our attention rule, with its diffusion entry.
        tokenizer: None for a checkpoint that works on token ids alone.
    """

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase | None


def default_device() -> torch.device:
    """The accelerator of this machine, or its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attention_backend: AttentionBackend = "dense",
    quantize: Quantization | Literal["auto"] | None = "auto",
) -> Checkpoint:
    """Load a model folder or hub id; an adapter comes on its base, active.

    Args:
        name: folder with `config.json` or `adapter_config.json`, or hub id.
        dtype: type of the weights; `auto` is what the checkpoint was saved in, for an adapter what it was trained on.
        device: where to put it (default: the accelerator, else the CPU); not with `device_map`.
        device_map: placement over several devices, as in `transformers`.
        attention_backend: `dense` or `flex`.
        quantize: `nf4` puts frozen linear layers into 4 bits, None does not; `auto` is what an adapter was trained on.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, not supported or does not fit its configuration.
        SettingsError: dtype or device does not exist, or the quantisation does not run here.
    """
    dtype, (device, device_map) = dtype_of(dtype), placed(device, device_map)
    fitted("attention_backend", AttentionBackend, attention_backend)
    saved = adapters.find(name)
    if saved is not None:
        placement = {"device": device, "device_map": device_map, "attention_backend": attention_backend}
        return _load_adapter(saved, dtype, quantize, **placement)
    source = read_source(name)
    target = device or default_device()
    options: dict[str, Any] = {}
    if quantize == "nf4":
        options["quantization_config"] = quantization.nf4(_resolved(dtype, source.config), target)
    if device_map is None and (options or target.type != "cpu"):
        device_map = {"": target}  # the weights go where they belong as they are read, not by way of the CPU
    with weights_of(source, dtype) as weights:
        try:
            loaded = source.family.model().from_pretrained(
                **weights,
                config=source.config,
                device_map=device_map,
                attn_implementation=ATTENTION_NAME,
                ignore_mismatched_sizes=True,  # else its error does not name the tensor; _check_report refuses them
                output_loading_info=True,
                **options,
            )
        except (*_LOADING_ERRORS, SafetensorError) as error:
            raise CheckpointError(f"The weights in {name} cannot be loaded: {error}") from None
    network, report = cast("tuple[PreTrainedModel, Any]", loaded)
    _check_report(report, source)
    quantization.tame(network)
    return _assembled(source, network, attention_backend)


def outline(name: str | Path) -> Checkpoint:
    """The checkpoint without its weights: its parameters are on the meta device, where they have shapes but no values.

    Of an adapter, it is the base under the adapter's entry and tokenizer, without the adapter's layers.

    Raises:
        CheckpointError: as in `load`, as far as the configuration and the tokenizer tell.
    """
    from transformers import GenerationConfig

    saved = adapters.find(name)
    if saved is not None:
        return _under_entry(outline(saved.base), saved)
    source = read_source(name)
    generation = read_json(source.folder, GENERATION_CONFIG)
    try:
        with torch.device("meta"):
            network = source.family.model()(source.config)
        if generation is not None and source.published is None:
            network.generation_config = GenerationConfig.from_dict(generation)
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"The configuration of {name} makes no network: {error}") from None
    return _assembled(source, network, "dense")


def create(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seed: int,
    size: int | None = None,
    attention_backend: AttentionBackend = "dense",
) -> Checkpoint:
    """A new network with random weights, on the CPU, for a tokenizer (or a vocabulary of `size` ids)."""
    ids = vocabulary_size(tokenizer) if tokenizer is not None else size
    if ids is None:
        raise CheckpointError("A new model needs a tokenizer or a vocabulary size.")
    shape = dataclasses.asdict(settings)
    for name in ("from_pretrained", "family", "dtype", "rope_theta"):
        del shape[name]
    shape["head_dim"] = settings.head_dim or settings.hidden_size // settings.num_attention_heads
    special = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = FAMILIES[settings.family].config(
        vocab_size=ids,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        **shape,
        **special,
    )
    config._attn_implementation = ATTENTION_NAME
    with noise.seeded(Purpose.WEIGHTS, seed):
        network = FAMILIES[settings.family].model()(config)
    for parameter in network.parameters():  # the weights alone: rounded, the rotary frequencies would be others
        parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=ids)
    return Checkpoint(Backbone(network, entry, attention_backend=attention_backend), tokenizer)


def adapted(checkpoint: Checkpoint, settings: ObjectiveSettings) -> Checkpoint:
    """The same checkpoint made ready for a training method: it gets a mask token if that needs one."""
    backbone = checkpoint.backbone
    entry = backbone.diffusion
    masks = settings.method != "autoregressive" or settings.input_mask_ratio > 0
    if masks and entry.mask_token_id is None:
        if backbone.adapter is not None:
            raise CheckpointError(
                f"The adapter has no mask token, and {settings.method} needs one. Merge it first: unmask merge "
                "ADAPTER OUT"
            )
        _give_mask(checkpoint)
        entry = backbone.diffusion
    shift = entry.logit_shift if settings.logit_shift is None else settings.logit_shift
    backbone.configure(
        dataclasses.replace(
            entry,
            method=settings.method,
            logit_shift=shift and settings.method == "masked_diffusion",
            schedule=settings.schedule,
            schedule_power=settings.schedule_power,
            block_length=_block_length(entry, settings),
            clean_ratio=settings.clean_ratio if settings.tidar_layout == "split" else None,
        )
    )
    return checkpoint


def _block_length(entry: DiffusionConfig, settings: ObjectiveSettings) -> int | None:
    """The block length at the end of training: the settings' last one, else the checkpoint's."""
    if settings.method not in ("block_diffusion", "tidar"):
        return None
    default = DEFAULT_DRAFT_LENGTH if settings.method == "tidar" else DEFAULT_BLOCK_LENGTH
    return (*settings.block_lengths[-1:], entry.block_length or default)[0]


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write the model, or its adapter, into `folder`, in files of at most `max_shard_size` (bytes, or text as `5GB`).

    `weights` replaces its own (an average, or gathered shards).
    """
    network = checkpoint.backbone.network
    if checkpoint.backbone.adapter is not None:
        adapters.save(checkpoint.backbone, folder, weights)
    else:
        network.config.diffusion = checkpoint.backbone.diffusion.to_dict()
        state = None if weights is None else named_once(network, weights)
        network.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save_pretrained(folder)


def parameter_counts(network: PreTrainedModel) -> tuple[int, int]:
    """All parameters, and those outside the input and output embeddings."""
    total = sum(quantization.num_weights(parameter) for parameter in network.parameters())
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    embeddings = {id(one): one.numel() for end in ends for one in end.parameters()}  # type: ignore[union-attr]
    return total, total - sum(embeddings.values())


def _load_adapter(
    saved: SavedAdapter, dtype: torch.dtype | str, quantize: Quantization | Literal["auto"] | None, **placement: Any
) -> Checkpoint:
    """The base of an adapter, made what it was in training, with the adapter on it."""
    if adapters.find(saved.base) is not None:
        raise CheckpointError(
            f"The base of the adapter {saved.name}, {saved.base}, is an adapter itself. Merge it first."
        )
    quantize = saved.quantization if quantize == "auto" else quantize
    if dtype == "auto" and quantize == saved.quantization:
        dtype = saved.dtype or "auto"
    try:
        checkpoint = load(saved.base, dtype=dtype, quantize=quantize, **placement)
    except CheckpointError as error:
        raise CheckpointError(
            f"The adapter {saved.name} lacks its base model {saved.base}. {error} Put the base there, or write where "
            f"it is now into `base_model_name_or_path` of {saved.name}/adapter_config.json."
        ) from None
    checkpoint = _under_entry(checkpoint, saved)
    adapters.restore(checkpoint.backbone, saved)
    checkpoint.backbone.eval()
    return checkpoint


def _under_entry(base: Checkpoint, saved: SavedAdapter) -> Checkpoint:
    """The base of an adapter with the entry, the mask row and the tokenizer of the model that was trained."""
    backbone = base.backbone
    entry = saved.diffusion or backbone.diffusion
    rows = int(backbone.network.config.vocab_size)
    # A base without a mask token gets one row more where it has no spare one.
    most = rows + (backbone.diffusion.mask_token_id is None)
    if entry.vocabulary_size > most or (entry.mask_token_id or 0) > rows:
        raise CheckpointError(
            f"The `diffusion` entry of the adapter {saved.name} names ids beyond the {rows} embedding rows of its base "
            f"{saved.base} (vocabulary_size {entry.vocabulary_size}, mask_token_id {entry.mask_token_id}). It was "
            "trained on another base."
        )
    if entry.mask_token_id is not None and backbone.diffusion.mask_token_id is None:
        _give_row(backbone.network, entry.mask_token_id, used=backbone.diffusion.vocabulary_size)
    backbone.configure(entry)
    folder = fetched(saved.name)
    return Checkpoint(backbone, load_tokenizer(folder) if has_tokenizer(folder) else base.tokenizer)


def _resolved(dtype: torch.dtype | str, config: PreTrainedConfig) -> torch.dtype:
    """The type of the weights that `from_pretrained` will choose."""
    chosen = config.dtype or torch.float32 if dtype == "auto" else dtype
    return chosen if isinstance(chosen, torch.dtype) else getattr(torch, chosen)


def _assembled(source: Source, network: PreTrainedModel, attention_backend: AttentionBackend) -> Checkpoint:
    tokenizer = load_tokenizer(source.folder) if has_tokenizer(source.folder) else None
    backbone = Backbone(network, _diffusion_entry(source, tokenizer), attention_backend=attention_backend)
    checkpoint = Checkpoint(backbone.eval(), tokenizer)
    if backbone.diffusion.method == "tidar" and backbone.diffusion.mask_token_id is None:
        _give_mask(checkpoint, copies=None if source.published is None else source.published.mask_copies)
    return checkpoint


def _check_report(report: Any, source: Source) -> None:
    problems = [
        f"{label}: {', '.join(_named(key, source.published) for key in sorted(keys, key=str)[:8])}"
        for label in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if (keys := list(report[label] if isinstance(report, dict) else getattr(report, label)))
    ]
    if problems:
        raise CheckpointError(
            f"The tensors in {source.name} do not fit its configuration. {'; '.join(problems)}. "
            "The checkpoint is of another shape, or incomplete; copy or convert it again."
        )


def _named(key: object, published: PublishedFormat | None) -> str:
    """A tensor's name in the files, and its two shapes where they differ."""
    name, *shapes = key if isinstance(key, tuple) else (key,)
    if published is not None:
        name = published.published_tensor(str(name))
    return f"{name} (file {tuple(shapes[0])}, model {tuple(shapes[1])})" if shapes else str(name)


def _diffusion_entry(source: Source, tokenizer: PreTrainedTokenizerBase | None) -> DiffusionConfig:
    rows = int(source.config.vocab_size)
    if source.entry is None:
        diffusion = limited(DiffusionConfig(method="autoregressive", vocabulary_size=rows), tokenizer)
    else:
        diffusion = source.entry if source.published is None else limited(source.entry, tokenizer)
    mask = diffusion.mask_token_id
    if diffusion.vocabulary_size > rows or (mask is not None and not 0 <= mask < rows):
        raise CheckpointError(
            f"The `diffusion` entry of {source.name} names ids beyond its {rows} embedding rows "
            f"(vocabulary_size {diffusion.vocabulary_size}, mask_token_id {mask}). Convert the checkpoint again."
        )
    return diffusion


def _give_mask(checkpoint: Checkpoint, *, copies: int | None = None) -> None:
    """Give a checkpoint a mask token, which starts at the mean embedding or as a copy of another id's."""
    backbone, entry = checkpoint.backbone, checkpoint.backbone.diffusion
    used = entry.vocabulary_size
    mask = _add_mask_token(backbone.network, checkpoint.tokenizer, used)
    if copies is not None and copies < used:
        with torch.no_grad():
            for end in (backbone.network.get_input_embeddings(), backbone.network.get_output_embeddings()):
                weight = cast(Tensor, end.weight)  # type: ignore[union-attr]
                weight[mask] = weight[copies]
    backbone.configure(dataclasses.replace(entry, mask_token_id=mask, vocabulary_size=max(used, mask + 1)))


def _add_mask_token(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, used: int) -> int:
    """Give the model a mask token: the tokenizer's own, else a new id; never pad or end of text."""
    if tokenizer is None:
        mask = used
    else:
        owners = {number: token for token, number in tokenizer.get_vocab().items()}
        is_new = tokenizer.mask_token_id is None
        if is_new:
            tokenizer.add_special_tokens({"mask_token": MASK})
        mask = cast(int, tokenizer.mask_token_id)
        if is_new and mask in owners:
            raise CheckpointError(
                f"The tokenizer's ids have gaps: its next id, {mask}, belongs to the token {owners[mask]!r} already. "
                "Give it a mask token of its own."
            )
        if mask in (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id):
            raise CheckpointError(
                f"The tokenizer's mask token {tokenizer.mask_token!r} (id {mask}) is also its pad, bos or eos token. "
                "Give it a mask token of its own."
            )
    _give_row(network, mask, used=used)
    return mask


def _give_row(network: PreTrainedModel, mask: int, *, used: int) -> None:
    """Let the mask token's embedding rows, new ones if need be, be the mean of the `used` rows."""
    rows = network.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    if mask >= rows:
        network.resize_token_embeddings(mask + 1, mean_resizing=False)
    with torch.no_grad():
        for end in (network.get_input_embeddings(), network.get_output_embeddings()):
            weight = cast(Tensor, end.weight)  # type: ignore[union-attr]
            weight[mask] = weight[:used].mean(dim=0)

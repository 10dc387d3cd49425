"""Adapters: LoRA (Hu et al., arXiv 2106.09685) on a frozen network, through PEFT.

PEFT puts its layers in the place of the targeted linear layers; the stock network around them stays what the backbone
drives. The mask token's embedding row, the one row that a diffusion model must learn, is trained beside them: a
parameter of the stock embedding, which a hook writes into its output. (PEFT's layer for such rows copies the whole
embedding in each forward, and a tied head in each chunk of the loss; the mask is never predicted, so the head needs no
row.) A folder holds what PEFT writes (`adapter_config.json` with `trainable_token_indices`,
`adapter_model.safetensors`), which plain PEFT opens, the tokenizer, and `diffusion.json`: the `diffusion` entry and how
the base was loaded. It is not called `config.json`, because `transformers` would take the folder for a whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask import noise
from unmask.errors import CheckpointError, SettingsError, nearest, require
from unmask.models.adapter_checks import DAMAGE, check_config, check_facts
from unmask.models.files import fetched
from unmask.models.headers import FACTS_FILE, WEIGHTS_FILE, counted, refuse_missing
from unmask.models.json_files import is_plain_file, read_json
from unmask.models.quantization import is_quantized
from unmask.models.source import entry_of
from unmask.noise import Purpose
from unmask.runs import ADAPTER_FILE
from unmask.settings.adapter import AdapterSettings, Quantization
from unmask.settings.model import DiffusionConfig
from unmask.writing import write_json

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from unmask.models.backbone import Backbone
    from unmask.models.loading import Checkpoint

HEAD = "lm_head"
_NAME = "default"
_PREFIX = "base_model.model."
_ROW, _SAVED_ROW = "mask_row", "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter folder without its weights.

    Attributes:
        name: the folder or hub id.
        config: PEFT's configuration, which names the base.
        diffusion: the entry of the trained model; None in a folder that plain PEFT wrote.
        dtype: the type that the base was loaded in; None likewise.
        quantization: what the base was quantised to.
    """

    name: str
    config: LoraConfig
    diffusion: DiffusionConfig | None
    dtype: str | None
    quantization: Quantization | None

    @property
    def base(self) -> str:
        """Folder or hub id of the frozen weights."""
        return str(self.config.base_model_name_or_path)


def attach(backbone: Backbone, settings: AdapterSettings, *, base: str, seed: int) -> None:
    """Freeze a network and put a new adapter on it, whose update is zero and whose mask row is the network's own.

    Args:
        backbone: with its mask token, if it has one.
        settings: with a rank.
        base: folder or hub id that the network was loaded from; a folder is recorded by its absolute path.
        seed: of the initial weights.

    Raises:
        SettingsError: a target does not exist, or cannot be adapted.
        MissingExtraError: PEFT is not installed.
    """
    require("peft", extra="peft", purpose="adapter.rank")
    from peft import LoraConfig, TaskType

    mask = backbone.diffusion.mask_token_id
    backbone.adapter = LoraConfig(
        r=settings.rank or 0,
        lora_alpha=settings.resolved_alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(backbone.network, settings),
        trainable_token_indices=None if mask is None else [mask],
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).is_dir() else base,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
    _inject(backbone, seed=seed)


def take_up(backbone: Backbone, settings: AdapterSettings, *, source: str) -> None:
    """Go on training what was loaded from `source`, under the settings that it began with; only dropout may change.

    Raises:
        SettingsError: they differ; it names the values.
    """
    config = backbone.adapter
    if config is None:
        if settings.rank is not None:
            raise SettingsError(f"{source} is no adapter. Leave out adapter.rank, or start an adapter on it anew.")
        return
    merge = f"or merge it and train on from there: unmask merge {source} MERGED"
    if settings.rank is None:
        raise SettingsError(f"{source} is an adapter: go on with it, with adapter.rank={config.r}, {merge}")
    quantization = "nf4" if is_quantized(backbone.network) else None
    pairs = {
        "rank": (config.r, settings.rank),
        "alpha": (config.lora_alpha, settings.resolved_alpha),
        "targets": (sorted(config.target_modules or ()), _targets(backbone.network, settings)),
        "quantization": (quantization, settings.quantization),
    }
    for name, (own, asked) in pairs.items():
        if own != asked:
            raise SettingsError(f"{source} has adapter.{name} {own}, and the recipe {asked}. Take the former, {merge}")
    config.lora_dropout = settings.dropout


def find(name: str | Path) -> SavedAdapter | None:
    """What a folder or hub id says about its adapter; None if it holds none, or is out of reach.

    Raises:
        CheckpointError: it holds one that is damaged or of a kind that is not supported.
    """
    try:
        folder = fetched(name)
    except CheckpointError:
        return None
    path = folder / ADAPTER_FILE
    entry = read_json(folder, ADAPTER_FILE)
    if entry is None:
        return None
    require("peft", extra="peft", purpose=f"The adapter {name}")
    from peft import LoraConfig

    facts = read_json(folder, FACTS_FILE) or {}
    kind, saved = entry.get("peft_type"), facts.get("diffusion")
    check_config(entry, path)
    check_facts(facts, folder / FACTS_FILE)
    try:
        config = cast(LoraConfig, LoraConfig.from_pretrained(str(path.parent))) if kind == "LORA" else None
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    diffusion = None if saved is None else entry_of(saved, str(folder / FACTS_FILE))
    rows = None if diffusion is None or diffusion.mask_token_id is None else [diffusion.mask_token_id]
    if config is None or config.modules_to_save or config.trainable_token_indices != rows:
        raise CheckpointError(
            f"{name} is an adapter of a kind that is not supported: peft_type {kind}, modules_to_save "
            f"{entry.get('modules_to_save')}, trainable_token_indices {entry.get('trainable_token_indices')}. Only "
            "LoRA with the mask token's row is. Merge it with PEFT's merge_and_unload, and load the result."
        )
    return SavedAdapter(str(name), config, diffusion, facts.get("dtype"), facts.get("quantization"))


def restore(backbone: Backbone, saved: SavedAdapter) -> None:
    """Put a saved adapter on its base, whose `diffusion` entry and embedding rows are those of the adapter already.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; it is named.
    """
    folder = fetched(saved.name, weights=True)
    path = folder / WEIGHTS_FILE
    if not is_plain_file(path):
        refuse_missing(folder, WEIGHTS_FILE)
    counted([path])
    try:
        tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The weights in {path} cannot be loaded: {error}") from None
    backbone.adapter = saved.config
    try:
        _inject(backbone, seed=0)
    except DAMAGE as error:
        raise CheckpointError(f"The adapter {saved.name} does not fit its base {saved.base}: {error}") from None
    _check_tensors({name: one.shape for name, one in tensors.items()}, _tensors(backbone), saved)
    from peft import set_peft_model_state_dict

    embedding = _embedding(backbone.network)
    row = tensors.pop(f"{_embedding_name(backbone.network)}.{_SAVED_ROW}", None)
    if row is not None:
        with torch.no_grad():
            cast(Tensor, embedding.mask_row).copy_(row[0])
    set_peft_model_state_dict(backbone.network, tensors, adapter_name=_NAME)


def save(backbone: Backbone, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write an adapter folder without tokenizer; `weights` replaces the network's own, under the network's names."""
    config = backbone.adapter
    assert config is not None, "the caller asked"
    tensors = {_PREFIX + name: one.detach().cpu().contiguous() for name, one in _tensors(backbone, weights).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    written = copy.copy(config)
    if isinstance(written.target_modules, set):
        written.target_modules = sorted(written.target_modules)  # equal adapters give equal files
    written.save_pretrained(str(folder))
    facts = {
        "diffusion": backbone.diffusion.to_dict(),
        "dtype": str(backbone.network.dtype).removeprefix("torch."),
        "quantization": "nf4" if is_quantized(backbone.network) else None,
    }
    write_json(folder / FACTS_FILE, facts)


def merged(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its adapter added to the weights below it: a plain network, all of which can be trained.

    Raises:
        CheckpointError: there is no adapter, or the weights below are quantised, where a merge would round once more.
    """
    backbone = checkpoint.backbone
    network, config = backbone.network, backbone.adapter
    if config is None:
        raise CheckpointError("There is no adapter to merge: this is a whole model already.")
    if is_quantized(network):
        raise CheckpointError(
            "An adapter is merged into whole weights, and these are in 4 bits. Load it with quantize=None first, "
            "or use: unmask merge ADAPTER OUT"
        )
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)  # type: ignore[operator]
            network.set_submodule(name, layer.get_base_layer())  # type: ignore[arg-type]
    embedding = _embedding(network)
    if config.trainable_token_indices is not None:
        (mask,) = cast("list[int]", config.trainable_token_indices)
        with torch.no_grad():
            cast(Tensor, embedding.weight)[mask] = cast(Tensor, embedding.mask_row)
        embedding.mask_hook.remove()  # type: ignore[operator,union-attr]
        del embedding.mask_row, embedding.mask_hook
    del network.peft_config
    backbone.adapter = None
    network.requires_grad_(True)
    return checkpoint


# --- inside the network -----------------------------------------------------------------------------------------------


def _targets(network: PreTrainedModel, settings: AdapterSettings) -> list[str]:
    """Names of the layers to adapt, sorted: those asked for, else every linear layer of attention and MLP."""
    layers = cast(nn.Module, network.model.layers)  # type: ignore[union-attr]
    linear = {name.rpartition(".")[2] for name, module in _bare_modules(layers) if isinstance(module, nn.Linear)}
    for name in settings.targets:
        if name == HEAD and settings.dropout > 0:
            raise SettingsError(f"adapter.dropout does not work with {HEAD} in adapter.targets. Leave one of them out.")
        if name not in (*linear, HEAD):
            raise SettingsError(
                f"adapter.targets names `{name}`, and this network has no linear layer of that name. "
                f"{nearest(name, (*linear, HEAD))}"
            )
    return sorted(settings.targets or linear)


def _bare_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules with their names, without what an adapter put inside and around them."""
    return [
        (name.removesuffix(".base_layer"), module)
        for name, module in root.named_modules()
        if "lora_" not in name and not hasattr(module, "base_layer")
    ]


def _inject(backbone: Backbone, *, seed: int) -> None:
    """Freeze the network and put layers and mask row into it, as `backbone.adapter` says.

    PEFT's dropout draws from the global generator, so it is left out here; training hooks its own on.
    """
    from peft import inject_adapter_in_model

    network, written = backbone.network, backbone.adapter
    assert written is not None
    tied = network.get_output_embeddings().weight is _embedding(network).weight  # type: ignore[union-attr]
    if tied and HEAD in (written.target_modules or ()):
        raise SettingsError(
            f"{HEAD} cannot be a target of an adapter here: this network shares its weight with the embedding (tied), "
            "which the update would change as well. Leave it out."
        )
    config = copy.copy(written)
    config.lora_dropout, config.trainable_token_indices, config.inference_mode = 0.0, None, False
    training = network.training
    with noise.seeded(Purpose.ADAPTER, seed):
        inject_adapter_in_model(config, network, _NAME)
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()  # a small update would be lost in half precision
    if written.trainable_token_indices is not None:
        (mask,) = cast("list[int]", written.trainable_token_indices)
        _train_row(_embedding(network), mask)
    network.train(training)


def _train_row(embedding: nn.Embedding, mask: int) -> None:
    """Give a frozen embedding one row that is trained."""
    row = embedding.weight[mask].detach().clone()
    embedding.mask_row = nn.Parameter(row.float() if row.element_size() < 4 else row)

    def put_row(module: nn.Module, arguments: tuple[Tensor], output_BLD: Tensor) -> Tensor:
        row_D = cast(Tensor, module.mask_row)
        return torch.where((arguments[0] == mask)[..., None], row_D.to(output_BLD.dtype), output_BLD)

    embedding.mask_hook = embedding.register_forward_hook(put_row)  # type: ignore[assignment]


def _embedding(network: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, network.get_input_embeddings())


def _embedding_name(network: PreTrainedModel) -> str:
    embedding = _embedding(network)
    return next(name for name, module in network.named_modules() if module is embedding)


def _tensors(backbone: Backbone, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names; `weights` replaces the network's own."""
    from peft import get_peft_model_state_dict

    network = backbone.network
    state = dict(network.state_dict() if weights is None else weights)
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        network, state_dict=state, adapter_name=_NAME, save_embedding_layers=False
    )
    name = _embedding_name(network)
    if f"{name}.{_ROW}" in state:
        tensors[f"{name}.{_SAVED_ROW}"] = state[f"{name}.{_ROW}"][None]
    return tensors


# --- folders ----------------------------------------------------------------------------------------------------------


def _check_tensors(found: Mapping[str, torch.Size], wanted: Mapping[str, Any], saved: SavedAdapter) -> None:
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(
            f"{name} (file {tuple(found[name])}, model {tuple(wanted[name].shape)})"
            for name in found.keys() & wanted.keys()
            if found[name] != wanted[name].shape
        ),
    }
    if any(problems.values()):
        named = "; ".join(f"{label}: {', '.join(names[:8])}" for label, names in problems.items() if names)
        raise CheckpointError(
            f"The tensors of the adapter {saved.name} do not fit its base {saved.base}. {named}. It was trained on "
            "another model, or is incomplete."
        )

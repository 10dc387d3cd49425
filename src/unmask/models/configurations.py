"""What is read in a `config.json` before anything is built from it: whether the network is one that opens here.

In: the object in the file. Out: nothing, or an error that names the key. A network of impossible sizes would take all
memory, and one of other code or quantised weights would load as something that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import CheckpointError, nearest
from unmask.models.families import FAMILIES
from unmask.models.headers import StoredWeights
from unmask.models.json_files import is_plain_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The largest sizes that make sense, a good deal above any published network's.
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**18,
    "intermediate_size": 2**20,
    "moe_intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "max_position_embeddings": 2**31,
    "num_experts": 2**14,
    "num_experts_per_tok": 2**14,
}
_OPTIONAL = ("num_key_value_heads", "head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok")
_POSITIVE = ("rope_theta", "rms_norm_eps", "initializer_range")
# Keys that mean a diffusion model in a configuration that no diffusion entry explains.
_OF_DIFFUSION = ("mask_token_id", "mask_id", "bd_size", "diffusion_block_size", "block_size")
_SPARE = 2**20
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_DTYPES = ("float64", "float32", "bfloat16", "float16", "auto")


def check_stock(raw: Mapping[str, Any], folder: Path, source: str) -> None:
    """Refuse a configuration of a stock type that means another network than the stock class.

    Raises:
        CheckpointError: it does, or a size in it is impossible.
    """
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        return
    check_sizes(raw, source)
    _check_names(raw, source)
    for architecture in _listed(raw.get("architectures"), "architectures", source):
        if architecture != family.model_class:
            raise CheckpointError(
                f"{source} is a {architecture} under the model type {family.model_type}: {_kind(str(architecture))}. "
                f"Only {family.model_class} opens under this type."
            )
    code = raw.get("auto_map") or {}
    own = [name for name in code if str(name).startswith(("AutoModel", "AutoConfig"))] if isinstance(code, dict) else []
    if own:
        raise CheckpointError(
            f"{source} has code of its own (`auto_map`: {', '.join(f'{name} is {code[name]}' for name in own)}), which "
            f"Unmask does not run; what that makes of {family.model_type}'s tensors is not {family.model_class}."
        )
    if raw.get("diffusion") is None:
        for key in _OF_DIFFUSION:
            if raw.get(key) is not None:
                raise CheckpointError(
                    f"{source} has `{key}: {raw[key]}` in its config.json, as a diffusion model of another program. It "
                    f"would open as an autoregressive {family.model_type}, which it is not. If it is one, take the key "
                    "out."
                )
    if is_plain_file(folder / "modules.json"):
        raise CheckpointError(
            f"{source} is an embedding model of sentence-transformers (it has a modules.json), which predicts no "
            "tokens."
        )


def check_kinds(raw: Mapping[str, Any], source: str) -> None:
    """Refuse values that no format allows, of keys that every format has.

    Raises:
        CheckpointError: `architectures` is no list, or the type of the weights no type.
    """
    _listed(raw.get("architectures"), "architectures", source)
    for name in ("dtype", "torch_dtype"):
        if raw.get(name) is not None and raw[name] not in _DTYPES:
            raise CheckpointError(
                f"{source} has `{name}: {_shown(raw[name])}` in its config.json, which does not exist. "
                f"{nearest(str(raw[name]), _DTYPES)}"
            )


def check_not_quantized(raw: Mapping[str, Any], source: str) -> None:
    """Refuse weights that were quantised.

    Raises:
        CheckpointError: the configuration says so.
    """
    said = raw.get("quantization_config", raw.get("compression_config"))
    if said is None:
        return
    method = said.get("quant_method", said.get("quant_algo")) if isinstance(said, dict) else said
    raise CheckpointError(
        f"{source} has `quantization_config: {_shown(said)}` in its config.json: its weights were quantised by "
        f"{method or 'an unnamed method'}, and only whole ones open here. Use the checkpoint that they were made from. "
        "In training, adapter.quantization=nf4 keeps that one's weights in 4 bits."
    )


def check_sizes(said: Mapping[str, Any], source: str) -> None:
    """Refuse sizes that no network has, of those that are given.

    Raises:
        CheckpointError: one is no whole number, out of its range, or does not fit another.
    """
    for name, largest in _LARGEST.items():
        value = said.get(name)
        if name not in said or (value is None and name in _OPTIONAL):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise CheckpointError(
                f"{source} has `{name}: {_shown(value)}` in its config.json, which must be a whole number from 1 to "
                f"{largest:,}. Copy the checkpoint again."
            )
    for name in _POSITIVE:
        value = said.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
        ):
            raise CheckpointError(
                f"{source} has `{name}: {_shown(value)}` in its config.json, which must be a positive number. Copy the "
                "checkpoint again."
            )
    _check_heads(said, source)


def _check_heads(said: Mapping[str, Any], source: str) -> None:
    heads, width = said.get("num_attention_heads"), said.get("hidden_size")
    shared, each = said.get("num_key_value_heads"), said.get("head_dim")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise CheckpointError(
            f"{source} has {heads} attention heads over {shared} for keys and values (`num_key_value_heads`), which "
            "must divide them. Copy the checkpoint again."
        )
    if each is None and isinstance(heads, int) and isinstance(width, int):
        if width % heads:
            raise CheckpointError(
                f"{source} has `hidden_size: {width}`, which must be a multiple of its {heads} attention heads where "
                "there is no `head_dim`. Copy the checkpoint again."
            )
        each = width // heads
    if isinstance(each, int) and each % 2:
        raise CheckpointError(f"{source} has heads of {each} channels (`head_dim`), and rotary positions need pairs.")


def check_ids(said: Mapping[str, Any], file: str, source: str) -> None:
    """Refuse special tokens that are no ids.

    Raises:
        CheckpointError: one is something else.
    """
    for name in _IDS:
        value = said.get(name)
        listed = value if isinstance(value, list) and name == "eos_token_id" else [value]
        for one in listed:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or abs(one) >= 2**31):
                raise CheckpointError(
                    f"{source} has `{name}: {_shown(value)}` in its {file}, which must be a token id. Copy the "
                    "checkpoint again."
                )


def _check_names(said: Mapping[str, Any], source: str) -> None:
    """Refuse an activation or a rotary scheme that does not exist."""
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = said.get("rope_parameters", said.get("rope_scaling"))
    if rotary is not None and not isinstance(rotary, dict):
        raise CheckpointError(f"{source} has `rope_parameters: {_shown(rotary)}`, which must be an object.")
    named = {
        "hidden_act": (said.get("hidden_act"), tuple(ACT2FN)),
        "rope_type": ((rotary or {}).get("rope_type", (rotary or {}).get("type")), ("default", *ROPE_INIT_FUNCTIONS)),
    }
    for name, (value, allowed) in named.items():
        if value is not None and value not in allowed:
            raise CheckpointError(
                f"{source} has `{name}: {_shown(value)}` in its config.json, which does not exist. "
                f"{nearest(str(value), allowed)}"
            )


def check_fits(config: PreTrainedConfig, stored: StoredWeights, source: str) -> None:
    """Refuse a network that is far larger than what its files hold, before it takes memory.

    Raises:
        CheckpointError: it is.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    each = getattr(config, "head_dim", None) or width // heads
    layer = 2 * width * heads * each
    if getattr(config, "num_experts", None) is None:
        layer += 3 * width * config.intermediate_size
    least, there = config.vocab_size * width + config.num_hidden_layers * layer, sum(stored.values.values())
    if least > 2 * there + _SPARE:
        raise CheckpointError(
            f"The tensors in {source} do not fit its configuration: that describes a network of at least {least:,} "
            f"numbers, and the files hold {there:,}. The checkpoint is incomplete, or its config.json is another's; "
            "copy it again."
        )


def _listed(value: object, name: str, source: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise CheckpointError(f"{source} has `{name}: {_shown(value)}` in its config.json, which must be a list.")
    return value


def _kind(architecture: str) -> str:
    """What a class that is not the stock one is likely to be, by its name."""
    if architecture.endswith(("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")):
        return "a classifier, whose head predicts no tokens"
    if "Reward" in architecture:
        return "a reward model, whose head predicts no tokens"
    if architecture.endswith("Model") or "Embedding" in architecture:
        return "a network without a head for tokens, or with another one"
    return "another network, whose attention, head or reading of the logits may be different"


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 60 else text[:57] + "..."

"""A published checkpoint format, and its way to a stock network and back.

A format is data: which original classes it covers, how their configuration keys and tensors are called here, what they
fill in for absent keys, and which keys must keep their usual value because another one means a network that the stock
class is not. Both directions read the same tables, so what comes in goes out again, key for key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from unmask.errors import CheckpointError
from unmask.models.configurations import check_sizes
from unmask.models.families import FAMILIES
from unmask.settings.model import DiffusionConfig, Method

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
# How to find the original's code, and what the headers of the weights say as well.
_BOOKKEEPING = ("architectures", "auto_map", "dtype", "model_type", "torch_dtype")
QWEN_KEYS = (
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)
"""Configuration keys that formats built on Qwen's share, with their stock names."""


@dataclass(frozen=True, kw_only=True)
class PublishedFormat:
    """One format; the tables are in terms of the published names.

    Attributes:
        name: for `unmask convert --to`.
        title: as its authors write it.
        model_type: in its config.json.
        architectures: classes of the original code that the tables cover; the first is written.
        family: `model_type` of the stock network.
        auto_map: where the original's code is, for those who run it.
        keys: published configuration key -> field of the stock configuration.
        defaults: what the original's configuration class fills in for absent keys.
        constants: the usual value of every key that says nothing about sizes.
        refused: keys that must have their usual value, and what another one would mean.
        tensors: published tensor name -> stock name, `{}` for the layer; empty where the names are the same.
        method: how its models were trained.
        block_length: the diffusion block where config.json has no `block_size`; None for a method without blocks.
        mask_token_id: the one mask id that its readers know; None where they take it from config.json.
        mask_copies: where a checkpoint has no mask token of its own, the id that its authors let stand for one: a new
            mask token starts with that one's embedding.
        complete: fills in keys that other keys imply; may refuse a combination.
        tokenizer_class: of its tokenizer, as transformers 4 names it.
        logit_shift: whether the prediction for a token stands one place before it.
        turn_ends: end-of-text id -> id that ends a chat turn in that vocabulary.
    """

    name: str
    title: str
    model_type: str
    architectures: tuple[str, ...]
    family: str
    auto_map: Mapping[str, str]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    constants: Mapping[str, Any]
    refused: Mapping[str, str]
    complete: Callable[[dict[str, Any]], dict[str, Any]]
    tokenizer_class: str
    logit_shift: bool
    turn_ends: Mapping[int, int]
    tensors: Mapping[str, str] = field(default_factory=dict)
    method: Method = "masked_diffusion"
    block_length: int | None = None
    mask_token_id: int | None = None
    mask_copies: int | None = None

    @property
    def local_code(self) -> dict[str, str]:
        """`auto_map` for a folder that holds the original's code itself: class of transformers -> `module.Class`."""
        return {name: place.rpartition("--")[2] for name, place in self.auto_map.items()}

    def stock_tensor(self, name: str) -> str:
        """The stock name of a published tensor; unknown names stay, to be reported as they are in the file."""
        return _renamed(name, self.tensors)

    def published_tensor(self, name: str) -> str:
        """The published name of a stock tensor."""
        return _renamed(name, {ours: theirs for theirs, ours in self.tensors.items()})

    def read(
        self, raw: Mapping[str, Any], generation: Mapping[str, Any], source: str
    ) -> tuple[PreTrainedConfig, DiffusionConfig]:
        """The stock configuration and the diffusion entry that a published configuration means.

        Args:
            raw: its config.json.
            generation: its generation_config.json, or nothing.
            source: its name in messages.

        Raises:
            CheckpointError: the configuration contradicts itself, or describes a network that the tables do not cover.
        """
        self._check(raw, source)
        said = {**self.defaults, **raw}
        padding, ends = said.get("pad_token_id"), self._ends(said, generation)
        mask = self._mask(said["mask_token_id"], (*ends, padding), source)
        block_length = None if self.block_length is None else said.get("block_size", self.block_length)
        if self.block_length is not None and (not isinstance(block_length, int) or block_length < 1):
            raise CheckpointError(
                f"{source} has `block_size: {block_length}` in its config.json, which must be a number of tokens of at "
                f"least 1. Set it, or leave it out for {self.block_length}."
            )
        try:
            said = self.complete(said)
            check_sizes({ours: said[theirs] for theirs, ours in self.keys.items()}, source)
            config = FAMILIES[self.family].config(
                **{ours: said[theirs] for theirs, ours in self.keys.items()},
                rope_parameters={"rope_type": "default", "rope_theta": said["rope_theta"] + 0.0},
                bos_token_id=said.get("bos_token_id"),
                eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
                pad_token_id=padding,
                dtype=raw.get("torch_dtype", raw.get("dtype")),
            )
            vocabulary_size = min(max(said["vocab_size"], -1 if mask is None else mask + 1), config.vocab_size)
        except (StrictDataclassError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"The configuration of {source} contradicts itself: {reason}") from None
        entry = DiffusionConfig(
            method=self.method,
            vocabulary_size=vocabulary_size,
            mask_token_id=mask,
            block_length=block_length,
            logit_shift=self.logit_shift,
            published=self._unusual(raw),
        )
        return config, entry

    def write(
        self, config: PreTrainedConfig, entry: DiffusionConfig, *, vocabulary_size: int, dtype: str
    ) -> dict[str, Any]:
        """The published configuration of a stock network; whether it says everything is the caller's to check."""
        ends = config.eos_token_id
        written = {
            **self.constants,
            **entry.published,
            **{theirs: getattr(config, ours, None) for theirs, ours in self.keys.items()},
            "architectures": [self.architectures[0]],
            "auto_map": dict(self.auto_map),
            "eos_token_id": ends[0] if isinstance(ends, list) else ends,
            "mask_token_id": entry.mask_token_id,
            "model_type": self.model_type,
            "rope_theta": (config.rope_parameters or {}).get("rope_theta"),
            "torch_dtype": dtype,
            "vocab_size": vocabulary_size,
        }
        if config.bos_token_id is not None:
            written["bos_token_id"] = config.bos_token_id
        if config.pad_token_id is not None or "pad_token_id" in self.defaults:
            written["pad_token_id"] = config.pad_token_id
        if self.block_length is not None:
            written["block_size"] = entry.block_length
        return dict(sorted(self.complete(written).items()))

    def _check(self, raw: Mapping[str, Any], source: str) -> None:
        for architecture in raw.get("architectures") or ():
            if architecture not in self.architectures:
                raise CheckpointError(
                    f"{source} is a {architecture}, and Unmask's table for {self.title} covers "
                    f"{', '.join(self.architectures)} only: its other networks have other blocks and tensor names."
                )
        said = {**self.defaults, **raw}
        for key, meaning in self.refused.items():
            usual = self.constants.get(key)
            # Absent, null and false are the same: each turns a part off.
            if (said.get(key) or False) != (usual or False):
                raise CheckpointError(
                    f"{source} has `{key}: {said[key]}` in its config.json, which means {meaning}. Unmask's table for "
                    f"{self.title} covers `{key}: {usual}` only."
                )

    def _mask(self, mask: Any, others: tuple[int | None, ...], source: str) -> int | None:
        """The mask token's id, or None where it is to get a new one."""
        if self.mask_copies is not None and mask in (None, self.mask_copies):
            return None
        if not isinstance(mask, int) or mask in others:
            raise CheckpointError(
                f"{source} has the mask token id {mask}, which must be an id of its own (end of text and padding: "
                f"{', '.join(str(one) for one in others if one is not None)}). Set mask_token_id in its config.json."
            )
        return mask

    def _ends(self, said: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
        """The ids that end a text: of both files, and the end of a chat turn in a vocabulary that is known."""
        given = [said.get("eos_token_id"), generation.get("eos_token_id")]
        ends = [one for value in given for one in (value if isinstance(value, list) else [value]) if one is not None]
        ends += [self.turn_ends[one] for one in ends if one in self.turn_ends]
        return list(dict.fromkeys(ends))

    def _unusual(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Keys that have neither a meaning here nor their usual value."""
        used = {*_BOOKKEEPING, *self.keys, "bos_token_id", "eos_token_id", "mask_token_id", "pad_token_id"}
        used |= {"rope_theta", "vocab_size"} | ({"block_size"} if self.block_length is not None else set())
        return {
            key: value
            for key, value in raw.items()
            if key not in used and not (key in self.constants and self.constants[key] == value)
        }


def _renamed(name: str, table: Mapping[str, str]) -> str:
    layer = _LAYER.search(name)
    pattern = name if layer is None else _LAYER.sub("{}", name, count=1)
    found = table.get(pattern, name)
    return found if layer is None else found.replace("{}", layer[0])

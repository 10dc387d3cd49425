"""The formats that Unmask reads and writes besides its own, and those that it names but does not cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.errors import CheckpointError
from unmask.models.published import dream, llada, sdar, tidar
from unmask.models.published.format import PublishedFormat

TARGETS: dict[str, tuple[PublishedFormat, ...]] = {
    "llada": (llada.FORMAT,),
    "dream": (dream.FORMAT,),
    "sdar": (sdar.FORMAT, sdar.MIXTURE),
}
"""What `unmask convert --to` writes, by the network: one format for each family."""
FORMATS: dict[str, PublishedFormat] = {
    one.name: one for formats in (*TARGETS.values(), (tidar.FORMAT,)) for one in formats
}
"""What opens: what is written, and the first TiDAR port's form, whose successor is our own (`--to tidar`)."""


@dataclass(frozen=True)
class NotCovered:
    """A published format whose network or decoding no table covers.

    Attributes:
        title: as its authors write it.
        architectures: classes of its code, by which it is known whatever its `model_type`.
        model_types: in its config.json, where no other format uses the same.
        stock: the stock class that has its tensors, under names of its own.
        why: what is missing.
    """

    title: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    stock: str
    why: str


NOT_COVERED = (
    NotCovered(
        "LLaDA-MoE",
        ("LLaDAMoEModelLM",),
        (),  # it is `llada`
        "Qwen3MoeForCausalLM",
        "its tensors and keys have other names, which no table has yet",
    ),
    NotCovered(
        "LLaDA2.x",
        ("LLaDA2MoeModelLM",),
        ("llada2_moe",),
        "Glm4MoeForCausalLM",
        "its tensors have other names, queries, keys and values lie in one, and no table has them yet",
    ),
    NotCovered(
        "Nemotron-Labs-Diffusion",
        ("NemotronLabsDiffusionModel",),
        ("nemotron_labs_diffusion",),
        "Ministral3ForCausalLM",
        "Unmask does not drive that class yet",
    ),
    NotCovered(
        "Stable-DiffCoder",
        ("StableDiffcoderForCausalLM",),
        (),  # it is `llama`
        "LlamaForCausalLM",
        "its mask token and blocks stand in its code",
    ),
    NotCovered(
        "Fast-dLLM v2",
        ("Fast_dLLM_QwenForCausalLM",),
        ("Fast_dLLM_Qwen",),
        "Qwen2ForCausalLM",
        "its blocks of blocks are not decoded here yet",
    ),
    NotCovered(
        "dllm's A2D",
        ("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel", "A2DLlamaLMHeadModel"),
        ("a2d-qwen3", "a2d-qwen2", "a2d-llama"),
        "The class of the same family",
        "its mask token stands in the tokenizer, and its method nowhere",
    ),
    NotCovered(
        "WeDLM",
        ("WeDLMForCausalLM",),
        ("wedlm",),
        "Qwen2ForCausalLM or Qwen3ForCausalLM",
        "it reorders the tokens of a window, which Unmask does not do yet",
    ),
)


def published_format(raw: Mapping[str, Any], source: str) -> PublishedFormat | None:
    """The published format of a config.json, or None for a stock one.

    Raises:
        CheckpointError: it is of a published format that is known and not covered.
    """
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    for one in NOT_COVERED:
        if model_type in one.model_types or any(architecture in one.architectures for architecture in named):
            raise CheckpointError(
                f"{source} is a {one.title} model ({one.architectures[0]}, model type `{model_type}`), which does not "
                f"open yet. {one.stock} of transformers has its network, but {one.why}. Published formats that open: "
                f"{', '.join(format.title for format in FORMATS.values())}."
            )
    return next((one for one in FORMATS.values() if one.model_type == model_type), None)


def target_format(target: str, family: str) -> PublishedFormat:
    """The format that `target` (a key of `TARGETS`) means for a network of a family.

    Raises:
        CheckpointError: it has none for that network.
    """
    formats = TARGETS[target]
    for one in formats:
        if one.family == family:
            return one
    raise CheckpointError(
        f"{formats[0].title}'s format holds {' and '.join(one.family for one in formats)} networks, and this one is a "
        f"{family}. Write it with --to unmask."
    )

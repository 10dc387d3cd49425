"""Dream's published checkpoints as stock Qwen2 networks, read one place earlier, with its tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tests.models.published import tiny
from tests.references import published as reference
from tests.references.likelihood import exact_elbo
from tests.references.llada import fixed_length
from unmask import DiffusionLM, SamplingParams
from unmask.errors import CheckpointError
from unmask.models.loading import load, outline, parameter_counts, save
from unmask.models.source import read_source
from unmask.models.tokenizers import encode
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.model import DiffusionConfig

IDS = [3, tiny.MASK, 5, tiny.MASK, 9, 11, 2]
CONFIG = tiny.dream()
TENSORS = tiny.random_tensors(CONFIG)
ALLOWED_V = torch.arange(tiny.ROWS) != tiny.MASK


@pytest.fixture(params=[1, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint in one file, and in three."""
    return tiny.write(tmp_path / "dream", CONFIG, TENSORS, shards=request.param)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    return str(caught.value)


def shifted(ids: list[int]) -> Tensor:
    """Dream's logits as its sampler reads them: row i, taken from place i - 1, predicts token i."""
    logits_LV = reference.dream_logits(TENSORS, CONFIG, ids)
    return torch.cat([logits_LV[:1], logits_LV[:-1]])


def test_logits_equal_the_published_network(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, device="cpu")
    assert type(lm.backbone.network).__name__ == "Qwen2ForCausalLM"
    assert lm.backbone.diffusion == DiffusionConfig(
        method="masked_diffusion", vocabulary_size=tiny.ROWS, mask_token_id=tiny.MASK, logit_shift=True
    )
    difference_LV = lm.logits([IDS])[0] - reference.dream_logits(TENSORS, CONFIG, IDS)
    assert difference_LV[:, ALLOWED_V].abs().max() < 1e-10


def test_generation_reads_the_place_before(folder: Path) -> None:
    prompts = [[3, 1, 4], [9], [2, 6, 5, 3, 5]]
    params = SamplingParams(max_new_tokens=6, denoising_steps=3, ignore_eos=True)
    outputs = DiffusionLM.from_pretrained(folder, device="cpu").generate(prompts, params)
    for prompt, found in zip(prompts, outputs, strict=True):
        expected = fixed_length(shifted, prompt, 6, 3, 6, tiny.MASK, excluded=[tiny.MASK]).canvas[len(prompt) :]
        assert list(found.token_ids) == expected
        unshifted = fixed_length(
            lambda ids: reference.dream_logits(TENSORS, CONFIG, ids), prompt, 6, 3, 6, tiny.MASK, excluded=[tiny.MASK]
        )
        assert unshifted.canvas[len(prompt) :] != expected, "a test that the shift does not change shows nothing"


def nats(ids: list[int], masked: tuple[bool, ...]) -> list[float]:
    """Cross-entropy at every place but the first, of which the tuple says what is masked."""
    canvas = ids[:1] + [tiny.MASK if hidden else token for token, hidden in zip(ids[1:], masked, strict=True)]
    log_LV = shifted(canvas).masked_fill(~ALLOWED_V, -math.inf).log_softmax(dim=-1)
    return [-float(log_LV[place, token]) for place, token in enumerate(ids)][1:]


def test_the_likelihood_reads_the_place_before(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, device="cpu")
    (one,) = lm.score([[3, 7]])
    assert one.tokens == 1 and -one.log_likelihood == pytest.approx(nats([3, 7], (True,))[0], abs=1e-10)
    ids = [3, 7, 1, 12]
    (score,) = lm.score([ids], EvaluationSettings(masks_per_sequence=400))
    exact = exact_elbo(ids[1:], lambda masked: nats(ids, masked))
    assert score.tokens == 3 and score.stderr < 0.02 * exact
    assert abs(-score.log_likelihood - exact) < 4 * score.stderr


def test_the_published_7b_configuration_is_that_of_qwen2_5(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.DREAM_7B), encoding="utf-8")
    config = read_source(tmp_path).config
    expected = {
        "model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "num_hidden_layers": 28, "intermediate_size": 18944, "vocab_size": 152064, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "hidden_act": "silu", "dtype": torch.bfloat16,
        "eos_token_id": [151643, 151645], "pad_token_id": 151643, "sliding_window": None, "use_sliding_window": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "layer_types": ["full_attention"] * 28,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    checkpoint = outline(tmp_path)
    assert parameter_counts(checkpoint.backbone.network) == (7_615_616_512, 6_525_621_760)  # Qwen2.5-7B's
    assert checkpoint.backbone.diffusion.mask_token_id == 151666 and checkpoint.backbone.diffusion.logit_shift


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_sliding_window", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("use_mrope", True),
        ("hidden_act", "gelu"),
        ("head_dim", 16),
        ("block_size", 32),
        ("num_experts", 8),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_a_variant_that_the_table_does_not_cover_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    tiny.write(tmp_path, tiny.dream(**{key: value}), TENSORS)
    message = refusal(tmp_path)
    assert f"`{key}: {value}`" in message and str(tmp_path) in message


def test_dream_reasoner_is_refused_by_its_architecture(tmp_path: Path) -> None:
    assert "DreamForCausalLM" in refusal(tiny.write(tmp_path, tiny.dream(architectures=["DreamForCausalLM"]), TENSORS))


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.bias", "lm_head.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    left = {key: value for key, value in TENSORS.items() if key != name}
    assert f"missing_keys: {name}." in refusal(tiny.write(tmp_path, CONFIG, left))


# --- its tokenizer ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dream_tokenizer(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dream's tokenizer files: Qwen2.5's vocabulary, two more tokens and a class of its own remote code."""
    folder = tmp_path_factory.mktemp("tokenizer") / "dream"
    shutil.copytree(shared_data / "tokenizers" / "qwen2.5", folder)
    said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    plain = said["added_tokens_decoder"]["151643"]
    for number, text in ((151665, "<|beginoftext|>"), (151666, "<|mask|>")):
        said["added_tokens_decoder"][str(number)] = {**plain, "content": text}
        said["additional_special_tokens"].append(text)
    said |= {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def test_the_tokenizer_opens_without_remote_code_and_limits_what_is_predicted(
    dream_tokenizer: Path, shared_data: Path, tmp_path: Path
) -> None:
    # Real rows, so that the vocabulary is the published one; the rest stays tiny.
    changes = {key: tiny.DREAM_7B[key] for key in ("vocab_size", "mask_token_id", "eos_token_id", "pad_token_id")}
    config = tiny.dream(**changes, hidden_size=4, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)
    tiny.write(tmp_path / "theirs", config, tiny.random_tensors(config))
    for file in dream_tokenizer.iterdir():
        shutil.copy(file, tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs", device="cpu")
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None and checkpoint.backbone.diffusion.vocabulary_size == 151667
    assert (tokenizer.mask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (151666, 151665, 151643)
    assert set(DiffusionLM(checkpoint).codec.end_ids()) == {151643, 151645}
    vectors = json.loads((shared_data / "tokenizers" / "vectors.json").read_text(encoding="utf-8"))["qwen2"]
    assert all(encode(tokenizer, one["text"], special=True) == one["ids"] for one in vectors)

    save(checkpoint, tmp_path / "ours")
    assert "auto_map" not in json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text(encoding="utf-8"))
    plain = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert plain.mask_token_id == 151666 and plain("naïve 123")["input_ids"] == tokenizer("naïve 123")["input_ids"]
    assert load(tmp_path / "ours", device="cpu").backbone.diffusion == checkpoint.backbone.diffusion

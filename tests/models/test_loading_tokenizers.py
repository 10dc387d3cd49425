"""Checkpoints with tokenizers: new ones, trained ones, and what conversion to diffusion leaves as it was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.models.tiny import stock
from unmask import attention
from unmask.errors import CheckpointError
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, create, load, parameter_counts, save
from unmask.models.tokenizers import byte_tokenizer, decode, encode
from unmask.settings.model import DiffusionConfig, ModelSettings
from unmask.settings.objective import ObjectiveSettings

DIFFUSION = ObjectiveSettings(method="masked_diffusion")
TRAINED = {"stories260k": (512, 260_032, 32_768), "tinystories-656k": (2048, 656_000, 262_144)}
either_tie = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
trained = pytest.mark.parametrize("name", TRAINED)


def causal_logits(backbone: Backbone, ids_BL: Tensor) -> Tensor:
    layout = attention.causal(torch.zeros_like(ids_BL))
    with torch.no_grad():
        return backbone.logits(backbone(ids_BL, layout.position_ids, backbone.render(layout, layout)))


def with_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    assert checkpoint.tokenizer is not None
    return checkpoint.tokenizer


# --- tokenizers and rows ----------------------------------------------------------------------------------------------


def test_rows_beyond_the_tokenizer_are_never_predicted_after_loading(tmp_path: Path) -> None:
    network = stock("qwen3", dtype=torch.float32, vocab_size=264)
    save(Checkpoint(Backbone(network, DiffusionConfig(method="autoregressive", vocabulary_size=264)), None), tmp_path)
    del network.config.diffusion
    network.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    checkpoint = load(tmp_path, device="cpu")
    assert checkpoint.backbone.diffusion.vocabulary_size == 258
    assert causal_logits(checkpoint.backbone, torch.tensor([[5, 6]]))[0, 0].isinf().nonzero()[:, 0].tolist() == list(
        range(258, 264)
    )


def test_a_converted_checkpoint_keeps_its_mask_token_and_tokenizer_on_disk(tmp_path: Path) -> None:
    network = stock("llama", dtype=torch.float32, vocab_size=258)
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=258)
    checkpoint = adapted(Checkpoint(Backbone(network, entry), byte_tokenizer()), DIFFUSION)
    save(checkpoint, tmp_path)
    loaded = load(tmp_path, device="cpu")
    assert loaded.backbone.diffusion == checkpoint.backbone.diffusion
    assert with_tokenizer(loaded).mask_token_id == loaded.backbone.diffusion.mask_token_id == 258
    ids = encode(with_tokenizer(loaded), "naïve <|mask|> 東", special=True)
    before, after = encode(byte_tokenizer(), "naïve ", special=True), encode(byte_tokenizer(), " 東", special=False)
    assert ids == [*before, 258, *after]
    assert decode(with_tokenizer(loaded), ids) == "naïve  東"
    again = adapted(loaded, DIFFUSION)
    assert again.backbone.head_weight.shape[0] == 259


def test_a_tokenizer_whose_next_id_is_taken_is_refused_by_the_name_of_its_owner() -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 3}, unk_token="a"))
    checkpoint = Checkpoint(
        Backbone(stock("qwen3", vocab_size=8), DiffusionConfig(method="autoregressive", vocabulary_size=4)),
        PreTrainedTokenizerFast(tokenizer_object=words),
    )
    with pytest.raises(CheckpointError, match="'c'"):
        adapted(checkpoint, DIFFUSION)


# --- new networks -----------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_new_network_has_the_shape_that_was_asked_for(family: Any) -> None:
    settings = ModelSettings(**SMALL, family=family, rope_theta=500.0, head_dim=16, max_position_embeddings=99)
    checkpoint = create(settings, byte_tokenizer(), seed=1)
    config = checkpoint.backbone.network.config
    assert (config.vocab_size, config.head_dim, config.rope_parameters["rope_theta"]) == (258, 16, 500.0)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, None)
    assert checkpoint.backbone.context_length == 99 and config.model_type == family
    assert checkpoint.backbone.diffusion == DiffusionConfig(method="autoregressive", vocabulary_size=258)


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (create(ModelSettings(**SMALL), None, seed=seed, size=40) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    assert one.backbone.head_weight.equal(same.backbone.head_weight)
    assert not one.backbone.head_weight.equal(other.backbone.head_weight)


def test_a_new_network_needs_a_tokenizer_or_a_size() -> None:
    with pytest.raises(CheckpointError, match="vocabulary size"):
        create(ModelSettings(**SMALL), None, seed=1)


@either_tie
def test_parameters_are_counted_once_and_embeddings_apart(tied: bool) -> None:
    network = create(ModelSettings(**SMALL, tie_word_embeddings=tied), None, seed=0, size=40).backbone.network
    # Per layer: q and o 32 x 32, k and v 32 x 16, the MLP 3 x 32 x 48, norms 2 x 32 and (Qwen3) 2 x 8; one last norm.
    inner = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32 + 2 * 8) + 32
    assert parameter_counts(network) == (inner + 40 * 32 * (1 if tied else 2), inner)


# --- trained checkpoints ----------------------------------------------------------------------------------------------


@trained
def test_a_trained_checkpoint_loads_whole(shared_data: Path, name: str) -> None:
    size, parameters, embeddings = TRAINED[name]
    checkpoint = load(shared_data / "checkpoints" / name, device="cpu")
    assert checkpoint.backbone.diffusion == DiffusionConfig(method="autoregressive", vocabulary_size=size)
    assert parameter_counts(checkpoint.backbone.network) == (parameters, parameters - embeddings)
    with gzip.open(shared_data / "text" / "tinystories_sample.jsonl.gz", "rt", encoding="utf-8") as lines:
        story = json.loads(next(lines))["text"]
    ids_BL = torch.tensor([encode(with_tokenizer(checkpoint), story, special=False)])
    nats = F.cross_entropy(causal_logits(checkpoint.backbone, ids_BL)[0, :-1], ids_BL[0, 1:], reduction="sum")
    assert nats / len(story) < 1.2, "its data sheet says 0.8 nats per character; a random network has some 2.5"


def test_greedy_decoding_of_stories260k_equals_the_stock_generate_token_for_token(shared_data: Path) -> None:
    folder = shared_data / "checkpoints" / "stories260k"
    checkpoint = load(folder, device="cpu", dtype=torch.float64)
    backbone = checkpoint.backbone
    prompt_BL = torch.tensor([[1, *encode(with_tokenizer(checkpoint), "Once upon a time", special=False)]])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    expected = plain.generate(
        prompt_BL, attention_mask=torch.ones_like(prompt_BL), do_sample=False, max_new_tokens=80, pad_token_id=0
    )[0, prompt_BL.shape[1] :].tolist()

    cache = backbone.new_cache(1)
    found: list[int] = []
    ids_BQ = prompt_BL
    with torch.no_grad():
        while len(found) < 80:
            layout = attention.causal_step(cache.length_B, ids_BQ.shape[1])
            hidden_BQD = backbone.extend(ids_BQ, layout, cache)
            ids_BQ = backbone.logits(hidden_BQD[:, -1]).argmax(-1)[:, None]
            found.append(int(ids_BQ))
    assert found == expected
    text = decode(with_tokenizer(checkpoint), [*prompt_BL[0].tolist(), *found])
    assert text.startswith("Once upon a time, there was a little girl named Lily."), text


@trained
def test_conversion_to_masked_diffusion_leaves_the_logits_of_all_old_ids_as_they_were(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = load(shared_data / "checkpoints" / name, device="cpu")
    size = TRAINED[name][0]
    ids_BL = torch.tensor([encode(with_tokenizer(checkpoint), "Lily went to the park to play.", special=False)])
    before = causal_logits(checkpoint.backbone, ids_BL)
    converted = adapted(checkpoint, DIFFUSION)
    after = causal_logits(converted.backbone, ids_BL)
    # One more row in the head: another shape of the same product, so a few units in the last place of 20.
    assert (after[..., :size] - before).abs().max() < 2e-5
    assert after[..., size:].isinf().all() and converted.backbone.num_predictable == size
    tokenizer = with_tokenizer(converted)
    mask = converted.backbone.diffusion.mask_token_id
    assert mask == size == tokenizer.mask_token_id
    assert mask not in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    save(converted, tmp_path)
    assert causal_logits(load(tmp_path, device="cpu").backbone, ids_BL).equal(after)
    plain = cast(Any, AutoModelForCausalLM.from_pretrained(tmp_path))
    with torch.no_grad():
        assert (plain(ids_BL).logits[..., :size] - before).abs().max() < 2e-5

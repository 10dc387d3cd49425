"""`DiffusionLM`: prompts of every kind, per-prompt parameters, streaming, scores, logits, saving."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tests import tiny
from unmask import DiffusionLM, Output, SamplingParams
from unmask.errors import CheckpointError, PromptError, SettingsError
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.objective import ObjectiveSettings


def with_bytes(method: str) -> DiffusionLM:
    """A random model over bytes."""
    made = adapted(create(tiny.SHAPE, byte_tokenizer(), seed=0), ObjectiveSettings(method=method))  # type: ignore[arg-type]
    return DiffusionLM(Checkpoint(made.backbone.double().eval(), made.tokenizer))


@pytest.fixture(scope="module", params=["autoregressive", "masked_diffusion"])
def lm(request: pytest.FixtureRequest) -> DiffusionLM:
    return with_bytes(request.param)


def ids_of(outputs: list[Output]) -> list[tuple[int, ...]]:
    return [output.token_ids for output in outputs]


def test_texts_ids_and_batches_agree(lm: DiffusionLM) -> None:
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    assert lm.tokenizer is not None
    ids = lm.tokenizer("hello")["input_ids"]
    single = lm.generate("hello", params)
    assert ids_of(single) == ids_of(lm.generate(ids, params)) == ids_of(lm.generate(["hello"], params))
    batch = lm.generate(["hello", ids, "a much longer prompt"], params)
    assert ids_of(batch)[:2] == ids_of(single) * 2
    assert [output.prompt for output in batch] == [0, 1, 2]
    assert batch[0].text.encode(errors="replace").decode(errors="replace") == lm.tokenizer.decode(
        batch[0].token_ids, skip_special_tokens=True
    )


def test_results_do_not_depend_on_the_batch_size(lm: DiffusionLM) -> None:
    prompts = ["a", "bcd", "efghij", "k", "lm"]
    params = SamplingParams(max_new_tokens=6, temperature=1.0, seed=5)
    expected = lm.generate(prompts, params)
    for size in (1, 2, 3):
        assert ids_of(lm.generate(prompts, params, batch_size=size)) == ids_of(expected)


def test_samples_and_parameters_of_their_own(lm: DiffusionLM) -> None:
    params = [
        SamplingParams(max_new_tokens=4, n=2, temperature=1.0, seed=1),
        SamplingParams(max_new_tokens=7),
        SamplingParams(max_new_tokens=4, temperature=1.0, seed=2),
    ]
    found = lm.generate(["x", "y", "z"], params)
    assert [(one.prompt, one.sample) for one in found] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert [len(one.token_ids) for one in found if one.finish_reason == "length"] != []
    assert found[0].token_ids != found[1].token_ids
    assert ids_of([found[0]]) == ids_of(lm.generate("x", SamplingParams(max_new_tokens=4, temperature=1.0, seed=1)))
    with pytest.raises(SettingsError, match="one for each: 2, got 3"):
        lm.generate(["x", "y"], params)


def test_no_prompt_generates_after_bos(lm: DiffusionLM) -> None:
    params = SamplingParams(max_new_tokens=5)
    assert ids_of(lm.generate(None, params)) == ids_of(lm.generate([[lm.tokenizer.bos_token_id]], params))  # type: ignore
    assert ids_of(lm.generate("", params)) == ids_of(lm.generate(None, params))


def test_chat_messages_go_through_the_template() -> None:
    lm = with_bytes("autoregressive")
    assert lm.tokenizer is not None
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(PromptError, match="no chat template"):
        lm.generate(messages)
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    params = SamplingParams(max_new_tokens=4)
    plain = lm.tokenizer("[user]hi[assistant]", add_special_tokens=False)["input_ids"]
    assert ids_of(lm.generate(messages, params)) == ids_of(lm.generate(plain, params))
    assert ids_of(lm.generate([messages, messages], params)) == ids_of(lm.generate(plain, params)) * 2


def test_the_stream_ends_with_what_generate_returns(lm: DiffusionLM) -> None:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True, trace=True)
    (expected,) = lm.generate("abc", params)
    steps = list(lm.stream("abc", params))
    assert steps[-1].canvas == expected.token_ids
    assert [step.forwards for step in steps] == list(range(1, expected.forwards + 1))
    revealed = {place: step.forwards for step in steps for place in step.revealed}
    assert tuple(revealed[place] for place in range(6)) == expected.revealed_at
    assert steps[-1].confidence == pytest.approx(expected.confidence)
    assert expected.tokens_per_forward == len(expected.token_ids) / expected.forwards


def test_stop_texts_and_stop_tokens_end_the_text(lm: DiffusionLM) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
    (free,) = lm.generate("abc", params)
    printable = [place for place, token in enumerate(free.token_ids) if 40 <= token < 96]
    place = printable[0]
    stop = lm.tokenizer.decode([free.token_ids[place]])  # type: ignore[union-attr]
    (cut,) = lm.generate("abc", dataclasses.replace(params, stop=(stop,)))
    assert cut.finish_reason == "stop"
    assert stop not in cut.text
    assert free.text.startswith(cut.text)
    (ended,) = lm.generate("abc", dataclasses.replace(params, stop_token_ids=(free.token_ids[place],)))
    assert ended.token_ids[-1] == free.token_ids[place]
    assert ended.token_ids == free.token_ids[: len(ended.token_ids)]


def test_scores_are_exact_or_bounds_and_do_not_depend_on_the_batch(lm: DiffusionLM) -> None:
    texts = ["some text", "other", "gr\u00fcn"]
    scores = lm.score(texts)
    assert [score.bytes for score in scores] == [len(text.encode()) for text in texts]
    assert [score.tokens for score in scores] == [9, 5, 5]
    is_diffusion = lm.backbone.diffusion.method == "masked_diffusion"
    for text, score in zip(texts, scores, strict=True):
        assert score.is_bound == is_diffusion
        assert (score.stderr > 0) == is_diffusion
        (alone,) = lm.score(text)
        assert alone.log_likelihood == pytest.approx(score.log_likelihood, abs=1e-9)
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
        (by_ids,) = lm.score(ids)
        assert by_ids.log_likelihood == pytest.approx(score.log_likelihood, abs=1e-9)
        # A random model is near the uniform one.
        assert -score.log_likelihood / score.tokens == pytest.approx(math.log(258), rel=0.7)


def test_a_diffusion_bound_lies_below_the_chain_rule_of_any_order() -> None:
    """More masks shrink the error and the bound converges: two settings agree within their errors."""
    lm = with_bytes("masked_diffusion")
    (rough,) = lm.score("abcdef", EvaluationSettings(masks_per_sequence=16))
    (fine,) = lm.score("abcdef", EvaluationSettings(masks_per_sequence=512, batch_size=64))
    assert fine.stderr < rough.stderr
    assert abs(rough.log_likelihood - fine.log_likelihood) < 5 * math.hypot(rough.stderr, fine.stderr)


def test_logits_follow_the_layout(lm: DiffusionLM) -> None:
    from unmask import attention

    ids = tiny.random_ids(2, 6, vocabulary=258)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 258
    moved = (lm.logits(ids) - lm.logits(changed)).nan_to_num().abs().amax(dim=(0, 2)) > 0
    is_diffusion = lm.backbone.diffusion.method == "masked_diffusion"
    assert moved.tolist() == [is_diffusion] * 5 + [True]
    causal = attention.causal(torch.zeros_like(ids))
    moved = (lm.logits(ids, layout=causal) - lm.logits(changed, layout=causal)).nan_to_num().abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False] * 5 + [True]


def test_saving_and_loading_keeps_every_output(lm: DiffusionLM, tmp_path: Path) -> None:
    lm.save_pretrained(tmp_path / "model")
    again = DiffusionLM.from_pretrained(tmp_path / "model", device="cpu")
    params = SamplingParams(max_new_tokens=6)
    assert ids_of(again.generate("abc", params)) == ids_of(lm.generate("abc", params))
    assert again.backbone.diffusion == lm.backbone.diffusion
    assert repr(again).startswith(f"DiffusionLM({lm.backbone.diffusion.method}, qwen3, ")


def test_a_checkpoint_without_tokenizer_works_on_ids() -> None:
    lm = DiffusionLM(tiny.checkpoint("masked_diffusion"))
    (found,) = lm.generate([3, 4, 5], SamplingParams(max_new_tokens=4))
    assert found.text == ""
    assert len(found.token_ids) == 4
    assert len(lm.generate(None, SamplingParams(max_new_tokens=4))) == 1
    assert lm.score([[1, 2, 3], [4, 5]])[1].tokens == 2
    step = next(lm.stream([3], SamplingParams(max_new_tokens=2)))
    assert step.text.count("\u2591") == 1
    with pytest.raises(PromptError, match="no tokenizer"):
        lm.generate("text")
    with pytest.raises(SettingsError, match="stop texts need a tokenizer"):
        lm.generate([1], SamplingParams(stop=("x",)))


def test_prompts_that_cannot_be_decoded_are_refused(lm: DiffusionLM) -> None:
    with pytest.raises(PromptError, match=r"The prompt has 121 tokens, which with 8 new ones.*context of 128"):
        lm.generate("x" * 120, SamplingParams(max_new_tokens=8))
    with pytest.raises(PromptError, match="between 0 and"):
        lm.generate([5000])
    with pytest.raises(PromptError, match="list of prompts is empty"):
        lm.generate([])
    mask = lm.backbone.diffusion.mask_token_id
    if mask is not None:
        with pytest.raises(PromptError, match="holds the mask token"):
            lm.generate([1, mask])
        with pytest.raises(SettingsError, match="cfg_scale is not used by autoregressive"):
            lm.generate("x", SamplingParams(decoding="autoregressive", cfg_scale=1.0))
    else:
        with pytest.raises(SettingsError, match="canvas decoding needs a mask token"):
            lm.generate("x", SamplingParams(decoding="canvas"))


def test_missing_models_say_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match=r"no folder .*gone.*other"):
        DiffusionLM.from_pretrained(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="There is no model in"):
        DiffusionLM.from_pretrained(tmp_path / "other")


def test_real_checkpoints_write_convert_and_score(shared_data: Path, tmp_path: Path) -> None:
    """stories260k tells a story, becomes a masked-diffusion model, and is scored as its authors say."""
    import gzip
    import json

    lm = DiffusionLM.from_pretrained(shared_data / "checkpoints" / "stories260k", device="cpu")
    (story,) = lm.generate("Once upon a time", SamplingParams(max_new_tokens=40))
    assert story.text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")
    with gzip.open(shared_data / "text" / "tinystories_sample.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:600] for line in file.readlines()[:20]]
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(
        shared_data / "checkpoints" / "stories260k", attn_implementation="sdpa"
    )
    assert lm.tokenizer is not None
    for text, score in zip(texts, lm.score(texts), strict=True):
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = float(stock(ids, labels=ids).loss) * (ids.shape[1] - 1)
        assert -score.log_likelihood == pytest.approx(expected, rel=1e-4)
        # A trained model: far below the 6.2 nats per token of a uniform one.
        assert expected / score.tokens < 2
    adapted(lm.checkpoint, ObjectiveSettings())
    lm.save_pretrained(tmp_path / "mdm")
    again = DiffusionLM.from_pretrained(tmp_path / "mdm", device="cpu")
    (text,) = again.generate("Once upon a time", SamplingParams(max_new_tokens=12, denoising_steps=6))
    assert again.backbone.diffusion.mask_token_id == 512
    assert 512 not in text.token_ids

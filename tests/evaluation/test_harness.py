"""The harness's view of a model: equal to direct calls, to the stock class where both are exact, blind to batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from unmask.errors import CheckpointError, PromptError, SettingsError
from unmask.evaluation import harness as module
from unmask.evaluation.answers import Pair, score
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, adapted, create, load
from unmask.models.tokenizers import byte_tokenizer, encode
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import AnswerSettings
from unmask.settings.objective import ObjectiveSettings

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from unmask.evaluation.harness import HarnessLM

CHOICES = ["mat.", "moon, far away", "sofa of my sister's friend"]


def model(method: str = "masked_diffusion") -> DiffusionLM:
    tokenizer = byte_tokenizer()
    made = create(tiny.SHAPE, tokenizer, seed=3)
    backbone = adapted(made, ObjectiveSettings(method=method)).backbone.double().eval()  # type: ignore[arg-type]
    return DiffusionLM(Checkpoint(backbone, tokenizer))


def asked(kind: str, arguments: Sequence[tuple[Any, ...]], *, doc: int | None = None, task: str = "task") -> list[Any]:
    return [
        Instance(kind, {}, one, number, metadata=(task, number if doc is None else doc, 1))  # type: ignore[arg-type]
        for number, one in enumerate(arguments)
    ]


def pair(lm: DiffusionLM, context: str, continuation: str, key: int) -> Pair:
    assert lm.tokenizer is not None
    before = encode(lm.tokenizer, context, special=True)
    return Pair(tuple(before), tuple(encode(lm.tokenizer, context + continuation, special=True)[len(before) :]), key)


@pytest.mark.parametrize("method", ["masked_diffusion", "autoregressive"])
def test_answers_are_those_of_direct_calls_in_the_order_asked(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, settings = model(method), AnswerSettings(mc_num=4, batch_size=3)
    requests = asked("loglikelihood", [("The cat sat on the", f" {choice}") for choice in CHOICES], doc=7)
    seen: list[Pair] = []
    found_by = module.scored
    monkeypatch.setattr(module, "scored", lambda *a, **k: seen.extend(a[1]) or found_by(*a, **k))
    found = HarnessLM(lm, settings).loglikelihood(requests)
    assert len({one.key for one in seen}) == 1
    direct = score(
        lm.backbone, [pair(lm, "The cat sat on the", f" {choice}", seen[0].key or 0) for choice in CHOICES], settings
    )
    assert [ll for ll, _ in found] == pytest.approx([-one.nats for one in direct], abs=1e-6)
    alone = [HarnessLM(lm, settings).loglikelihood([request])[0] for request in reversed(requests)]
    assert [ll for ll, _ in reversed(alone)] == pytest.approx([ll for ll, _ in found], abs=1e-6)


def test_contexts_that_differ_within_a_question_share_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Pair] = []
    monkeypatch.setattr(module, "scored", lambda *a, **k: seen.extend(a[1]) or iter(()))
    with pytest.raises(KeyError):
        HarnessLM(model()).loglikelihood(asked("loglikelihood", [("Ann", " ran"), ("Bob", " ran")], doc=3))
    with pytest.raises(KeyError):
        HarnessLM(model()).loglikelihood(asked("loglikelihood", [("Ann", " ran"), ("Ann", " sat")]))
    assert seen[0].key == seen[1].key
    assert len({one.key for one in seen}) == 3


def test_spaces_at_the_end_of_a_context_belong_to_the_answer() -> None:
    lm, settings = model(), AnswerSettings(mc_num=4)
    moved, plain = HarnessLM(lm, settings).loglikelihood(
        asked("loglikelihood", [("A cat  ", "sat"), ("A cat", "  sat")], doc=1)
    )
    assert moved == plain


def test_an_empty_context_is_the_start_of_a_text() -> None:
    lm, settings = model(), AnswerSettings(likelihood="chain_rule")
    assert lm.tokenizer is not None
    text = tuple(encode(lm.tokenizer, "hello", special=False))
    (direct,) = score(lm.backbone, [Pair((lm.tokenizer.bos_token_id,), text)], settings)
    (empty, _), (spaces, _) = HarnessLM(lm, settings).loglikelihood(
        asked("loglikelihood", [("", "hello"), (" ", "hello")])
    )
    assert empty == pytest.approx(-direct.nats, abs=1e-9)
    (rolling,) = HarnessLM(lm, settings).loglikelihood_rolling(asked("loglikelihood_rolling", [("hello",)]))
    assert rolling == pytest.approx(empty, abs=1e-9)
    assert spaces < empty


def test_greedy_answers_are_checked_for_the_tasks_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    found_by = module.scored
    monkeypatch.setattr(module, "scored", lambda *a, greedy: seen.extend(greedy) or found_by(*a, greedy=greedy))
    requests = [asked("loglikelihood", [("A", " b")], task=task)[0] for task in ("first", "second")]
    for tasks in (None, {"second"}, set[str]()):
        HarnessLM(model(), AnswerSettings(mc_num=2), greedy_tasks=tasks).loglikelihood(requests)
    assert seen == [True, True, False, True, False, False]


class Watched(HarnessLM):
    """Counts what reaches the model."""

    calls = 0

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        Watched.calls += len(requests)
        return super().loglikelihood(requests)


def test_the_harness_may_cache_answers_as_they_come(tmp_path: Path) -> None:
    lm, requests = model(), asked("loglikelihood", [("A cat", " sat"), ("A dog", " ran")])
    first = CachingLM(Watched(lm, AnswerSettings(mc_num=2)), str(tmp_path / "answers.db")).loglikelihood(requests)
    again = CachingLM(Watched(lm, AnswerSettings(mc_num=2)), str(tmp_path / "answers.db"))
    more = asked("loglikelihood", [("A bird", " flew")])
    assert again.loglikelihood([*requests, *more])[:2] == first
    assert Watched.calls == 3


# --- against the stock class ------------------------------------------------------------------------------------


def test_autoregression_agrees_with_the_harness_own_model(shared_data: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(shared_data / "checkpoints" / "stories260k")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {"tokenizer": AutoTokenizer.from_pretrained(folder), "batch_size": 2, "max_length": 96}
    stock = HFLM(pretrained=network, **options)  # type: ignore[arg-type]
    ours = HarnessLM(DiffusionLM(load(folder, device="cpu")), AnswerSettings(max_length=96, batch_size=4))
    story = "Once upon a time there was a little girl who had a red ball. She played with it in the park. "
    pairs = [
        ("Once upon a", " time"),
        ("Once upon a time, there was a", " girl"),
        (story * 4, "She was happy."),
        ("", "One day"),
    ]
    found = ours.loglikelihood(asked("loglikelihood", pairs))
    expected = stock.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    for (ll, greedy), (stock_ll, stock_greedy) in zip(found, expected, strict=True):
        assert ll == pytest.approx(stock_ll, abs=1e-3)
        assert greedy == stock_greedy
    assert found[0][1] is True
    assert ours.tallies["task"].cut == 1
    generate = [
        ("Once upon a time", {"until": ["."], "max_gen_toks": 24}),
        ("The dog", {"until": [], "max_gen_toks": 9}),
    ]
    # The stock decoder drops the space in front of a text.
    texts = ours.generate_until(asked("generate_until", generate))
    assert [text.strip() for text in texts] == [
        text.strip() for text in stock.generate_until(asked("generate_until", generate), disable_tqdm=True)
    ]
    unmarked = HFLM(pretrained=network, add_bos_token=False, **options)  # else it scores BOS behind BOS
    rolling = asked("loglikelihood_rolling", [("One day",), (story * 9,)])
    expected = unmarked.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(expected, abs=2e-3)


# --- generation -------------------------------------------------------------------------------------------------


def written(lm: HarnessLM, *arguments: tuple[str, dict[str, Any]]) -> list[str]:
    return lm.generate_until(asked("generate_until", arguments))


@pytest.mark.parametrize("method", ["masked_diffusion", "autoregressive"])
def test_generation_does_not_depend_on_the_batch_and_stops_where_the_task_says(method: str) -> None:
    lm = model(method)
    options: dict[str, Any] = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    prompts = ["A", "A longer prompt", "Some", "And one more prompt that is long"]
    together = written(HarnessLM(lm, AnswerSettings(batch_size=3)), *((prompt, options) for prompt in prompts))
    for prompt, text in zip(prompts, together, strict=True):
        (direct,) = lm.generate([prompt], SamplingParams(max_new_tokens=12, stop=("\n",)))
        assert text == direct.text == written(HarnessLM(lm), (prompt, options))[0]
    stop = together[1][1]
    (cut,) = written(HarnessLM(lm), (prompts[1], options | {"until": stop}))
    assert cut == together[1].partition(stop)[0]


def test_what_the_user_sets_overrules_the_task_and_what_nobody_has_is_noted() -> None:
    lm = model()
    task = {"until": ["", "Q:"], "max_gen_toks": 40, "do_sample": True, "temperature": 0.7, "num_beams": 4}
    harness = HarnessLM(lm, sampling={"max_new_tokens": 6, "denoising_steps": 2, "temperature": 0.0, "stop": ("B",)})
    (text,) = written(harness, ("Hello", task))
    params = SamplingParams(max_new_tokens=6, denoising_steps=2, stop=("Q:", "B"))
    assert text == lm.generate(["Hello"], params)[0].text
    assert harness.tallies["task"].ignored == {"num_beams"}
    assert harness.tallies["task"].forwards == 2


def test_repeated_questions_are_sampled_anew_and_reproducibly() -> None:
    lm = model()
    (request,) = asked(
        "generate_until", [("Hello", {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0})]
    )
    first = HarnessLM(lm).generate_until([request] * 3)
    assert len(set(first)) == 3
    assert HarnessLM(lm).generate_until([request] * 3) == first
    assert HarnessLM(lm, sampling={"seed": 1}).generate_until([request])[0] == first[1]


def test_a_long_prompt_loses_its_left_end_and_is_counted() -> None:
    lm = model()
    harness = HarnessLM(lm)
    (text,) = written(harness, ("x" * 200 + "Hello", {"until": [], "max_gen_toks": 100}))
    ids = encode(byte_tokenizer(), "x" * 23 + "Hello", special=False)
    assert text == lm.generate([ids], SamplingParams(max_new_tokens=100))[0].text
    assert (harness.tallies["task"].cut, harness.tallies["task"].lost) == (1, 206 - 28)
    with pytest.raises(SettingsError, match="leaves no room for a prompt within 128 tokens"):
        written(harness, ("Hello", {"until": [], "max_gen_toks": 128}))


# --- templates and mistakes -------------------------------------------------------------------------------------


def test_chat_templates_are_applied_and_bos_is_not_doubled() -> None:
    lm = model()
    assert lm.tokenizer is not None
    lm.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    harness = HarnessLM(lm)
    turns = [{"role": "user", "content": "Hi"}]
    text = harness.apply_chat_template(turns)
    assert text == "<|bos|>[user] Hi\n[assistant]"
    assert harness.chat_template(True) == lm.tokenizer.chat_template
    assert harness.chat_template(False) is None
    one, other = (written(harness, (each, {"until": [], "max_gen_toks": 5}))[0] for each in (text, text[7:]))
    assert one == other
    with pytest.raises(PromptError, match="refuses the messages system: no system"):
        harness.apply_chat_template([{"role": "system", "content": "x"}])
    name = harness.tokenizer_name
    lm.tokenizer.chat_template += " "
    assert harness.tokenizer_name != name
    lm.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="has no chat template"):
        harness.apply_chat_template(turns)


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        HarnessLM(DiffusionLM(tiny.checkpoint("masked_diffusion")))


def test_standard_errors_are_kept_for_each_task() -> None:
    harness = HarnessLM(model(), AnswerSettings(mc_num=4))
    harness.loglikelihood(asked("loglikelihood", [("A", " b"), ("A", " boat")]))
    tally = harness.tallies["task"]
    (exact,), (drawn,) = ([harness._pair("A", text, key=0)] for text in (" b", " boat"))
    assert (tally.answers, len(exact.answer), len(drawn.answer)) == (2, 2, 5)
    assert tally.mean_stderr == tally.stderr_sum / 2 > 0

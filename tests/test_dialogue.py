"""A dialogue with a model: what the model reads, what is kept, what the commands change; with real tiny models."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests import tiny
from unmask import DiffusionLM, SamplingParams
from unmask.decoding.step import Step
from unmask.dialogue import COMMANDS, Dialogue, Turn, read_conversation
from unmask.errors import DataError, PromptError, SettingsError
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.objective import ObjectiveSettings

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
PARAMS = SamplingParams(max_new_tokens=8, ignore_eos=True)


def chatting(method: str, *, context: int = 128, template: str | None = TEMPLATE) -> DiffusionLM:
    """A random model over bytes with a chat template."""
    shape = dataclasses.replace(tiny.SHAPE, max_position_embeddings=context)
    made = adapted(create(shape, byte_tokenizer(), seed=0), ObjectiveSettings(method=method))  # type: ignore[arg-type]
    assert made.tokenizer is not None
    made.tokenizer.chat_template = template
    return DiffusionLM(Checkpoint(made.backbone.double().eval(), made.tokenizer))


@pytest.fixture(scope="module", params=["autoregressive", "masked_diffusion"])
def lm(request: pytest.FixtureRequest) -> DiffusionLM:
    return chatting(request.param)


def said(dialogue: Dialogue, *messages: str) -> list[Turn]:
    """Complete turns with these messages."""
    turns = []
    for message in messages:
        turn = dialogue.ask(message)
        assert len(list(turn)) > 0
        turns.append(turn)
    return turns


def read(turn: Turn) -> str:
    """What the model was given."""
    return turn.dialogue.lm.tokenizer.decode(turn.prompt)  # type: ignore[union-attr]


def with_text(lm: DiffusionLM, text: str, **params: object) -> Turn:
    """A turn whose reply so far is `text`."""
    dialogue = Dialogue(lm, dataclasses.replace(PARAMS, **params))  # type: ignore[arg-type]
    turn = dialogue.ask("x")
    tokens = tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[misc]
    turn.step = Step(canvas=(*tokens, None), revealed=(), confidence=(), forwards=1, settled=len(tokens))
    return turn


def test_each_turn_reads_the_ones_before_and_replies_as_generate_does(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS, system="be brief")
    first, second = said(dialogue, "hi", "and now?")
    assert read(first) == "[system]be brief[user]hi[assistant]"
    assert read(second) == f"[system]be brief[user]hi[assistant]{first.text}[user]and now?[assistant]"
    (expected,) = lm.generate([[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]], PARAMS)
    assert tuple(first.tokens) == expected.token_ids
    assert first.text == expected.text.strip()
    assert dialogue.turns == [("hi", first.text), ("and now?", second.text)]


def test_a_turn_that_is_stopped_is_left_out(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS)
    said(dialogue, "one")
    stopped = dialogue.ask("two")
    next(iter(stopped))
    assert stopped.step is not None
    assert [question for question, _ in dialogue.turns] == ["one"]
    (third,) = said(dialogue, "three")
    assert "two" not in read(third)


def test_a_turn_with_an_empty_reply_is_left_out(lm: DiffusionLM) -> None:
    (whole,) = said(Dialogue(lm, PARAMS), "hi")
    dialogue = Dialogue(lm, dataclasses.replace(PARAMS, stop_token_ids=(whole.tokens[0],), stop=(whole.text[0],)))
    (empty,) = said(dialogue, "hi")
    assert empty.text == "" and dialogue.turns == []


def test_the_oldest_turns_make_room_once_and_with_a_notice(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS, system="s")
    turns = said(dialogue, *(f"question {number}" for number in range(6)))
    room = lm.backbone.context_length - PARAMS.max_new_tokens
    forgotten = [turn.forgotten for turn in turns]
    assert forgotten[0] == 0 and forgotten[-1] > 1 and forgotten == sorted(forgotten)
    for number, turn in enumerate(turns):
        assert len(turn.prompt) <= room
        assert read(turn).startswith("[system]s[user]question")
        assert f"question {number}" in read(turn) and f"question {turn.forgotten}" in read(turn)
        assert f"question {turn.forgotten - 1}" not in read(turn)
        is_new = number > 0 and forgotten[number] > forgotten[number - 1]
        assert bool(turn.notice) == is_new
    first = next(turn for turn in turns if turn.forgotten)
    assert "context of 128 tokens is full" in first.notice
    assert len(dialogue.messages()) == 1 + 2 * 6
    dialogue.command("/set max_new_tokens=90")
    assert dialogue.ask("q").forgotten == 6
    dialogue.command("/set max_new_tokens=8")
    assert dialogue.ask("q").forgotten < 6


def test_a_message_without_room_is_refused_and_forgets_nothing(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS)
    said(dialogue, "hi")
    with pytest.raises(PromptError, match=r"max_new_tokens=8 exceed the model's context of 128"):
        dialogue.ask("x" * 200)
    assert "[user]hi" in read(dialogue.ask("short"))


def test_a_system_message_can_be_set_shown_and_removed(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS)
    assert dialogue.command("/system") == "There is no system message."
    dialogue.command("/system You are a cat. ")
    assert dialogue.command("/system") == "You are a cat."
    assert read(dialogue.ask("hi")) == "[system]You are a cat.[user]hi[assistant]"
    dialogue.command("/system off")
    assert read(dialogue.ask("hi")) == "[user]hi[assistant]"


def test_clear_forgets_the_turns_only(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS, system="s")
    said(dialogue, "hi")
    assert dialogue.command("/clear") == "Forgot 1 turn."
    assert read(dialogue.ask("new")) == "[system]s[user]new[assistant]"
    assert dialogue.params == PARAMS


def test_settings_are_changed_together_checked_and_kept_on_a_mistake() -> None:
    dialogue = Dialogue(chatting("masked_diffusion"), PARAMS)
    assert dialogue.command("/set temperature=0.5 seed=-3") == "temperature: 0.0 -> 0.5\nseed: 0 -> -3"
    assert dialogue.command("/set temperature = 0.7") == "temperature: 0.5 -> 0.7"
    # Neither of the two is right without the other.
    dialogue.command("/set unmasking=threshold confidence_threshold=0.9")
    assert dialogue.command('/set stop=["a b", "c"]') == "stop: [] -> ['a b', 'c']"
    assert dialogue.command("/set temperature 0.7") == "That is what it was."
    # The originals' names; their steps are a total.
    theirs = Dialogue(dialogue.lm, SamplingParams(max_new_tokens=16, block_length=4))
    theirs.command("/set remasking=random steps=8")
    assert (theirs.params.unmasking, theirs.params.denoising_steps) == ("random", 2)
    theirs.command("/set gen-length=8 steps=8")
    assert (theirs.params.max_new_tokens, theirs.params.denoising_steps) == (8, 4)
    kept = dialogue.params
    for words, message in (
        ("temprature=1", "Did you mean `temperature`"),
        ("temperature=warm", "`temperature` must be a number, got 'warm'"),
        ("temperature=-1", "at least 0"),
        ("factor=1 mask_id=3", "the mask token comes from the checkpoint"),
        ("infill_length=3", "fills no gaps"),
        ("confidence_threshold=null", "needs confidence_threshold"),
        ("n=2", "n must be 1"),
        ("temperature", "/set takes KEY=VALUE, got `temperature`"),
    ):
        with pytest.raises(SettingsError) as caught:
            dialogue.command(f"/set {words}")
        assert message in str(caught.value), words
    assert dialogue.params is kept
    shown = dialogue.command("/set").splitlines()
    assert 'unmasking="threshold"' in shown and "max_new_tokens=8" in shown
    assert not any(line.startswith(("n=", "trace=")) for line in shown)
    other = Dialogue(dialogue.lm)
    for line in shown:
        key, _, value = line.partition("=")
        if key not in ("unmasking", "confidence_threshold"):
            other.command(f"/set {key}={value}")
    other.command("/set unmasking=threshold confidence_threshold=0.9")
    assert other.params == other.lm.resolved(kept)


def test_a_saved_conversation_goes_on_elsewhere(lm: DiffusionLM, tmp_path: Path) -> None:
    dialogue = Dialogue(lm, PARAMS, system="s")
    file = tmp_path / "talks" / "one.jsonl"
    said(dialogue, "gr\u00fcn", "b")
    assert dialogue.command(f"/save {file}") == f"Saved 2 turns in {file}."
    said(dialogue, "c")
    dialogue.command(f"/save {file}")
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"messages": dialogue.messages()}
    assert "gr\u00fcn" in line
    other = Dialogue(lm, PARAMS)
    assert other.command(f"/load {file}") == f"Loaded 3 turns from {file}."
    assert (other.system, other.turns) == (dialogue.system, dialogue.turns)
    assert read(other.ask("d")) == read(dialogue.ask("d"))
    other.command(f"/save {file}")
    with pytest.raises(SettingsError, match="exists already"):
        Dialogue(lm, PARAMS).command(f"/save {file}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello", "is no conversation"),
        ("{}", "is no conversation ('messages')"),
        ('{"messages": []}\n{"messages": []}', "is no conversation"),
        ('{"messages": [{"role": "user"}]}', "is no conversation ('content')"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "user and assistant in turn, got ['user']"),
        (
            '{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]}',
            "must be texts of user and assistant",
        ),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        read_conversation(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_unknown_commands_name_the_nearest(lm: DiffusionLM) -> None:
    dialogue = Dialogue(lm, PARAMS)
    with pytest.raises(SettingsError, match=r"no command `/claer`\. Did you mean `/clear`"):
        dialogue.command("/claer")
    with pytest.raises(SettingsError, match="/save needs the name of a file"):
        dialogue.command("/save")
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        dialogue.command("/load gone.jsonl")
    with pytest.raises(DataError, match="/dev/null/x cannot be written"):
        dialogue.command("/save /dev/null/x")
    assert all(name in dialogue.command("/help") for name in COMMANDS)
    assert not dialogue.is_over
    dialogue.command("/quit")
    assert dialogue.is_over


def test_plain_texts_are_continued_one_by_one() -> None:
    lm = chatting("autoregressive", template=None)
    with pytest.raises(PromptError, match=r"no chat template.*--plain.*data.format=chat"):
        Dialogue(lm, PARAMS)
    dialogue = Dialogue(lm, PARAMS, is_plain=True)
    first, second = said(dialogue, "abc", "de")
    for turn, prompt in ((first, "abc"), (second, "de")):
        (expected,) = lm.generate(prompt, PARAMS)
        assert (tuple(turn.tokens), turn.text) == (expected.token_ids, expected.text)
    with pytest.raises(SettingsError, match="no system message"):
        dialogue.command("/system x")
    with pytest.raises(SettingsError, match="no system message"):
        Dialogue(lm, PARAMS, system="x", is_plain=True)


def test_a_model_without_tokenizer_and_a_template_that_refuses_are_named() -> None:
    with pytest.raises(PromptError, match="no tokenizer"):
        Dialogue(DiffusionLM(tiny.checkpoint("masked_diffusion")), PARAMS)
    strict = chatting("autoregressive", template="{{ raise_exception('no system here') }}")
    with pytest.raises(PromptError, match="chat template refuses this conversation: no system here"):
        Dialogue(strict, PARAMS).ask("hi")


def test_what_is_shown_early_is_never_taken_back(lm: DiffusionLM) -> None:
    assert with_text(lm, "abc").settled == "abc"
    assert with_text(lm, "  abc \n").settled == "abc"
    half = with_text(lm, "gr\u00fc")
    canvas = (*half.tokens[:-1], None)
    half.step = dataclasses.replace(half.step, canvas=canvas, settled=len(canvas) - 1)  # type: ignore[type-var]
    assert half.settled == "gr"
    assert with_text(lm, "abc<", stop=("<end>",)).settled == "abc"
    assert with_text(lm, "abc<en", stop=("x", "<end>")).settled == "abc"
    assert with_text(lm, "abc<eh", stop=("<end>",)).settled == "abc<eh"
    assert with_text(lm, "abc<end>de", stop=("<end>",)).text == "abc"
    shown = ""
    turn = Dialogue(lm, dataclasses.replace(PARAMS, max_new_tokens=40, temperature=1.0)).ask("hi")
    for _ in turn:
        if turn.is_growing:
            assert turn.settled.startswith(shown)
            shown = turn.settled
    assert turn.text.startswith(shown)


def test_a_reply_knows_why_it_ended(lm: DiffusionLM) -> None:
    (whole,) = said(Dialogue(lm, PARAMS), "hi")
    assert whole.is_cut
    ended = dataclasses.replace(PARAMS, stop_token_ids=(whole.tokens[-1],))
    (again,) = said(Dialogue(lm, ended), "hi")
    assert not again.is_cut
    assert again.tokens == whole.tokens[: len(again.tokens)]

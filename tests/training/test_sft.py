"""Supervised fine-tuning end to end: from a run folder and rows of conversations to a model that replies."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.training import recipes
from tests.training.recipes import COLOURS, weights, write_chats
from unmask import SamplingParams, config
from unmask.cli.main import main
from unmask.data.chat_rows import ChatRows
from unmask.data.chat_tokens import ChatDocuments
from unmask.errors import DataError, SettingsError
from unmask.evaluation.likelihood import row_nats
from unmask.lm import DiffusionLM
from unmask.runs import RunFolder
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.recipe import Recipe
from unmask.training.preparation import prepare_text, prepare_tokenizer
from unmask.training.run import described, dry_run, prepare, train

ROOT = Path(__file__).parents[2]


def tree(folder: Path, base: Path | None, **training: Any) -> dict[str, Any]:
    made = recipes.tree(folder, **training) | {"name": "sft"}
    if base is not None:
        made["model"] = {"from_pretrained": str(base), "dtype": "float64"}
    made["data"] = {
        "format": "chat",
        "train": [str(folder / "chats.jsonl")],
        "chat_template": "plain",
        "context_length": 64,
        "validation_fraction": 0.2,
        "cache_dir": str(folder / "cache"),
    }
    made["objective"] = {"method": "masked_diffusion", "normalize": "answers"}
    return made


def recipe(folder: Path, base: Path | None, **training: Any) -> Recipe:
    return config.from_tree(Recipe, tree(folder, base, **training))


def changed(made: Recipe, name: str, *, data: Any = None, objective: Any = None, **training: Any) -> Recipe:
    return dataclasses.replace(
        made,
        name=name,
        data=dataclasses.replace(made.data, **(data or {})),
        objective=dataclasses.replace(made.objective, **(objective or {})),
        training=dataclasses.replace(made.training, **training),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of masked diffusion on text."""
    folder = tmp_path_factory.mktemp("base")
    recipes.write_text(folder)
    return train(recipes.recipe(folder, steps=2, eval_steps=2)).run.root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_chats(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True, "micro_batch_size": 3},
        {"precision": "bf16"},
    ],
)
def test_n_and_n_steps_resumed_equal_2n_steps_bit_for_bit(folder: Path, base: Path, options: dict[str, Any]) -> None:
    whole, resumed = recipes.whole_and_resumed(recipe(folder, base, **options))
    recipes.assert_same(resumed, whole, "train/loss", "train/grad_norm", "eval/bits_per_byte")


@pytest.mark.parametrize(
    ("data", "objective"),
    [
        ({}, {}),
        ({"pad_mode": "eos_capped", "eos_cap": 2}, {"corruption": "bernoulli"}),
        ({"pad_mode": "ignore", "supervise": "each"}, {"normalize": "tokens"}),
        ({}, {"method": "autoregressive"}),
    ],
)
def test_four_micro_batches_of_two_equal_one_batch_of_eight(
    folder: Path, base: Path, data: dict[str, Any], objective: dict[str, Any]
) -> None:
    made = recipe(folder, base, eval_steps=6)
    whole = weights(train(changed(made, "whole", data=data, objective=objective)).run, 6)
    split = weights(train(changed(made, "split", data=data, objective=objective, micro_batch_size=2)).run, 6)
    for name in whole:
        # float64: only the order of sums differs, and the float32 weights of an example.
        torch.testing.assert_close(split[name], whole[name], rtol=1e-9, atol=1e-9)


def test_a_recipe_gives_a_model_that_replies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows teach one answer to everything; the trained model gives it and ends its turn."""
    rows = [{"prompt": f"what is {number}", "answer": "blue"} for number in range(60)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = tree(folder, None, steps=120, eval_steps=120, logging_steps=20)
    made["model"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    made["data"] |= {"tokenizer": "byte"}
    made["sampling"] = {"max_new_tokens": 8}
    (folder / "sft.yaml").write_text(yaml.safe_dump(made))
    assert main(["train", str(folder / "sft.yaml")]) == 0
    run = RunFolder(Path(capsys.readouterr().out.strip()))
    lm = DiffusionLM.from_pretrained(run.root, device="cpu")
    (output,) = lm.generate([{"role": "user", "content": "what is 99"}], SamplingParams(max_new_tokens=8))
    assert (output.text, output.finish_reason) == ("blue", "stop")
    page = (run.samples / "final.md").read_text()
    assert "## Prompt 0" in page
    assert "Assistant:\n\n```\n\nReply:\n\n```text\nblue\n```" in page
    assert main(["evaluate", str(run.root), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"] == 5 * record["rows"]
    assert record["bytes"] == 4 * record["rows"]
    assert record["bits_per_byte"] < 1
    assert '[{"role": "user", "content": ' in (run.final / "README.md").read_text()


def test_a_dry_run_marks_what_is_supervised(folder: Path, base: Path) -> None:
    made = changed(recipe(folder, base), "dry", data={"over_long": "drop", "context_length": 40})
    lines = list(dry_run(made))
    (clean,) = (line for line in lines if line.startswith("first row"))
    (corrupted,) = (line for line in lines if line.startswith("as trained"))
    assert "what is supervised in [[...]]" in clean
    assert "Assistant:\\n[[" in clean
    assert "<|eos|>]]" in clean
    assert "<|mask|>" in corrupted
    prompt = clean.partition("'")[2].partition("[[")[0]
    assert corrupted.partition("'")[2].startswith(prompt)
    (described_rows,) = (line for line in lines if line.startswith("chat: "))
    assert "over-long ones dropped to train on, held out" in described_rows


def test_held_out_scores_count_answers_and_one_end_each_but_no_eos_that_fills_up(folder: Path, base: Path) -> None:
    made = recipe(folder, base)
    tokenizer = prepare_tokenizer(made, folder / "cache")
    text = prepare_text(made, tokenizer, folder / "cache")
    assert isinstance(text.held_out, ChatRows)
    assert isinstance(text.train, ChatRows)
    batch = text.held_out.batch(np.arange(len(text.held_out)), 0, len(text.held_out), step=0)
    lm = DiffusionLM.from_pretrained(base, device="cpu")
    scored = row_nats(lm.backbone, batch, EvaluationSettings(masks_per_sequence=2))
    assert bool(batch.supervised_BL[:, -1].all())
    for ids, supervised, tokens, size in zip(
        batch.ids_BL, batch.supervised_BL, scored.tokens_B.tolist(), scored.bytes_B.tolist(), strict=True
    ):
        answers = [one for one in tokenizer.decode(ids[supervised].tolist()).split("<|eos|>") if one]
        assert all(answer in COLOURS for answer in answers)
        assert size == sum(map(len, answers))
        assert tokens == size + len(answers)


def test_tokens_are_kept_and_copies_stay_on_one_side(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = (folder / "chats.jsonl").read_text().splitlines()[3]
    with (folder / "chats.jsonl").open("a") as file:
        file.write((row + "\n") * 30)
    made = recipe(folder, base)
    tokenizer = prepare_tokenizer(made, folder / "cache")
    text = prepare_text(made, tokenizer, folder / "cache")
    assert text.held_out is not None
    assert len(text.train) + len(text.held_out) == 70
    question = json.loads(row)["messages"][0]["content"]
    found = [
        sum(question in tokenizer.decode(one.prompt(number)) for number in range(len(one)))
        for one in (text.train, text.held_out)
        if isinstance(one, ChatRows)
    ]
    assert sorted(found) == [0, 31]

    def forbidden(self: ChatDocuments) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(ChatDocuments, "__iter__", forbidden)
    again = prepare_text(made, tokenizer, folder / "cache")
    assert len(again.train) == len(text.train)
    with pytest.raises(AssertionError, match="tokenised again"):
        prepare_text(changed(made, "other", data={"supervise": "last"}), tokenizer, folder / "cache")


def test_bad_and_refused_rows_are_counted_once(folder: Path, base: Path) -> None:
    strict = (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    (folder / "strict.jinja").write_text(strict)
    good, bad = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {"messages": []}
    twice = [{"messages": [{"role": "user", "content": str(number)}, *good]} for number in range(20)]
    with (folder / "chats.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in [bad, *twice, bad, bad])
    made = changed(recipe(folder, base), "bad", data={"chat_template": str(folder / "strict.jinja")})
    with pytest.raises(DataError, match=r"chats\.jsonl, line 41: the conversation is empty"):
        prepare(made, RunFolder(folder / "bad"), None)
    made = changed(made, "bad", data={"malformed": "skip"})
    text, checkpoint = prepare(made, RunFolder(folder / "bad"), None)
    assert text.skipped == 23
    assert any("23 malformed rows skipped" in line for line in described(made, checkpoint, text))
    again, _ = prepare(made, RunFolder(folder / "bad"), None)
    assert again.skipped == 23


def test_what_cannot_work_is_refused_before_training(folder: Path, base: Path) -> None:
    made = recipe(folder, base)
    with pytest.raises(SettingsError, match=r"no chat template\. Set data\.chat_template"):
        train(changed(made, "no-template", data={"chat_template": None}))
    with pytest.raises(DataError, match=r"longer than data\.context_length \(30 tokens\).*chats\.jsonl, line \d+"):
        train(changed(made, "long", data={"context_length": 30}))
    with pytest.raises(SettingsError, match="a conversation would lose its answer"):
        changed(made, "random", objective={"random_length_probability": 0.01})


def test_the_end_of_a_turn_ends_generation_after_training(folder: Path, base: Path) -> None:
    """A template may end turns with another token than the tokenizer's end of text."""
    ends = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|bos|>' }}{% endfor %}"
    (folder / "ends.jinja").write_text(ends + "{% if add_generation_prompt %}assistant:{% endif %}")
    made = changed(recipe(folder, base, steps=1), "ends", data={"chat_template": str(folder / "ends.jinja")})
    lm = DiffusionLM.from_pretrained(train(made).run.root, device="cpu")
    assert lm.tokenizer is not None
    assert set(lm.codec.end_ids()) == {lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id}
    assert math.isfinite(recipes.records(RunFolder(folder / "ends"), "train/loss")[0][1])

"""The command line, run as its users run it: data on stdout, one clear line for every mistake, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training import recipes
from unmask.cli.main import VERBS, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a recipe and a finished run."""
    path = tmp_path_factory.mktemp("cli")
    recipes.write_text(path)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipes.tree(path)))
    assert main(["train", str(path / "recipe.yaml")]) == 0
    return path


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a mistake prints; nothing goes to stdout."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("unmask")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def test_train_prints_the_run_folder_and_nothing_else(folder: Path) -> None:
    command = [sys.executable, "-m", "unmask", "train", str(folder / "recipe.yaml"), "name=other", "training.steps=2"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.strip() == str(folder / "other")
    assert "step 1/2 (50%) | loss" in done.stderr
    assert "tok/s | MFU" in done.stderr
    assert "\x1b" not in done.stderr


def test_print_config_and_dry_run_train_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(folder / "recipe.yaml"), "training.steps=9", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["steps"] == 9
    assert main(["train", str(folder / "recipe.yaml"), "name=dry", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["name"] == "dry"
    assert "without embeddings" in out
    assert "memory: about" in out
    assert "<|mask|>" in out
    assert not (folder / "dry" / "checkpoints").exists()


def test_recipes_lie_over_one_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "over.yaml").write_text("training: {steps: 3}\nname: over\n")
    words = ["train", str(folder / "recipe.yaml"), str(folder / "over.yaml"), "seed=4", "--print-config"]
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["seed"], printed["training"]["steps"]) == ("over", 4, 3)
    assert printed["training"]["batch_size"] == recipes.tree(folder)["training"]["batch_size"]
    line = failed(capsys, "train", folder / "recipe.yaml", folder / "gone.yaml")
    assert "There is no recipe file" in line
    assert "gone.yaml" in line
    assert "the form key=value, got `seed`" in failed(capsys, "train", folder / "recipe.yaml", "seed")


def test_generate_prints_text_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "tiny")
    assert main(["generate", run, "the cat", "--max-new-tokens", "6", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("the cat")
    assert "tokens per forward" in captured.err
    words = [
        "generate",
        run,
        "the",
        "a",
        "--max_new_tokens",
        "4",
        "--n",
        "2",
        "--temperature",
        "1.0",
        "--trace",
        "--json",
    ]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["sample"]) for line in lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(len(line["revealed_at"]) == len(line["token_ids"]) for line in lines)


def test_generate_watches_without_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder / "tiny"), "the", "--max-new-tokens", "8", "--watch"]) == 0
    assert "tokens 8/8 (100%)" in capsys.readouterr().out


def test_evaluate_scores_the_runs_held_out_text_and_any_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder / "tiny")]) == 0
    table = capsys.readouterr().out
    assert "upper bound (ELBO)" in table
    assert "standard error of the masks" in table
    words = ["evaluate", str(folder / "tiny"), "--data", str(folder / "text.jsonl"), "--json", "--max-rows", "3"]
    assert main([*words, "--output", str(folder / "scores.json")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((folder / "scores.json").read_text()) | {"environment": record["environment"]}
    assert record["rows"] == 3
    assert record["bits_per_byte"] == pytest.approx(
        record["nats_per_token"] * record["tokens"] / record["bytes"] / 0.693147, rel=1e-5
    )


def test_mistakes_are_one_clear_line_and_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = folder / "recipe.yaml", folder / "tiny"
    cases = [
        (["trian"], "no verb `trian`. Did you mean `train`"),
        (["train", recipe, "training.stepz=3"], "Did you mean `training.steps`"),
        (["train", recipe, "training.steps=soon"], "must be an integer or null, got 'soon'"),
        (["train", folder / "gone.yaml"], "no recipe file"),
        (["train", recipe], "exists already"),
        (["train", recipe, "name=a", "data.train=nowhere.txt"], "there is no nowhere.txt"),
        (["train", recipe, "name=b", "data.context_length=100"], "at most the model's 64 positions, got 100"),
        (["train", recipe, "name=c", f"model.from_pretrained={folder}"], "There is no model in"),
        (["train", recipe, "name=d", "--resum", "auto"], "Did you mean `--resume`"),
        (["generate", folder / "gone"], "There is no folder"),
        (["generate", run, "x" * 70], "exceed the model's context of 64"),
        (
            ["generate", run, "x", "--decoding", "autoregressive", "--cfg-scale", "3"],
            "cfg_scale is not used by autoregressive decoding",
        ),
        (["generate", run, "x", "--temperatur", "1"], "Did you mean `--temperature`"),
        (["generate", run, "x", "--temperature", "warm"], "`temperature` must be a number, got 'warm'"),
        (["generate", run, "--file", "gone.txt"], "There is no prompt file gone.txt"),
        (["evaluate", run / "final"], "is no run folder with a held-out text"),
        (["evaluate", run, "--data", "gone.txt"], "there is no gone.txt"),
    ]
    for words, message in cases:
        assert message in failed(capsys, *words), words


def test_an_empty_text_and_a_damaged_checkpoint_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    (folder / "empty.jsonl").write_text("")
    assert "The text is empty" in failed(
        capsys, "train", folder / "recipe.yaml", "name=e", f"data.train={folder / 'empty.jsonl'}"
    )
    broken = folder / "broken"
    shutil.copytree(folder / "tiny" / "final", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "cannot be loaded" in failed(capsys, "generate", broken, "x")
    config = json.loads((folder / "tiny" / "final" / "config.json").read_text())
    shutil.copy(folder / "tiny" / "final" / "model.safetensors", weights)
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    message = failed(capsys, "generate", broken, "x")
    assert "mlp" in message
    assert "shape" in message or "size mismatch" in message


def test_help_lists_every_verb_and_needs_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert main(["train", "--help-keys"]) == 0
    keys = capsys.readouterr().out
    assert "training.learning_rate=0.001" in keys
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import unmask

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unmask {unmask.__version__}\n"

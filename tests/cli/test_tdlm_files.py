"""TDLM's file and flags on the command line of `unmask train`, and `--eval-only`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_checkpoints import failed
from tests.cli.test_port_files import TRAIN, resolved
from tests.settings.test_tdlm_aliases import EXAMPLE
from tests.training import recipes
from unmask import DiffusionLM, config
from unmask.cli.main import main
from unmask.cli.train_eval import scored
from unmask.evaluation.likelihood import evaluate
from unmask.settings.recipe import Recipe
from unmask.training.preparation import prepare_text

SMALL = """
model: {max_seq_length: 24, hidden_size: 16, num_layers: 1, num_heads: 2, training_mode: diffusion}
diffusion: {single_ratio_per_sequence: false, min_mask_ratio: 0.2, max_mask_ratio: 0.9}
training: {batch_size: 4, gradient_accumulation_steps: 2, num_epochs: 1, learning_rate: 3e-3, logging_steps: 1,
  eval_every_n_steps: 2, save_every_n_steps: 2, detailed_metrics_steps: 1000}
sampling: {num_steps: 4, max_length: 9}
enhanced_evaluation: {include_downstream: false, max_eval_batches: 2}
"""
TEXT = ["data.train=text.jsonl", "data.tokenizer=byte", "data.validation_fraction=0.2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "example.yaml").write_text(EXAMPLE)
    (tmp_path / "small.yaml").write_text(SMALL)
    recipes.write_text(tmp_path)
    return tmp_path


def written(**changes: Any) -> Path:
    """A recipe of ours."""
    Path("mine.yaml").write_text(yaml.safe_dump(recipes.tree(Path(), probe_rows=0, **changes)))
    return Path("mine.yaml")


# --- files and flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--config", "example.yaml"], ["example.yaml"], ["--config_path", "example.yaml"]])
def test_its_file_is_known_by_its_groups(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, told = resolved(capsys, *words)
    assert (recipe["objective"]["method"], recipe["model"]["hidden_size"]) == ("masked_diffusion", 64)
    assert re.fullmatch(r"tdlm_\d{8}_\d{6}", recipe["name"])
    assert recipe["output_dir"] == "experiments"
    assert "note: example.yaml: `diffusion.max_loss_weight` is not used: under a capped weight the loss bounds" in told


def test_flags_go_over_the_file_and_key_value_over_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--experiment-id", "mine", "--output-dir", "results"]
    recipe, _ = resolved(capsys, "--config", "example.yaml", *flags)
    assert (recipe["name"], recipe["output_dir"]) == ("mine", "results")
    recipe, _ = resolved(capsys, "--config", "example.yaml", *flags, "name=other", "training.steps=3")
    assert (recipe["name"], recipe["output_dir"]) == ("other", "results")
    assert (recipe["training"]["steps"], recipe["training"]["epochs"]) == (3, None)
    recipe, _ = resolved(capsys, str(written()), *flags)
    assert (recipe["name"], recipe["output_dir"]) == ("mine", "results"), "over a recipe of ours"
    Path("train_config.json").write_text(json.dumps(TRAIN | {"deepspeed_config": None}))
    recipe, _ = resolved(capsys, "--config", "train_config.json", *flags)
    assert (recipe["name"], recipe["output_dir"]) == ("mine", "results"), "over the TiDAR port's file"


def test_the_advice_about_the_threshold_holds(capsys: pytest.CaptureFixture[str]) -> None:
    _, told = resolved(capsys, "example.yaml")
    (line,) = {one.partition("To reveal by confidence: ")[2] for one in told.splitlines() if "To reveal" in one}
    recipe, _ = resolved(capsys, "example.yaml", *line.split())
    params = config.from_tree(Recipe, recipe).sampling.resolved({}, "canvas")
    assert (params.unmasking, params.confidence_threshold) == ("threshold", 0.8)


def test_its_file_goes_over_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("part.yaml").write_text("diffusion: {min_mask_ratio: 0.3}\ntraining: {num_epochs: 2, warmup_ratio: 0.2}\n")
    recipe, _ = resolved(capsys, str(written(warmup_steps=3)), "--config", "part.yaml")
    assert (recipe["name"], recipe["objective"]["mask_ratio_range"]) == ("tiny", [0.3, 1.0])
    training = recipe["training"]
    assert (training["epochs"], training["steps"], training["batch_size"]) == (2, None, 8)
    assert (training["warmup_steps"], training["warmup_ratio"]) == (None, 0.2)
    training = resolved(capsys, "--config", "part.yaml", "training.warmup_steps=4", "name=x")[0]["training"]
    assert (training["warmup_steps"], training["warmup_ratio"]) == (4, 0.01)


def test_config_takes_a_recipe_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolved(capsys, "--config", str(written()))[0] == resolved(capsys, "mine.yaml")[0]


@pytest.mark.parametrize("word", ["training_mode=autoregressive", "model.training_mode=autoregressive"])
def test_the_mode_is_understood_in_a_recipe_and_behind_it(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, _ = resolved(capsys, str(written()), word)
    assert recipe["objective"]["method"] == "autoregressive"
    tree = recipes.tree(Path()) | {"training_mode": "autoregressive"}
    del tree["objective"]
    Path("mode.yaml").write_text(yaml.safe_dump(tree))
    recipe, _ = resolved(capsys, "mode.yaml")
    assert recipe["objective"]["method"] == "autoregressive"
    assert "training_mode" not in recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.yaml", "--config", "mine.yaml"], "mine.yaml and --config mine.yaml are both recipes"),
        (["small.yaml", "--config", "example.yaml"], "small.yaml and --config example.yaml are both files of TDLM"),
        (["--config", "none.yaml"], "There is no recipe file none.yaml"),
        (["mine.yaml", "training_mode=both"], "the command line: training_mode must be diffusion or autoregressive"),
        (["--config", "example.yaml", "--resume", "auto"], "--resume auto does not say which run. Name it: --exper"),
        (["--config", "example.yaml", "--eval-only"], "--eval-only does not say which run"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written()
    assert message in failed(capsys, "train", *words)


def test_several_processes_need_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "Several processes need one name" in failed(capsys, "train", "small.yaml", "--print-config")


# --- runs -------------------------------------------------------------------------------------------------------------


def files_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written, and what is in it."""
    return {
        str(one.relative_to(root)): (one.stat().st_mtime_ns, one.read_bytes())
        for one in sorted(root.rglob("*"))
        if one.is_file()
    }


def table(text: str) -> list[str]:
    """The cells of the one line of figures."""
    return [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]


def test_its_file_trains_goes_on_and_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", "small.yaml", "--experiment-id", "exp", *TEXT]
    assert main(words) == 0
    assert capsys.readouterr().out.split() == ["experiments/exp"]
    records = [json.loads(line) for line in Path("experiments/exp/metrics.jsonl").read_text().splitlines()]
    last = max(one["step"] for one in records)
    before = files_of(Path("experiments"))

    resume = "experiments/exp/checkpoints/best_model.pt"
    assert main(["train", "--config", "small.yaml", "--resume", resume, "--eval-only", *TEXT]) == 0
    best = min(one["eval/bits_per_byte"] for one in records if "eval/bits_per_byte" in one)
    cells = table(capsys.readouterr().out)
    assert cells[1:3] == ["masked_diffusion", "upper bound (ELBO)"]
    assert cells[4] == f"{best:.4f}"
    assert files_of(Path("experiments")) == before, "nothing is written"

    # One epoch more, from a checkpoint as TDLM names it: the run is the one that it lies in.
    resume = f"experiments/exp/checkpoints/checkpoint_step_{last}.pt"
    assert main(["train", "--config", "small.yaml", "--resume", resume, *TEXT, "training.epochs=2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["experiments/exp"]
    assert f"step-{last} at step {last}" in captured.err
    steps = [json.loads(line)["step"] for line in Path("experiments/exp/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2 * last


@pytest.mark.parametrize("method", ["masked_diffusion", "autoregressive", "block_diffusion"])
def test_eval_only_is_the_likelihood_of_the_held_out_text(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal to the last bit to the evaluator's own value, and (best checkpoint) to the best record of the run."""
    file = written()
    words = [str(file), f"objective.method={method}", "sampling.max_new_tokens=4"]
    words += ["objective.mask_ratio_range=[0.4,0.6]"] if method == "masked_diffusion" else []
    assert main(["train", *words]) == 0
    before = files_of(Path("tiny"))
    recipe = config.load(Recipe, file=file, overrides=words[1:])
    record = scored(recipe, None)
    assert files_of(Path("tiny")) == before

    lm = DiffusionLM.from_pretrained("tiny/best")
    assert lm.tokenizer is not None
    text = prepare_text(recipe, lm.tokenizer, Path("again"), block_length=lm.backbone.diffusion.block_length)
    assert text.held_out is not None
    expected = evaluate(lm.backbone, text.held_out, recipe.evaluation)
    assert record["bits_per_byte"] == expected.bits_per_byte
    assert record["bits_per_byte_stderr"] == expected.bits_per_byte_stderr
    lines = [json.loads(line) for line in Path("tiny/metrics.jsonl").read_text().splitlines()]
    kept = [(one["eval/bits_per_byte"], one["eval/stderr"]) for one in lines if "eval/bits_per_byte" in one]
    assert (record["bits_per_byte"], record["bits_per_byte_stderr"]) == pytest.approx(min(kept), rel=1e-12)

    capsys.readouterr()
    assert main(["train", *words, "--eval-only", "--resume", "tiny/checkpoints/step-3"]) == 0
    cells = table(capsys.readouterr().out)
    assert cells[0].endswith("tiny/checkpoints/step-3")
    assert cells[4:6] == [f"{kept[0][0]:.4f}", f"{kept[0][1]:.4f}"]


def test_eval_only_needs_a_checkpoint_of_this_method(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(steps=2))
    message = failed(capsys, "train", file, "--eval-only")
    assert "There is no checkpoint tiny. Name a run, its best or latest, or a checkpoints/step-N folder" in message
    assert main(["train", file]) == 0
    capsys.readouterr()
    message = failed(capsys, "train", file, "--eval-only", "objective.method=autoregressive")
    assert "was trained with masked_diffusion, and the recipe says autoregressive" in message
    message = failed(capsys, "train", file, "--eval-only", "data.validation_fraction=0")
    assert "held no text out" in message


def test_names_of_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(steps=4, eval_steps=2, learning_rate=1.0, lr_schedule="constant"))
    assert main(["train", file]) == 0
    lines = [json.loads(line) for line in Path("tiny/metrics.jsonl").read_text().splitlines()]
    scores = {one["step"]: one["eval/bits_per_byte"] for one in lines if "eval/bits_per_byte" in one}
    best = min(scores, key=lambda step: scores[step])
    assert best == 2, "this run gets worse, so that its best is not its latest"
    recipe = config.load(Recipe, file=file)
    wanted = {
        "tiny": best,
        "tiny/best": best,
        "tiny/latest": 4,
        "tiny/checkpoints/step-2": 2,
        "tiny/checkpoints/best_model.pt": best,
        "tiny/checkpoints/latest_model.pt": 4,
        "tiny/checkpoints/checkpoint_step_2.pt": 2,
        "auto": best,
    }
    for name, step in wanted.items():
        assert scored(recipe, name)["bits_per_byte"] == pytest.approx(scores[step], rel=1e-12), name
    capsys.readouterr()
    for name in ("tiny/checkpoints/step-3", "tiny/checkpoints/checkpoint_step_3.pt"):
        message = failed(capsys, "train", file, "--resume", name)
        assert f"There is no checkpoint {name}. The run tiny has: step-2, step-4" in message
    Path("tiny/checkpoints/best_model.pt").write_bytes(b"\x80\x02")
    message = failed(capsys, "train", file, "--resume", "tiny/checkpoints/best_model.pt")
    assert "is a file, and a checkpoint is a folder. (No file of pickled weights is opened.)" in message

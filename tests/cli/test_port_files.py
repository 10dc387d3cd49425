"""The files and flags of the first TiDAR port: `unmask train --config train_config.json --deepspeed ds_config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_checkpoints import failed
from tests.data.test_token_files import corpus
from tests.settings.test_deepspeed import PORT, file
from tests.training import recipes
from tests.training.test_tracking import scalars
from unmask import DiffusionLM
from unmask.cli.main import main
from unmask.training.tracking import PORT_TAGS

ROOT = Path(__file__).parents[2]
TRAIN: dict[str, Any] = {
    "data_dir": "./train_data",
    "ckpt_dir": "./tidar_checkpoints",
    "qwen_model_path": "Qwen/Qwen2.5-1.5B-Instruct",
    "model_name": "tidar-1.5B",
    "logger_file": "training",
    "num_epochs": 3,
    "start_epoch": 0,
    "save_interval": 1,
    "max_len": 512,
    "num_workers": 4,
    "run_mode": "train",
    "tidar_block_size": 8,
    "tidar_clean_ratio": 0.5,
    "ar_loss_weight": 1.0,
    "diffusion_loss_weight": 1.0,
    "deepspeed_config": "tidar/ds_config.json",
}
"""The `train_config.json` of the port: every key that it has."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    write()
    (tmp_path / "ds_config.json").write_text(json.dumps(PORT))
    return tmp_path


def write(name: str = "train_config.json", **changes: Any) -> None:
    Path(name).write_text(json.dumps(TRAIN | changes))


def resolved(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """The recipe that a command line means, and what was told."""
    assert main(["train", *words, "--print-config"]) == 0
    captured = capsys.readouterr()
    return yaml.safe_load(captured.out), captured.err


def test_both_files_become_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, told = resolved(capsys, "--config", "train_config.json", "--num-gpus", "8")
    assert (recipe["name"], recipe["output_dir"]) == ("tidar-1.5B", "./tidar_checkpoints")
    assert recipe["model"]["from_pretrained"] == "Qwen/Qwen2.5-1.5B-Instruct"
    data, objective, training = (recipe[group] for group in ("data", "objective", "training"))
    assert (data["format"], data["train"], data["context_length"]) == ("ckpt", ["./train_data"], 512)
    assert data["over_long"] == "cut"
    assert (objective["method"], objective["tidar_layout"]) == ("tidar", "split")
    assert (objective["block_length"], objective["clean_ratio"]) == (8, 0.5)
    assert (objective["ar_loss_weight"], objective["diffusion_loss_weight"]) == (1.0, 1.0)
    assert (training["epochs"], training["save_epochs"], training["steps"]) == (3, 1, None)
    assert (training["batch_size"], training["micro_batch_size"], training["precision"]) == (32, 4, "fp16")
    assert (training["learning_rate"], training["lr_schedule"], training["warmup_steps"]) == (2e-5, "linear", 100)
    assert training["deepspeed_config"] == "ds_config.json", "found beside train_config.json"
    assert told.splitlines() == [
        "note: train_config.json: `logger_file` is not used: progress goes to standard error, and every record to "
        "metrics.jsonl in the run folder",
        "note: train_config.json: `num_workers` is not used: rows are looked up by number in mapped files, so no "
        "workers are needed",
        "note: ds_config.json: total_num_steps (10000) is not used: the learning rate falls to the run's end",
    ]


def test_json_goes_over_defaults_and_the_command_line_over_json(capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.json").write_text(json.dumps({"tidar_block_size": 4, "qwen_model_path": "a/b"}))
    recipe, _ = resolved(capsys, "--config", "short.json")
    assert (recipe["objective"]["block_length"], recipe["model"]["from_pretrained"]) == (4, "a/b"), "JSON"
    assert (recipe["objective"]["clean_ratio"], recipe["training"]["epochs"]) == (0.5, 3), "defaults"
    assert recipe["training"]["learning_rate"] == 2e-5
    flags = ["--tidar_block_size", "16", "--qwen_model_path", "c/d", "--tidar_clean_ratio", "0.25"]
    recipe, _ = resolved(capsys, "--config_path", "short.json", *flags, "training.steps=7")
    assert (recipe["objective"]["block_length"], recipe["model"]["from_pretrained"]) == (16, "c/d"), "flags"
    assert recipe["objective"]["clean_ratio"] == 0.25
    assert (recipe["training"]["steps"], recipe["training"]["epochs"]) == (7, None), "key=value"
    recipe, _ = resolved(capsys, "--config", "short.json", "--tidar_block_size", "16", "objective.block_length=2")
    assert recipe["objective"]["block_length"] == 2, "key=value over flags"


def test_json_goes_over_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(
        "objective: {method: tidar, block_length: 2}\ntraining: {steps: 9, learning_rate: 1.0e-4, weight_decay: 0.3}\n"
    )
    Path("short.json").write_text(json.dumps({"num_epochs": 2, "max_len": 64}))
    recipe, _ = resolved(capsys, "recipe.yaml", "--config", "short.json")
    assert recipe["data"]["context_length"] == 64
    assert (recipe["training"]["epochs"], recipe["training"]["steps"]) == (2, None)
    assert (recipe["objective"]["block_length"], recipe["training"]["learning_rate"]) == (2, 1e-4), "not the defaults"
    ds = {"train_batch_size": 6, "optimizer": {"params": {"lr": 3e-3}}}
    Path("ds.json").write_text(json.dumps(ds))
    recipe, told = resolved(capsys, "recipe.yaml", "--deepspeed", "ds.json")
    assert (recipe["training"]["batch_size"], recipe["training"]["learning_rate"]) == (6, 3e-3)
    assert (recipe["training"]["weight_decay"], recipe["training"]["steps"]) == (0.3, 9)
    assert "asks for no ZeRO stage" in told
    recipe, _ = resolved(capsys, "recipe.yaml", "--tidar_block_size", "4")
    assert (recipe["objective"]["block_length"], recipe["training"]["steps"]) == (4, 9)


@pytest.mark.parametrize("flag", ["--deepspeed", "--deepspeed_config", "--ds-config"])
def test_deepspeeds_file_alone(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, told = resolved(capsys, flag, "ds_config.json", "--num-gpus", "8", "--local_rank", "0")
    training = recipe["training"]
    assert (training["steps"], training["precision"], training["lr_schedule"]) == (10000, "fp16", "linear")
    assert told == ""
    Path("ds.json").write_text(json.dumps({"train_batch_size": 6}))
    training = resolved(capsys, flag, "ds.json")[0]["training"]
    assert (training["lr_schedule"], training["learning_rate"], training["max_grad_norm"]) == ("constant", 1e-3, 0.0)
    bare = resolved(capsys, "--deepspeed", "--deepspeed_config", "ds.json")[0]["training"]
    assert bare == training, "as deepspeed's own launcher writes it"


def test_unknown_keys_are_told_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    write(tidar_blok_size=4)
    _, told = resolved(capsys, "--config", "train_config.json", "--num-gpus", "8")
    assert "note: train_config.json: unknown key `tidar_blok_size`. Did you mean `tidar_block_size`" in told


def test_start_epoch_and_a_debugging_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--config", "train_config.json", "--num-gpus", "8")
    recipe, told = resolved(capsys, *words, "--start_epoch", "2", "--existing_model_path", "runs/tidar")
    assert (recipe["training"]["epochs"], recipe["model"]["from_pretrained"]) == (1, "runs/tidar")
    assert "start_epoch 2 leaves 1 epochs" in told and "--resume auto" in told
    write(run_mode="debug")
    recipe, _ = resolved(capsys, *words)
    assert (recipe["training"]["steps"], recipe["training"]["epochs"]) == (2, None)


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({}, [], "train_batch_size (32) must be train_micro_batch_size_per_gpu (4) x"),
        ({}, ["--num-gpus", "8"], "Run the same command as: accelerate launch --num_processes 8 -m unmask train"),
        ({}, ["training.batch_size=8"], 'asks for ZeRO, which needs the package `deepspeed`, and it is not installed. '
         'Install it with: pip install "unmask[gpu]". Or train the same steps without ZeRO'),
        ({"start_epoch": 3}, [], "start_epoch must be a whole number below num_epochs (3), got 3"),
        ({"run_mode": "test"}, [], "run_mode must be train or debug, got 'test'"),
        ({"deepspeed_config": "no.json"}, [], "there is no deepspeed_config no.json, neither from"),
        ({"existing_model_path": "x/pytorch_model.bin"}, [], "is a file of pickled weights, x/pytorch_model.bin"),
        ({"num_epochs": "many", "deepspeed_config": None}, [], "`training.epochs` must be a number or null, got"),
        ({}, ["--config", "none.json"], "none.json cannot be read: No such file or directory"),
        ({}, ["--deepspeed", "recipe.txt"], "recipe.txt is not valid JSON"),
        ({}, ["--tidar_blok_size", "3"], "There is no option `--tidar_blok_size`. Did you mean `--tidar_block_size`"),
    ],
)  # fmt: skip
def test_mistakes_are_told(
    changes: dict[str, Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Path("recipe.txt").write_text("steps: 3")
    write(**changes)
    assert message in failed(capsys, "train", "--config", "train_config.json", *words)


@pytest.fixture
def base(folder: Path) -> Path:
    """A tiny autoregressive run, and rows of the port's format beside it."""
    corpus(folder)
    recipes.write_text(folder)
    made = recipes.tree(folder, steps=2) | {"name": "base", "objective": {"method": "autoregressive"}}
    Path("base.yaml").write_text(yaml.safe_dump(made))
    assert main(["train", "base.yaml"]) == 0
    return folder / "base"


@pytest.mark.filterwarnings("ignore")
def test_the_files_train_a_model_without_deepspeed(
    base: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOG_PATH", str(folder / "boards"))
    small = {"qwen_model_path": str(base), "max_len": 24, "num_epochs": 1, "model_name": "small"}
    write(**small, ckpt_dir=str(folder / "saved"), deepspeed_config=None, tidar_block_size=2)
    without = file(zero_optimization=None, fp16=None, train_batch_size=8, gradient_accumulation_steps=2)
    Path("plain.json").write_text(json.dumps(without))
    words = ["--config", "train_config.json", "--deepspeed", "plain.json", "data.validation_fraction=0.3"]
    capsys.readouterr()
    assert main(["train", *words, "training.logging_steps=1", "training.report_to=[tensorboard]"]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "saved" / "small")]
    records = [json.loads(line) for line in (folder / "saved" / "small" / "metrics.jsonl").read_text().splitlines()]
    trained = [one for one in records if "train/loss" in one]
    assert [one["train/learning_rate"] for one in trained] == pytest.approx([2e-5 * step / 100 for step in range(1, 6)])
    for one in trained:
        assert one["train/loss"] == pytest.approx((one["train/ar_loss"] + one["train/diffusion_loss"]) / 2)
    lm = DiffusionLM.from_pretrained(folder / "saved" / "small")
    entry = lm.backbone.diffusion
    assert (entry.method, entry.block_length, entry.clean_ratio) == ("tidar", 2, 0.5)
    found = scalars(folder / "boards")
    assert found.keys() >= {*PORT_TAGS.values(), "train/epoch_loss", "train/epoch_ar_loss"}
    expected = [one["train/diffusion_loss"] for one in trained]
    assert [value for _, value in found["train/batch_diffusion_loss"]] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["tidar-port", "tidar-qwen2.5-1.5b", "tidar-qwen3-8b"])
def test_the_recipes_train_a_tiny_model(base: Path, name: str) -> None:
    """What asks for a GPU, a large model or much text aside."""
    words = ["training.deepspeed_config=null", "training.precision=fp32", "training.attention_backend=dense"]
    words += ["training.report_to=[]", "output_dir=.", f"model.from_pretrained={base}", "data.context_length=24"]
    words += ["training.batch_size=4", "training.micro_batch_size=2", "training.epochs=null", "training.steps=2"]
    words += ["data.train=train_data" if name == "tidar-port" else "data.train=text.jsonl", "name=tiny"]
    words += ["data.validation_fraction=0.3", "sampling.max_new_tokens=4", "training.warmup_steps=1"]
    assert main(["train", str(ROOT / "recipes" / f"{name}.yaml"), *words]) == 0
    assert DiffusionLM.from_pretrained("tiny").backbone.diffusion.method == "tidar"

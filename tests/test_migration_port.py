"""The tables of `docs/migration.md` on the first TiDAR port: its own words mean what the middle column says, and every
flag, key and file of its description has a row."""

import copy
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_checkpoints import failed
from tests.settings.test_deepspeed import PORT
from tests.test_migration import COMMANDS, RECIPE_KEY, ROWS, SPAN, Row, blocks, described, has_row, port_files
from unmask import config
from unmask.cli.main import main
from unmask.settings.deepspeed import engine_config, training_of
from unmask.settings.port_aliases import UNUSED, recipe_of
from unmask.settings.recipe import Recipe

__all__ = ["port_files"]
TRAIN_KEYS, DEEPSPEED_KEYS = "`train_config.json` of the port", "`ds_config.json` of the port"
COMMAND_LINES, GENDATA = "Command lines of the port", "`gendata_llama3.sh`"


def of(*sections: str) -> list[Row]:
    found = [row for row in ROWS if row.section in sections]
    assert found
    return found


def said(row: Row) -> tuple[str, Any]:
    """A key and its value, as the first column has it."""
    ((key, value),) = yaml.safe_load(SPAN.findall(row.original)[0]).items()
    return key, value


def means(recipe: Recipe, row: Row) -> None:
    """Every recipe key in the middle column has its value in the recipe."""
    spans = [span for span in SPAN.findall(row.ours) if RECIPE_KEY.match(span)]
    assert spans
    expected = config.load(Recipe, overrides=spans)
    for span in spans:
        path = span.partition("=")[0]
        assert leaf(recipe, path) == leaf(expected, path), span


def leaf(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("row", of(TRAIN_KEYS), ids=str)
def test_every_key_of_train_config_means_what_its_row_says(row: Row) -> None:
    key, value = said(row)
    tree, notes = recipe_of({key: value, "num_epochs": 3} | {key: value}, source="train_config.json", alone=True)
    if row.ours == "refused":
        assert key in UNUSED and any(f"`{key}` is not used" in note for note in notes)
    elif key == "deepspeed_config":
        assert notes == []  # the command line reads that file: the rows of the other table
    else:
        means(config.load(Recipe, over=tree), row)


@pytest.mark.parametrize("row", of(DEEPSPEED_KEYS), ids=str)
def test_every_key_of_ds_config_means_what_its_row_says(row: Row) -> None:
    key, value = said(row)
    made: dict[str, Any] = copy.deepcopy(PORT)
    if key.startswith("bf16"):
        del made["fp16"]
    place = made
    *parents, name = key.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[name] = value
    tree, notes = training_of(made, source="ds_config.json", processes=8)
    recipe = config.load(Recipe, over={"training": tree})
    assert notes == []
    means(recipe, row)
    if "DeepSpeed's" in row.note:
        handed: Any = engine_config(made, recipe.training, processes=8)
        for one in (*parents, name):
            handed = handed[one]
        assert handed == value


@pytest.mark.parametrize("row", of(COMMAND_LINES), ids=str)
def test_every_flag_means_what_its_row_says(
    row: Row, port_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(port_files)
    if not any(RECIPE_KEY.match(span) for span in SPAN.findall(row.ours)):
        return  # the row is about the command line itself, and was parsed by its own test
    words = shlex.split(f"{COMMANDS[COMMAND_LINES]} {SPAN.findall(row.original)[0]}")[1:]
    if "--config" in row.note:
        words += ["--config", "tidar/train_config.json"]
    assert main([*words, "--print-config"]) == 0
    Path("resolved.yaml").write_text(capsys.readouterr().out)
    means(config.load(Recipe, file="resolved.yaml"), row)


@pytest.mark.parametrize("row", of(GENDATA), ids=str)
def test_every_refused_flag_of_gendata_is_refused(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    if row.ours == "refused":
        words = shlex.split(f"{COMMANDS['gendata_llama3.sh']} {SPAN.findall(row.original)[0]}")[1:]
        assert f"is not an option here: {row.note[:15]}" in failed(capsys, *words)


# --- nothing is left out ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme() -> str:
    return described("tidar-readme.md")


@pytest.fixture(scope="module")
def summary() -> str:
    return described("tidar-summary.md")


def paths_of(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths of the leaves."""
    found = []
    for key, value in tree.items():
        found += paths_of(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return found


def test_every_flag_of_the_description_has_a_row(readme: str, summary: str) -> None:
    code = "\n".join(blocks(readme, "bash") + blocks(summary, "bash")).replace("\\\n", " ")
    commands = re.findall(r"(?:bash|tensorboard) ?(\S*)([^\n]*)", code)
    flags = [(script, flag) for script, rest in commands for flag in re.findall(r"--[\w-]+", f"{script} {rest}")]
    assert len(flags) == 5
    sections = {"scripts/gendata_llama3.sh": "gendata_llama3.sh", "train.sh": "Command lines of the port"}
    missing = [flag for script, flag in flags if script in sections and not has_row(sections[script], flag)]
    assert missing == []
    assert has_row("The model in Python", "runs of tensorboard --logdir runs")


def test_every_flag_of_its_scripts_has_a_row() -> None:
    """Those that the description does not show."""
    gendata = "outdir start end num-processes gpus model-path dataset-path max-length system-prompt"
    assert all(has_row("gendata_llama3.sh", f"--{name}") for name in gendata.split())
    trainer = (
        "config_path deepspeed deepspeed_config local_rank existing_model_path qwen_model_path tidar_block_size "
        "tidar_clean_ratio start_epoch num-gpus ds-config"
    )
    assert all(has_row(COMMAND_LINES, f"--{name}") for name in trainer.split())
    assert has_row(COMMAND_LINES, "-h") and has_row("gendata_llama3.sh", "-h")


def test_every_configuration_key_has_a_row(summary: str) -> None:
    (shown,) = blocks(summary, "json")
    keys = list(json.loads(shown))
    assert len(keys) == 5
    every = (
        "data_dir ckpt_dir existing_model_path qwen_model_path model_name logger_file num_epochs start_epoch "
        "save_interval max_len num_workers run_mode tidar_block_size tidar_clean_ratio ar_loss_weight "
        "diffusion_loss_weight deepspeed_config"
    )
    section = "train_config.json"
    assert [key for key in [*keys, *every.split()] if not has_row(section, key)] == []
    assert [key for key in [*paths_of(PORT), "bf16.enabled"] if not has_row("ds_config.json", key)] == []


def test_every_argument_of_the_model_has_a_row(readme: str) -> None:
    code = "\n".join(blocks(readme, "python"))
    arguments = re.findall(r"^    (\w+)=", re.findall(r"from_pretrained\((.*?)\n\)", code, re.DOTALL)[0], re.MULTILINE)
    assert len(arguments) == 6
    assert [name for name in arguments if not has_row("from_pretrained` of the port", name)] == []
    fields = re.findall(r"^    (\w+)=", re.findall(r"TiDARQwen2Config\((.*?)\n\)", code, re.DOTALL)[0], re.MULTILINE)
    fields += re.findall(r"^- `(\w+)` \(", readme, re.MULTILINE)
    assert len(fields) == 20
    assert [name for name in {*fields, "MASK_TOKEN_ID"} if not has_row("TiDARQwen2Config", name)] == []


def test_every_file_of_the_description_has_a_row(readme: str, summary: str) -> None:
    names = set(re.findall(r"[\w/.]+\.(?:py|sh|json|md)\b", readme + summary))
    assert len(names) >= 8
    known = [row.original.strip("`") for row in of("Files of the port")]
    missing = [name for name in names if not any(one == name or one.endswith(f"/{name}") for one in known)]
    assert missing == []
    for folder in ("./train_data", "runs"):
        assert has_row("Files of the port", folder) and folder in summary


def test_every_test_of_the_original_has_a_row_and_is_there(readme: str) -> None:
    listed = re.findall(r"^(\d\. .+)$", readme.partition("The test suite includes:")[2], re.MULTILINE)[:6]
    assert len(listed) == 6
    assert [name for name in listed if not has_row("Tests of the port", name)] == []
    text = (Path(__file__).parent / "test_port.py").read_text(encoding="utf-8")
    assert all(f"def test_{number}_" in text for number in range(1, 7))

"""Two processes take the steps of one. One launch trains every recipe: to start takes longer than to train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training import recipes, test_adapters, test_sft, test_tidar
from tests.training.recipes import run_of
from unmask import config
from unmask.data.rows import rows_of_step
from unmask.objectives.methods import objective
from unmask.runs import RunFolder
from unmask.settings.model import DiffusionConfig
from unmask.settings.recipe import Recipe
from unmask.training.preparation import prepare_text, prepare_tokenizer

ROOT = Path(__file__).parents[2]
STEPS = 4
_RANK = """
import gc
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
from unmask import config
from unmask.settings.recipe import Recipe
from unmask.training import trainer
from unmask.training.run import train

trainer.measured_peak = lambda device, dtype: 1e11
fit = trainer.Trainer.fit

def fit_in_a_cycle(self):
    self.itself = self
    return fit(self)

trainer.Trainer.fit = fit_in_a_cycle
destroy = torch.distributed.destroy_process_group

def destroy_last(group=None):
    held = sum(isinstance(one, DistributedDataParallel) for one in gc.get_objects())
    print(f"wrappers that outlive the group: {held}", file=sys.stderr)
    destroy(group)

torch.distributed.destroy_process_group = destroy_last
*_, last = files = sys.argv[1:]
for file in files:
    train(config.load(Recipe, file=file), is_last=file == last)
"""


def sparse(folder: Path) -> dict[str, Any]:
    """Under Bernoulli noise on rows of one or two tokens, many micro-batches of one row have no masked token."""
    lines = [json.dumps({"text": letter}) + "\n" for letter in "abcdefghijklmnopqrst"]
    (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")
    made = recipes.tree(folder, micro_batch_size=1, detailed_metrics_steps=2)
    made["data"] |= {"context_length": 3, "validation_fraction": 0.0}
    made["objective"] |= {"corruption": "bernoulli"}
    return made | {"sampling": {"max_new_tokens": 2}}


def answers(folder: Path) -> dict[str, Any]:
    """Each answer counts alike, whichever process has it."""
    recipes.write_chats(folder)
    made = test_sft.tree(folder, None, micro_batch_size=1)
    made["data"] |= {"tokenizer": "byte"}
    made["objective"] |= {"corruption": "bernoulli"}
    return made


def adapter(folder: Path) -> dict[str, Any]:
    recipes.write_text(folder)
    test_adapters.write_base(folder)
    return test_adapters.tree(folder, micro_batch_size=2, adapter={"dropout": 0.1})


def taught(folder: Path) -> dict[str, Any]:
    """TiDAR under a teacher, with drawn heads, in micro-batches of which some may have nothing to draft."""
    drawn = {"clean_ratio_range": [0.3, 0.95], "masking": "block", "weighting": "unweighted"}
    made = test_tidar.with_teacher(folder, **test_tidar.SPLIT, **drawn)
    made["training"] |= {"micro_batch_size": 2, "dropout": 0.1}
    return made


RECIPES = {one.__name__: one for one in (sparse, answers, adapter, taught)}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where each recipe lies in a folder of its name, run by two processes as `two`, and what they wrote to stderr."""
    root, files = tmp_path_factory.mktemp("launched"), []
    for name, recipe in RECIPES.items():
        (root / name).mkdir()
        made = recipe(root / name)
        made["training"] |= {"steps": STEPS, "eval_steps": STEPS}
        files.append(root / name / "recipe.yaml")
        files[-1].write_text(yaml.safe_dump(made | {"name": "two"}))
    (root / "rank.py").write_text(_RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    words = [*launch, str(root / "rank.py"), *map(str, files)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_equal_one(launched: tuple[Path, str], name: str) -> None:
    folder = launched[0] / name
    two = RunFolder(folder / "two")
    one = run_of(yaml.safe_load((folder / "recipe.yaml").read_text()), "one")
    found, wanted = ([row for row in recipes.every_record(run) if "train/loss" in row] for run in (two, one))
    assert [row["step"] for row in wanted] == list(range(1, STEPS + 1))
    for ours, other in zip(found, wanted, strict=True):
        assert ours["train/loss"] == pytest.approx(other["train/loss"], rel=1e-9)
        assert ours.keys() == other.keys()
        for key in (key for key in other if key.startswith("train/")):
            assert ours[key] == pytest.approx(other[key], rel=1e-8, nan_ok=True), key
    file = "adapter_model.safetensors" if name == "adapter" else "model.safetensors"
    parts, whole = (load_file(run.checkpoints / f"step-{STEPS}" / file) for run in (two, one))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-6, atol=1e-6)
    if name == "sparse":
        assert _empty_micro_batches(folder) > 0
        probed = [[row for row in recipes.every_record(run) if "probe/gradient/norm" in row] for run in (one, two)]
        assert len(probed[0]) == 2
        for first, second in zip(*probed, strict=True):
            assert second == pytest.approx(first, rel=1e-6, abs=1e-6, nan_ok=True), "each measures half of the probe"


@pytest.mark.slow
def test_no_wrapper_outlives_the_group_and_waits_for_itself_forever(launched: tuple[Path, str]) -> None:
    assert launched[1].count("wrappers that outlive the group: 0") == 2


def _empty_micro_batches(folder: Path) -> int:
    """How many one-row micro-batches of a run have no supervised row."""
    recipe = config.load(Recipe, file=folder / "recipe.yaml")
    tokenizer = prepare_tokenizer(recipe, folder / "cache")
    text = prepare_text(recipe, tokenizer, folder / "cache").train
    entry = DiffusionConfig(method="masked_diffusion", vocabulary_size=259, mask_token_id=258)
    make = objective(recipe.objective, entry, seed=recipe.seed)
    empty = 0
    for step in range(STEPS):
        rows = rows_of_step(step, batch_size=8, num_rows=len(text), seed=recipe.seed)
        for row in range(8):
            empty += len(make(text.batch(rows, row, row + 1, step=step)).row_R) == 0
    return empty

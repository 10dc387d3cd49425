"""Recipes of downstream evaluation: precedence, the shipped ones, mistakes."""

from pathlib import Path

import pytest

from unmask.errors import SettingsError
from unmask.evaluation.recipes import read_recipe, task_run
from unmask.settings.decoding import SamplingParams

SHIPPED = Path(__file__).parents[2] / "recipes" / "evaluation"


def test_the_shipped_recipes_hold_the_settings_of_the_originals() -> None:
    base = {run.name: run for run in read_recipe(SHIPPED / "llada-base.yaml")}
    guided = {"gpqa_main_n_shot": 0.5, "truthfulqa_mc2": 2.0, "arc_challenge": 0.5, "hellaswag": 0.5, "piqa": 0.5}
    assert {name: run.answers.cfg_scale for name, run in base.items() if run.answers.cfg_scale} == guided
    shots = {"gpqa_main_n_shot": 5, "winogrande": 5, "mmlu": 5, "cmmlu": 5, "ceval-valid": 5}
    assert {name: run.task.num_fewshot for name, run in base.items() if run.task.num_fewshot} == shots
    assert {name for name, run in base.items() if run.answers.mc_num == 1} == {"mmlu", "cmmlu", "ceval-valid"}
    assert {run.answers.mc_num for run in base.values()} == {1, 128}
    written = {name for name, run in base.items() if run.sampling.get("max_new_tokens") == 1024}
    assert written == {"bbh", "gsm8k", "minerva_math", "humaneval", "mbpp"}
    for run in base.values():
        SamplingParams(**run.sampling)
    for run in read_recipe(SHIPPED / "llada-instruct.yaml"):
        assert run.task.apply_chat_template
        assert SamplingParams(**run.sampling).resolved({}, "canvas").decoding == "canvas"


def test_their_own_sampler_goes_with_every_task_of_the_base_recipe() -> None:
    runs = read_recipe(SHIPPED / "llada-base.yaml", overrides={"sampler": "llada_rounded"})
    assert {run.answers.sampler for run in runs} == {"llada_rounded"}


def test_the_task_overrules_the_defaults_and_the_command_line_both(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "defaults: {mc_num: 64, seed: 1, sampling: {max_new_tokens: 9, steps: 9}}\ntasks:\n"
        "  - {task: a, mc_num: 32, limit: 5, sampling: {temperature: 0.5}}\n  - {task: b, published: 12}\n"
    )
    first, second = read_recipe(file, overrides={"limit": "7", "sampling": {"max_new_tokens": "3", "steps": "3"}})
    assert (first.answers.mc_num, first.task.limit, second.answers.mc_num, second.task.limit) == (32, 7, 64, 7)
    assert first.sampling == {"seed": 1, "max_new_tokens": 3, "denoising_steps": 3, "temperature": 0.5}
    assert (second.published, second.sampling["denoising_steps"]) == (12.0, 3)
    assert [run.name for run in read_recipe(file, only=["b"])] == ["b"]


def test_the_original_harness_names_are_understood() -> None:
    names = {"cfg": 0.5, "is_check_greedy": False, "mc_num": 16, "sampling": {"gen_length": 64, "steps": 32}}
    run = task_run("a", names, source="here")
    assert (run.answers.cfg_scale, run.task.check_greedy, run.answers.mc_num) == (0.5, False, 16)
    assert run.sampling == {"cfg_scale": 0.5, "max_new_tokens": 64, "denoising_steps": 32}


def test_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"

    def recipe(text: str, **options: object) -> object:
        file.write_text(text)
        return read_recipe(file, **options)  # type: ignore[arg-type]

    cases = [
        (lambda: read_recipe(tmp_path / "gone.yaml"), "no recipe file"),
        (lambda: recipe("tasks: hellaswag"), "a list of entries such as"),
        (lambda: recipe("task: []"), "Unknown key `task` in .* Did you mean `tasks`"),
        (
            lambda: recipe("tasks: [{task: a, mcnum: 3}]"),
            "Unknown key `mcnum` of the task a in .* Did you mean `mc_num`",
        ),
        (lambda: recipe("tasks: [{task: a, mc_num: many}]"), "`mc_num` must be an integer, got 'many'"),
        (lambda: recipe("tasks: [{task: a, sampling: {temprature: 1}}]"), "Unknown key `temprature`"),
        (lambda: recipe("tasks: [{task: a, published: high}]"), "must be a number in percent"),
        (lambda: recipe("tasks: [{task: piqa}]", only=["pika"]), "has no task `pika`. Did you mean `piqa`"),
        (lambda: task_run("a", {"sampling": {"n": 2}}, source="here"), "`n` is not set in an evaluation"),
        (lambda: task_run("a", {"limit": 0}, source="here"), "limit must be at least 1"),
    ]
    for call, message in cases:
        with pytest.raises(SettingsError, match=message):
            call()

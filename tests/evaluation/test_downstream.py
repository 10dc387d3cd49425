"""Tasks end to end on real data: prompts and answers of the public definitions, every kind of task, every mistake."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluation import offline
from unmask.cli.main import main
from unmask.errors import DataError, MissingExtraError, SettingsError
from unmask.evaluation.recipes import TaskRun, task_run

pytest.importorskip("lm_eval")
import datasets
import lm_eval.tasks
from lm_eval import utils
from lm_eval.tasks._yaml_loader import load_yaml

from unmask.evaluation import downstream

PUBLIC = Path(lm_eval.tasks.__file__).parent


@pytest.fixture(scope="module")
def folders(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    mmlu = tmp_path_factory.mktemp("mmlu")
    offline.write_mmlu(mmlu, ["abstract_algebra", "anatomy"])
    return [str(offline.TASKS), str(mmlu)]


@pytest.fixture(scope="module")
def tasks(folders: list[str]) -> dict[str, Any]:
    names = [*offline.SIZES, "offline_mmlu"]
    prepared = downstream.prepare([TaskRun(name) for name in names], include_path=folders)
    return {name: task for one in prepared for name, task in one.loaded["tasks"].items()}


@pytest.fixture(scope="module")
def model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "diffusion"
    return str(offline.write_diffusion_model(shared_data / "checkpoints" / "stories260k", folder))


def asked(task: Any, shots: int = 0, limit: int = 1) -> list[Any]:
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=limit)
    return task.instances


# --- the definitions --------------------------------------------------------------------------------------------


def test_every_question_of_the_public_tasks_is_there(tasks: dict[str, Any], shared_data: Path) -> None:
    assert {name: len(tasks[name].eval_docs) for name in offline.SIZES} == offline.SIZES
    assert [len(tasks[f"offline_mmlu_{name}"].eval_docs) for name in ("abstract_algebra", "anatomy")] == [100, 135]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("offline_piqa", "piqa/piqa.yaml"),
        ("offline_lambada", "lambada/lambada_openai.yaml"),
        ("offline_gsm8k", "gsm8k/gsm8k.yaml"),
        ("offline_mmlu_anatomy", "mmlu/default/mmlu_anatomy.yaml"),
    ],
)
def test_templates_are_those_of_the_harness(tasks: dict[str, Any], ours: str, theirs: str) -> None:
    public, own = load_yaml(PUBLIC / theirs), load_yaml(_file_of(ours, tasks))
    keys = ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "metric_list", "filter_list", "description")
    for key in (*keys, "generation_kwargs", "num_fewshot", "fewshot_config"):
        assert own.get(key) == public.get(key), key


def _file_of(name: str, tasks: dict[str, Any]) -> Path:
    return Path(tasks[name].config.metadata["config_source"])


def test_arc_prompts_are_those_of_the_harness(tasks: dict[str, Any]) -> None:
    public = load_yaml(PUBLIC / "arc" / "arc_easy.yaml")
    for name in ("offline_arc_easy", "offline_arc_challenge"):
        task = tasks[name]
        for row in list(task.eval_docs)[:50]:
            labels = ["A", "B", "C", "D", "E"][: len(row["choices"])]
            raw = {
                "question": row["query"].removeprefix("Question: "),
                "choices": {"text": row["choices"], "label": labels},
                "answerKey": labels[row["gold"]],
            }
            assert task.doc_to_text(row) == utils.apply_template(public["doc_to_text"], raw)
            assert str(task.doc_to_target(row)) == utils.apply_template(public["doc_to_target"], raw)
            assert task.doc_to_choice(row) == raw["choices"]["text"]


def test_winogrande_prompts_are_those_of_the_harness(tasks: dict[str, Any]) -> None:
    public, task = load_yaml(PUBLIC / "winogrande" / "default.yaml"), tasks["offline_winogrande"]
    for row in list(task.eval_docs)[:50]:
        first, second = row["context_options"]
        shared = next(i for i, (a, b) in enumerate(zip(first + "\0", second + "\1", strict=False)) if a != b)
        begun = first.rindex(" ", 0, shared + 1) + 1 if " " in first[: shared + 1] else 0
        raw = {
            "sentence": f"{first[:begun]}_ {row['continuation']}",
            "option1": first[begun:],
            "option2": second[begun:],
            "answer": str(row["gold"] + 1),
        }
        assert task.doc_to_text(row) == public["doc_to_text"](raw)
        assert task.doc_to_choice(row) == public["doc_to_choice"](raw)
        assert task.doc_to_target(row) == public["doc_to_target"](raw)


def test_hellaswag_prompts_are_those_of_the_harness(tasks: dict[str, Any]) -> None:
    """The first row of the public validation set, through the harness's own code."""
    raw = {
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "endings": [
            "is using wrap to wrap a pair of skis.",
            "is ripping level tiles off.",
            "is holding a rubik's cube.",
            "starts pulling up roofing on a roof.",
        ],
        "label": "3",
    }
    public = load_yaml(PUBLIC / "hellaswag" / "hellaswag.yaml")["process_docs"](datasets.Dataset.from_list([raw]))[0]
    task = tasks["offline_hellaswag"]
    row = task.eval_docs[0]
    assert (task.doc_to_text(row), task.doc_to_choice(row)) == (public["query"], public["choices"])
    assert task.doc_to_target(row) == public["gold"]


def test_prompts_by_eye(tasks: dict[str, Any]) -> None:
    first = asked(tasks["offline_mmlu_abstract_algebra"], shots=5)
    context, continuation = first[0].args
    assert context.startswith(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nFind all c in Z_3 such "
        "that Z_3[x]/(x^2 + c) is a field.\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: B\n\n"
    )
    assert context.endswith("sqrt(18)) over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:")
    assert [one.args[1] for one in first] == [" A", " B", " C", " D"]
    assert context.count("Answer:") == 6
    assert continuation == " A"
    (lambada,) = asked(tasks["offline_lambada"])
    assert lambada.args[0].endswith("I don't care about")
    assert lambada.args[1] == " signs"
    one, two = asked(tasks["offline_winogrande"])
    assert (one.args[0][-5:], two.args[0][-5:]) == ("Sarah", "Maria")
    assert one.args[1] == two.args[1] == " always got the easier cases."
    (math,) = asked(tasks["offline_gsm8k"], shots=5)
    assert math.args[0].count("Question:") == 6
    assert math.args[1]["until"] == ["Question:", "</s>", "<|im_end|>"]


# --- end to end -------------------------------------------------------------------------------------------------


def evaluate(*words: object) -> None:
    assert main(["evaluate", *map(str, words)]) == 0


def included(folders: list[str]) -> list[str]:
    return [word for folder in folders for word in ("--include-path", folder)]


def test_every_kind_of_task_runs_on_a_real_checkpoint(
    model: str, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ",".join([*offline.SIZES, "offline_mmlu", "offline_wikipedia"])
    words = ["--tasks", names, *included(folders), "--limit", 2, "--mc-num", 3, "--max-new-tokens", 4]
    evaluate(model, *words, "--json", "--output", tmp_path / "scores.json", "--samples", tmp_path / "samples.jsonl")
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record == json.loads((tmp_path / "scores.json").read_text())
    found = {(row["task"], row["metric"]): row for one in record["tasks"] for row in one["results"]}
    assert {metric for name, metric in found if name == "offline_hellaswag"} == {"acc", "acc_norm"}
    assert {metric for name, metric in found if name == "offline_wikipedia"} == {"byte_perplexity", "bits_per_byte"}
    assert found["offline_mmlu", "acc"]["questions"] == 4
    assert found["offline_mmlu", "acc"]["is_group"] is True
    assert found["offline_mmlu_anatomy", "acc"]["log_likelihood_stderr"] == 0  # letters have three masks: exact
    assert found["offline_hellaswag", "acc"]["log_likelihood_stderr"] > 0
    assert found["offline_gsm8k", "exact_match"]["log_likelihood_stderr"] is None
    assert found["offline_gsm8k", "exact_match"]["num_fewshot"] == 5
    assert all(row["questions"] == (4 if row["is_group"] else 2) for row in found.values())
    assert "offline_gsm8k: 2 contexts were too long and lost" in captured.err
    assert record["tasks"][0]["settings"]["mc_num"] == 3
    assert "lm_eval" in record["environment"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * 10 + 2  # gsm8k has two filters
    assert "\x1b" not in captured.err


def test_tables_show_groups_seeds_and_published_figures(
    model: str, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "defaults: {mc_num: 2, limit: 3, max_length: 64}\n"
        "tasks:\n  - {task: offline_mmlu, num_fewshot: 1, published: 65.9}\n"
        "  - {task: offline_piqa, published: 74.4, limit: 2}\n  - {task: offline_lambada}\n"
    )
    words = [model, "--recipe", recipe, *included(folders), "--tasks", "offline_mmlu,offline_piqa"]
    evaluate(*words, "--limit", 4, "--seeds", 3)
    lines = capsys.readouterr().out.splitlines()
    header = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    rows = [dict(zip(header, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)) for line in lines[2:5]]
    assert [(row["task"], row["questions"], row["shots"]) for row in rows] == [
        ("offline_mmlu", "8", "1"),
        ("offline_piqa", "4", "0"),
        ("offline_piqa", "4", "0"),
    ]
    assert [row["published"] for row in rows] == ["65.9 %", "74.4 %", "-"]
    assert (rows[0]["flips"], rows[0]["+- (seeds)"]) == ("0.0000", "0.0000")
    assert float(rows[1]["flips"]) > 0
    assert "flips the share of questions" in lines[-1]


def test_results_are_the_same_under_any_batch_size_and_task_order(
    model: str, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = []
    for names, batch_size in (("offline_piqa,offline_lambada", 1), ("offline_lambada,offline_piqa", 40)):
        words = ["--tasks", names, *included(folders), "--limit", 3, "--mc-num", 4, "--likelihood", "elbo", "--json"]
        evaluate(model, *words, "--batch-size", batch_size)
        record = json.loads(capsys.readouterr().out)
        rows = {(row["task"], row["metric"]): row["value"] for one in record["tasks"] for row in one["results"]}
        values.append(rows)
    assert values[0] == {key: pytest.approx(value, rel=1e-4) for key, value in values[1].items()}


@pytest.mark.parametrize(
    "options",
    [["--likelihood", "chain_rule"], ["--cfg", "0.5", "--is-check-greedy", "false"], ["--sampler", "llada_rounded"]],
)
def test_estimators_are_options(
    model: str, folders: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(model, "--tasks", "offline_arc_easy", *included(folders), "--limit", 1, "--mc-num", 8, *options, "--json")
    (one,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (one["results"][0]["log_likelihood_stderr"] == 0) == ("chain_rule" in options)


def test_an_autoregressive_model_is_exact(
    shared_data: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shared_data / "checkpoints" / "stories260k"
    evaluate(checkpoint, "--tasks", "offline_lambada", *included(folders), "--limit", 3)
    table = capsys.readouterr().out
    assert "| offline_lambada | 0 | 3 | none | acc |" in table
    assert "from the masks" not in table


def test_zero_shot_by_definition_is_kept_and_said(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed.yaml").write_text(
        f"include: {offline.TASKS / 'offline_piqa.yaml'}\ntask: fixed\nnum_fewshot: 0\n"
    )
    run = task_run("fixed", {"num_fewshot": 5, "limit": 1}, source="here")
    (prepared,) = downstream.prepare([run], include_path=[str(tmp_path)])
    assert downstream._apply_shots(run, prepared.loaded) == [
        "fixed: zero-shot by definition, num_fewshot 5 is not applied"
    ]


def test_the_commands_of_the_docs_that_need_no_network_run(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    text = (root / "docs" / "evaluation.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines = [line for line in lines if "--include-path tests/evaluation/tasks" in line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(re.sub(r"--limit \d+", "--limit 1", line.replace("runs/demo", model)))
        assert main(words[1:]) == 0


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index without the harness's own 14,000 tasks, which takes seconds to read."""
    manager = downstream.TaskManager
    monkeypatch.setattr(
        downstream,
        "TaskManager",
        lambda include_path=None, **_: manager(include_path=include_path, include_defaults=False),
    )


def task_file(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: x\ndoc_to_target: y\n{text}\n"
    )


def test_unknown_tasks_missing_data_and_forbidden_code_are_named(own_only: None, tmp_path: Path) -> None:
    task_file(tmp_path, "weather", "dataset_path: nobody/weather")
    task_file(tmp_path, "weather_code", "dataset_path: nobody/weather\nunsafe_code: true")
    task_file(tmp_path, "weather_math", "dataset_path: nobody/weather\nprocess_docs: !function gone.process")
    folder = [str(tmp_path)]
    cases = [
        ("waether", SettingsError, "There is no task `waether` in lm-evaluation-harness. Did you mean `weather`"),
        ("weather", DataError, "The data of the task weather cannot be loaded: Couldn't reach 'nobody/weather'"),
        ("weather_code", SettingsError, "runs code that the model writes, on this machine. Allow it with --allow-code"),
        ("weather_math", MissingExtraError, "The task weather_math needs a package that is not installed"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message):
            downstream.prepare([TaskRun(name)], include_path=folder)
    with pytest.raises(DataError, match="weather_code cannot be loaded"):
        downstream.prepare([TaskRun("weather_code")], include_path=folder, allow_code=True)
    with pytest.raises(SettingsError, match="There is no folder gone with task definitions"):
        downstream.prepare([TaskRun("weather")], include_path=["gone"])


def test_the_tasks_of_the_shipped_recipes_exist() -> None:
    """By the text of the harness's definitions, which is faster than its index."""
    found: set[str] = set()
    for file in PUBLIC.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        found.update(re.findall(r"""^["']?(?:task|group)["']?: *["']?([\w-]+)["']? *$""", text, flags=re.MULTILINE))
    for file in (Path(__file__).parents[2] / "recipes" / "evaluation").glob("*.yaml"):
        assert {entry["task"] for entry in yaml.safe_load(file.read_text())["tasks"]} <= found

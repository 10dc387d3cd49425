"""`unmask pipeline` as its users run it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training import recipes
from tests.training.test_pipeline import tree
from unmask.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    recipes.write_text(path)
    (path / "p.yaml").write_text(yaml.safe_dump(tree(path, pretraining={"steps": 2}, steps=2)))
    return path


def test_a_dry_run_says_what_would_run_from_what_and_loads_no_framework(folder: Path) -> None:
    code = (
        "import sys\nfrom unmask.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    words = ["pipeline", str(folder / "p.yaml"), "--dry-run", "sft.training.steps=7", "--prompt", "a", "--prompt", "b"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    run = folder / "p"
    assert done.stdout.splitlines() == [
        f"pretraining: starts in {run / 'pretraining'}, 2 steps from random weights",
        f"sft: starts in {run / 'sft'}, 7 steps from {run / 'pretraining' / 'final'}",
        f"inference: asks {run / 'sft' / 'final'}, number of prompts: 2",
    ]
    assert not run.exists()


def test_stages_one_by_one_and_then_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*words: str) -> tuple[str, str]:
        assert main(["pipeline", str(folder / "p.yaml"), *words]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    run = folder / "p"
    assert ran("--stage", "pretraining")[0] == f"{run / 'pretraining'}\n"
    out, err = ran("--stage", "inference", "--prompt", "a dog")
    assert out.startswith("a dog") and f"inference: asks {run / 'pretraining' / 'final'}" in err
    assert ran("--stage", "sft")[0] == f"{run / 'sft'}\n"
    out, err = ran()
    assert out.startswith("the cat") and err.count(": finished, ") == 2
    (record,) = [json.loads(line) for line in (run / "inference.jsonl").read_text().splitlines()]
    assert record["model"] == str(run / "sft" / "final")
    assert out == f"the cat{record['text']}\n"
    assert ran("--dry-run")[0].count(": finished, ") == 2


def test_prompts_of_a_model_with_a_chat_template_are_messages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pipeline", str(folder / "p.yaml"), "name=chats", "--prompt", "hi"]
    assert main([*words, "--stage", "pretraining"]) == 0
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    (folder / "chats" / "pretraining" / "final" / "chat_template.jinja").write_text(template)
    capsys.readouterr()
    asked = {}
    for override in ("inference.chat=null", "inference.chat=true", "inference.chat=false"):
        assert main([*words, "--stage", "inference", override]) == 0
        asked[override] = capsys.readouterr().out
    assert asked["inference.chat=null"].startswith("> hi\n")
    assert asked["inference.chat=null"] == asked["inference.chat=true"]
    assert asked["inference.chat=false"].startswith("hi")


def test_mistakes_are_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(folder / "p.yaml")
    cases = [
        ([file, "training.steps=3"], "Did you mean `pretraining.training` or `sft.training`?"),
        ([file, "--stage", "finetuning"], "invalid choice: 'finetuning'"),
        ([file, "--stage", "inference", "inference.prompts=[]"], "The inference stage has nothing to ask"),
        ([file, "name=new", "--stage", "inference"], "no model to ask"),
        ([file, "name=new", "--restart", "inference"], "invalid choice: 'inference'"),
        ([str(folder / "gone.yaml")], "There is no recipe file"),
    ]
    for words, message in cases:
        assert main(["pipeline", *words]) == 2, words
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1, words


def test_the_resolved_recipe_and_every_key_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", str(folder / "p.yaml"), "sft.training.steps=9", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["sft"]["training"]["steps"] == 9
    assert main(["pipeline", "--help-keys"]) == 0
    shown = capsys.readouterr().out
    assert "pretraining.training.learning_rate=0.001" in shown
    assert "sft.model.from_pretrained=...  [text or null]\n      Folder, run or hub id" in shown


def test_the_stories_pipeline_runs_on_real_data_and_its_result_chats(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "stories-pipeline.yaml"
    small = [
        f"{stage}.{key}" for stage in ("pretraining", "sft") for key in ("training.steps=2", "evaluation.max_rows=4")
    ]
    words = [
        *("pipeline", str(recipe), f"output_dir={tmp_path}", "inference.sampling.max_new_tokens=4", *small),
        f"pretraining.model.from_pretrained={shared_data / 'checkpoints' / 'stories260k'}",
        f"pretraining.data.train={shared_data / 'text' / 'tinystories_sample.jsonl.gz'}",
        f"sft.data.train={shared_data / 'instruct' / 'nq_open_dev.jsonl.gz'}",
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("> who is the king\n")
    assert "conversations of" in captured.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("who wrote it\nand when\n"))
    assert main(["chat", str(tmp_path / "stories" / "sft"), "--max-new-tokens", "4", "--ignore-eos"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2

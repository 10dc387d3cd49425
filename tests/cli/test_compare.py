"""`unmask compare` as its users run it: on runs of two kinds and two tokenizers, damaged ones, and real checkpoints."""

import base64
import csv
import gzip
import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.evaluation import offline
from tests.training import recipes
from unmask import DiffusionLM
from unmask.cli.main import main
from unmask.data.sources import held_out

SHORT = ["--masks-per-sequence", "2", "--texts", "2", "--new-tokens", "4", "--chain-rule-bytes", "60"]
SHORT += ["--prompt-words", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one text: masked diffusion and autoregression by bytes, autoregression by pairs of them."""
    path = tmp_path_factory.mktemp("compare")
    recipes.write_text(path, documents=200)
    tree = recipes.tree(path)
    (path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    for words in (
        ["name=dlm"],
        ["name=ar", "objective.method=autoregressive"],
        ["name=pairs", "objective.method=autoregressive", "data.tokenizer=bpe", "data.vocabulary_size=300"],
        ["name=other", "data.validation_fraction=0.1"],
    ):
        assert main(["train", str(path / "recipe.yaml"), *words]) == 0
    return path


def unseen(folder: Path) -> list[str]:
    texts = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().splitlines()]
    return [text for text in texts if held_out(text, 0.2)]


def compared(folder: Path, *words: object) -> dict[str, Any]:
    """The record that a comparison saves."""
    output = ["--save", "--output-dir", str(folder / "saved"), "--output-name", "found"]
    assert main(["compare", *SHORT, *map(str, words), *output]) == 0
    return json.loads((folder / "saved" / "found.json").read_text())


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("unmask")]
    return line


def test_runs_of_two_kinds_and_tokenizers_on_the_text_that_both_hold_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = compared(folder, folder / "ar", folder / "pairs", folder / "dlm")
    texts = unseen(folder)
    size = sum(map(len, texts))
    assert (record["documents"], record["bytes"]) == (len(texts), size)
    models = {one["name"]: one for one in record["models"]}
    assert [one["kind"] for one in models.values()] == ["exact", "exact", "upper bound (ELBO)"]
    assert models["pairs"]["tokens"] < models["ar"]["tokens"] == size
    # The pieces are shorter than documents: they are scored by themselves, and added up.
    assert record["text"]["pieces"] > len(texts)
    assert [len(record["pairs"]), record["unit"], record["chain_rule_bytes"] <= 60] == [3, "document", True]
    exact = {name: one["chain_rule"] for name, one in models.items()}
    assert exact["ar"]["bits_per_byte"] == pytest.approx(exact["ar"]["own_bits_per_byte"])
    assert exact["dlm"]["bits_per_byte"] != exact["dlm"]["own_bits_per_byte"]
    shown = capsys.readouterr().out
    assert "| dlm | masked_diffusion |" in shown and "at most" in shown
    assert "one thread" in shown and "No --judge was given" in shown
    assert set(record["generation"]["quality"]) == {*models, "the text itself"}


def test_the_exact_figure_is_that_of_the_model_itself(folder: Path) -> None:
    record = compared(folder, folder / "ar", folder / "dlm", "--context-length", "64")
    lm = DiffusionLM.from_pretrained(folder / "ar", device="cpu")
    short = [text for text in unseen(folder) if len(text) < 63]
    texts = [*short, *(text for text in unseen(folder) if len(text) >= 63)]
    total = 0.0
    for text in texts:
        start = 0
        while start < len(text):
            stop = len(text) if len(text) - start <= 63 else text.rfind(" ", 0, start + 64)
            total -= lm.score(text[start:stop])[0].log_likelihood
            start = stop
    size = sum(map(len, texts))
    assert record["models"][0]["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_results_do_not_depend_on_the_order_of_the_models(folder: Path) -> None:
    one, other = (
        compared(folder, *pair) for pair in ((folder / "ar", folder / "dlm"), (folder / "dlm", folder / "ar"))
    )
    assert one["pairs"][0]["difference"] == pytest.approx(-other["pairs"][0]["difference"], rel=1e-9)
    assert one["pairs"][0]["winner"] == other["pairs"][0]["winner"]
    assert one["generation"]["quality"]["ar"] == other["generation"]["quality"]["ar"]


def test_the_files_hold_the_same_numbers_and_the_page_needs_no_other(folder: Path) -> None:
    record = compared(folder, folder / "ar", folder / "dlm", "--judge", folder / "pairs")
    lines = list(csv.DictReader(io.StringIO((folder / "saved" / "found.csv").read_text())))
    values = {(one["of"], one["measure"]): one for one in lines}
    pair = record["pairs"][0]
    found = values["ar - dlm", "bits_per_byte"]
    assert float(found["value"]) == pytest.approx(pair["difference"])
    assert (float(found["low"]), float(found["high"])) == pytest.approx((pair["low"], pair["high"]))
    quality = record["generation"]["quality"]["dlm"]
    assert float(values["dlm", "texts, judge_perplexity"]["value"]) == pytest.approx(quality["judge_perplexity"])
    page = (folder / "saved" / "found.html").read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == 5
    assert all(base64.b64decode(one).startswith(b"\x89PNG") for one in images)
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    for model in record["models"]:
        assert f"{model['bits_per_byte']:.4f}" in page
    assert "<script" not in page


def test_different_held_out_texts_are_refused_and_compared_on_a_text_that_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failed(capsys, folder / "ar", folder / "other")
    assert "The runs hold different texts out" in message and "--data FILE" in message
    record = compared(folder, folder / "ar", folder / "other", "--data", folder / "text.jsonl")
    # Both have learned from most of that text, and the record says so.
    assert [" was trained on " in note for note in record["notes"]] == [True, True]
    seen = re.search(r"trained on (\d+) of the (\d+) documents", record["notes"][0])
    rows = set((folder / "text.jsonl").read_text().splitlines())
    learned = {row for row in rows if not held_out(json.loads(row)["text"], 0.2)}
    assert seen is not None and (int(seen[1]), int(seen[2])) == (len(learned), len(rows))


def test_damaged_runs_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hollow, broken = folder / "hollow", folder / "broken"
    hollow.mkdir()
    shutil.copy(folder / "ar" / "config.yaml", hollow)
    assert "There is no model in" in failed(capsys, folder / "ar", hollow)
    shutil.copytree(folder / "ar", broken, symlinks=True)
    metrics = broken / "metrics.jsonl"
    whole = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*whole[:2], whole[2][:20], *whole[3:]]) + "\n")
    record = compared(folder, folder / "dlm", broken)
    assert record["models"][1]["training"] is None
    assert any("metrics.jsonl:3: not JSON" in note for note in record["notes"])
    assert record["models"][0]["training"]["curve"]
    # The likelihood needs no metrics.
    assert record["models"][1]["bits_per_byte"] > 0
    metrics.write_text(json.dumps({"step": 1, "tokens": 8, "train/loss": 2.0}) + "\n")
    assert any("hold no held-out evaluation" in note for note in compared(folder, folder / "dlm", broken)["notes"])
    weights = next((broken / "final").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    assert "cannot be loaded" in failed(capsys, folder / "ar", broken, *SHORT)


def test_mistakes_are_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ar, dlm = folder / "ar", folder / "dlm"
    cases = [
        ([ar], "needs two runs or models"),
        ([ar, folder / "ar" / "final"], "Each model is compared once"),
        ([ar, folder / "gone"], "There is no folder"),
        ([ar / "final", dlm / "final"], "is a run folder with a held-out text"),
        ([ar, dlm, "--data", "gone.txt"], "there is no gone.txt"),
        ([ar, dlm, "--judge", ar], "would judge itself"),
        ([ar, dlm, "--limit", "3"], "--limit belongs to --tasks"),
        ([ar, dlm, "--max-batch", "3"], "Did you mean `--max-batches`"),
        ([ar, dlm, "--max-batches", "0"], "max_batches must be at least 1, got 0"),
        ([ar, dlm, "--confidence", "95"], "confidence must lie between 0.5 and 0.999, got 95"),
        ([ar, dlm, "--experiments-dir", folder], "neither is given"),
        ([ar, folder / "pairs", "--judge", dlm, *SHORT], "--judge must be autoregressive"),
    ]
    for words, message in cases:
        assert message in failed(capsys, *words), words


def test_the_original_s_options_mean_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dd", "dlm", "--ar", "ar", "--experiments-dir", str(folder), "--max-batches", "1", "--batch-size", "3"]
    output = ["--save-results", "--output-dir", str(folder / "theirs"), "--output-name", "x"]
    assert main(["compare", *words, *SHORT, *output, "--texts", "0", "--chain-rule-bytes", "0"]) == 0
    record = json.loads((folder / "theirs" / "x.json").read_text())
    assert [one["name"] for one in record["models"]] == ["dlm", "ar"]
    assert record["text"]["pieces"] == 3
    assert record["generation"] is None and record["chain_rule_bytes"] == 0
    assert record["pairs"][0]["winner"] is None  # too few
    assert "none shown" in capsys.readouterr().out


def test_an_original_s_run_is_looked_for_where_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model lies in these folders, and the message says which of them was meant."""
    monkeypatch.chdir(tmp_path)
    for place in ("experiments/a", "runs/a", "runs/b", "b"):
        (tmp_path / place).mkdir(parents=True)
    words = ["--ar", "x", "--dd"]
    assert "There is no model in experiments/a" in failed(capsys, "--diffusion", "a", "--autoregressive", "b")
    assert "There is no model in b" in failed(capsys, "--dd", "b", "--ar", "a")
    assert "There is no model in runs/a" in failed(capsys, "--experiments-dir", "runs", "--dd", "a", "--ar", "b")
    assert "There is no folder gone" in failed(capsys, *words, "gone")


def test_threads_are_put_back(folder: Path) -> None:
    before = torch.get_num_threads()
    words = ["compare", str(folder / "ar"), str(folder / "pairs"), *SHORT, "--max-batches", "1", "--threads"]
    assert main([*words, str(before + 1)]) == 0
    assert torch.get_num_threads() == before


def test_a_checkpoint_against_its_diffusion_conversion(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared_data / "checkpoints" / "stories260k"
    converted = offline.write_diffusion_model(source, tmp_path / "converted")
    with gzip.open(shared_data / "text" / "tinystories_sample.jsonl.gz", "rt", encoding="utf-8") as lines:
        (tmp_path / "stories.jsonl").write_text("".join(itertools.islice(lines, 14)))
    words = [source, converted, "--data", tmp_path / "stories.jsonl", "--context-length", "128"]
    words += ["--judge", shared_data / "checkpoints" / "tinystories-656k"]
    words += ["--texts", "8", "--new-tokens", "16", "--include-path", offline.TASKS, "--tasks", "offline_piqa"]
    record = compared(tmp_path, *words, "--limit", "4", "--mc-num", "2")
    exact, bound = record["models"]
    assert 0.5 < exact["bits_per_byte"] < 1.2 < 2 < bound["bits_per_byte"]
    pair = record["pairs"][0]
    # An untrained conversion is far worse, and still its bound alone does not show that.
    assert pair["high"] < -1 and pair["winner"] is None and pair["follows"].startswith("undecided: stories260k")
    quality = record["generation"]["quality"]
    assert quality["the text itself"]["judge_perplexity"] < 20
    assert quality["stories260k"]["judge_perplexity"] < quality["converted"]["judge_perplexity"]
    assert [one["tasks"][0]["results"][0]["questions"] for one in record["models"]] == [4, 4]
    (task,) = {one["task"] for one in record["task_pairs"]}
    assert task == "offline_piqa" and all(one["questions"] == 4 and one["low"] is None for one in record["task_pairs"])
    assert sum("is no run folder" in note for note in record["notes"]) == 2
    assert "| stories260k | offline_piqa |" in capsys.readouterr().out

"""The data-constrained study at toy size: its parts of the text, runs that stop and go on, its figures and pictures."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
import math
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.recipes import WORDS
from unmask.lm import DiffusionLM
from unmask.runs import RunFolder

FOLDER = Path(__file__).parents[1] / "benchmarks"
ARMS = ["autoregressive", "masked-diffusion"]
TOY = [
    *("model.hidden_size=16", "model.intermediate_size=24", "model.num_hidden_layers=1"),
    *("model.num_attention_heads=2", "model.num_key_value_heads=2"),
    *("data.context_length=32", "data.vocabulary_size=300"),
    *("training.batch_size=4", "training.precision=fp32", "sampling.max_new_tokens=2"),
]


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(FOLDER))
    names = ("data_constrained", "data_constrained_runs", "data_constrained_score", "data_constrained_text")
    yield {name.removeprefix("data_constrained").strip("_") or "main": importlib.import_module(name) for name in names}
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def article(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 400 paragraphs, no two alike, under headings."""
    file, words = tmp_path_factory.mktemp("text") / "wiki.txt", WORDS.split()
    paragraphs = [
        " ".join(words[(3 * number + number // 7 * place + place * place) % len(words)] for place in range(12))
        for number in range(400)
    ]
    parts = [f" = Part {number} = \n \n {text}" for number, text in enumerate(paragraphs)]
    file.write_text(" \n \n ".join(parts), encoding="utf-8")
    return file


def test_the_three_parts_share_nothing_and_are_all_the_text(modules: Any, article: Path, tmp_path: Path) -> None:
    text = modules["text"]
    documents = text.file_documents([str(article)], least=200)
    assert all(len(one) >= 200 for one in documents[:-1])
    assert "".join("".join(documents).split()) == "".join(article.read_text().split())
    facts = text.written(documents, tmp_path, select=1500, report=3000)
    parts = {name: text.read(tmp_path / f"{name}.jsonl") for name in text.PARTS}
    assert [*parts["train"], *parts["select"], *parts["report"]] == documents
    for name, size in (("select", 1500), ("report", 3000)):
        assert size <= facts[f"{name}_bytes"] < size + max(map(len, documents))
    before = (tmp_path / "train.jsonl").stat().st_mtime_ns
    assert text.written(documents, tmp_path, select=1500, report=3000) == facts
    assert (tmp_path / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="holds another text"):
        text.written(documents[1:], tmp_path, select=1500, report=3000)
    with pytest.raises(SystemExit, match="Give more text"):
        text.written(documents, tmp_path / "new", select=1500, report=10**6)


def test_paragraphs_of_the_documentation_are_plain_words_in_an_order_of_their_own(
    modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        f"Return the {word}-th item (of {number}), or None.\n   It's not {word}!"
        for number, word in enumerate("abcdef")
    ]
    documents = [
        (f"module/{number}", f"heading{number}\n\n{5 * row}\n  \n{row}\n\n{50 * row}")
        for number, row in enumerate(rows)
    ]
    monkeypatch.setattr(modules["text"].python_docs, "documents", lambda: iter([*documents, documents[0]]))
    found = modules["text"].python_paragraphs()
    expected = ["returnthe" + word + "thitemoforno neitsnot".replace(" ", "") + word for word in "abcdef"]
    assert sorted("".join(one.split()) for one in found) == sorted(5 * one for one in expected)
    assert set("".join(found)) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert all(150 <= len(one) <= 1000 and one == " ".join(one.split()) for one in found)
    assert found != sorted(found)


def test_the_plan_has_every_run_once_and_the_longest_first(modules: Any) -> None:
    cases = modules["runs"].planned(
        ["tidar", "autoregressive"], [3, 9], 2, single=["tidar"], further={"tidar": (20,), "block-diffusion": (7,)}
    )
    expected = {("autoregressive", *two) for two in itertools.product((3, 9), (0, 1))} | {
        *(("tidar", epochs, 0) for epochs in (3, 9, 20)),
    }
    assert {(case.arm, case.epochs, case.seed) for case in cases} == expected
    assert len(cases) == len(expected)
    assert [case.epochs for case in cases] == sorted((case.epochs for case in cases), reverse=True)


@pytest.fixture(scope="module")
def trained(modules: Any, article: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any], list[str]]:
    """A study of two arms and budgets, all runs but the last one finished; its cases and its command."""
    runs, text, main = modules["runs"], modules["text"], modules["main"]
    folder = tmp_path_factory.mktemp("study")
    text.written(
        text.file_documents([str(article)], least=main.SIZES["gpu"].document), folder / "text", select=1500, report=3000
    )
    study = runs.Study(folder, main.SIZES["gpu"].overlay, tuple(TOY), 600)
    cases = runs.planned(ARMS, [1, 3], 1, further={"masked-diffusion": (2,)})
    for case in cases[:-1]:
        assert runs._train(study, case, None)
    command = ["--size", "gpu", "--output", str(folder), "--text", str(article), "--arms", *ARMS]
    command += ["--seeds", "1", "--unique", "600", "--select", "1500", "--report", "3000"]
    return study, cases, [*command, "--set", *TOY]


def called_with(main: Any, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the script be called with these words, in this process, on two budgets and one further."""
    size = dataclasses.replace(main.SIZES["gpu"], budgets=(1, 3), further={"masked-diffusion": (2,)})
    monkeypatch.setitem(main.SIZES, "gpu", size)
    monkeypatch.setattr(main.measure, "one_thread", lambda: None)  # PyTorch takes it once in a process
    monkeypatch.setattr(sys, "argv", ["data_constrained.py", *command])


def test_a_deadline_stops_a_run_that_goes_on_where_it_was(modules: Any, trained: Any, monkeypatch: Any) -> None:
    runs, (study, cases, _) = modules["runs"], trained
    long = runs.Case("autoregressive", 3000, 0)
    before = signal.signal(signal.SIGTERM, runs._not_training)
    try:
        monkeypatch.setattr(runs, "_stopped", False)
        assert not runs._train(study, long, time.time() + 2.0)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        steps = study.run(long).saved_steps()
        assert steps and steps[-1] < 3000
        assert not study.finished(long)
        assert not runs._train(study, cases[-1], time.time() + 60), "a worker that was stopped begins nothing"
        assert study.run(cases[-1]).saved_steps() == []
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.setattr(runs, "_stopped", False)
    assert not runs._train(study, long, time.time() - 1), "no run begins after the deadline"


def test_every_arm_learns_from_the_same_tokens_under_its_own_schedule(modules: Any, trained: Any) -> None:
    study, cases, _ = trained
    facts = [modules["runs"].learned(study, case) for case in cases]
    assert {one["tokens"] for one in facts} == {600}
    assert len({one["bytes"] for one in facts}) == 1
    for case in cases[:-1]:
        lines = [json.loads(line) for line in study.run(case).metrics.read_text().splitlines()]
        rates = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
        assert rates[-1] < 0.3 * study.recipe(case).training.learning_rate
        assert len([line for line in lines if "eval/bits_per_byte" in line]) >= 4


def test_the_study_ends_and_reports_what_the_checkpoints_say(
    modules: Any, trained: Any, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    main, (study, cases, command) = modules["main"], trained
    called_with(main, command, monkeypatch)
    assert not study.finished(cases[-1])
    main.main()
    assert study.finished(cases[-1]), "the last run was trained by a process of its own"
    printed = capfd.readouterr().out
    assert "At their best:" in printed and "Last checkpoints at 3 epochs:" in printed
    assert "what TDLM's loss says of it" in printed
    record = json.loads((study.folder / "data-constrained.json").read_text())
    assert record["unfinished"] == 0
    with (study.folder / "data-constrained.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(cases)
    for name in ("data-constrained.png", "data-constrained-control.png"):
        assert (study.folder / name).read_bytes().startswith(b"\x89PNG")

    # One figure of each kind again, from the checkpoint and the text alone.
    text = modules["text"].read(study.folder / "text" / "report.jsonl")
    size = sum(len(one.encode()) for one in text)
    for line in record["results"]:
        case = modules["runs"].Case(line["arm"], line["epochs"], line["seed"])
        lm = DiffusionLM.from_pretrained(study.run(case).root / "latest", device="cpu")
        assert lm.tokenizer is not None
        if case.arm == "autoregressive":
            pieces = modules["score"].Scorer(study, 4, 8, False).pieces(lm, 32)
            assert "".join(one.text for one in pieces) == "".join(text)
            nats = -math.fsum(one.log_likelihood for one in lm.score([one.text for one in pieces]))
            assert line["final"] == pytest.approx(nats / size / math.log(2), rel=1e-4)
        else:
            assert line["final_stderr"] > 0
        assert ("final_tdlm" in line) == (case.arm == "masked-diffusion")
        if case.arm == "masked-diffusion":
            assert 0.5 < line["final_tdlm"] / line["final"] < 0.95
        run = RunFolder(study.run(case).root)
        course = [one["bits_per_byte"] for one in modules["runs"].trajectory(run)]
        assert line["select_best"] == pytest.approx(min(course), rel=1e-5)

    assert record["longest_shared"] == 3
    own = [line for line in record["results"] if line["arm"] == "masked-diffusion" and line["epochs"] != 2]
    picked = min(own, key=lambda one: one["select_best"])
    by_name = {one["name"]: one for one in record["best"]["models"]}
    assert by_name["masked diffusion"]["seeds"] == pytest.approx([picked["best"]], rel=1e-5)
    control = {one["name"]: one for one in record["control"]["best"]["models"]}
    assert control["TDLM's number"]["bits_per_byte"] == pytest.approx(picked["best_tdlm"], rel=1e-5)
    assert [*record["control"]] == ["1 epochs", "3 epochs", "best", "further"]
    last = next(one for one in own if one["epochs"] == 3)
    by_name = {one["name"]: one for one in record["longest"]["models"]}
    assert by_name["masked diffusion"]["seeds"] == pytest.approx([last["final"]], rel=1e-5)
    assert [len(record["budget"][name]) for name in ("best", "further")] == [2, 2]
    assert len(record["further"]["models"]) == 2
    names = [one["name"] for one in record["left_to_right"]["models"]]
    assert names == ["AR", "masked diffusion, left to right"]
    assert all(one["kind"] == "exact" and 0 < one["bits_per_byte"] < 20 for one in record["left_to_right"]["models"])


def made_score(generator: random.Random, *, bounded: bool, documents: int = 12) -> dict[str, Any]:
    """A score of made-up documents."""
    nats = [generator.uniform(50, 90) for _ in range(documents)]
    size = [40 + document for document in range(documents)]
    score = {"method": "masked_diffusion" if bounded else "autoregressive", "is_bound": bounded, "nats": nats}
    score |= {"stderr": [0.5 * bounded] * documents, "bytes": size, "tokens": sum(size) + documents}
    return score | {"weighted_B": [0.3 * value for value in nats], "masked_B": [0.5 * one for one in size]}


def test_arms_are_compared_by_the_mean_over_their_seeds(modules: Any) -> None:
    score, generator = modules["score"], random.Random(0)
    exact, bound = ([made_score(generator, bounded=kind) for _ in range(3)] for kind in (False, True))
    record = score.comparison({"AR": exact, "masked": bound})
    for model, scores in zip(record["models"], (exact, bound), strict=True):
        own = [sum(one["nats"]) / sum(one["bytes"]) / math.log(2) for one in scores]
        assert model["seeds"] == pytest.approx(own)
        assert model["bits_per_byte"] == pytest.approx(statistics.fmean(own))
        assert model["seeds_spread"] == pytest.approx(statistics.stdev(own))
    assert [model["kind"] for model in record["models"]] == ["exact", "upper bound (ELBO)"]
    found = score.control(exact, bound)
    printed = [sum(one["weighted_B"]) / sum(one["masked_B"]) for one in bound]
    by_name = {model["name"]: model for model in found["models"]}
    assert by_name["TDLM's number"]["nats_per_token"] == pytest.approx(statistics.fmean(printed))
    assert by_name["bound"]["nats_per_token"] == pytest.approx(
        statistics.fmean(sum(one["nats"]) / one["tokens"] for one in bound)
    )


def test_the_budget_is_chosen_on_the_selection_part_for_each_seed(modules: Any) -> None:
    figures = {(9, 0): 2.0, (9, 1): 3.0, (30, 0): 2.5, (30, 1): 2.9}
    lines = [
        {"arm": "tidar", "epochs": epochs, "seed": seed, "select_best": value, "best": -value}
        for (epochs, seed), value in figures.items()
    ]
    lines.append({"arm": "autoregressive", "epochs": 1, "seed": 0, "select_best": 0.1, "best": 0.1})
    case = modules["runs"].Case
    assert modules["score"].chosen(lines, "tidar") == [case("tidar", 9, 0), case("tidar", 30, 1)]


def test_runs_of_other_settings_are_not_taken_for_the_studys(modules: Any, trained: Any, monkeypatch: Any) -> None:
    study, cases, command = trained
    called_with(modules["main"], [*command, "training.learning_rate=0.5"], monkeypatch)
    with pytest.raises(SystemExit, match="is a run of other settings"):
        modules["main"].main()
    assert all(study.run(case).root.is_dir() for case in cases[:-1])


def test_the_page_says_what_the_record_says(modules: Any) -> None:
    root = FOLDER.parent
    page = (root / "docs" / "data-constrained.md").read_text(encoding="utf-8")
    record = json.loads((FOLDER / "results" / "data-constrained.json").read_text(encoding="utf-8"))
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert record["unfinished"] == 0
    for number, name in enumerate(modules["runs"].ARMS.values()):
        best, last = record["best"]["models"][number], record["longest"]["models"][number]
        assert best["name"] == last["name"] == name
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} | {len(best['seeds'])} |"))
        assert f"{best['bits_per_byte']:.3f}" in line
        assert f"{last['bits_per_byte']:.3f}" in line
    for name, found in record["control"].items():
        if name != "further":
            figures = [f"{model['bits_per_byte']:.3f}" for model in found["models"]]
            assert [cell.strip() for cell in rows[name].split("|")[2:5]] == figures
    for pair in record["best"]["pairs"]:
        if pair["a"] == "AR":
            figure = f"{-pair['difference']:+.3f} ({-pair['high']:+.3f} to {-pair['low']:+.3f})"
            assert figure in rows[pair["b"]], "the table of pairs is the last one that names the arm"

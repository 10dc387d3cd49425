"""Every command and every line of Python of the pages runs as pasted, one after another, on small models and texts.

What a page takes from elsewhere (a run that the README makes, a downloaded file) is made small beforehand, and what
takes long is shortened by words behind the command. A block that needs the hub, a GPU, several processes, another
engine or hours is marked as ```text. README.md, block-diffusion.md, tidar.md and gradients.md have tests of their own.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests import test_pages
from tests.test_dialogue import chatting
from tests.training.recipes import WORDS, write_chats, write_text
from unmask.cli.main import main

ROOT = Path(__file__).parents[1]
TRAIN = (
    "training.steps=2 training.warmup_steps=1 training.batch_size=2 training.epochs=null evaluation.max_rows=2 "
    "evaluation.masks_per_sequence=2 sampling.max_new_tokens=4 data.cache_dir=runs/cache"
)
TEXT = "data.train=text.jsonl data.validation_fraction=0.2"
WHOLE = (
    f"{TRAIN} {TEXT} data.tokenizer=byte data.context_length=48 model.hidden_size=32 model.num_attention_heads=2 "
    "model.num_key_value_heads=1 model.num_hidden_layers=1 model.intermediate_size=32 model.max_position_embeddings=256"
)
# Words behind a page's commands, by the verb or the first two words.
SHORTER = {
    "adapters": {"train": f"{TRAIN} {TEXT}", "evaluate": "--max-rows 2", "generate": "--max-new-tokens 4"},
    "canvas-decoding": {},
    "chat": {},
    "compare": {"compare": "--max-batches 1 --batch-size 4 --masks-per-sequence 2 --texts 2 --new-tokens 4"},
    "evaluation": {"evaluate": "--limit 2 --mc-num 2"},
    "experiments": {"train": WHOLE},
    "metrics": {"train": f"{WHOLE} training.detailed_metrics_steps=1 training.attention_analysis_steps=2"},
    "pipeline": {
        "pipeline": " ".join(
            f"{stage}.{word}" for stage in ("pretraining", "sft") for word in TRAIN.split() if "cache_dir" not in word
        )
    },
    "schedules": {"analyze schedule": "--documents 4 --windows 2 --mask-counts 4 --resamples 4 --data text.jsonl"},
    "sft": {"train": TRAIN},
    "training": {"train": WHOLE},
}
ELSEWHERE = {"README", *test_pages.PAGES, "gradients"}
PICTURES = {"attention", *test_pages.PAGES}


def page(name: str) -> str:
    return (ROOT / f"{name}.md" if name == "README" else ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """The language and the text of each block."""
    return re.findall(r"```(\w+)\n(.*?)```", page(name), flags=re.DOTALL)


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.partition("  #")[0].split()) for line in lines if line.strip()]


def pages() -> list[str]:
    return ["README", *(file.stem for file in (ROOT / "docs").glob("*.md"))]


def train(name: str, *words: str) -> None:
    assert main(["train", "recipes/python-docs.yaml", f"name={name}", *WHOLE.split(), *words]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after `make demo`, with the files that pages take from elsewhere."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "tests").mkdir()
    shutil.copytree(ROOT / "tests" / "evaluation", folder / "tests" / "evaluation")
    write_text(folder)
    write_chats(folder)
    stories = [json.dumps({"text": f"{WORDS} {number} {WORDS[number % 60 :]}"}) for number in range(200)]
    (folder / "tinystories_sample.jsonl.gz").write_bytes(gzip.compress("\n".join(stories).encode()))
    questions = [
        json.dumps({"question": f"who is {number}", "answer": [WORDS[number % 60 :][:9]]}) for number in range(200)
    ]
    (folder / "nq_open_dev.jsonl.gz").write_bytes(gzip.compress("\n".join(questions).encode()))
    before = Path.cwd()
    os.chdir(folder)
    try:
        train("demo")
        train("demo-ar", "objective.method=autoregressive")
        train("demo-tidar", "objective.method=tidar", "objective.block_length=4")
        shutil.copytree("runs/demo-ar/final", "stories260k")
        chatting("masked_diffusion", context=512).save_pretrained("runs/stories/sft")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def workplace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "page"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def run(command: str, shorter: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command, in this process; what another program prints in front of it is its standard input."""
    before, _, command = command.rpartition(" | ")
    if before:
        program, text = shlex.split(before)
        assert program == "printf"
        monkeypatch.setattr(sys, "stdin", io.StringIO(text.encode().decode("unicode_escape")))
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    program, *words = shlex.split(command)
    assert program == "unmask", command
    added = shorter.get(" ".join(words[:2]), shorter.get(words[0], ""))
    assert main([*words, *added.split()]) == 0, command


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize("name", SHORTER)
def test_a_page_runs_from_its_top_to_its_end(
    name: str, workplace: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "evaluation":
        monkeypatch.setenv("UNMASK_SHARED_DATA", str(request.getfixturevalue("shared_data")))
    ran = 0
    for language, block in blocks(name):
        if language == "bash":
            for command in commands(block):
                run(command, SHORTER[name], monkeypatch)
                ran += 1
        elif language == "python" and ">>>" not in block:
            exec(compile(block, f"{name}.md", "exec"), {})
            ran += 1
    assert ran >= 1


def test_no_command_and_no_python_is_left_out() -> None:
    for name in pages():
        kinds = {language for language, _ in blocks(name)}
        runs = "bash" in kinds or any(kind == "python" and ">>>" not in text for kind, text in blocks(name))
        assert runs == (name in SHORTER.keys() | ELSEWHERE), name
        assert any(">>>" in text for _, text in blocks(name)) == (name in PICTURES), name
        assert kinds <= {"bash", "python", "text", "yaml", "json"}, name


def test_the_commands_for_contributors_are_in_the_makefile() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block, *_ = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands(block):
        program, target = command.split()
        assert program == "make" and re.search(rf"^{target}:", makefile, flags=re.MULTILINE), command
        assert f"make {target}" in makefile, "make help names it"

"""docs/migration.md: every row holds, and every flag, key and file of the original's description has a row."""

import ast
import importlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_port_files import TRAIN
from tests.settings.test_deepspeed import PORT
from tests.settings.test_tdlm_aliases import EXAMPLE
from unmask import config
from unmask.cli.main import main
from unmask.cli.options import Parser
from unmask.errors import SettingsError
from unmask.settings import evaluation
from unmask.settings.aliases import from_original
from unmask.settings.decoding import SamplingParams
from unmask.settings.pipeline import PipelineRecipe
from unmask.settings.port_aliases import from_port
from unmask.settings.recipe import Recipe

ROOT = Path(__file__).parents[1]
SPAN = re.compile(r"`([^`]+)`")
RECIPE_KEY = re.compile(r"[\w.]+=")
METRIC = re.compile(r"(probe|train|eval|throughput)/")
"""Names in `metrics.jsonl`: tests/test_migration_tdlm.py looks for them in a run."""
SYSTEMS = {
    "generate` of LLaDA": "llada",
    "generate` of Fast-dLLM": "fast_dllm",
    "diffusion_generate` of Dream": "dream",
    "block_diffusion_generate` of SDAR": "sdar",
    "SamplingParams` of JetEngine": "jetengine",
    "Block decoding of LMDeploy": "lmdeploy",
    "generate` of the LLaDA2 models": "llada2",
}
COMMANDS = {
    "Command lines of the port": f"unmask train {ROOT}/recipes/tidar-port.yaml --num-gpus 8",
    "gendata_llama3.sh": "unmask tokenize --model MODEL --data chats.json --out new",
    "`main.py` of TDLM": f"unmask train {ROOT}/recipes/tdlm-7m.yaml",
    "`compare_models.py` of TDLM": "unmask compare",
    "`gradient_heatmap_generator.py` of TDLM": "unmask analyze gradients RUN",
}
"""What goes before a flag that is accepted as it is, by section; elsewhere `unmask generate`."""
BLOCKS = ("SDAR", "JetEngine", "LMDeploy", "SGLang", "LLaDA2")
"""Originals whose sampling options are those of block decoding."""


@dataclass(frozen=True)
class Row:
    """One line of a table: what the original has, what stands here for it, a note, and the heading above."""

    section: str
    original: str
    ours: str
    note: str

    def __str__(self) -> str:
        return f"{self.section}: {self.original}".replace("`", "")


def rows() -> Iterator[Row]:
    section, in_code = "", False
    for line in (ROOT / "docs" / "migration.md").read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            section = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith(("| original |", "|---")):
            original, ours, note = (cell.strip() for cell in line.strip("|").split("|"))
            yield Row(section, original, ours, note)


ROWS = list(rows())


class Parsed(Exception):
    """The command line was understood, and nothing was loaded yet."""


def parses(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """The verb reads the command line and checks its settings; it is stopped before it loads anything."""

    def stop() -> None:
        raise Parsed

    program, verb, *words = shlex.split(command)
    assert program == "unmask"
    if verb in ("train", "pipeline"):
        assert main([verb, *words, "--print-config"]) == 0
        return
    with monkeypatch.context() as patched:
        if verb in ("analyze", "experiments"):
            read = Parser.parse_args
            patched.setattr(Parser, "parse_args", lambda *given: (read(*given), stop()))
        else:
            patched.setattr(f"unmask.cli.{verb}.quiet_libraries", stop)
        if verb == "compare":
            patched.setattr("unmask.cli.compare.locate", str)  # which looks whether there is such a run
        with pytest.raises(Parsed):
            main([verb, *words])


def keywords(text: str) -> dict[str, Any] | None:
    """`a=1, b="x"` as a mapping, or None if the text is something else."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        return {str(one.arg): ast.literal_eval(one.value) for one in call.keywords} if call.keywords else None
    except (SyntaxError, ValueError):
        return None


def options(row: Row) -> tuple[str, dict[str, Any]] | None:
    """The sampling options of a row about an original's own function, with the name of the original."""
    found = keywords(SPAN.findall(row.original)[0]) if SPAN.search(row.original) else None
    system = next((name for heading, name in SYSTEMS.items() if heading in row.section), None)
    return None if found is None or system is None else (system, found)


def holds(row: Row, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One code span of the middle column stands for something that exists."""
    if ours.startswith("unmask "):
        parses(monkeypatch, ours)
    elif ours.startswith("SamplingParams("):
        given = keywords(ours.removeprefix("SamplingParams(").removesuffix(")"))
        assert given
        params, theirs = SamplingParams(**given), options(row)
        if theirs is not None:
            params = from_original(theirs[0], **theirs[1])  # type: ignore[arg-type]
        in_blocks = any(name in row.section for name in BLOCKS)
        params = params.resolved({"block_length": 4}, "blocks") if in_blocks else params.resolved({}, "canvas")
        assert {name: getattr(params, name) for name in given} == given
    elif ours.startswith("AnswerSettings("):
        given = keywords(ours.removeprefix("AnswerSettings(").removesuffix(")"))
        assert given
        assert evaluation.AnswerSettings(**given)
    elif ours.startswith("from_port("):
        given = keywords(ours.removeprefix("from_port(").removesuffix(")"))
        assert given == keywords(SPAN.findall(row.original)[0])
        assert from_port(**given)["objective"].method == ("tidar" if given.get("use_tidar", True) else "autoregressive")
    elif ours.startswith("unmask."):
        module, _, name = ours.removesuffix("()").rpartition(".")
        home, _, kind = module.rpartition(".")
        owner = getattr(importlib.import_module(home), kind) if kind[:1].isupper() else importlib.import_module(module)
        assert getattr(owner, name)
    elif METRIC.match(ours):
        assert "Metrics" in row.section
    elif "=" in ours:
        group = ours.partition(".")[0]
        # Keys that belong together stand in one row, e.g. those of one method.
        together = [span for span in SPAN.findall(row.ours) if RECIPE_KEY.match(span)]
        config.load(PipelineRecipe if group in ("pretraining", "sft", "inference") else Recipe, overrides=together)
    else:
        assert (ROOT / ours).is_file(), ours


@pytest.fixture(scope="module")
def port_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the TiDAR port's two files and TDLM's one, where they have them."""
    folder = tmp_path_factory.mktemp("port")
    (folder / "tidar").mkdir()
    (folder / "tidar" / "train_config.json").write_text(json.dumps(TRAIN))
    (folder / "tidar" / "ds_config.json").write_text(json.dumps(PORT))
    (folder / "config").mkdir()
    (folder / "config" / "example_config.yaml").write_text(EXAMPLE)
    return folder


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_holds(
    row: Row, port_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    if row.ours == "refused":
        assert len(row.note) > 20, "a refusal needs its reason"
        theirs = options(row)
        if theirs is not None:
            with pytest.raises(SettingsError, match="is not an option here"):
                from_original(theirs[0], **{name: value or 1 for name, value in theirs[1].items()})  # type: ignore[arg-type]
        return
    spans = SPAN.findall(row.ours)
    assert spans, "the middle column holds code, or `refused`"
    for ours in spans:
        holds(row, ours, monkeypatch)
    if row.note.startswith("accepted as it is"):
        command = next((value for key, value in COMMANDS.items() if key in row.section), 'unmask generate RUN "Hello"')
        monkeypatch.chdir(port_files)
        parses(monkeypatch, f"{command} {SPAN.findall(row.original)[0]}")


def test_rows_are_unique() -> None:
    names = [str(row) for row in ROWS]
    assert len(names) > 90
    assert [name for name in names if names.count(name) > 1] == []


def described(name: str) -> str:
    """The README of an original."""
    data = Path(os.environ.get("UNMASK_SHARED_DATA", ROOT.parent / "shared" / "data"))
    file = data.parent / "systems" / name
    if not file.is_file():
        pytest.skip(f"there is no description of the original at {file}; set UNMASK_SHARED_DATA")
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def description() -> str:
    return described("llada-training.md")


@pytest.fixture(scope="module")
def sdar() -> str:
    return described("sdar.md")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def has_row(section: str, original: str) -> bool:
    cells = [row.original.replace("`", "") for row in ROWS if section in row.section]
    return any(cell == original or re.match(rf"{re.escape(original)}(?![\w.])", cell) for cell in cells)


def test_every_flag_of_the_original_has_a_row(description: str) -> None:
    code = "\n".join(blocks(description, "bash") + blocks(description, "python")).replace("\\\n", " ")
    commands = re.findall(r"python training/(\w+\.py)([^\n]*)", code)
    assert len(commands) >= 9
    missing = []
    for script, rest in commands:
        words = shlex.split(rest, comments=True)
        for number, word in enumerate(words):
            if word.startswith("--"):
                value = words[number + 1] if number + 1 < len(words) and not words[number + 1].startswith("-") else ""
                is_choice = word in ("--stage", "--method", "--remasking")
                wanted = f"{word} {value}" if is_choice else word
                missing += [] if has_row(script, wanted) else [f"{script} {wanted}"]
    assert missing == []


def test_every_key_of_the_original_has_a_row(description: str) -> None:
    (block,) = blocks(description, "yaml")
    keys = [f"{group}.{key}" for group, tree in yaml.safe_load(block).items() for key in tree]
    assert len(keys) == 10
    assert [key for key in keys if not has_row("config.yaml", key)] == []


def test_every_file_of_the_original_has_a_row(description: str) -> None:
    code = "\n".join(re.findall(r"```.*?```", description, flags=re.DOTALL))
    tree = {f"training/{name}" for name in re.findall(r"[├└]── ([\w.]+)", code)}
    paths = set(re.findall(r"\./(?:data|checkpoints)/[\w./]+", code))
    assert len(tree) == 7 and len(paths) >= 5
    assert [name for name in sorted(tree | paths) if not has_row("Files", name)] == []
    assert has_row("Files", "GUIDELINES.md")


# --- SDAR -------------------------------------------------------------------------------------------------------------


def test_every_flag_of_sdars_generate_has_a_row(sdar: str) -> None:
    (command,) = re.findall(r"python generate\.py([^`]*)```", sdar.replace("\\\n", " "))
    flags = re.findall(r"--\w+", command)
    assert len(flags) == 9
    strategies = re.findall(r"^- \*\*`(\w+)`\*\*", sdar, flags=re.MULTILINE)
    assert len(strategies) == 4
    wanted = [*flags, *(f"--remasking_strategy {name}" for name in strategies)]
    assert [flag for flag in wanted if not has_row("Command line of `generate.py`", flag)] == []


def test_every_argument_of_sdars_engines_has_a_row(sdar: str) -> None:
    places = {
        "LLM": "`LLM` of JetEngine",
        "SamplingParams": "`SamplingParams` of JetEngine",
        "PytorchEngineConfig": "of LMDeploy",
        "GenerationConfig": "of LMDeploy",
    }
    calls = [
        node
        for block in blocks(sdar, "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in places
    ]
    wanted = [(places[call.func.id], str(one.arg)) for call in calls for one in call.keywords]  # type: ignore[attr-defined]
    assert len(wanted) == 18
    spelled = [f"{row.section}: {row.original}" for row in ROWS]
    missing = [
        name
        for section, name in wanted
        if not any(section in line and re.search(rf"\b{name}=", line) for line in spelled)
    ]
    assert missing == []


def test_every_command_of_sdar_has_a_row(sdar: str) -> None:
    code = "\n".join(blocks(sdar, "bash")).replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in code.splitlines()]
    commands = [line for line in lines if line and not line.startswith(("cd ", "conda activate", "python generate.py"))]
    assert len(commands) == 12
    (launch,) = [one for one in commands if one.startswith("torchrun")]
    wanted = [f"torchrun {flag}" for flag in re.findall(r"--\w+", launch)]
    wanted += [re.sub(r"examples/\S*/", "", one) for one in commands if one != launch]
    assert [one for one in wanted if not has_row("Commands of SDAR", one)] == []


def test_every_key_of_sdars_recipe_has_a_row(sdar: str) -> None:
    keys = [key for block in blocks(sdar, "yaml") for key in yaml.safe_load(block)]
    assert len(keys) == 17
    assert [key for key in keys if not has_row("The YAML of LLaMA-Factory", key)] == []


def test_every_file_of_sdar_has_a_row(sdar: str) -> None:
    names = {name.rstrip("/") for name in re.findall(r"[├└]── ([\w./]+)", sdar)}
    names |= set(re.findall(r"\w+_sdar\.py|fused_\w+\.py|launcher\.py|\w+_full\.yaml", sdar))
    assert len(names) >= 16
    parts = {part for row in ROWS if row.section == "Files of SDAR" for part in row.original.strip("`").split("/")}
    assert sorted(names - parts) == []

"""Malformed flags: every verb with values, paths and combinations that it cannot use."""

import contextlib
import io
from pathlib import Path

import pytest
import torch
import yaml

from tests.malformed.case import Command, check, parametrized
from tests.training import recipes
from unmask.cli.main import VERBS, main

RUN, AR = "tiny", "ar"
LONG = "x" * 300


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a folder with a tokenizer only, and files of the wrong kinds."""
    folder = tmp_path_factory.mktemp("flags")
    recipes.write_text(folder)
    recipes.write_chats(folder)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr("unmask.training.trainer.measured_peak", lambda device, dtype: 1e11)
        patch.setattr("unmask.reports.curves.loss_curves", lambda *_: None)
        for name, method in ((RUN, "masked_diffusion"), (AR, "autoregressive")):
            tree = recipes.tree(folder, steps=2) | {"name": name, "objective": {"method": method}}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
            assert main(["train", str(folder / f"{name}.yaml")]) == 0
    final = folder / RUN / "final"
    (folder / "words").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "words" / file).write_bytes((final / file).read_bytes())
    (folder / "empty").mkdir()
    (folder / "bare").mkdir()
    (folder / "bare" / "config.yaml").write_bytes((folder / RUN / "config.yaml").read_bytes())
    (folder / "file").write_text("x")
    (folder / "void.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    return folder


def _case(line: str, message: str, *words: str) -> Command:
    """A command line, split at spaces; further words are taken whole."""
    return Command(
        line + "".join(f" {word[:20]!r} ({len(word)})" for word in words), lambda _: [*line.split(), *words], message
    )


PATHS = [
    *(_case(f"{verb} file", "file") for verb in ("generate", "chat", "evaluate", "info")),
    *(_case(f"{verb} empty", "There is no model in empty") for verb in ("generate", "chat", "info")),
    *(_case(f"{verb} words", "There is no model in words") for verb in ("generate", "chat", "info")),
    *(_case(f"{verb} bare", "There is no model in bare") for verb in ("generate", "chat", "info")),
    *(_case(f"{verb} ./gone", "There is no folder ./gone") for verb in ("generate", "chat", "info")),
    *(_case(f"{verb} a/b/c", "There is no folder a/b/c") for verb in ("generate", "chat", "info")),
    _case("evaluate ./gone", "is no run folder with a held-out text"),
    _case("compare tiny ./gone", "There is no folder ./gone"),
    _case("compare tiny empty --data text.jsonl", "There is no model in empty"),
    _case("convert ./gone out", "There is no folder ./gone"),
    _case("convert words out", "There is no model in words"),
    _case("merge ./gone out", "There is no folder ./gone"),
    _case("merge tiny out", "is a whole model, not an adapter"),
    _case("analyze attention ./gone --text x", "There is no folder ./gone"),
    _case("analyze schedule ./gone", "There is no folder ./gone"),
    _case("analyze gradients gone", "There is no run gone"),
    _case("analyze gradients empty", "There is no run empty"),
    _case("experiments list gone", "gone"),
    _case("train gone.yaml", "There is no recipe file gone.yaml"),
    _case("train empty", "empty is a folder and no run"),
    _case("train file", "must hold `key: value` pairs, got 'x'"),
    _case("pipeline gone.yaml", "There is no recipe file gone.yaml"),
    _case("train tiny.yaml --config gone.json", "gone.json cannot be read"),
    _case("train tiny.yaml --config file", "file is not valid JSON"),
    _case("evaluate tiny --data gone.txt", "there is no gone.txt"),
    _case("evaluate tiny --recipe gone.yaml", "There is no recipe file gone.yaml"),
    _case("evaluate tiny --infilling gone.jsonl", "gone.jsonl"),
]

PROMPTS = [
    _case("generate tiny --file gone.txt", "There is no prompt file gone.txt"),
    _case("generate tiny --file empty", "The prompt file empty is a folder"),
    _case("generate tiny --file void.txt", "The prompt file void.txt is empty"),
    _case("generate tiny --file blank.txt", "The prompt file blank.txt is empty"),
    _case("generate tiny --file latin.txt", "is not UTF-8 text: line 2 has the byte 0xe9"),
    _case("generate tiny --file file/x", "cannot be read: Not a directory"),
    _case("generate tiny --file", "cannot be read: File name too long", LONG),
    _case("generate tiny --file", "cannot be read: embedded null byte", "a\0b"),
    _case("generate tiny --file", "is a folder", ""),
    _case("generate tiny --file ~nobody-here/p", "cannot be read"),
    _case("generate tiny --file /dev/zero", "has more than 67,108,864 bytes"),
    _case("generate tiny - -", "`-` reads all of stdin, so it can stand once"),
    _case("generate tiny --chat", "--chat needs a message"),
    _case("generate tiny --chat hi", "has no chat template"),
    _case("generate tiny --max-new-tokens 4", "exceed the model's context", "a b c " * 100),
    _case("analyze attention tiny --text", "tokens, and the model has 64 positions", "x" * 100),
    _case("analyze attention tiny --text", "--text is empty", ""),
]

VALUES = [
    _case("generate tiny --max-new-tokens x", "`max_new_tokens` must be an integer, got 'x'"),
    _case("generate tiny --max-new-tokens 1.5", "must be an integer, got '1.5'"),
    _case("generate tiny --max-new-tokens 1e3", "must be an integer, got '1e3'"),
    _case("generate tiny --max-new-tokens 0", "max_new_tokens must be at least 1, got 0"),
    _case("generate tiny --max-new-tokens -1", "max_new_tokens must be at least 1, got -1"),
    _case("generate tiny --max-new-tokens", "must be an integer, got ''", ""),
    _case("generate tiny --max-new-tokens", "expected one argument"),
    _case("generate tiny --max-new-tokens", "of at most 64 bits", "9" * 30),
    _case("generate tiny --max-new-tokens", "and finite, got inf", "9" * 5000),
    _case("generate tiny --temperature nan", "must be a number, got 'nan'"),
    _case("generate tiny --temperature inf", "must be a number, got 'inf'"),
    _case("generate tiny --temperature 1e400", "must be a number and finite, got inf"),
    _case("generate tiny --temperature -1", "temperature must be at least 0, got -1.0"),
    _case("generate tiny --temperature hot", "must be a number, got 'hot'"),
    _case("generate tiny --seed 9223372036854775808", "`seed` must be an integer of at most 64 bits"),
    _case("generate tiny --n 0", "n must be at least 1, got 0"),
    _case("generate tiny --top-p 2", "top_p must be above 0 and at most 1, got 2"),
    _case("generate tiny --top-k -1", "top_k must be at least 0, got -1"),
    _case("generate tiny --stop", "stop must not hold an empty text", ""),
    _case("generate tiny --stop-token-ids x", "must be a list of integers, got 'x'"),
    _case("generate tiny --decoding foo", "must be one of autoregressive, canvas, blocks, tidar"),
    _case("generate tiny --draft-length 4", "draft_length is not used by canvas"),
    _case("generate tiny --denoising-steps 0", "denoising_steps must be at least 1, got 0"),
    _case("generate tiny --block-length 0", "block_length must be at least 1, got 0"),
    _case("generate tiny --ignore-eos maybe", "must be true or false, got 'maybe'"),
    _case("generate tiny --steps x", "steps must be an integer from 1 on, got 'x'"),
    _case("generate tiny --steps 0", "steps must be an integer from 1 on, got '0'"),
    _case("generate tiny --steps 4 --block-length 0", "block_length must be an integer from 1 on"),
    _case("generate tiny --steps 4 --gen-length x", "gen_length must be an integer from 1 on"),
    _case("generate tiny --eps x", "eps must be a number, got 'x'"),
    _case("generate tiny --threshold x", "must be a number or null, got 'x'"),
    _case("generate tiny --use-cache maybe", "use_cache must be true or false, got 'maybe'"),
    _case("generate tiny --alg foo", "There is no alg `foo`"),
    _case("generate tiny --mask-id 3", "the mask token comes from the checkpoint"),
    _case("chat tiny --max-new-tokens x", "must be an integer, got 'x'"),
    _case("evaluate tiny --masks-per-sequence 1", "masks_per_sequence must be at least 2, got 1"),
    _case("evaluate tiny --max-rows 0", "max_rows must be at least 1"),
    _case("evaluate tiny --batch-size x", "`batch_size` must be an integer, got 'x'"),
    _case("evaluate tiny --seed nan", "`seed` must be an integer, got 'nan'"),
    _case("evaluate tiny --data text.jsonl --context-length x", "invalid int value: 'x'"),
    _case("evaluate tiny --data text.jsonl --context-length -1", "context_length must be at least 2, got -1"),
    _case("evaluate tiny --malformed maybe", "invalid choice: 'maybe'"),
    _case("evaluate tiny --infilling text.jsonl --infill-length -1", "--infill-length must be oracle or a number"),
    _case("evaluate tiny --tasks ,", "--tasks names no task"),
    _case("compare tiny ar --max-batches 0", "max_batches must be at least 1"),
    _case("compare tiny ar --confidence 2", "confidence must lie between 0.5 and 0.999, got 2.0"),
    _case("compare tiny ar --confidence nan", "must be a number, got 'nan'"),
    _case("compare tiny ar --threads 0", "threads must be at least 1"),
    _case("compare tiny ar --threads 1000000", "threads must be at most 1,024"),
    _case("compare tiny ar --temperature inf", "must be a number, got 'inf'"),
    _case("compare tiny ar --chain-rule-bytes -1", "chain_rule_bytes must be at least 0"),
    _case("compare tiny ar --judge tiny", "is one of the models compared"),
    _case("analyze attention tiny --text x --block-length 0", "--block-length must be at least 1"),
    _case("analyze attention tiny --text x --layers 9", "--layers must be numbers from 0 to 0"),
    _case("analyze attention tiny --text x --head 9.9", "--head must be LAYER.HEAD"),
    _case("analyze attention tiny --text x --head x", "--head must be LAYER.HEAD"),
    _case("analyze attention tiny --text x --layout foo", "foo"),
    _case("analyze schedule tiny --places 0", "places must be at least 1"),
    _case("analyze schedule tiny --places x", "invalid int value: 'x'"),
    _case("analyze schedule tiny --steps a,b", "--steps must be numbers"),
    _case("analyze schedule tiny --schedules foo", "foo"),
    _case("analyze schedule tiny --save x.txt", "--save must name a .json file"),
    _case("analyze schedule tiny --mask-counts 1", "mask_counts must be at least 2"),
    _case("analyze schedule tiny --generate 4 --judge ar --temperatures nan", "--temperatures must be numbers"),
    _case("convert tiny out --to lada", "Did you mean `llada`"),
    _case("convert tiny out --dtype bf16", "--dtype must be one of auto"),
    _case("convert tiny out --max-shard-size x", "--max-shard-size must be a number with a unit"),
    _case("convert tiny out --max-shard-size 0GB", "--max-shard-size must be a number with a unit"),
    _case("convert tiny out --to tidar --block-length x", "invalid int value: 'x'"),
    _case("convert ar out --to tidar --block-length 0", "block_length must be at least 1"),
    _case("merge tiny out --dtype fp8", "dtype must be auto"),
    _case("tokenize --model tiny --data chats.jsonl --out o --max-length 1", "--max-length be at least 2"),
    _case("tokenize --model tiny --data chats.jsonl --out o --start 5 --end 2", "--start must lie before --end"),
    _case("tokenize --model tiny --data chats.jsonl --out o --gpus 2", "--gpus is not an option here"),
    _case("train tiny.yaml --num-gpus x", "invalid int value: 'x'"),
    _case("train tiny.yaml --num-gpus 0", "--num-gpus is 0"),
    _case("pipeline --stage foo", "invalid choice: 'foo'"),
    _case("pipeline pretraining.training.steps=x", "must be an integer or null, got 'x'"),
    _case("experiments lst", "There is nothing to do called `lst`. Did you mean `list`"),
    _case("analyze foo", "There is nothing to analyse called `foo`"),
]

DEVICES = [
    _case("generate tiny --device gpu", "got 'gpu'. Did you mean `cuda`?"),
    _case("chat tiny --device gpu", "got 'gpu'"),
    _case("evaluate tiny --device gpu", "got 'gpu'"),
    _case("compare tiny ar --device gpu", "got 'gpu'"),
    _case("generate tiny --device meta", "holds shapes and no values"),
    _case("generate tiny --device cpu:7", "cpu has 1 here"),
    _case("generate tiny --device", "device must be cpu", ""),
    _case("generate tiny --dtype bf17", "Did you mean `bf16`"),
    _case("chat tiny --dtype foo", "got 'foo'"),
    _case("evaluate tiny --dtype int4", "dtype must be auto"),
    _case("compare tiny ar --dtype int8", "got 'int8'"),
]
if not torch.cuda.is_available():
    DEVICES += [
        _case("generate tiny --device cuda", "This machine has no device `cuda`"),
        _case("evaluate tiny --device cuda:99", "This machine has no device `cuda:99`"),
    ]

TOGETHER = [
    _case("generate tiny a --suffix b --watch", "does not go with --watch or --chat"),
    _case("generate tiny a --suffix b --chat", "does not go with --watch or --chat"),
    _case("generate tiny a --infill-length 3", "a gap, which --suffix makes"),
    _case("generate tiny --watch --json", "--watch draws one text"),
    _case("generate tiny --watch --n 2", "--watch draws one text"),
    _case("generate tiny --trace", "--trace records what --json prints"),
    _case("generate tiny --max-new-tokens 4 --gen-length 4", "are the same option. Give one of them"),
    _case("evaluate tiny --text-field x", "--text-field: only with --data"),
    _case("evaluate tiny --context-length 9", "--context-length: only with --data"),
    _case("evaluate tiny --split x --malformed skip", "--malformed and --split: only with --data"),
    _case("evaluate tiny --samples s.jsonl", "--samples goes with"),
    _case("evaluate tiny --limit 3", "--limit goes with"),
    _case("evaluate tiny --tasks x --data y", "--data goes with"),
    _case("evaluate tiny --tasks x --output o.json --samples o.json", "--output and --samples name one file"),
    _case("compare tiny", "A comparison needs two runs or models, got tiny"),
    _case("compare tiny tiny", "Each model is compared once"),
    _case("compare tiny ar --text-field x", "--text-field: only with --data"),
    _case("compare tiny ar --limit 3", "belongs to --tasks, which is not given"),
    _case("compare tiny ar --include-path x", "--include-path: only with --tasks"),
    _case("compare tiny ar --judge x --texts 0", "--texts 0 generates nothing"),
    _case("compare tiny ar --experiments-dir x", "--experiments-dir is where"),
    _case("analyze attention tiny --text x --rule-only --head 0.0", "--rule-only leaves them out"),
    _case("analyze attention tiny --text x --rule-only --layers 0", "--rule-only leaves them out"),
    _case("analyze schedule tiny --text-field x", "--text-field: only with --data"),
    _case("analyze schedule tiny --separator x", "--separator: only with --data"),
    _case("analyze schedule tiny --generate 4", "belong together"),
    _case("analyze schedule tiny --temperatures 1", "belong together"),
    _case("convert tiny out --block-length 4", "--block-length goes with --to tidar"),
    _case("convert tiny out --remote-code empty", "--remote-code goes with --to"),
    _case("train tiny.yaml x", "has the form key=value, got `x`"),
]

UNKNOWN = [
    *(_case(f"{verb} --no-such-thing", "There is no option `--no-such-thing`") for verb in ("train", "pipeline")),
    _case("chat x --devise cpu", "There is no option `--devise`. Did you mean `--device`"),
    _case("generate x --max-new-token 3", "Did you mean `--max-new-tokens`"),
    _case("generate x -q", "There is no option `-q`. See `unmask generate --help`"),
    _case("info x y", "There is nothing to do with the word `y`"),
    _case("evaluate x y", "There is nothing to do with the word `y`"),
    _case("merge a b c", "There is nothing to do with the word `c`"),
    *(_case(verb, "the following arguments are required") for verb in ("generate", "chat", "evaluate", "info")),
    *(_case(verb, "the following arguments are required") for verb in ("convert", "merge", "tokenize", "experiments")),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command reads what the runner of the tests is given."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


@parametrized(PATHS)
def test_paths_of_the_wrong_kind(case: Command, shared: Path) -> None:
    check(case, shared)


@parametrized(PROMPTS)
def test_prompts_that_cannot_be_read(case: Command, shared: Path) -> None:
    check(case, shared)


@parametrized(VALUES)
def test_values_that_cannot_be(case: Command, shared: Path) -> None:
    check(case, shared)


@parametrized(DEVICES)
def test_devices_and_types_that_are_not_here(case: Command, shared: Path) -> None:
    check(case, shared)


@parametrized(TOGETHER)
def test_flags_of_which_one_would_be_ignored(case: Command, shared: Path) -> None:
    check(case, shared)


@parametrized(UNKNOWN)
def test_flags_that_there_are_not(case: Command, shared: Path) -> None:
    check(case, shared)


@pytest.mark.parametrize("word", ["trian", "", "--versio", "generate ", "\x1b[31m"])
def test_verbs_that_there_are_not(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("unmask: There is no verb `") and captured.err.count("\n") == 1
    assert "\x1b" not in captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_quick_and_shows_commands_that_begin_with_the_verb(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"  unmask {verb}" in out.partition("examples:")[2]


@pytest.mark.parametrize("flag", ["--output-dir", "--output-name"])
def test_a_place_without_save_is_noted(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """TDLM's scripts give it so, and lose nothing."""
    from unmask.cli import compare_options
    from unmask.settings.comparison import ComparisonSettings

    compare_options.check_together(compare_options.options().parse_args(["a", "b", flag, "x"]), ComparisonSettings())
    assert capsys.readouterr().err == f"note: {flag}: nothing is written without --save\n"

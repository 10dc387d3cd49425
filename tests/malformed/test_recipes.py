"""Malformed recipes: what YAML allows and no recipe needs, files that are none, values out of range."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.malformed.case import Case, Command, check, is_root, parametrized, written
from tests.training import recipes
from unmask import config
from unmask.errors import PromptError, SettingsError
from unmask.settings.recipe import Recipe
from unmask.training.run import train

_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 10)}]\n" for depth in range(1, 9)
)


def _load(folder: Path, content: bytes | str) -> Recipe:
    return config.load(Recipe, file=written(folder, "recipe.yaml", content))


def _refused(name: str, content: bytes | str, message: str) -> Case:
    return Case(name, lambda folder: _load(folder, content), message, SettingsError)


def _at(name: str, make: Callable[[Path], object], path: str, message: str) -> Case:
    def use(folder: Path) -> object:
        make(folder)
        return config.load(Recipe, file=path)

    return Case(name, use, message, SettingsError)


YAML = [
    _refused("anchors that expand", _LAUGHS, "with its anchors expanded it has more than 4,000 values"),
    _refused("an anchor in itself", "name: &a [*a]\n", "`*a` stands inside what it stands for (line 1)"),
    _refused("a file that is in itself", "&a\nname: x\nmodel: *a\n", "`*a` stands inside"),
    _refused("a merge with itself", "training: &t\n  <<: *t\n", "`*t` stands inside"),
    _refused("an anchor that is not there", "name: *n\n", "undefined alias 'n' (line 1)"),
    _refused("lists without end", "name: " + "[" * 50_000, "nested more than 16 levels deep"),
    _refused("groups without end", "".join(" " * n + "a:\n" for n in range(200)), "nested more than 16 levels"),
    _refused("a group twice", "training: {steps: 1}\nname: x\ntraining: {batch_size: 2}\n", "in lines 1 and 3"),
    _refused("a key twice in braces", "training: {steps: 1, steps: 2}\n", "the key `steps` stands twice"),
    _refused("a key twice, once in quotes", "name: a\n'name': b\n", "the key `name` stands twice"),
    _refused("a tab", "training:\n\tsteps: 3\n", "cannot start any token (line 2)"),
    _refused("a list that does not end", "name: [a\n", "expected ',' or ']'"),
    _refused("quotes that do not end", "name: 'a\n", "found unexpected end of stream"),
    _refused("two colons", "name: a: b\n", "mapping values are not allowed here"),
    _refused("two documents", "name: x\n---\nname: y\n", "expected a single document"),
    _refused("a Python object", "name: !!python/object/apply:os.system ['ls']\n", "the tag `!!python/object/apply"),
    _refused("a tag of one's own", "name: !foo x\n", "the tag `!foo` is not used in settings"),
    _refused("binary data", "name: !!binary aGk=\n", "the tag `!!binary`"),
    _refused("a set", "name: !!set {a}\n", "the tag `!!set`"),
    _refused("a number as key", "1: x\n", "the key `1` is not text"),
    _refused("null as key", "null: x\n", "the key `null` is not text"),
    _refused("on as key", "on: x\n", "the key `on` is not text"),
    _refused("a list as key", "[a]: x\n", "the key `a list or a group` is not text"),
    _refused("a date as key", "2024-01-01: x\n", "the key `2024-01-01` is not text"),
    _refused("an empty key", "'': 3\n", "Unknown key ``"),
    _refused("NUL", "name: a\0b\n", "unacceptable character #x0000"),
    _refused("an escape character", "name: a\x1bb\n", "unacceptable character #x001b"),
    _refused("a percent sign", "%FOO\n", "is not valid YAML"),
    _refused("an at sign", "name: @x\n", "cannot start any token"),
    _refused("a list", "- a\n", "must hold `key: value` pairs, got [a]"),
    _refused("a word", "hello\n", "must hold `key: value` pairs, got 'hello'"),
    _refused("Latin-1", "name: caf\xe9\n".encode("latin-1"), "it is not UTF-8, line 1 has the byte 0xe9"),
    _refused("UTF-16", "name: x\n".encode("utf-16"), "it is UTF-16. Save it as plain UTF-8"),
    _refused("gzip", b"\x1f\x8b\x08\0", "compressed with gzip"),
    _refused("zip", b"PK\x03\x04", "a zip archive"),
    _refused("megabytes", b"# " + b"x" * 2_000_000, "2,000,002 bytes, and a file of settings at most 65,536"),
    _refused("thousands of keys", "".join(f"k{n}: 1\n" for n in range(3000)), "more than 4,000 values"),
    _refused("a number of 5,000 digits", "seed: " + "9" * 5000, "a number or date that cannot be read"),
    _refused("a date that does not exist", "name: 2024-13-45\n", "month must be in 1..12"),
    _refused("an unknown group", "trainin: {steps: 1}\n", "Did you mean `training`?"),
    _refused("an unknown key", "training: {step: 1}\n", "Did you mean `training.steps`"),
    _refused("a path as key", "training.steps: 3\n", "Write it as `training: {steps: ...}`"),
    _refused("a group without content", "training:\n", "must hold `key: value` pairs, got null"),
    _refused("a list as group", "training: [a]\n", "must hold `key: value` pairs, got [a]"),
]

VALUES = [
    _refused("a date as name", "name: 2024-01-01\n", "`name` must be text, got 2024-01-01. In quotes it is text."),
    _refused("a time as name", "name: 2024-01-01T10:00:00Z\n", "`name` must be text, got 2024-01-01 10:00:00"),
    _refused("on as name", "name: on\n", "`name` must be text, got true. In quotes"),
    _refused("an exponent as name", "name: 1e3\n", "`name` must be text, got 1000.0. In quotes"),
    _refused("a number as name", "name: 7\n", "`name` must be text, got 7. In quotes"),
    _refused("null as name", "name: ~\n", "`name` must be text, got null"),
    _refused("a group as name", "name: {a: b}\n", "`name` must be text, got {a: b}"),
    _refused("an empty name", "name: ''\n", "It is empty. Give one"),
    _refused("a blank name", "name: ' '\n", "name must be that of one folder inside output_dir"),
    _refused("the folder itself as name", "name: .\n", "name must be that of one folder inside output_dir"),
    _refused("a name that climbs", "name: ../x\n", "name must be that of one folder inside output_dir"),
    _refused("a name that climbs inside", "name: a/../../x\n", "name must be that of one folder inside output_dir"),
    _refused("an absolute name", "name: /x\n", "name must be that of one folder inside output_dir"),
    _refused("a name with NUL", 'name: "a\\0b"\n', "has characters in it that cannot be printed"),
    _refused("a name with an escape", 'name: "a\\eb"\n', "has characters in it that cannot be printed"),
    _refused("half a character as name", 'name: "\\ud800"\n', "has characters in it that cannot be printed"),
    _refused("a name of 300 letters", f"name: {'x' * 300}\n", "at most 200 bytes"),
    _refused("an empty output_dir", "output_dir: ''\n", "output_dir must name a folder"),
    _refused("an output_dir with NUL", 'output_dir: "a\\0b"\n', "output_dir must be a folder"),
    _refused("a blank cache_dir", "data: {cache_dir: ' '}\n", "data.cache_dir must name a folder"),
    _refused("a seed of 2^63", f"seed: {2**63}\n", "`seed` must be an integer of at most 64 bits"),
    _refused("a seed with a point", "seed: 1.0\n", "`seed` must be an integer, got 1.0"),
    _refused("a seed in octal", "seed: 010\n", "`seed` must be an integer, got '010'"),
    _refused("a seed in minutes", "seed: 1:30\n", "`seed` must be an integer, got '1:30'"),
    _refused("NaN", "training: {learning_rate: .nan}\n", "must be a number and finite, got nan"),
    _refused("infinity", "training: {learning_rate: .inf}\n", "must be a number and finite, got inf"),
    _refused("1e400", "training: {learning_rate: 1e400}\n", "must be a number and finite, got inf"),
    _refused("400 digits", f"training: {{learning_rate: {'9' * 400}}}\n", "at most 64 bits"),
    _refused("text as number", "training: {learning_rate: fast}\n", "must be a number, got 'fast'"),
    _refused("true as number", "training: {learning_rate: true}\n", "must be a number, got true"),
    _refused("1e400 in a list", "objective: {mask_ratio_range: [0, 1e400]}\n", "and finite, got inf"),
    _refused("a list as number", "training: {steps: [3]}\n", "`training.steps` must be an integer or null, got [3]"),
    _refused("a number as choice", "objective: {method: 1}\n", "must be one of autoregressive"),
    _refused("one as true", "training: {compile: 1}\n", "must be true or false, got 1"),
    _refused("betas of 2", "training: {adam_betas: [2, 2]}\n", "adam_betas must be two shares from 0 to below 1"),
    _refused("one beta", "training: {adam_betas: [0.9]}\n", "must be [a number, a number], got [0.9]"),
    _refused("no epsilon", "training: {adam_epsilon: 0}\n", "adam_epsilon must be above 0"),
    _refused("a negative head_dim", "model: {head_dim: -2}\n", "head_dim must be at least 2, got -2"),
    _refused("an odd head_dim", "model: {head_dim: 3}\n", "head_dim must be even"),
    _refused("an odd width of heads", "model: {hidden_size: 12}\n", "head_dim must be even, for the rotary"),
    _refused("heads that do not divide", "model: {hidden_size: 30}\n", "hidden_size must be a multiple of"),
    _refused("key heads that do not divide", "model: {num_key_value_heads: 3}\n", "must divide num_attention_heads"),
    _refused("a width of 10^12", "model: {hidden_size: 1000000000000}\n", "hidden_size must be at most 262,144"),
    _refused("an MLP of 10^12", "model: {intermediate_size: 1000000000000}\n", "intermediate_size must be at most"),
    _refused("10^12 layers", "model: {num_hidden_layers: 1000000000000}\n", "num_hidden_layers must be at most"),
    _refused("10^12 positions", "model: {max_position_embeddings: 1000000000000}\n", "must be at most 2,147,483,647"),
    _refused("10^12 heads", "model: {num_attention_heads: 1000000000000}\n", "num_attention_heads must be at most"),
    _refused("weights of 0", "model: {initializer_range: 0}\n", "initializer_range must lie above 0"),
    _refused("a rotary base of 0", "model: {rope_theta: 0}\n", "rope_theta must lie between 1 and"),
    _refused("no checkpoint", "model: {from_pretrained: ''}\n", "from_pretrained must name a folder"),
    _refused("rows of 10^12", "data: {context_length: 1000000000000}\n", "data.context_length must be at most"),
    _refused("10^12 ids", "data: {vocabulary_size: 1000000000000}\n", "data.vocabulary_size must be at most"),
    _refused("a batch of 10^12", "training: {batch_size: 1000000000000}\n", "training.batch_size must be at most"),
    _refused("10^12 steps", "training: {steps: 1000000000000}\n", "training.steps must be at most"),
    _refused("a micro batch above the batch", "training: {micro_batch_size: 64}\n", "at most training.batch_size (32)"),
    _refused("a block of 10^12", "objective: {method: tidar, block_length: 1000000000000}\n", "at most 2,147,483,647"),
    _refused("a rank of 10^12", "adapter: {rank: 1000000000000}\n", "rank must be at most"),
    _refused("a target without a name", "adapter: {rank: 4, targets: ['']}\n", "targets must be names of layers"),
    _refused(
        "no teacher",
        "objective: {method: tidar, teacher: '', distillation_weight: 1}\n",
        "teacher must name a folder, run or hub id",
    ),
    _refused("an option of another method", "objective: {block_length: 4}\n", "belongs to method block_diffusion"),
]

FILES = [
    _at("a folder", lambda folder: (folder / "a.yaml").mkdir(), "a.yaml", "a.yaml is a folder, and a recipe is a file"),
    _at("a pipe", lambda folder: os.mkfifo(folder / "a.yaml"), "a.yaml", "a.yaml is no regular file"),
    _at("a device", lambda _: None, "/dev/zero", "/dev/zero is no regular file"),
    _at(
        "a link to itself", lambda folder: (folder / "a.yaml").symlink_to("a.yaml"), "a.yaml", "is a link whose target"
    ),
    _at("a link to nothing", lambda folder: (folder / "a.yaml").symlink_to("gone"), "a.yaml", "is a link whose target"),
    _at(
        "nothing",
        lambda folder: written(folder, "b.yaml", ""),
        "a.yaml",
        "no recipe file a.yaml. Recipes there: b.yaml",
    ),
    _at("a file as folder", lambda folder: written(folder, "b.yaml", ""), "b.yaml/a.yaml", "There is no recipe file"),
    _at("a name with NUL", lambda _: None, "a\0b", "no recipe file"),
    _at("no name", lambda _: None, "", ". is a folder"),
]

RIGHT = [
    Case("an empty file", lambda folder: _load(folder, "").name, value="run"),
    Case("only a comment", lambda folder: _load(folder, "# name: x\n").name, value="run"),
    Case("a byte-order mark", lambda folder: _load(folder, b"\xef\xbb\xbfname: bom\n").name, value="bom"),
    Case("lines of Windows", lambda folder: _load(folder, "name: x\r\nseed: 3\r\n").seed, value=3),
    Case("an anchor", lambda folder: _load(folder, "name: &n x\noutput_dir: *n\n").output_dir, value="x"),
    Case("a merge", lambda folder: _load(folder, "<<: {name: z}\nseed: 1\n").name, value="z"),
    Case("a date in quotes", lambda folder: _load(folder, "name: '2024-01-01'\n").name, value="2024-01-01"),
    Case("a number in quotes", lambda folder: _load(folder, "training: {steps: '100'}\n").training.steps, value=100),
    Case("1e-3", lambda folder: _load(folder, "training: {learning_rate: 1e-3}\n").training.learning_rate, value=0.001),
    Case("underscores", lambda folder: _load(folder, "training: {steps: 1_000}\n").training.steps, value=1000),
]


@parametrized(YAML)
def test_what_yaml_allows_and_no_recipe_needs(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(VALUES)
def test_a_value_of_a_recipe_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(FILES)
def test_what_is_no_recipe_file(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(RIGHT)
def test_what_is_only_unusual_is_read(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("name", ["1e3", "010", "on", "2024-01-01", "1:30", "null", "0x10", "a: b", "1_000"])
def test_a_name_that_looks_like_something_else_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    made = config.changed(Recipe(), [f"name='{name}'"])
    assert made.name == name
    assert config.load(Recipe, file=written(tmp_path, "again.yaml", config.to_yaml(made))) == made


def _start(name: str, changes: dict[str, dict[str, object]], message: str, make: str = "") -> Case:
    """A recipe that is right by itself and cannot be trained; no text is read, and no run is begun."""

    def use(folder: Path) -> object:
        tree = recipes.tree(folder)
        for group, values in changes.items():
            tree[group] = tree[group] | values if isinstance(tree.get(group), dict) else values.get("", values)
        if make:
            written(folder, make, "")
        recipes.write_text(folder)
        try:
            return train(config.from_tree(Recipe, tree))
        finally:
            assert not (folder / "tiny" / "checkpoints" / "step-3").exists()

    return Case(name, use, message, SettingsError)


STARTS = [
    _start("output_dir is a file", {"output_dir": {"": "taken"}}, "taken is a file", make="taken"),
    _start("output_dir is below a file", {"output_dir": {"": "taken/runs"}}, "taken is a file", make="taken"),
    _start("output_dir is a device", {"output_dir": {"": "/dev/null"}}, "/dev/null is a file"),
    _start("cache_dir is a file", {"data": {"cache_dir": "taken"}}, "data.cache_dir must be a folder", make="taken"),
    _start("cache_dir is below a file", {"data": {"cache_dir": "taken/x"}}, "taken is a file", make="taken"),
    _start("cache_dir has a long name", {"data": {"cache_dir": "x" * 300}}, "File name too long"),
    _start("rows longer than positions", {"data": {"context_length": 65}}, "at most the model's 64 positions, got 65"),
    _start("samples longer than positions", {"sampling": {"max_new_tokens": 64}}, "must leave room for a prompt of 1"),
    _start("samples of another decoding", {"sampling": {"draft_length": 4}}, "draft_length is not used by canvas"),
    _start("samples of gaps", {"sampling": {"infill_length": [4]}}, "sampling.infill_length fills gaps"),
    _start("samples by verification", {"sampling": {"verification": "greedy"}}, "verification is not used by canvas"),
    _start("an adapter on nothing", {"adapter": {"rank": 4}}, "adapter.rank needs a checkpoint below"),
    _start(
        "a network of terabytes",
        {"model": {"hidden_size": 2**18, "intermediate_size": 2**18}},
        "GiB of memory. Lower model.hidden_size",
    ),
    _start("fp16 on a CPU", {"training": {"precision": "fp16"}}, "training.precision fp16 needs a GPU"),
]


@parametrized(STARTS)
def test_a_run_that_could_not_end_does_not_begin(
    case: Case, tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check(case, tmp_path)


@pytest.mark.skipif(is_root(), reason="permissions do not bind the superuser")
@pytest.mark.parametrize("key", ["output_dir", "cache_dir"])
def test_a_folder_that_may_not_be_written_is_found_first(key: str, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    tree = recipes.tree(tmp_path)
    (tree if key == "output_dir" else tree["data"])[key] = str(locked)
    with pytest.raises(SettingsError, match="may not be written"):
        train(config.from_tree(Recipe, tree))


def test_samples_that_need_a_prompt_are_found_before_the_first_step(
    tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autoregression over a tokenizer without BOS and end of text."""
    monkeypatch.setattr("unmask.training.trainer.Trainer.fit", lambda _: pytest.fail("it began to train"))
    recipes.write_text(tmp_path)
    bare = _bare_tokenizer(tmp_path)
    tree = recipes.tree(tmp_path) | {"objective": {"method": "autoregressive"}}
    tree["data"] |= {"tokenizer": str(bare)}
    with pytest.raises(PromptError, match="needs a prompt where it has no BOS"):
        train(config.from_tree(Recipe, tree))


def _bare_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["?", *recipes.WORDS.split()])}, "?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?").save_pretrained(folder / "bare")
    return folder / "bare"


def test_a_login_that_wandb_lacks_is_one_message_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("wandb.login", lambda prompt: prompt)
    with pytest.raises(SettingsError, match=r"Log in with `wandb login`.*WANDB_MODE=offline"):
        train(recipes.recipe(tmp_path, report_to=["wandb"]))
    assert not (tmp_path / "tiny").exists()


def test_a_disk_without_room_for_a_checkpoint_is_found_first(
    tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("unmask.training.requirements.shutil.disk_usage", lambda _: usage)
    recipes.write_text(tmp_path)
    with pytest.raises(SettingsError, match=r"A checkpoint takes about .* GiB free"):
        train(recipes.recipe(tmp_path))


COMMANDS = [
    Command("duplicate groups", lambda f: ["train", str(written(f, "r.yaml", "name: a\nname: b\n"))], "stands twice"),
    Command(
        "a message of several lines",
        lambda f: ["train", str(written(f, "r.yaml", "name: [a\nb: c\n"))],
        "is not valid YAML",
    ),
    Command("a folder", lambda f: ["train", str(f)], "is a folder and no run"),
    Command(
        "a pipeline's name that climbs",
        lambda f: ["pipeline", "name=.."],
        "name must be that of one folder inside output_dir",
    ),
]


@parametrized(COMMANDS)
def test_a_malformed_recipe_is_one_line_and_code_2(case: Command, tmp_path: Path) -> None:
    check(case, tmp_path)

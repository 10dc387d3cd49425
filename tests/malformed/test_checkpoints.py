"""Checkpoint folders that are damaged, foreign or hostile: each is one error that names what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.malformed.case import Case, check, is_root, parametrized
from tests.malformed.checkpoint_folders import (
    INDEX,
    LFS,
    all_of,
    case,
    copied,
    cut,
    edited,
    entry,
    header,
    linked,
    made_folder,
    mapped,
    opened,
    removed,
    replaced,
)
from tests.models.published import tiny

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000


def huge(model: Path) -> None:
    """A configuration of 65 MiB that takes no disk."""
    with (model / CONFIG).open("r+b") as file:
        file.truncate(65 * 2**20)


def pipe(file: str) -> Any:
    def change(model: Path) -> None:
        (model / file).unlink()
        os.mkfifo(model / file)

    return change


def closed(file: str) -> Any:
    return lambda model: (model / file).chmod(0)


CONFIGURATIONS = [
    case("no config.json", "There is no model in", removed(CONFIG)),
    case("config empty", "config.json is not valid JSON", replaced(CONFIG, "")),
    case("config cut", "config.json is not valid JSON", cut(CONFIG, 40)),
    case("config a list", "config.json must hold a JSON object, got list", replaced(CONFIG, "[]")),
    case("config a string", "config.json must hold a JSON object, got str", replaced(CONFIG, '"llama"')),
    case("config null", "config.json must hold a JSON object, got NoneType", replaced(CONFIG, "null")),
    case("config UTF-16", "config.json is not text in UTF-8", replaced(CONFIG, '{"a": 1}'.encode("utf-16"))),
    case("config Latin-1", "config.json is not text in UTF-8", replaced(CONFIG, b'{"a": "\xe9"}')),
    case("config zeros", "config.json is not valid JSON", replaced(CONFIG, b"\0" * 512)),
    case("config deep", "nested too deeply", replaced(CONFIG, '{"a": ' + DEEP + "}")),
    case("config number of 5,000 digits", "config.json is not valid JSON", replaced(CONFIG, f'{{"a": {LONG}}}')),
    case("config of 65 MiB", "config.json has 68,157,440 bytes", huge),
    case("config a Git-LFS pointer", "config.json is a Git-LFS pointer", replaced(CONFIG, LFS)),
    case("config HTML", "config.json is not valid JSON", replaced(CONFIG, "<!DOCTYPE html><html></html>")),
    case("config Python", "config.json is not valid JSON", replaced(CONFIG, "{'model_type': 'qwen3'}")),
    case("no model type", "has no model type in its config.json: None", edited(CONFIG, model_type=None)),
    case("model type a list", "has no model type in its config.json", edited(CONFIG, model_type=["qwen3"])),
    case("model type misspelt", "is not supported", edited(CONFIG, model_type="qwen33")),
    case("model type of another program", "is a `gpt2` model", edited(CONFIG, model_type="gpt2")),
    case("generation config a list", "generation_config.json must hold", replaced("generation_config.json", "[]")),
    case("generation config deep", "nested too deeply", replaced("generation_config.json", DEEP)),
    case("architectures a string", "must be a list", edited(CONFIG, architectures="Qwen3ForCausalLM")),
    case("weights named by the configuration", "names its weights itself", edited(CONFIG, transformers_weights="../w")),
    case("eos a text", "config.json", edited(CONFIG, eos_token_id="</s>")),
    case("unknown type of weights", "dtype", edited(CONFIG, dtype="float12")),
    case("unknown activation", "hidden_act", edited(CONFIG, hidden_act="magic")),
    case("rotary base of text", "rope_theta", edited(CONFIG, rope_theta="1e6")),
    case(
        "rope parameters a list", "`rope_parameters: [1]`, which must be an object", edited(CONFIG, rope_parameters=[1])
    ),
    case("unknown rope type", "rope", edited(CONFIG, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})),
    case("eps zero", "`rms_norm_eps: 0`", edited(CONFIG, rms_norm_eps=0)),
    case("eps of text", "`rms_norm_eps: '1e-6'`", edited(CONFIG, rms_norm_eps="1e-6")),
    case("tied a text", "tie_word_embeddings", edited(CONFIG, tie_word_embeddings="yes")),
    case("layer types of another length", "layer_types", edited(CONFIG, layer_types=["full_attention"] * 3)),
    case("layer types unknown", "layer", edited(CONFIG, layer_types=["half_attention"])),
]

SIZES = [
    case(f"{name} {value!r}", f"`{name}: ", edited(CONFIG, **{name: value}))
    for name, values in {
        "hidden_size": (0, -16, 10**12, "16", 16.5, None, [16], True, 10**40),
        "intermediate_size": (-1, 10**12, "big"),
        "num_hidden_layers": (-1, 10**12, 1.0, {"a": 1}),
        "num_attention_heads": (0, -2, 10**12, "2"),
        "num_key_value_heads": (0, -1, 10**12, "1"),
        "head_dim": (0, -2, 10**12, "8"),
        "vocab_size": (0, -5, 10**12, None, "258"),
        "max_position_embeddings": (0, -1, 10**12, "long"),
    }.items()
    for value in values
] + [
    case("three heads for keys", "must divide them", edited(CONFIG, num_attention_heads=4, num_key_value_heads=3)),
    case("head of odd width", "rotary positions need pairs", edited(CONFIG, head_dim=7)),
    case("width no multiple", "must be a multiple", edited(CONFIG, head_dim=None, num_attention_heads=3)),
    case(
        "far larger than its files",
        "at least 68,746,739,712 numbers",
        edited(CONFIG, hidden_size=2**18, vocab_size=2**18),
    ),
    case(
        "many more layers than its files",
        "at least",
        edited(CONFIG, num_hidden_layers=1024, layer_types=None, hidden_size=2048),
    ),
    case("one layer too many", "missing_keys: model.layers.1.", edited(CONFIG, num_hidden_layers=2, layer_types=None)),
    case("no layer", "`num_hidden_layers: 0`", edited(CONFIG, num_hidden_layers=0)),
    case("one row too many", "(file (259, 16), model (260, 16))", edited(CONFIG, vocab_size=260)),
]

QUANTIZED = [
    case(
        f"quantised by {method}",
        f"quantised by {method}, and only whole ones open here",
        edited(CONFIG, quantization_config={"quant_method": method, "bits": 4, "group_size": 128}),
    )
    for method in ("gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes", "mxfp4", "torchao", "hqq", "eetq")
] + [
    case("quantised by nobody", "quantised by an unnamed method", edited(CONFIG, quantization_config={})),
    case("quantised as a text", "quantised by int4", edited(CONFIG, quantization_config="int4")),
    case("quantised as a list", "quantised by [4]", edited(CONFIG, quantization_config=[4])),
    case("old key of compressed tensors", "quantised by sparseml", edited(CONFIG, compression_config="sparseml")),
    case("NVIDIA's key", "quantised by NVFP4", edited(CONFIG, quantization_config={"quant_algo": "NVFP4"})),
]

FOREIGN = [
    case(f"{name} as {type_}", name, edited(CONFIG, model_type=type_, architectures=[name]))
    for type_, name in (
        ("qwen2", "Qwen2ForRewardModel"),
        ("qwen2", "Qwen2ForProcessRewardModel"),
        ("qwen2", "Qwen2Model"),
        ("qwen2", "DreamModel"),
        ("qwen2", "Fast_dLLM_QwenForCausalLM"),
        ("qwen3", "Qwen3ForSequenceClassification"),
        ("qwen3", "Qwen3Model"),
        ("qwen3", "SDARForCausalLM"),
        ("qwen3", "A2DQwen3LMHeadModel"),
        ("qwen3_moe", "SDARMoeForCausalLM"),
        ("llama", "StableDiffcoderForCausalLM"),
        ("llama", "LlamaForTokenClassification"),
        ("llama", "LLaDAModelLM"),
        ("llama", "LlamaBidirectionalModel"),
        ("llama", "Qwen3ForCausalLM"),
        ("llada", "LLaDAMoEModelLM"),
        ("llada2_moe", "LLaDA2MoeModelLM"),
        ("nemotron_labs_diffusion", "NemotronLabsDiffusionModel"),
        ("wedlm", "WeDLMForCausalLM"),
        ("Dream", "DreamReasonerModel"),
    )
] + [
    case(
        "code of its own under the stock name",
        "has code of its own",
        edited(CONFIG, auto_map={"AutoModelForCausalLM": "modeling_qwen.Qwen3ForCausalLM"}),
    ),
    case("a configuration of its own", "AutoConfig is c.C", edited(CONFIG, auto_map={"AutoConfig": "c.C"})),
    case("embedding model", "embedding model of sentence-transformers", replaced("modules.json", "[]")),
    case("a mask token unexplained", "`mask_token_id: 5`", edited(CONFIG, diffusion=None, mask_token_id=5)),
    case("blocks unexplained", "`bd_size: 32`", edited(CONFIG, diffusion=None, bd_size=32)),
]


ENTRIES = (
    [
        case(f"entry {value!r}", f"must be an object, got {type(value).__name__}", edited(CONFIG, diffusion=value))
        for value in ([], "masked_diffusion", 3, True)
    ]
    + [
        case(f"entry {name} {value!r}", message, entry(**{name: value}))
        for name, value, message in (
            ("method", "masked", "unknown method `masked`. Did you mean `masked_diffusion`"),
            ("method", None, "unknown method `None`"),
            ("method", ["tidar"], "unknown method"),
            ("vocabulary_size", 0, "`vocabulary_size: 0`, which must be a whole number"),
            ("vocabulary_size", 10**12, "`vocabulary_size: 1000000000000`"),
            ("vocabulary_size", "258", "`vocabulary_size: '258'`"),
            ("vocabulary_size", 100_000, "names ids beyond its 259 embedding rows"),
            ("mask_token_id", None, "has no mask_token_id, which masked_diffusion needs"),
            ("mask_token_id", -1, "`mask_token_id: -1`, which must be a token id"),
            ("mask_token_id", 10**6, "beyond its vocabulary_size 259"),
            ("mask_token_id", "[MASK]", "`mask_token_id: '[MASK]'`"),
            ("mask_token_id", 258.0, "`mask_token_id: 258.0`"),
            ("block_length", 0, "`block_length: 0`"),
            ("block_length", "4", "`block_length: '4'`"),
            ("clean_ratio", 2, "`clean_ratio: 2`, which must be a number between 0 and 1"),
            ("logit_shift", "no", "`logit_shift: 'no'`, which must be true or false"),
            ("schedule", "quadratic", "unknown schedule `quadratic`"),
            ("schedule_power", -1, "`schedule_power: -1`"),
            ("schedule_power", "2", "`schedule_power: '2'`"),
            ("decoding", ["canvas"], "must be an object of sampling parameters"),
            ("decoding", {"temprature": 1}, "default decoding in the `diffusion` entry"),
            ("decoding", {"temperature": -1}, "temperature"),
            ("published", 5, "`published: 5`, which must be an object"),
            ("version", 2, "a newer one needs a newer Unmask"),
            ("version", "1", "`version: '1'`"),
            ("blocks", 4, "unknown key `blocks`"),
        )
    ]
    + [case("entry of blocks without a length", "has no block_length", entry(method="block_diffusion"))]
)

INDEXES = [
    case(
        f"index names {place!r}", "must be the name of a .safetensors file in its own folder", mapped(place), "sharded"
    )
    for place in (
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/../../model.safetensors",
        "sub/model.safetensors",
        "pytorch_model.bin",
        "model.safetensors\0",
        "",
        ".",
        5,
        None,
        ["model.safetensors"],
    )
] + [
    case("index empty", "is not valid JSON", replaced(INDEX, ""), "sharded"),
    case("index a list", "must hold a JSON object, got list", replaced(INDEX, "[]"), "sharded"),
    case("index without a map", "weight_map of", replaced(INDEX, "{}"), "sharded"),
    case("index with a list", "got list", replaced(INDEX, '{"weight_map": []}'), "sharded"),
    case("index with an empty map", "weights in its index", replaced(INDEX, '{"weight_map": {}}'), "sharded"),
    case("index deep", "nested too deeply", replaced(INDEX, DEEP), "sharded"),
    case("index a pointer", "Git-LFS pointer", replaced(INDEX, LFS), "sharded"),
    case("index names a missing shard", "has no gone.safetensors", mapped("gone.safetensors"), "sharded"),
    case("shard missing", "has no model-00001-of-", lambda model: min(model.glob("model-*")).unlink(), "sharded"),
    case(
        "shard links into nothing",
        "cannot be opened: No such file",
        lambda model: linked(min(model.glob("model-*")).name, "../blobs/gone")(model),
        "sharded",
    ),
    case("two models", "holds two models", replaced(WEIGHTS, header({})), "sharded"),
]

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FILES = [
    case("no weights", "has no model.safetensors", removed(WEIGHTS)),
    case("weights empty", "header of", replaced(WEIGHTS, "")),
    case("weights three bytes", "a header of", replaced(WEIGHTS, b"abc")),
    case("weights a Git-LFS pointer", "model.safetensors is a Git-LFS pointer", replaced(WEIGHTS, LFS)),
    case("weights garbage", "is damaged", replaced(WEIGHTS, b"\xff" * 4096)),
    case("weights cut after the header", "ends before its last tensor", cut(WEIGHTS, 6000)),
    case("weights cut in the header", "is damaged", cut(WEIGHTS, 500)),
    case("header a list", "is damaged", replaced(WEIGHTS, header([]))),
    case("header deep", "is damaged", replaced(WEIGHTS, header(DEEP))),
    case("header of a number", "is damaged", replaced(WEIGHTS, header('{"a": 5}'))),
    case(
        "header of 2^60 bytes",
        "a header of 1152921504606846976 bytes",
        replaced(WEIGHTS, (2**60).to_bytes(8, "little")),
    ),
    case(
        "unknown type", "unknown type 'F31'", replaced(WEIGHTS, header({"a": F32 | {"dtype": "F31"}}, values=b"0" * 8))
    ),
    case(
        "negative shape", "no list of sizes", replaced(WEIGHTS, header({"a": F32 | {"shape": [-2]}}, values=b"0" * 8))
    ),
    case("shape of 10^12", "not what its shape", replaced(WEIGHTS, header({"a": F32 | {"shape": [10**12]}}))),
    case("shape of 10^40", "no list of sizes", replaced(WEIGHTS, header({"a": F32 | {"shape": [10**40]}}))),
    case("offsets of text", "no list of sizes", replaced(WEIGHTS, header({"a": F32 | {"data_offsets": ["0", "8"]}}))),
    case("three offsets", "is damaged", replaced(WEIGHTS, header({"a": F32 | {"data_offsets": [0, 4, 8]}}))),
    case("offsets backwards", "not what its shape", replaced(WEIGHTS, header({"a": F32 | {"data_offsets": [8, 0]}}))),
    case("another model's tensors", "do not fit", replaced(WEIGHTS, header({"a": F32}, values=b"0" * 8))),
    case("weights a folder", "model.safetensors is a folder", made_folder(WEIGHTS)),
    case("weights a loop of links", "Too many levels of symbolic links", linked(WEIGHTS, WEIGHTS)),
    case("weights a dangling link", "leads to ../gone, which cannot be opened", linked(WEIGHTS, "../gone")),
    case("weights a pipe", "no ordinary file", pipe(WEIGHTS)),
    case("config a folder", "config.json is a folder", made_folder(CONFIG)),
    case("config a dangling link", "leads to nowhere", linked(CONFIG, "nowhere")),
    case("config a loop of links", "Too many levels of symbolic links", linked(CONFIG, CONFIG)),
    case("config a pipe", "config.json is no ordinary file", pipe(CONFIG)),
    case("config the null device", "config.json is no ordinary file", linked(CONFIG, "/dev/null")),
]


PICKLED = [
    case(
        f"only {name}",
        f"It has pickled weights ({name}), which Unmask does not open",
        all_of(removed(WEIGHTS), replaced(name, b"\x80\x02}q\x00.")),
    )
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt", "m.ckpt")
] + [
    case(
        "the command that converts",
        "use_safetensors=False).save_pretrained('OUT')",
        all_of(removed(WEIGHTS), replaced("pytorch_model.bin", b""), replaced("pytorch_model.bin.index.json", "{}")),
    ),
    case(
        "only GGUF",
        "It has q4.gguf, which is for another program",
        all_of(removed(WEIGHTS), replaced("q4.gguf", b"GGUF")),
    ),
    case("only TensorFlow", "tf_model.h5, which is for", all_of(removed(WEIGHTS), replaced("tf_model.h5", b""))),
    case(
        "an adapter's pickle",
        "save_file(",
        all_of(removed("adapter_model.safetensors"), replaced("adapter_model.bin", b"")),
        "adapter",
    ),
]


TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def without_vocabulary(model: Path) -> None:
    content = json.loads((model / TOKENIZER).read_text("utf-8"))
    content["model"]["vocab"] = {}
    (model / TOKENIZER).write_text(json.dumps(content), "utf-8")


TOKENIZERS = [
    case("tokenizer missing, its configuration there", "it has none of tokenizer.json", removed(TOKENIZER)),
    case("tokenizer empty", "tokenizer.json is not valid JSON", replaced(TOKENIZER, "")),
    case("tokenizer cut", "tokenizer.json is not valid JSON", cut(TOKENIZER, 300)),
    case("tokenizer a list", "tokenizer.json must hold a JSON object, got list", replaced(TOKENIZER, "[]")),
    case("tokenizer an empty object", "holds no `model`", replaced(TOKENIZER, "{}")),
    case("tokenizer without a model", "holds no `model`", edited(TOKENIZER, model=None)),
    case(
        "tokenizer of an unknown model",
        "There is no usable tokenizer",
        edited(TOKENIZER, model={"type": "X", "vocab": {"a": 0}}),
    ),
    case("tokenizer without vocabulary", "holds no `model` with a vocabulary", without_vocabulary),
    case("tokenizer of a newer version", "There is no usable tokenizer", edited(TOKENIZER, version="9.0")),
    case("tokenizer with an unknown decoder", "There is no usable tokenizer", edited(TOKENIZER, decoder={"type": "X"})),
    case("tokenizer with wrong added tokens", "There is no usable tokenizer", edited(TOKENIZER, added_tokens=5)),
    case("tokenizer a pointer", "tokenizer.json is a Git-LFS pointer", replaced(TOKENIZER, LFS)),
    case("tokenizer a folder", "tokenizer.json is a folder", made_folder(TOKENIZER)),
    case("tokenizer a dangling link", "leads to x", linked(TOKENIZER, "x")),
    case("tokenizer deep", "nested too deeply", replaced(TOKENIZER, DEEP)),
    case("tokenizer Latin-1", "not text in UTF-8", replaced(TOKENIZER, b"\xe9")),
    case("tokenizer config a list", "tokenizer_config.json must hold", replaced(TOKENIZER_CONFIG, "[]")),
    case("tokenizer config empty", "tokenizer_config.json is not valid JSON", replaced(TOKENIZER_CONFIG, "")),
    case("tokenizer config deep", "nested too deeply", replaced(TOKENIZER_CONFIG, DEEP)),
    case(
        "tokenizer class unknown",
        "There is no usable tokenizer",
        edited(TOKENIZER_CONFIG, tokenizer_class="NoSuchTokenizer", auto_map=None),
    ),
    case("tokenizer class a list", "There is no usable tokenizer", edited(TOKENIZER_CONFIG, tokenizer_class=["A"])),
    case("bos token a number", "There is no usable tokenizer", edited(TOKENIZER_CONFIG, bos_token=5)),
    case("special tokens map a list", "special_tokens_map.json must hold", replaced("special_tokens_map.json", "[]")),
    case("added tokens garbage", "added_tokens.json is not valid JSON", replaced("added_tokens.json", "{")),
    case("merges a pointer", "merges.txt is a Git-LFS pointer", replaced("merges.txt", LFS)),
    case("sentencepiece a pointer", "tokenizer.model is a Git-LFS pointer", replaced("tokenizer.model", LFS)),
]


ADAPTER, FACTS, LORA = "adapter_config.json", "diffusion.json", "adapter_model.safetensors"
ADAPTERS = [
    case(name, message, change, "adapter")
    for name, message, change in (
        ("adapter config empty", "adapter_config.json is not valid JSON", replaced(ADAPTER, "")),
        ("adapter config a list", "adapter_config.json must hold", replaced(ADAPTER, "[]")),
        ("adapter config an empty object", "of a kind that is not supported", replaced(ADAPTER, "{}")),
        ("adapter config a pointer", "adapter_config.json is a Git-LFS pointer", replaced(ADAPTER, LFS)),
        ("adapter config a folder", "adapter_config.json is a folder", made_folder(ADAPTER)),
        ("adapter of another kind", "peft_type IA3", edited(ADAPTER, peft_type="IA3")),
        ("adapter kind a list", "of a kind that is not supported", edited(ADAPTER, peft_type=["LORA"])),
        ("adapter with whole modules", "modules_to_save ['lm_head']", edited(ADAPTER, modules_to_save=["lm_head"])),
        ("adapter of rank 0", "adapter", edited(ADAPTER, r=0)),
        ("adapter of rank -1", "adapter", edited(ADAPTER, r=-1)),
        ("adapter of rank 10^12", "adapter", edited(ADAPTER, r=10**12)),
        ("adapter rank a text", "adapter", edited(ADAPTER, r="2")),
        ("adapter alpha a text", "adapter", edited(ADAPTER, lora_alpha="16")),
        ("adapter without targets", "adapter", edited(ADAPTER, target_modules=None)),
        ("adapter targets nothing", "adapter", edited(ADAPTER, target_modules=["no_such_layer"])),
        ("adapter targets a number", "adapter", edited(ADAPTER, target_modules=5)),
        ("adapter without base", "adapter", edited(ADAPTER, base_model_name_or_path=None)),
        ("adapter base a number", "adapter", edited(ADAPTER, base_model_name_or_path=5)),
        ("adapter base is gone", "lacks its base model", edited(ADAPTER, base_model_name_or_path="/no/such/base")),
        ("adapter of another row", "trainable_token_indices [3]", edited(ADAPTER, trainable_token_indices=[3])),
        ("adapter weights missing", "has no adapter_model.safetensors", removed(LORA)),
        ("adapter weights cut", "adapter_model.safetensors", cut(LORA, 900)),
        ("adapter weights a pointer", "adapter_model.safetensors is a Git-LFS pointer", replaced(LORA, LFS)),
        ("adapter weights of another", "do not fit its base", replaced(LORA, header({"a": F32}, values=b"0" * 8))),
        ("adapter weights a folder", "adapter_model.safetensors is a folder", made_folder(LORA)),
        ("adapter facts empty", "diffusion.json is not valid JSON", replaced(FACTS, "")),
        ("adapter facts a list", "diffusion.json must hold", replaced(FACTS, "[]")),
        ("adapter facts gone", "of a kind that is not supported", removed(FACTS)),
        ("adapter entry a text", "must be an object, got str", edited(FACTS, diffusion="x")),
        ("adapter type unknown", "`dtype: 'float12'`", edited(FACTS, dtype="float12")),
        ("adapter type a number", "`dtype: 5`", edited(FACTS, dtype=5)),
        ("adapter quantisation unknown", "`quantization: 'int3'`", edited(FACTS, quantization="int3")),
        (
            "adapter vocabulary too large",
            "embedding rows",
            lambda model: edited(
                FACTS,
                diffusion=json.loads((model / FACTS).read_text("utf-8"))["diffusion"] | {"vocabulary_size": 10**6},
            )(model),
        ),
    )
]


ADAPTERS += [
    case(f"adapter {name} {value!r}", "adapter", edited(ADAPTER, **{name: value}), "adapter")
    for name, value in (
        ("bias", "x"),
        ("bias", None),
        ("alpha_pattern", 5),
        ("megatron_config", {"a": 1}),
        ("layer_replication", [1]),
        ("init_lora_weights", [1]),
        ("layers_to_transform", "x"),
        ("exclude_modules", 1.5),
    )
]


def published(name: str, message: str, **fields: Any) -> Case:
    """A checkpoint in LLaDA's format, with keys of its config.json changed."""

    def use(folder: Path) -> object:
        config = tiny.llada()
        return opened(tiny.write(folder / "m", config | fields, tiny.random_tensors(config)))

    return Case(f"published: {name}", use, message)


PUBLISHED = [
    published("10^12 layers", "`num_hidden_layers: 1000000000000`", n_layers=10**12),
    published("10^40 layers", "a number of more than 30 digits", n_layers=10**40),
    published("no heads", "`num_attention_heads: 0`", n_heads=0),
    published("negative width", "`hidden_size: -32`", d_model=-32),
    published("width of text", "`hidden_size: '32'`", d_model="32"),
    published("MLP of a list", "`intermediate_size: [48]`", mlp_hidden_size=[48]),
    published("architectures a number", "must be a list", architectures=5),
    published("type of weights a list", "`torch_dtype: ['x']`", torch_dtype=["x"]),
    published("eos a text", "`eos_token_id: 'x'`", eos_token_id="x"),
    published("mask of text", "mask token id m", mask_token_id="m"),
    published("quantised", "quantised by gptq", quantization_config={"quant_method": "gptq"}),
    published("rotary base of text", "contradicts itself", rope_theta="1e6"),
]


def adapter_on_itself(folder: Path) -> object:
    model = copied(folder, "adapter")
    edited(ADAPTER, base_model_name_or_path=str(model))(model)
    return opened(model)


def hub(name: str) -> Case:
    return Case(f"hub id {name!r}", lambda folder: opened(name), "There is no folder")  # type: ignore[arg-type]


NAMES = [
    hub("Qwen/Qwen3-0.6B"),
    hub("a/b/c"),
    hub("a b/c d"),
    hub("-x/y"),
    hub("a/..b"),
    hub("a/" + "x" * 200),
    hub("a/b.git"),
    hub("gpt2"),
    hub("./gone"),
    hub("~nouser/x"),
    hub("\u00e4/\u00f6"),
    Case("a hub id with NUL", lambda folder: opened("a/b\0"), "name must be a run folder"),  # type: ignore[arg-type]
    Case("an empty name", lambda folder: opened(""), "name must be a run folder"),  # type: ignore[arg-type]
    Case("an adapter on itself", adapter_on_itself, "is an adapter itself"),
    Case("an empty folder", lambda folder: opened(folder), "There is no model in"),
    Case("a file", lambda folder: opened(_file(folder)), "and a model is a folder"),
    Case("a sound folder", lambda folder: opened(copied(folder)).backbone.diffusion.method, value="masked_diffusion"),
    Case("sound shards", lambda folder: opened(copied(folder, "sharded")).backbone.diffusion.mask_token_id, value=258),
    Case(
        "a sound adapter", lambda folder: opened(copied(folder, "adapter")).backbone.diffusion.mask_token_id, value=258
    ),
    Case(
        "pickled weights beside sound ones",
        lambda folder: (
            bool(replaced("pytorch_model.bin", b"")(copied(folder))) or opened(folder / "m").tokenizer is None
        ),
        value=False,
    ),
]


def _file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file"


PERMISSIONS = [
    case("config without permission", "cannot be read: Permission denied", closed(CONFIG)),
    case("weights without permission", "cannot be read: Permission denied", closed(WEIGHTS)),
]

TABLES = [
    CONFIGURATIONS,
    SIZES,
    QUANTIZED,
    FOREIGN,
    ENTRIES,
    INDEXES,
    FILES,
    PICKLED,
    TOKENIZERS,
    ADAPTERS,
    PUBLISHED,
    NAMES,
]


@parametrized([one for table in TABLES for one in table])
def test_checkpoints(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.skipif(is_root(), reason="permissions do not bind root")
@parametrized(PERMISSIONS)
def test_checkpoints_without_permission(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)

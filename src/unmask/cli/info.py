"""`unmask info RUN_OR_MODEL`: what a checkpoint is and needs, without loading its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from unmask.cli.options import parser, quiet_libraries
from unmask.cli.output import show, show_json

_EXAMPLES = """\
  unmask info runs/python-docs
  unmask info GSAI-ML/LLaDA-8B-Instruct            # of a hub id too, without downloading its weights
  unmask info runs/python-docs --json
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("info", "What a checkpoint is and needs, without loading its weights.", _EXAMPLES)
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")
    parsed = options.parse_args(list(arguments))
    quiet_libraries()
    from unmask.reports.description import describe

    record = describe(parsed.model)
    if parsed.json:
        show_json(record, indent=2)
        return 0
    show(record["model"])
    for name, text in _lines(record):
        show(f"  {name:<11} {text}")
    return 0


def _lines(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The record for people: a word and what there is to say about it."""
    if record["run"] is not None:
        run = record["run"]
        yield "run", f"{', '.join(run['checkpoints']) or 'no checkpoints'}; best {run['best']}, latest {run['latest']}"
    if record["adapter"] is not None:
        adapter = record["adapter"]
        bits = ", on 4-bit weights" if adapter["quantization"] else ""
        yield "adapter", f"LoRA of rank {adapter['rank']} on {', '.join(adapter['targets'])}{bits}"
        yield "base", adapter["base"]
    yield "format", f"{record['format']}, opens as {record['network']}"
    yield "method", _method(record)
    yield "parameters", f"{record['parameters']:,} ({record['parameters_without_embeddings']:,} without embeddings)"
    yield "network", _network(record)
    yield "context", f"{record['context_length']:,} tokens, rotary base {record['rope_theta']:,.0f}"
    tied = "tied" if record["tied_embeddings"] else "untied"
    yield "vocabulary", f"{record['vocabulary_size']:,} ids in {record['embedding_rows']:,} rows, {tied}"
    yield "tokenizer", _tokenizer(record)
    yield "stops at", ", ".join(map(str, record["stop_token_ids"])) or "no token"
    if record["stored"] is not None:
        stored = record["stored"]
        files = "1 file" if stored["files"] == 1 else f"{stored['files']} files"
        yield "on disk", f"{_size(stored['bytes'])} in {files}, {', '.join(stored['dtypes'])}"
    weights = {name: _size(count) for name, count in record["weights_memory"].items()}
    yield "weights", f"{weights['float32']} in fp32, {weights['bfloat16']} in bf16, {weights['nf4']} in 4-bit"
    training = {name: _size(count) for name, count in record["training_memory"].items()}
    yield "full AdamW", f"{training['adamw_float32']} in fp32, {training['adamw_bfloat16']} in bf16, and activations"
    yield "LoRA", f"{training['lora_bfloat16']} on bf16, {training['lora_nf4']} on 4-bit weights, and activations"
    yield "decoding", _decoding(record["decoding"])
    for problem in record["problems"]:
        yield "PROBLEM", problem


def _network(record: dict[str, Any]) -> str:
    heads, shared = record["attention_heads"], record["key_value_heads"]
    return (
        f"{record['layers']} layers of {record['hidden_size']:,}, MLP {record['intermediate_size']:,}, "
        f"{heads} heads of {record['head_dim']} over {shared} for keys and values"
    )


def _decoding(settings: dict[str, Any]) -> str:
    """The default decoding, without what is off and what belongs to a single call."""
    told = {key: value for key, value in settings.items() if key == "temperature" or value not in (0, False, "none")}
    named = [f"{key} {value}" for key, value in told.items() if key not in ("decoding", "max_new_tokens", "n", "seed")]
    return ", ".join([settings["decoding"], *named])


def _method(record: dict[str, Any]) -> str:
    if record["method"] == "autoregressive":
        return record["method"]
    mask = f"mask {record['mask_token_id']}" + (f" {record['mask_token']}" if record["mask_token"] else "")
    block = "" if record["block_length"] is None else f", blocks of {record['block_length']}"
    shift = ", read one place earlier (logit shift)" if record["logit_shift"] else ""
    return f"{record['method']}, schedule {record['schedule']}, {mask}{block}{shift}"


def _tokenizer(record: dict[str, Any]) -> str:
    if record["tokenizer"] is None:
        return "none"
    return f"{record['tokenizer']}, {'with' if record['chat_template'] else 'without'} chat template"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"

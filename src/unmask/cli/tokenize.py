"""`unmask tokenize --model MODEL --data SOURCE --out DIR`: conversations -> `.ckpt` files of tokens and loss masks."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unmask import config
from unmask.cli.options import Parser, parser, quiet_libraries
from unmask.cli.output import note, show
from unmask.destinations import check_folder
from unmask.errors import DataError, SettingsError
from unmask.runs import locate
from unmask.settings.data import DataSettings, OverLong, Supervise

_EXAMPLES = """\
  unmask tokenize --model Qwen/Qwen2.5-1.5B-Instruct --data ShareGPT.json --out train_data
  unmask tokenize --model Qwen/Qwen2.5-1.5B-Instruct --data ShareGPT.json --out train_data --start 0 --end 10000
  unmask train recipes/tidar-port.yaml data.train=train_data

Training reads conversations directly (data.format=chat); this is for what reads such files only.
"""
_REFUSED = {
    "num_processes": "a fast tokenizer reads a conversation in a fraction of a millisecond, so one process is enough",
    "gpus": "no network runs: the files hold tokens and what to learn, not the hidden states of a teacher",
}
"""Options of the port's script that have no place here, with the reason."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    parsed = _parser().parse_args(list(arguments))
    for name, reason in _REFUSED.items():
        if getattr(parsed, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is not an option here: {reason}. Leave it out.")
    stop = parsed.end if parsed.end is not None else sys.maxsize
    if not 0 <= parsed.start < stop or parsed.max_length < 2:
        raise SettingsError(
            f"--start must lie before --end and --max-length be at least 2, got --start {parsed.start}, --end "
            f"{parsed.end} and --max-length {parsed.max_length}."
        )
    settings = config.from_tree(
        DataSettings,
        {"format": "chat"} | {name: getattr(parsed, name) for name in ("chat_template", "supervise", "malformed")},
    )
    target = Path(parsed.out)
    check_folder(target, "--out")
    if target.exists():
        raise DataError(f"{target} exists already. Name another folder, or remove it: rm -r {target}")
    quiet_libraries()
    from unmask.data.chat import Conversations, Message
    from unmask.data.chat_tokens import ChatDocuments, ChatEncoder
    from unmask.data.templates import ChatTemplate, use_template
    from unmask.data.token_files import write_token_files
    from unmask.models.messages import readable
    from unmask.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(locate(parsed.model))
    use_template(tokenizer, settings.chat_template)
    sources = Conversations(parsed.data, settings)
    chosen = itertools.islice(sources, parsed.start, stop)
    if parsed.system_prompt:
        first = Message("system", readable(parsed.system_prompt, "--system-prompt"))
        chosen = (
            one if one.messages[0].role == "system" else dataclasses.replace(one, messages=(first, *one.messages))
            for one in chosen
        )
    documents = ChatDocuments(chosen, ChatEncoder(ChatTemplate(tokenizer)), settings.supervise, sources.malformed)
    written = write_token_files(documents, target, max_length=parsed.max_length, over_long=parsed.over_long)
    share = written.supervised / written.tokens
    note(
        f"{written.rows:,} rows, {written.tokens:,} tokens, {share:.0%} of them supervised; {written.cut:,} over-long "
        f"rows cut, {written.dropped:,} left out; {sources.skipped + documents.refused:,} malformed ones skipped",
    )
    show(target)
    return 0


def _parser() -> Parser:
    """The options, also under the names of the port's script (gendata_llama3.sh)."""
    options = parser("tokenize", "Write conversations as files of tokens and loss masks (data.format=ckpt).", _EXAMPLES)
    options.add_argument(
        "--model", "--model-path", "--model_path", metavar="MODEL", required=True, help="whose tokenizer and template"
    )
    options.add_argument(
        "--data",
        "--dataset-path",
        "--dataset_path",
        metavar="SOURCE",
        nargs="+",
        required=True,
        help="files, globs, folders or hf:NAME with conversations, as data.train with data.format=chat",
    )
    options.add_argument("--out", "--outdir", metavar="DIR", required=True, help="folder to make")
    options.add_argument("--start", type=int, default=0, metavar="N", help="first conversation [default: 0]")
    options.add_argument("--end", type=int, metavar="N", help="the one after the last [default: all]")
    options.add_argument(
        "--max-length", "--max_length", type=int, default=2048, metavar="N", help="tokens of a row [default: 2048]"
    )
    options.add_argument(
        "--over-long", choices=get_args(OverLong), default="cut", help="what to do with longer rows [default: cut]"
    )
    options.add_argument(
        "--system-prompt", "--system_prompt", metavar="TEXT", help="of conversations that have none [default: none]"
    )
    options.add_argument("--chat-template", metavar="NAME", help="llada, plain or a Jinja file [default: the model's]")
    options.add_argument(
        "--supervise", choices=get_args(Supervise), default="all", help="replies to learn [default: all]"
    )
    options.add_argument("--malformed", choices=("error", "skip"), default="error", help="rows that cannot be read")
    for name in _REFUSED:
        options.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, help=argparse.SUPPRESS)
    return options

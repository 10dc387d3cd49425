"""`unmask convert IN OUT [--to FORMAT] [--dtype DTYPE]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unmask.cli.options import parser, quiet_libraries
from unmask.errors import CheckpointError, SettingsError, nearest
from unmask.models.published.registry import FORMATS
from unmask.runs import locate, written_folder
from unmask.settings.model import Dtype

_EXAMPLES = """\
  unmask convert GSAI-ML/LLaDA-8B-Instruct models/llada              # theirs -> ours, which plain transformers opens
  unmask convert Dream-org/Dream-v0-Instruct-7B models/dream --dtype bfloat16
  unmask convert runs/my-llada exported --to llada                   # ours -> theirs, for the code that reads LLaDA's
"""
_OURS = "unmask"
_TARGETS = (_OURS, *FORMATS)
_DTYPES = ("auto", *get_args(Dtype))


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("convert", "Write a checkpoint in another format, whole or not at all.", _EXAMPLES)
    options.add_argument("source", metavar="IN", help="run folder, model folder or hub id, in any format that opens")
    options.add_argument("target", metavar="OUT", help="folder to make")
    options.add_argument("--to", metavar="FORMAT", default=_OURS, help=f"{', '.join(_TARGETS)} [default: {_OURS}]")
    options.add_argument(
        "--dtype", metavar="DTYPE", default="auto", help=f"{', '.join(_DTYPES)} [default: auto, as saved]"
    )
    options.add_argument(
        "--max-shard-size", "--max_shard_size", metavar="SIZE", default="5GB", help="largest file [default: 5GB]"
    )
    parsed = options.parse_args(list(arguments))
    target = Path(parsed.target)
    _check_options(parsed.to, parsed.dtype, parsed.max_shard_size)
    if target.exists():
        raise CheckpointError(f"{target} exists already. Name another folder, or remove it: rm -r {target}")
    quiet_libraries()
    from unmask.models import loading
    from unmask.models.published.writing import save_published

    checkpoint = loading.load(locate(parsed.source), dtype=parsed.dtype, device="cpu")
    if checkpoint.backbone.adapter is not None:
        raise CheckpointError(f"{parsed.source} is an adapter. Merge it into its base first: unmask merge ADAPTER OUT")
    with written_folder(target) as partial:
        if parsed.to == _OURS:
            loading.save(checkpoint, partial, max_shard_size=parsed.max_shard_size)
        else:
            save_published(checkpoint, partial, FORMATS[parsed.to], max_shard_size=parsed.max_shard_size)
    print(target)
    return 0


def _check_options(to: str, dtype: str, size: str) -> None:
    for option, value, allowed in (("--to", to, _TARGETS), ("--dtype", dtype, _DTYPES)):
        if value not in allowed:
            raise SettingsError(
                f"{option} must be one of {', '.join(allowed)}, got `{value}`. {nearest(value, allowed)}"
            )
    if re.fullmatch(r"\d+(\.\d+)?[KMGT]B", size) is None:
        raise SettingsError(f"--max-shard-size must be a number with a unit (5GB, 500MB), got `{size}`.")

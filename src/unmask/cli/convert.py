"""`unmask convert IN OUT [--to FORMAT] [--dtype DTYPE]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unmask.cli.options import parser, quiet_libraries
from unmask.errors import CheckpointError, SettingsError, nearest
from unmask.models.published.registry import TARGETS, target_format
from unmask.runs import locate, written_folder
from unmask.settings.model import Dtype

_EXAMPLES = """\
  unmask convert GSAI-ML/LLaDA-8B-Instruct models/llada              # theirs -> ours, which plain transformers opens
  unmask convert Dream-org/Dream-v0-Instruct-7B models/dream --dtype bfloat16
  unmask convert runs/my-llada exported --to llada                   # ours -> theirs, for the code that reads LLaDA's
  unmask convert runs/my-sdar exported --to sdar --remote-code DIR   # with the Python files in DIR that LMDeploy wants
"""
_OURS = "unmask"
_TARGETS = (_OURS, *TARGETS)
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
    options.add_argument(
        "--remote-code",
        "--remote_code",
        metavar="DIR",
        type=Path,
        help="with --to llada, dream or sdar: folder with its authors' Python files, which are copied, not run",
    )
    parsed = options.parse_args(list(arguments))
    target = Path(parsed.target)
    _check_options(parsed.to, parsed.dtype, parsed.max_shard_size)
    _check_code(parsed.to, parsed.remote_code)
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
            written = target_format(parsed.to, checkpoint.backbone.network.config.model_type)
            save_published(
                checkpoint,
                partial,
                written,
                max_shard_size=parsed.max_shard_size,
                remote_code=parsed.remote_code,
            )
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


def _check_code(to: str, folder: Path | None) -> None:
    if folder is None:
        return
    if to == _OURS:
        raise SettingsError(f"--remote-code goes with --to {', '.join(TARGETS)}: Unmask's own form needs no code.")
    if not folder.is_dir():
        raise SettingsError(f"--remote-code must be a folder with Python files, got {folder}.")

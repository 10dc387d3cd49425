"""`unmask convert IN OUT [--to FORMAT] [--dtype DTYPE] [--block-length N]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unmask.cli.options import parser, quiet_libraries
from unmask.cli.output import show
from unmask.destinations import check_folder
from unmask.errors import CheckpointError, SettingsError, nearest
from unmask.models.folders import check_new, written_model
from unmask.models.published.registry import TARGETS, target_format
from unmask.runs import locate
from unmask.settings.model import Dtype, Method
from unmask.settings.objective import ObjectiveSettings

_EXAMPLES = """\
  unmask convert GSAI-ML/LLaDA-8B-Instruct models/llada              # theirs -> ours, which plain transformers opens
  unmask convert Dream-org/Dream-v0-Instruct-7B models/dream --dtype bfloat16
  unmask convert runs/my-llada exported --to llada                   # ours -> theirs, for the code that reads LLaDA's
  unmask convert runs/my-sdar exported --to sdar --remote-code DIR   # with the Python files in DIR that LMDeploy wants
  unmask convert Qwen/Qwen2.5-1.5B models/tidar --to tidar           # autoregressive -> to be trained as TiDAR
"""
_OURS = "unmask"
_TIDAR = "tidar"
_TARGETS = (_OURS, _TIDAR, *TARGETS)
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
    options.add_argument(
        "--block-length",
        "--block_length",
        metavar="N",
        type=int,
        help="with --to tidar: tokens of a draft [default: the checkpoint's, else 8]",
    )
    parsed = options.parse_args(list(arguments))
    target = Path(parsed.target)
    _check_options(parsed.to, parsed.dtype, parsed.max_shard_size)
    _check_code(parsed.to, parsed.remote_code)
    objective = _objective(parsed.to, parsed.block_length)
    check_folder(target, "OUT")
    check_new(target)
    quiet_libraries()
    from unmask.models import loading
    from unmask.models.published.writing import save_published

    checkpoint = loading.load(locate(parsed.source), dtype=parsed.dtype, device="cpu")
    if checkpoint.backbone.adapter is not None:
        raise CheckpointError(f"{parsed.source} is an adapter. Merge it into its base first: unmask merge ADAPTER OUT")
    if objective is not None:
        _check_causal(checkpoint.backbone.diffusion.method, parsed.source)
        checkpoint = loading.adapted(checkpoint, objective)
    with written_model(target) as partial:
        if parsed.to in (_OURS, _TIDAR):
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
    show(target)
    return 0


def _objective(to: str, block_length: int | None) -> ObjectiveSettings | None:
    """What the checkpoint is to become, where it is not only to be written in another form."""
    if to == _TIDAR:
        return ObjectiveSettings(method="tidar", block_length=block_length)
    if block_length is not None:
        raise SettingsError(f"--block-length goes with --to {_TIDAR}: another form keeps what the checkpoint is.")
    return None


def _check_causal(method: Method, source: str) -> None:
    if method not in ("autoregressive", "tidar"):
        raise CheckpointError(
            f"{source} was trained by {method} and does not predict next tokens, which TiDAR talks in. Convert an "
            "autoregressive checkpoint, or train this one by a recipe with objective.method=tidar."
        )


def _check_options(to: str, dtype: str, size: str) -> None:
    for option, value, allowed in (("--to", to, _TARGETS), ("--dtype", dtype, _DTYPES)):
        if value not in allowed:
            raise SettingsError(
                f"{option} must be one of {', '.join(allowed)}, got `{value}`. {nearest(value, allowed)}"
            )
    if re.fullmatch(r"\d+(\.\d+)?[KMGT]B", size, re.ASCII) is None or not float(size[:-2]):
        raise SettingsError(f"--max-shard-size must be a number with a unit (5GB, 500MB), got `{size}`.")


def _check_code(to: str, folder: Path | None) -> None:
    if folder is None:
        return
    if to in (_OURS, _TIDAR):
        raise SettingsError(f"--remote-code goes with --to {', '.join(TARGETS)}: Unmask's own form needs no code.")
    if not folder.is_dir():
        raise SettingsError(f"--remote-code must be a folder with Python files, got {folder}.")

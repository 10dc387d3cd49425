"""`unmask merge ADAPTER OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unmask.cli.options import parser, quiet_libraries
from unmask.cli.output import note, show
from unmask.destinations import check_folder
from unmask.errors import CheckpointError
from unmask.models.folders import check_new, written_model

_EXAMPLES = """\
  unmask merge runs/stories-lora merged                 # a run's adapter and its base -> one model folder
  unmask merge runs/stories-lora merged --dtype bfloat16
  unmask generate merged "Once upon a time"
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("merge", "Merge an adapter into its base: one folder that plain transformers opens.", _EXAMPLES)
    options.add_argument("adapter", metavar="ADAPTER", help="run or folder of an adapter, or hub id")
    options.add_argument("out", metavar="OUT", help="folder to write")
    options.add_argument(
        "--dtype",
        metavar="DTYPE",
        default="auto",
        help="type of the merged weights [default: that of training; over 4-bit weights, the base's own]",
    )
    parsed = options.parse_args(list(arguments))
    out = Path(parsed.out)
    check_folder(out, "OUT")
    check_new(out)
    quiet_libraries()
    from unmask.models import adapters, loading
    from unmask.models.placement import dtype_of
    from unmask.runs import locate

    dtype = dtype_of(parsed.dtype)
    name = locate(parsed.adapter)
    saved = adapters.find(name)
    if saved is None:
        raise CheckpointError(f"{name} is a whole model, not an adapter: there is nothing to merge.")
    if saved.quantization is not None:
        note(
            f"The adapter was trained on {saved.quantization} weights and is merged into the whole weights of "
            f"{saved.base}, so its predictions differ a little from those in training.",
        )
    checkpoint = adapters.merged(loading.load(name, dtype=dtype, device="cpu", quantize=None))
    with written_model(out) as partial:
        loading.save(checkpoint, partial)
    show(out)
    return 0

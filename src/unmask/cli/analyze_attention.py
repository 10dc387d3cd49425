"""`unmask analyze attention RUN_OR_MODEL --text TEXT`: masks and attention weights as text and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import parser, quiet_libraries
from unmask.cli.output import note, show
from unmask.destinations import check_folder
from unmask.errors import PromptError, SettingsError, require

if TYPE_CHECKING:
    from unmask.analysis.attention_maps import AttentionMap
    from unmask.lm import DiffusionLM

_EXAMPLES = """\
  unmask analyze attention runs/stories-blocks --text "Once upon a time there was a little girl"
  unmask analyze attention runs/stories-blocks --text "Once upon a time" --block-length 2 --layout training --rule-only
  unmask analyze attention runs/stories-blocks --text "Once upon a time" --block-length 2 --head 1.3
"""
# A terminal shows the text pictures of this many columns at most.
_MOST_COLUMNS = 160


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("analyze attention", "What a model's tokens see and what its heads attend to.", _EXAMPLES)
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument("--text", required=True, metavar="TEXT", help="what the model reads")
    options.add_argument("--layout", metavar="NAME", help="one layout of the model's method [default: all that fit]")
    options.add_argument("--block-length", "--block_length", type=int, metavar="N", help="[default: the checkpoint's]")
    options.add_argument("--layers", metavar="LIST", help="layers to draw, such as 0,3 [default: all]")
    options.add_argument("--head", metavar="LAYER.HEAD", help="also print this head's weights, in shades")
    options.add_argument("--rule-only", "--rule_only", action="store_true", help="the masks alone, without weights")
    options.add_argument(
        "--output-dir", "--output_dir", type=Path, default=Path("analysis"), metavar="DIR", help="[default: analysis]"
    )
    parsed = options.parse_args(list(arguments))
    if parsed.block_length is not None and parsed.block_length < 1:
        raise SettingsError(f"--block-length must be at least 1, got {parsed.block_length}.")
    if parsed.rule_only and (parsed.head or parsed.layers):
        raise SettingsError("--head and --layers choose weights, and --rule-only leaves them out. Leave one out.")
    if not parsed.text:
        raise PromptError("--text is empty: there is nothing to look at. Give a sentence.")
    check_folder(parsed.output_dir, "--output-dir")
    require("matplotlib", extra="plots", purpose="A picture of attention")
    quiet_libraries()
    from unmask.analysis.attention_maps import attention_map, layouts
    from unmask.analysis.attention_pictures import draw_rule, draw_weights
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(parsed.model)
    entry = lm.backbone.diffusion
    ids = lm.codec.encode_all([parsed.text])[0]
    if len(ids) > lm.backbone.context_length:
        raise PromptError(
            f"--text has {len(ids)} tokens, and the model has {lm.backbone.context_length} positions. Shorten it."
        )
    names = [parsed.layout] if parsed.layout else layouts(entry)
    config = lm.backbone.network.config
    layers = _layers(parsed.layers, int(config.num_hidden_layers))
    if parsed.head is not None:
        _head(parsed.head, (int(config.num_hidden_layers), int(config.num_attention_heads)))
    drawn = 0
    for name in names:
        try:
            found = attention_map(
                lm.backbone, list(ids), name, block_length=parsed.block_length, weights=not parsed.rule_only
            )
        except SettingsError as error:
            if parsed.layout:
                raise
            note(f"{name}: {error}")
            continue
        drawn += 1
        queries, keys = (_words(lm, row.tolist()) for row in (found.query_ids, found.key_ids))
        files = [parsed.output_dir / f"{name}-rule.png"]
        draw_rule(found, queries, keys, files[0])
        if not parsed.rule_only:
            files.append(parsed.output_dir / f"{name}-weights.png")
            draw_weights(found, queries, keys, files[1], layers)
        _tell(found, keys, files, parsed.head)
    return 0 if drawn else 2


def _tell(found: AttentionMap, keys: Sequence[str], files: Sequence[Path], head: str | None) -> None:
    """The layout as text, if it fits a terminal, and where its pictures are."""
    from unmask.analysis.attention_maps import shaded

    show(f"{found.layout}: {' '.join(map(str, files))}")
    if len(keys) > _MOST_COLUMNS:
        return
    show("\n".join("".join("#" if seen else "." for seen in row) for row in found.sees_QK.tolist()))
    if head is not None and found.weights_NHQK.numel():
        layer, number = _head(head, found.weights_NHQK.shape[:2])
        show(f"layer {layer}, head {number}:\n{shaded(found.weights_NHQK[layer, number])}")


def _layers(text: str | None, count: int) -> list[int]:
    if text is None:
        return list(range(count))
    chosen = [int(part) if part.strip().isdigit() else -1 for part in text.split(",")]
    if any(not 0 <= layer < count for layer in chosen):
        raise SettingsError(f"--layers must be numbers from 0 to {count - 1} with commas between them, got {text}.")
    return chosen


def _head(text: str, shape: Sequence[int]) -> tuple[int, int]:
    layer, _, number = text.partition(".")
    if not (layer.isdigit() and number.isdigit() and int(layer) < shape[0] and int(number) < shape[1]):
        raise SettingsError(
            f"--head must be LAYER.HEAD, with layers 0 to {shape[0] - 1} and heads 0 to {shape[1] - 1}, got {text}."
        )
    return int(layer), int(number)


def _words(lm: DiffusionLM, ids: Sequence[int]) -> list[str]:
    """Each token as text for the margin of a picture; masks as a square."""
    from unmask.models.tokenizers import decode

    mask = lm.backbone.diffusion.mask_token_id
    words = []
    for token in ids:
        text = str(token) if lm.tokenizer is None else decode(lm.tokenizer, [token], special=True)
        words.append("\u25a1" if token == mask else text.replace("\n", "\u23ce").replace(" ", "\u00b7") or str(token))
    return words

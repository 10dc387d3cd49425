"""TiDAR against autoregression with the same weights: how many tokens a forward writes, how fast, at which price.

    python benchmarks/tidar_quality.py MODEL --before AR --texts-from FILE [--draft-lengths N ...]
        [--json FILE] [--png FILE]

MODEL is a TiDAR checkpoint that came from AR. The texts that training holds out are scored by both (exactly: a TiDAR
model is an autoregressive one), and their beginnings continued, greedily and at temperature 1, by MODEL token by token
and by drafts of each length in both modes. Greedy texts must be those of autoregression, up to near-ties of float32;
the share that is equal is told. Seconds are CPU time of one thread, on a GPU the time that passes.
Last line: one record.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
from block_quality import likelihood
from texts import beginning, stories

from unmask.lm import DiffusionLM
from unmask.outputs import Output
from unmask.settings.decoding import SamplingParams

TEMPERATURES = (0.0, 1.0)
MODES = ("parallel", "linear")
DRAFTS = (1, 2, 4, 8, 16)


def written(lm: DiffusionLM, prompts: list[str], params: SamplingParams) -> tuple[list[Output], dict[str, Any]]:
    """One text at a time, as a user waits for it, and what it took."""
    clock = time.process_time if lm.backbone.device.type == "cpu" else time.perf_counter
    began = clock()
    outputs = [output for prompt in prompts for output in lm.generate(prompt, params)]
    seconds = clock() - began
    tokens, forwards = (sum(len(one.token_ids) for one in outputs), sum(one.forwards for one in outputs))
    return outputs, {
        "tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": tokens / forwards,
        "tokens_per_second": tokens / seconds,
    }


def drafted(lm: DiffusionLM, prompts: list[str], plain: list[Output], params: SamplingParams) -> dict[str, Any]:
    """What a way of drafting takes, how many tokens its steps accept, and the share of texts equal to `plain`."""
    outputs, found = written(lm, prompts, params)
    counts = [sum(column) for column in itertools.zip_longest(*(one.acceptance for one in outputs), fillvalue=0)]
    steps = sum(counts)
    found["tokens_per_step"] = sum(number * count for number, count in enumerate(counts, start=1)) / max(1, steps)
    found["acceptance"] = counts
    if params.temperature == 0:  # above it each way draws a text of its own, by the same law
        same = sum(one.token_ids == other.token_ids for one, other in zip(outputs, plain, strict=True))
        found["equal_texts"] = same / len(outputs)
    return found


def measured(given: argparse.Namespace) -> dict[str, Any]:
    lm = DiffusionLM.from_pretrained(given.model, device=given.device).optimize_for_inference()
    if lm.backbone.diffusion.method != "tidar":
        raise SystemExit(f"{given.model} is no TiDAR model (its method is {lm.backbone.diffusion.method}).")
    texts = stories(given.texts_from, given.texts)
    prompts = [beginning(text) for text in texts]
    likelihoods = []
    for folder in [*given.before, given.model]:
        found = likelihood(DiffusionLM.from_pretrained(folder, device=given.device).optimize_for_inference(), texts)
        assert not found.is_bound, "the likelihood of autoregression and TiDAR is exact"
        likelihoods.append({"model": Path(folder).name, "bits_per_byte": found.bits_per_byte, "bytes": found.bytes})
    results = []
    for temperature in TEMPERATURES:
        common: dict[str, Any] = {"temperature": temperature, "max_new_tokens": given.new_tokens}
        plain_params = SamplingParams(decoding="autoregressive", **common)
        lm.generate(prompts[0], plain_params)  # so that no first use is timed
        plain, cost = written(lm, prompts, plain_params)
        results.append({"temperature": temperature, "mode": "autoregressive", **cost})
        for mode, draft in itertools.product(MODES, given.draft_lengths):
            params = SamplingParams(decoding="tidar", mode=mode, draft_length=draft, **common)
            found = drafted(lm, prompts, plain, params)
            speed = found["tokens_per_second"] / cost["tokens_per_second"]
            results.append({"temperature": temperature, "mode": mode, "draft": draft, **found, "speed": speed})
    settings = {"texts": len(texts), "new_tokens": given.new_tokens, "model": Path(given.model).name}
    return {"benchmark": "tidar_quality", **settings, "likelihood": likelihoods, "results": results}


def tables(record: dict[str, Any]) -> str:
    bounds = [[one["model"], one["bits_per_byte"]] for one in record["likelihood"]]
    rows = [
        [
            "greedy" if one["temperature"] == 0 else f"temperature {one['temperature']:g}",
            one["mode"],
            one.get("draft"),
            one["tokens_per_forward"],
            one.get("tokens_per_step"),
            one["tokens_per_second"],
            one.get("speed"),
            f"{one['equal_texts']:.0%}" if "equal_texts" in one else "",
        ]
        for one in record["results"]
    ]
    header = ["", "mode", "draft", "tokens/forward", "tokens/step", "tokens/s", "x autoregressive", "equal texts"]
    return f"{measure.table(['model', 'bits/byte'], bounds)}\n\n{measure.table(header, rows)}"


def draw(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Tokens per step, and speed over autoregression, by draft length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    from unmask.reports.curves import METHOD_COLOURS, OTHER_COLOURS

    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"tokens_per_step": "tokens per step", "speed": "speed over autoregression\n(batch 1)"}
    for axes, (name, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for mode, colour in zip(MODES, (METHOD_COLOURS["tidar"], METHOD_COLOURS["autoregressive"]), strict=True):
            for temperature, style in zip(TEMPERATURES, ("-", "--"), strict=True):
                own = [one for one in results if (one["mode"], one["temperature"]) == (mode, temperature)]
                told = f"{mode}, {'greedy' if temperature == 0 else f'temperature {temperature:g}'}"
                points = [(one["draft"], one[name]) for one in own]
                axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=colour, label=told)
        axes.axhline(1, color=OTHER_COLOURS[-1], linestyle=":", linewidth=1.3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("draft length")
        axes.set_ylabel(label)
        axes.grid(color="#e3e3e3", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="TiDAR against autoregression with the same weights.")
    parser.add_argument("model", help="run or folder of a TiDAR model")
    parser.add_argument("--before", nargs="+", default=[], metavar="AR", help="autoregressive models to score as well")
    parser.add_argument(
        "--texts-from", type=Path, nargs="+", required=True, help="what it was trained on; the held-out texts are used"
    )
    parser.add_argument("--draft-lengths", type=int, nargs="+", default=DRAFTS, metavar="N")
    parser.add_argument("--texts", type=int, default=48, help="texts at most [48]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    parser.add_argument("--new-tokens", type=int, default=96, help="tokens of a continuation at most [96]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record and CSV; a bare name lands in results/")
    parser.add_argument("--png", type=Path, metavar="FILE", help="the picture")
    given = parser.parse_args()
    measure.one_thread()
    record = measured(given)
    measure.report(record, tables(record), draw=draw, png=given.png, file=given.json)


if __name__ == "__main__":
    main()

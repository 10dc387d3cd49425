"""What schedules generate at equal steps: texts, judged by an independent model, and how varied they are.

In: a model of masked or block diffusion, a judge and the counts of each schedule. Out: a `Generation` for each schedule
and order. Neither number stands alone: a text that repeats itself is likely under any judge, and random words are
varied. The two are the terms of a divergence from the judge (arXiv 2604.02718), so they are to be read as a pair, and
over several temperatures.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.analysis.information_profile import window_length
from unmask.errors import PromptError, SettingsError
from unmask.evaluation.likelihood import is_bound
from unmask.evaluation.written import entropy, nats_per_byte
from unmask.lm import DiffusionLM
from unmask.models.tokenizers import lead_ids
from unmask.outputs import Output
from unmask.settings.decoding import SamplingParams, Unmasking
from unmask.settings.reveal_files import RevealFile

ORDERS: tuple[Unmasking, ...] = ("random", "low_confidence_static")


@dataclass(frozen=True)
class Generation:
    """Texts of one schedule, in one order of revealing, at one temperature.

    Attributes:
        schedule: its name.
        steps: forwards of each canvas, or whole block; the block that BOS begins may take fewer.
        order: the unmasking policy.
        temperature: of the tokens.
        nats_per_byte: under the judge, of all texts together.
        stderr: its standard error over texts.
        entropy: bits of a token among all tokens generated; at most the logarithm of their number.
    """

    schedule: str
    steps: int
    order: str
    temperature: float
    nats_per_byte: float
    stderr: float
    entropy: float


def check_judge(judge: DiffusionLM, name: str) -> None:
    """Raise SettingsError unless the judge's likelihood is exact, and it has a tokenizer."""
    if judge.tokenizer is None or is_bound(judge.backbone):
        raise SettingsError(
            f"A judge says exactly how likely a text is: an autoregressive model or TiDAR, with a tokenizer. {name} is "
            f"{judge.backbone.diffusion.method}{'' if judge.tokenizer else ' without a tokenizer'}."
        )


def generations(
    lm: DiffusionLM,
    judge: DiffusionLM,
    schedules: Mapping[str, Sequence[int]],
    *,
    texts: int,
    temperatures: Sequence[float] = (1.0,),
    seed: int = 0,
    batch_size: int = 32,
) -> Iterator[Generation]:
    """Generate without a prompt by every schedule, with the same draws, and judge what comes out.

    Args:
        lm: of which a text is one canvas, or a window of blocks as the profile has it (`window_length`).
        judge: see `check_judge`.
        schedules: counts by name, all for the same number of places.
        texts: of each schedule, order and temperature.
        temperatures: of the tokens; each is an experiment of its own.
        seed: of the draws.
        batch_size: texts that are decoded together.

    Raises:
        PromptError: no text has a letter, or one is too long for the judge.
    """
    entry = lm.backbone.diffusion
    lead = lead_ids(lm.tokenizer, needed=entry.logit_shift)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts.json"
        for name, counts in schedules.items():
            RevealFile(sum(counts), {len(counts): tuple(counts)}, name).write(file)
            for order in ORDERS:
                for temperature in temperatures:
                    params = SamplingParams(
                        decoding="blocks" if entry.method == "block_diffusion" else "canvas",
                        max_new_tokens=window_length(
                            entry, sum(counts), lead=len(lead), room=lm.backbone.context_length
                        ),
                        n=texts,
                        temperature=temperature,
                        seed=seed,
                        ignore_eos=True,
                        unmasking=order,
                        reveal_schedule=str(file),
                    )
                    outputs = lm.generate(None, params, batch_size=batch_size)
                    bits = entropy(Counter(token for output in outputs for token in output.token_ids))
                    yield Generation(name, len(counts), order, temperature, *_judged(judge, outputs), bits)


def _judged(judge: DiffusionLM, outputs: Sequence[Output]) -> tuple[float, float]:
    """Nats per byte of what a judge can read, and their standard error."""
    scores = judge.score([output.text for output in outputs if output.text.strip()]) if outputs else []
    if not scores:
        raise PromptError("No text was generated that a judge could read: all are blank.")
    return nats_per_byte([-score.log_likelihood for score in scores], [score.bytes for score in scores])

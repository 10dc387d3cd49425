"""Real texts for the benchmarks of quality: what training holds out, and the beginnings that models continue."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from unmask.data.sources import held_out
from unmask.data.text import Corpus
from unmask.settings.data import DataSettings

PROMPT_WORDS, SCORED_WORDS = 8, 250


def stories(files: Sequence[Path], number: int) -> list[str]:
    """Texts, as far as they are scored, that a run with the default share of held-out text does not train on.

    All are more than twice as long as their beginnings.
    """
    settings = DataSettings(train=tuple(map(str, files)))
    texts = (text.strip() for text in Corpus(settings.train, settings))
    unseen = (text for text in texts if held_out(text, settings.validation_fraction))
    long_enough = (text for text in unseen if len(text.split()) > 2 * PROMPT_WORDS)
    scored = (re.match(rf"(\S+\s*){{1,{SCORED_WORDS}}}", text) for text in itertools.islice(long_enough, number))
    return [found[0].rstrip() for found in scored if found]


def beginning(story: str) -> str:
    return " ".join(story.split()[:PROMPT_WORDS])

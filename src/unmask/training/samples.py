"""What people look at: the first row of a run as it is trained, and what the finished model writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unmask.data.batch import Batch
from unmask.data.chat_rows import ChatRows
from unmask.data.neat import NeatRows
from unmask.lm import DiffusionLM
from unmask.models.tokenizers import decode
from unmask.objectives.example import Example
from unmask.settings.recipe import Recipe
from unmask.training.preparation import TrainingText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHATS = 4
_SEARCHED = 256


def first_row(tokenizer: PreTrainedTokenizerBase, batch: Batch, example: Example, *, marked: bool) -> Iterator[str]:
    """Lines that show a batch's first row, clean (with marks around what is supervised) and corrupted; no padding."""
    size = int((batch.document_BL[0] >= 0).sum())
    ids, supervised = batch.ids_BL[0, :size].tolist(), batch.supervised_BL[0, :size].tolist()
    text = decode(tokenizer, ids, special=True)
    if marked:
        runs = itertools.groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1])
        parts = [(learned, decode(tokenizer, [token for token, _ in run], special=True)) for learned, run in runs]
        text = "".join(f"[[{part}]]" if learned else part for learned, part in parts)
    yield f"first row{', what is supervised in [[...]]' if marked else ''}: {text!r}"
    # TiDAR's clean part and its masks are both learned; other methods learn the noisy part, which stands first.
    shown = example.layout.document[0] >= 0 if len(example.terms) > 1 else slice(size)
    yield f"as trained: {decode(tokenizer, example.ids_BL[0, shown].tolist(), special=True)!r}"


def sample_page(recipe: Recipe, lm: DiffusionLM, text: TrainingText) -> str:
    """Samples in Markdown: without a prompt, or for a model of conversations replies to (held-out) prompts."""
    page = f"# Samples of {recipe.name}\n\n"
    prompts = sample_prompts(recipe, lm, text)
    if prompts is None:
        outputs = lm.generate(None, recipe.sampling)
        return page + "".join(f"## Sample {number}\n\n{_fenced(one.text)}" for number, one in enumerate(outputs))
    if not prompts:
        return f"{page}No row has a prompt that leaves room for {recipe.sampling.max_new_tokens} tokens.\n"
    assert lm.tokenizer is not None
    for output in lm.generate(prompts, recipe.sampling):
        if output.sample == 0:
            prompt = decode(lm.tokenizer, prompts[output.prompt], special=True)
            page += f"## Prompt {output.prompt}\n\n{_fenced(prompt)}"
        page += f"Reply:\n\n{_fenced(output.text)}"
    return page


def sample_prompts(recipe: Recipe, lm: DiffusionLM, text: TrainingText) -> list[list[int]] | None:
    """What samples begin with: nothing, or for a model of conversations (held-out) prompts."""
    return None if recipe.data.format == "text" else _held_out_prompts(recipe, lm, text)


def probe_prompts(recipe: Recipe, lm: DiffusionLM, text: TrainingText) -> list[list[int] | None]:
    """What a few texts begin with: nothing, or for a model of conversations (held-out) prompts."""
    if recipe.data.format == "text":
        return [None] * _CHATS
    return list(_held_out_prompts(recipe, lm, text))


def _held_out_prompts(recipe: Recipe, lm: DiffusionLM, text: TrainingText) -> list[list[int]]:
    """The first prompts that leave room for a reply."""
    rows = text.held_out or text.train
    assert isinstance(rows, ChatRows | NeatRows), "rows with prompts"
    room = lm.backbone.context_length - recipe.sampling.max_new_tokens
    candidates = (rows.prompt(number) for number in range(min(len(rows), _SEARCHED)))
    return list(itertools.islice((one for one in candidates if 0 < len(one) <= room), _CHATS))


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```\n\n"

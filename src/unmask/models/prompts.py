"""Prompts and texts of one checkpoint: to token ids, and generated token ids back to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from unmask.errors import PromptError
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import decode, encode, start_id

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]
MASK_GLYPH = "\u2591"
# Text in front of a piece that is not the first, so that tokenizers that put a space before a text put it there.
_ANCHOR = "\n"


class PromptCodec:
    """What a checkpoint's tokenizer (or its lack) makes of prompts and of generated tokens.

    Args:
        checkpoint: its tokenizer, vocabulary and method decide.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer, self.backbone = checkpoint.tokenizer, checkpoint.backbone

    @property
    def num_ids(self) -> int:
        """Rows of the embedding: what a token id lies below."""
        return int(self.backbone.network.config.vocab_size)

    def encode_all(self, prompts: Prompt | Sequence[Prompt] | None) -> list[list[int]]:
        """Token ids of one prompt or of several.

        Raises:
            PromptError: a prompt is empty, holds ids that do not exist, or needs a tokenizer or template that is not
                there.
        """
        if prompts is None or isinstance(prompts, str) or is_ids(prompts) or _is_chat(prompts):
            return [self.encode(cast("Prompt | None", prompts))]
        if not prompts:
            raise PromptError("The list of prompts is empty. Give at least one, or None to generate without a prompt.")
        return [self.encode(prompt) for prompt in cast("Sequence[Prompt]", prompts)]

    def encode(self, prompt: Prompt | None) -> list[int]:
        """Token ids of one prompt; BOS alone (or nothing, for diffusion without BOS) for none."""
        tokenizer = self.tokenizer
        if prompt is None or prompt == "":
            return self._start_of_text()
        if is_ids(prompt):
            return self.checked(list(cast("Sequence[int]", prompt)))
        if tokenizer is None:
            raise PromptError("This checkpoint has no tokenizer: give prompts as lists of token ids.")
        if isinstance(prompt, str):
            return self.checked(encode(tokenizer, prompt, special=True))
        if not tokenizer.chat_template:
            raise PromptError("This model's tokenizer has no chat template. Give the prompt as plain text.")
        messages = [dict(message) for message in cast("Sequence[Message]", prompt)]
        text = cast(str, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        return self.checked(encode(tokenizer, text, special=False))

    def encode_pieces(self, pieces: Sequence[str]) -> list[list[int]]:
        """Token ids of the pieces of one text with gaps between them; BOS stands in front of the first."""
        if self.tokenizer is None:
            raise PromptError("This checkpoint has no tokenizer, so it cannot fill gaps in a text.")
        if isinstance(pieces, str) or len(pieces) < 2:
            raise PromptError(
                f"A text to fill is a list of at least two pieces, with the gaps between them, got {pieces!r}. "
                'Example: lm.infill([["The cat ", " the mat."]], SamplingParams(infill_length=2))'
            )
        first = encode(self.tokenizer, pieces[0], special=True) if pieces[0] else self._start_of_text()
        found = [self.checked(first), *(self._behind(piece) for piece in pieces[1:])]
        for ids in found[1:]:
            self._check_ids(ids)
        return found

    def checked(self, ids: list[int]) -> list[int]:
        """The ids, or the start of a text for none.

        Raises:
            PromptError: an id does not exist, or is the mask token.
        """
        self._check_ids(ids)
        return ids or self._start_of_text()

    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text: the tokenizer's end of text first, then those of the generation config."""
        configured = getattr(self.backbone.network.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        if self.tokenizer is not None:
            ids = [self.tokenizer.eos_token_id, *ids]
        return tuple(dict.fromkeys(one for one in ids if one is not None))

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Generated tokens as text; decoded behind the prompt, because some tokenizers strip a leading space."""
        if self.tokenizer is None:
            return ""
        before, both = decode(self.tokenizer, prompt), decode(self.tokenizer, [*prompt, *tokens])
        if both.startswith(before):
            return both[len(before) :]
        return decode(self.tokenizer, tokens)

    def canvas_text(self, canvas: Sequence[int | None]) -> str:
        """A canvas as text, masks as a glyph."""
        if self.tokenizer is None:
            return " ".join(MASK_GLYPH if token is None else str(token) for token in canvas)
        pieces: list[str] = []
        known: list[int] = []
        for token in [*canvas, None]:
            if token is not None:
                known.append(token)
                continue
            pieces += [decode(self.tokenizer, known), MASK_GLYPH]
            known = []
        return "".join(pieces[:-1])

    def _behind(self, piece: str) -> list[int]:
        """Token ids of a piece that other text stands before."""
        assert self.tokenizer is not None
        anchor = encode(self.tokenizer, _ANCHOR, special=False)
        both = encode(self.tokenizer, _ANCHOR + piece, special=False)
        if both[: len(anchor)] == anchor:
            return both[len(anchor) :]
        return encode(self.tokenizer, piece, special=False)

    def _start_of_text(self) -> list[int]:
        start = None if self.tokenizer is None else start_id(self.tokenizer)
        entry = self.backbone.diffusion
        needs_start = entry.is_causal or entry.logit_shift
        if start is None and needs_start:
            start = next(iter(self.end_ids()), None)
        if start is None and needs_start:
            raise PromptError(
                "A model that predicts each token from the one before it needs a prompt where it has no BOS or "
                "end-of-text token. Give one."
            )
        return [] if start is None else [start]

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = [token for token in ids if not 0 <= token < self.num_ids]
        if wrong:
            raise PromptError(f"Token ids must lie between 0 and {self.num_ids - 1}, got {wrong[0]}.")
        if self.backbone.diffusion.mask_token_id in ids:
            raise PromptError("The prompt holds the mask token, which only the places to generate may hold. Remove it.")


def is_ids(prompt: object) -> bool:
    """Whether a prompt is a list of token ids."""
    return isinstance(prompt, Sequence | Tensor) and len(prompt) > 0 and isinstance(prompt[0], int)


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)

"""Texts to score, as a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch

from unmask.data.batch import Batch
from unmask.data.tokenized import byte_lengths
from unmask.errors import PromptError
from unmask.models.prompts import PromptCodec
from unmask.models.tokenizers import end_id, start_id


def text_batch(codec: PromptCodec, texts: Sequence[str | Sequence[int]], *, or_end: bool = False) -> Batch:
    """Texts (or token ids) after BOS as rows whose draws do not depend on the batch; BOS is not scored.

    Args:
        codec: of the model.
        texts: to score.
        or_end: where there is no BOS, the end-of-text token stands in front.

    Raises:
        PromptError: a text is empty, longer than the context, or needs a tokenizer that is not there.
    """
    bos = None if codec.tokenizer is None else start_id(codec.tokenizer)
    if bos is None and or_end and codec.tokenizer is not None:
        bos = end_id(codec.tokenizer)
    start = [] if bos is None else [bos]
    ids, sizes = [], []
    for text in texts:
        if isinstance(text, str):
            if codec.tokenizer is None:
                raise PromptError("This checkpoint has no tokenizer: give texts as lists of token ids.")
            encoded = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            tokens = codec.checked(cast("list[int]", encoded["input_ids"])) if text else []
            sizes.append(byte_lengths(text, [stop for _, stop in encoded["offset_mapping"]]).tolist())
        else:
            tokens = codec.checked(text)
            sizes.append([0] * len(tokens))
        ids.append(start + tokens)
    longest = max(map(len, ids))
    if longest > codec.backbone.context_length or min(map(len, ids)) == 0:
        raise PromptError(
            f"A text to score must have between 1 and {codec.backbone.context_length} tokens, got {longest}. "
            "Cut it into pieces."
        )
    lead = len(start)
    supervised = [[False] * lead + [True] * (len(row) - lead) for row in ids]
    batch = Batch.of_rows(ids, supervised)
    bytes_BL = torch.zeros_like(batch.ids_BL)
    for row, size in enumerate(sizes):
        bytes_BL[row, lead : lead + len(size)] = torch.tensor(size, dtype=torch.int64)
    return dataclasses.replace(batch, uid_B=torch.zeros(len(ids), dtype=torch.int64), bytes_BL=bytes_BL)

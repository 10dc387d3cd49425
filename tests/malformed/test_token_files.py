"""Malformed `.ckpt` files: what is wrong with each, and the same once more with data.malformed=skip."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.malformed.case import Case, check, parametrized, written
from unmask.data.token_files import TokenFiles
from unmask.errors import DataError
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.data import DataSettings

BYTES = byte_tokenizer()
IDS, MASK = [5, 9, 7, 8], [0, 0, 1, 1]


def read(*names: str, **settings: Any) -> list[list[int]]:
    return [row.ids.tolist() for row in TokenFiles(names, DataSettings(format="ckpt", **settings), BYTES)]


def saved(content: object, **settings: Any) -> Callable[[Path], object]:
    def use(folder: Path) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, folder / "a.ckpt")
        return read("a.ckpt", **settings)

    return use


def row(ids: object = IDS, mask: object = MASK) -> dict[str, object]:
    return {"input_ids": ids, "loss_mask": mask}


def tensor(values: object, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


CONTENTS: dict[str, tuple[object, str]] = {
    "sparse ids": (row(tensor(IDS).to_sparse()), "a.ckpt: `input_ids` must be a plain tensor of numbers, got a sparse"),
    "a sparse mask": (
        row(mask=tensor(MASK).to_sparse()),
        "`loss_mask` must be a plain tensor of numbers, got a sparse",
    ),
    "rows of a sparse matrix": (row(torch.eye(4).long().to_sparse_coo()), "got a sparse one"),
    "meta tensors": (row(torch.empty(4, dtype=torch.int64, device="meta")), "got a meta one"),
    "ids beyond 64 bits": (row([2**70, 1, 2, 3]), "`input_ids` must be a row of numbers, got [1180591620717411303424"),
    "ids beyond 63 bits": (row(tensor([2**63 + 1, 2, 3, 4], torch.uint64)), "has the id 9223372036854775809, which no"),
    "a complex mask": (row(mask=tensor(MASK, torch.complex64)), "`loss_mask` must hold 0 and 1, got torch.complex64"),
    "complex ids": (row(tensor(IDS, torch.complex64)), "`input_ids` must hold whole numbers, got torch.complex64"),
    "NaN in the mask": (row(mask=[0.0, 1.0, float("nan"), 1.0]), "`loss_mask` must hold 0 and 1, got nan"),
    "infinity in the mask": (row(mask=[0.0, 1.0, float("inf"), 1.0]), "`loss_mask` must hold 0 and 1, got inf"),
    "-1 in the mask": (row(mask=[0, 1, -1, 1]), "`loss_mask` must hold 0 and 1, got -1"),
    "halves in the mask": (row(mask=[0, 0.5, 1, 1]), "`loss_mask` must hold 0 and 1, got 0.5"),
    "text as the mask": (row(mask="0011"), '`loss_mask` must be a row of numbers, got "0011"'),
    "ragged ids": (row([[1, 2], [3]]), "`input_ids` must be a row of numbers, got [[1, 2], [3]]"),
    "None as ids": (row(None), "`input_ids` must be a row of numbers, got null"),
    "words as ids": (row(["a", "b"]), '`input_ids` must be a row of numbers, got ["a", "b"]'),
    "truth as ids": (row([True, False]), "`input_ids` must hold whole numbers, got torch.bool"),
    "one number as ids": (row(5, 1), "`input_ids` must have the shape [L] or [1, L], got []"),
    "a dictionary as ids": (row({"a": 1}), '`input_ids` must be a row of numbers, got {"a": 1}'),
    "bytes as ids": (row(b"abcd"), "`input_ids` must be a row of numbers"),
    "a set as ids": (row({5, 6}), "`input_ids` must be a row of numbers"),
    "three dimensions": (row(tensor([[IDS]])), "`input_ids` must have the shape [L] or [1, L], got [1, 1, 4]"),
    "two rows": (row(tensor([IDS, IDS])), "got [2, 4]"),
    "no tokens": (row(torch.zeros(1, 0, dtype=torch.long), []), "got [0]"),
    "another length of the mask": (row(mask=[1]), "input_ids has 4 tokens and loss_mask 1; they must be as many"),
    "an id of another vocabulary": (row([5, 9, 7, 258]), "has the id 258, and the tokenizer's ids end at 257"),
    "a negative id": (row([5, 9, 7, -100]), "has the id -100, and the tokenizer's ids end at 257"),
    "another name": ({"ids": IDS, "loss_mask": MASK}, "there is no `input_ids`; the file has ids, loss_mask"),
    "many names": ({f"name{number}": 1 for number in range(999)}, "(999 fields)"),
    "no mask": ({"input_ids": IDS}, "there is no `loss_mask`; the file has input_ids"),
    "nothing": ({}, "there is no `input_ids`; the file has nothing"),
    "a list": ([IDS, MASK], "it holds a list, and must hold a dictionary with input_ids and loss_mask"),
    "a tensor": (tensor(IDS), "it holds a Tensor, and must hold a dictionary"),
    "arrays of NumPy": (row(np.array(IDS)), "it holds pickled objects, which are not opened"),
    "a module": (row(torch.nn.Linear(1, 1)), "it holds pickled objects, which are not opened"),
}
BYTES_OF_FILES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "a.ckpt: torch.load cannot read it"),
    "text": (b"hello", "a.ckpt: "),
    "JSON": (b'{"input_ids": [1], "loss_mask": [1]}', "a.ckpt: "),
    "the head of a zip": (b"PK\x03\x04 and nothing more", "a.ckpt: "),
    "an empty zip": (b"PK\x05\x06" + bytes(18), "a.ckpt: torch.load cannot read it"),
    "a pickle of nothing": (b"\x80\x02N.", "a.ckpt: "),
    "a gz file": (b"\x1f\x8b\x08" + bytes(9), "a.ckpt: "),
    "zeros": (bytes(4096), "a.ckpt: "),
}


def raw(content: bytes, **settings: Any) -> Callable[[Path], object]:
    return lambda folder: written(folder, "a.ckpt", content) and read("a.ckpt", **settings)


WRONG = [
    *(Case(name, saved(content), message, DataError) for name, (content, message) in CONTENTS.items()),
    *(Case(name, raw(content), message, DataError) for name, (content, message) in BYTES_OF_FILES.items()),
]
SKIPS = [
    *(Case(f"{name} skipped", saved(content, malformed="skip"), value=[]) for name, (content, _) in CONTENTS.items()),
    *(
        Case(f"{name} skipped", raw(content, malformed="skip"), value=[])
        for name, (content, _) in BYTES_OF_FILES.items()
    ),
]
RIGHT = [
    Case("lists", saved(row()), value=[IDS]),
    Case("tuples", saved(row(tuple(IDS), tuple(MASK))), value=[IDS]),
    Case("unsigned ids", saved(row(tensor(IDS, torch.uint16))), value=[IDS]),
    Case("ids of a byte", saved(row(tensor(IDS, torch.uint8))), value=[IDS]),
    Case("unsigned 64-bit ids", saved(row(tensor(IDS, torch.uint64))), value=[IDS]),
    Case("a mask of truth", saved(row(mask=tensor(MASK, torch.bool))), value=[IDS]),
    Case("a mask in bf16", saved(row(mask=tensor(MASK, torch.bfloat16))), value=[IDS]),
    Case("a mask with a gradient", saved(row(mask=tensor(MASK, torch.float32).requires_grad_())), value=[IDS]),
    Case("nothing supervised", saved(row(mask=[0] * 4)), value=[IDS]),
]


@parametrized(WRONG)
def test_a_file_that_cannot_be_read_is_named(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(SKIPS)
def test_such_a_file_can_be_skipped(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(RIGHT)
def test_every_kind_of_numbers_is_read(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("is_new", [True, False])
def test_files_with_a_few_other_bytes_are_read_or_refused(is_new: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(row(tensor(IDS), tensor(MASK)), path, _use_new_zipfile_serialization=is_new)
    whole, draw, refused = path.read_bytes(), random.Random(0), list[str]()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 5])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content)] * 4 + [draw.randrange(len(content))])])
        try:
            read(str(path))
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in refused)

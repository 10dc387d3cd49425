"""Rows of the shared data for the tasks of this folder, as `custom_dataset` of lm-evaluation-harness wants them."""

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets

FOLDER = Path(os.environ.get("UNMASK_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
Row = dict[str, Any]


@functools.cache
def rows(name: str) -> list[Row]:
    with gzip.open(FOLDER / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def splits(**of: list[Row]) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(each) for name, each in of.items()})


def file(name: str, split: str, **_: object) -> datasets.DatasetDict:
    """A file as it is."""
    return splits(**{split: rows(name)})


def hellaswag(**_: object) -> datasets.DatasetDict:
    """The public task capitalises the beginning of the sentence that is to be continued; our text does not."""

    def begun(query: str) -> str:
        before, stop, last = query.rpartition(". ")
        return before + stop + last[:1].upper() + last[1:]

    return splits(validation=[row | {"query": begun(row["query"])} for row in rows("eval/hellaswag_val")])


def mmlu(subject: str, **_: object) -> datasets.DatasetDict:
    """The questions of one subject, and its five examples."""

    def of(split: str) -> list[Row]:
        return [row | {"answer": row["gold"]} for row in rows(f"eval/mmlu_{split}") if row["subject"] == subject]

    return splits(dev=of("dev"), test=of("test"))


def gsm8k(**_: object) -> datasets.DatasetDict:
    return splits(train=rows("instruct/gsm8k_train"), test=rows("instruct/gsm8k_test"))

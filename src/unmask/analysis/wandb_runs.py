"""Runs of wandb: where one lies, and its history. Needs the package wandb.

In: a name such as `run-20250811_123519-fh5nsj6z`, or a path. Out: the records of its history. A folder on this machine
is read from its `.wandb` file, as offline runs have it and synced ones keep it; without one, wandb's server is asked.
The file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB with pieces of records, each behind its checksum,
length and kind; a record is a message of wandb's own protocol.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unmask.analysis.gradient_history import Records
from unmask.errors import ReportError, require

_NAME = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(?P<id>[^/]+)")
_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK, _PIECE = 2**15, struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class WandbRun:
    """A run of wandb.

    Attributes:
        id: its short name.
        file: its history on this machine, if it is here.
    """

    id: str
    file: Path | None


def find(name: str, folder: Path) -> WandbRun | None:
    """The run of a name or path, looked for as it is and in wandb's folder; None if nothing speaks for one.

    Raises:
        ReportError: a folder holds several runs.
    """
    matched = _NAME.fullmatch(Path(name).name)
    places = [Path(name), folder / name, folder / "wandb" / name]
    places += [place.with_name(f"offline-{place.name}") for place in places if place.name.startswith("run-")]
    for place in places:
        if place.suffix == ".wandb" and place.is_file():
            return WandbRun(place.stem.removeprefix("run-"), place)
        files = sorted(place.glob("*.wandb")) if place.is_dir() else []
        if len(files) > 1:
            raise ReportError(f"{place} holds several runs: {', '.join(one.name for one in files)}. Name one of them.")
        if files:
            return WandbRun(files[0].stem.removeprefix("run-"), files[0])
    return WandbRun(matched["id"], None) if matched else None


# --- on this machine --------------------------------------------------------------------------------------------------


def read_file(file: Path) -> Records:
    """The history in a `.wandb` file; what a crash or a damaged disk left of a record is skipped and told.

    Raises:
        MissingExtraError: wandb is not installed.
        ReportError: it is another kind of file.
    """
    require("wandb", extra="track", purpose="Reading a run of wandb")
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    if not content.startswith(_HEADER):
        raise ReportError(f"{file} is no history of wandb: it begins with {content[:7]!r} instead of {_HEADER!r}.")
    found = Records([], [])
    for message in _messages(content, found.damage, str(file)):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(message)
        except DecodeError:
            found.damage.append(f"{file}: a record that wandb {_version()} cannot read")
            continue
        if record.WhichOneof("record_type") == "history":
            row = {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            found.rows.append({"_step": record.history.step.num} | row)
    return found


def _messages(content: bytes, damage: list[str], source: str) -> Iterator[bytes]:
    """The records of a log. After a piece that is damaged it goes on at the next block."""
    at, parts = len(_HEADER), None
    while at + _PIECE.size <= len(content):
        block_end = (at // _BLOCK + 1) * _BLOCK
        if block_end - at < _PIECE.size:
            at = block_end
            continue
        checksum, length, kind = _PIECE.unpack_from(content, at)
        start, end = at + _PIECE.size, at + _PIECE.size + length
        piece = content[start:end]
        if kind == length == 0:  # what is left of a block may be zeros
            at = block_end
            continue
        if end > min(block_end, len(content)) or zlib.crc32(bytes([kind]) + piece) != checksum:
            damage.append(f"{source}: a damaged record at byte {at}")
            at, parts = block_end, None
            continue
        at = end
        if kind in (_WHOLE, _FIRST):
            parts = []
        if parts is None:
            continue
        parts.append(piece)
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = None
    if parts is not None or at < len(content):
        damage.append(f"{source}: it ends within a record")


def _version() -> str:
    import wandb

    return wandb.__version__


# --- on a server ------------------------------------------------------------------------------------------------------


def read_server(run: str, *, entity: str | None, project: str | None) -> Records:
    """The history of a run that wandb's server has.

    Args:
        run: its id.
        entity: user or team; without it WANDB_ENTITY, then whose key it is.
        project: without it WANDB_PROJECT.

    Raises:
        MissingExtraError: wandb is not installed.
        ReportError: no project was named, or the server does not answer with the run.
    """
    project = project or os.environ.get("WANDB_PROJECT")
    if project is None:
        raise ReportError(
            f"The run {run} is not on this machine, and to ask wandb's server for it takes its project: give "
            "--project NAME (and --entity NAME, if it is not yours), or --wandb-path DIR where its folder lies."
        )
    require("wandb", extra="track", purpose="Reading a run of wandb")
    import wandb
    from wandb.errors import Error

    path = "/".join(part for part in (entity or os.environ.get("WANDB_ENTITY"), project, run) if part)
    try:
        return Records([dict(row) for row in wandb.Api().run(path).scan_history()], [])
    except (Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ReportError(
            f"wandb's server gave no run {path}: {reason}. Check --entity and --project, and log in with `wandb login`."
        ) from None

"""The original's own Python files for a checkpoint in its format: found in a folder and copied, never run, never ours.

Engines that read such a checkpoint (LMDeploy, JetEngine, SGLang) import its configuration class from beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

from unmask.errors import CheckpointError
from unmask.models.published.format import PublishedFormat

_IMPORT = re.compile(r"^\s*(?:from|import)\s+(\.?)(\w+)", re.MULTILINE)


def code_files(folder: Path, written: PublishedFormat) -> list[Path]:
    """The files of `folder` that the format's `auto_map` names, and those beside them that they import, in turn.

    Raises:
        CheckpointError: one that is named, or imported from beside, is not there.
    """
    found: dict[str, Path] = {}
    wanted = {place.partition(".")[0]: "`auto_map`" for place in written.local_code.values()}
    while wanted:
        module, reason = wanted.popitem()
        file = folder / f"{module}.py"
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {file.name}, which {reason} names. Give --remote-code the folder with "
                f"{written.title}'s own Python files."
            )
        found[module] = file
        for dot, name in _IMPORT.findall(file.read_text(encoding="utf-8")):
            if name not in found and (dot or (folder / f"{name}.py").is_file()):
                wanted.setdefault(name, file.name)
    return sorted(found.values())

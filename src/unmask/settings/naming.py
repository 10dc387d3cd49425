"""What a run may be called: the name of one folder, in which nothing of the run lies anywhere else."""

from __future__ import annotations

from unmask.settings.checks import is_true

LONGEST_NAME = 200
"""Bytes; file systems allow 255, and unfinished files carry more than the name."""


def check_name(name: str) -> None:
    """A name must be that of a folder inside `output_dir`.

    Raises:
        SettingsError: it is not.
    """
    is_true(name != "", f"{_RULE} It is empty. Give one: name=NAME")
    is_true(name not in (".", ".."), f"{_RULE} {name!r} is output_dir itself, or the folder above it.")
    is_true(
        not any(mark in name for mark in "/\\"),
        f"{_RULE} {name!r} has a separator in it. Say where it lies with output_dir.",
    )
    is_true(name.isprintable(), f"{_RULE} {name!r} has characters in it that cannot be printed.")
    is_true(
        not name.startswith(("-", ".", "~")) and name == name.strip(),
        f"{_RULE} {name!r} begins with a dot, a dash or a tilde, or has spaces around it, which commands and lists of "
        "folders take for something else.",
    )
    is_true(
        len(name.encode()) <= LONGEST_NAME,
        f"{_RULE} It has at most {LONGEST_NAME} bytes, got {name[:20]!r}... of {len(name.encode())}.",
    )


def check_output_dir(path: str) -> None:
    """The folder of all runs has a path that commands can show and name.

    Raises:
        SettingsError: it has not.
    """
    is_true(path.isprintable(), f"output_dir must be a folder. {path!r} has characters in it that cannot be printed.")
    is_true(
        not path.startswith("~"),
        f"output_dir must be a folder, got {path!r}: only a shell knows whose home the tilde means. Write it out.",
    )


_RULE = "name must be that of one folder inside output_dir."

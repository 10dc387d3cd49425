"""Every error that Unmask raises on purpose, and how it words them.

UnmaskError                 a user can act on it; the command line prints it in one line and exits with 2
  x SettingsError           a setting is unknown, of the wrong type or out of range (also a ValueError)
  x DataError               a data file is missing, empty or malformed (also a ValueError)
  x CheckpointError         a checkpoint is missing, damaged or of another shape (also a ValueError)
  x PromptError             a prompt cannot be decoded by this model (also a ValueError)
  x ReportError             a run's records cannot be drawn (also a ValueError)
  x NonFiniteError          a figure is NaN or infinite (also an ArithmeticError)
  x MissingExtraError       an optional dependency is not installed (also an ImportError)

A message says what is wrong, what was given, what is allowed and what to do.
"""

import difflib
import importlib.util
from collections.abc import Iterable


class UnmaskError(Exception):
    """Base of every error that a user can act on."""


class SettingsError(UnmaskError, ValueError):
    """A setting is unknown, of the wrong type or out of its range."""


class DataError(UnmaskError, ValueError):
    """A data source is missing, empty or malformed."""


class CheckpointError(UnmaskError, ValueError):
    """A checkpoint or run folder is missing, damaged or does not fit."""


class PromptError(UnmaskError, ValueError):
    """A prompt or text cannot be processed by this model."""


class ReportError(UnmaskError, ValueError):
    """The records of a run cannot be drawn."""


class NonFiniteError(UnmaskError, ArithmeticError):
    """A loss, gradient, likelihood or distribution is NaN or infinite."""


class MissingExtraError(UnmaskError, ImportError):
    """An optional dependency is needed and not installed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A sentence that lists the names closest to `name`, or all of them when none is close."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(f"`{match}`" for match in close) + "?"
    return "Allowed: " + ", ".join(f"`{one}`" for one in names) + "."


def require(package: str, *, extra: str, purpose: str) -> None:
    """Raise `MissingExtraError` with the exact install command unless `package` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"{purpose} needs the package `{package}`, which is not installed. "
            f'Install it with: pip install "unmask[{extra}]"'
        )

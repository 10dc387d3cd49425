"""Range checks of settings, worded alike: what is wrong, what was given, what is allowed."""

from unmask.errors import SettingsError


def at_least(lowest: float, **values: float | None) -> None:
    """Each value that is set must be `lowest` or more."""
    for name, value in values.items():
        if value is not None and not value >= lowest:
            raise SettingsError(f"{name} must be at least {lowest}, got {value}.")


def at_most(highest: float, **values: float | None) -> None:
    """Each value that is set must be `highest` or less."""
    for name, value in values.items():
        if value is not None and not value <= highest:
            raise SettingsError(f"{name} must be at most {highest:,}, got {value:,}.")


def in_range(lowest: float, highest: float, **values: float | None) -> None:
    """Each value that is set must lie between the bounds, both included."""
    for name, value in values.items():
        if value is not None and not lowest <= value <= highest:
            raise SettingsError(f"{name} must lie between {lowest} and {highest}, got {value}.")


def is_true(condition: bool, message: str) -> None:
    """Raise the message as a `SettingsError` unless the condition holds."""
    if not condition:
        raise SettingsError(message)

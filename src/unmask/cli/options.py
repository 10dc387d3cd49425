"""What the verbs share: parsers whose options are the fields of settings, and quiet libraries."""

from __future__ import annotations

import argparse
import dataclasses
import logging as stdlib_logging
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, TypeVar

from unmask import config
from unmask.errors import SettingsError, nearest
from unmask.settings import aliases
from unmask.settings.decoding import SamplingParams

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `SettingsError`, with the nearest option for an unknown one."""

    def error(self, message: str) -> NoReturn:
        see = f"See `{self.prog} --help`."
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise SettingsError(f"{message}. {see}")
        name = unknown.partition("=")[0].split(" ")[0]
        if not name.startswith("-"):
            raise SettingsError(f"There is nothing to do with the word `{unknown}`. {see}")
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        close = nearest(name, options)
        raise SettingsError(f"There is no option `{name}`. {close if close.startswith('Did') else see}")


def parser(verb: str, description: str, examples: str) -> Parser:
    """A parser of one verb, with examples at the end of its help."""
    return Parser(
        prog=f"unmask {verb}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_settings(target: Parser, kind: type, title: str, *, skip: Collection[str] = ()) -> None:
    """One option for each field of a settings type, described by the field's own words; `skip` leaves fields out."""
    group = target.add_argument_group(title)
    for name, type_name, default, text in config.documented(kind):
        if name in skip:
            continue
        shown = f" [{type_name.removesuffix(' or null')}" + (f"; default {default}]" if default else "]")
        option = "--" + name.replace("_", "-")
        spellings = [option] if "_" not in name else [option, "--" + name]
        arguments: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": (text + shown).replace("%", "%%"),
        }
        if type_name.removesuffix(" or null") == "true or false":
            group.add_argument(*spellings, nargs="?", const="true", metavar="BOOL", **arguments)
        elif type_name.startswith("a list of"):
            group.add_argument(*spellings, action="append", metavar="VALUE", **arguments)
        else:
            group.add_argument(*spellings, metavar="VALUE", **arguments)


def settings(kind: type[T], parsed: argparse.Namespace, **defaults: Any) -> T:
    """The settings that the parsed options describe; what is not given keeps its default."""
    given = vars(parsed)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    tree = {name: given[name] for name in names if name in given}
    return config.from_tree(kind, defaults | tree)


def add_placement(target: argparse.ArgumentParser) -> None:
    """Where a model is put, and the type of its weights."""
    target.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... [default: the accelerator, if any]")
    target.add_argument("--dtype", metavar="DTYPE", default="auto", help="type of the weights [default: as saved]")


def placement(parsed: argparse.Namespace) -> dict[str, Any]:
    """The device and type that the parsed options name, which are there.

    Raises:
        SettingsError: they are not.
    """
    from unmask.models.placement import device_of, dtype_of

    device = None if parsed.device is None else device_of(parsed.device)
    return {"device": device, "dtype": dtype_of(parsed.dtype)}


def refuse_without(given: Collection[str], needed: str, reason: str) -> None:
    """Refuse options that do nothing without another one.

    Args:
        given: the options that were given, as they are written.
        needed: the one that is missing.
        reason: what it would do.

    Raises:
        SettingsError: there are such options.
    """
    if given:
        raise SettingsError(f"{' and '.join(sorted(given))}: only with {needed}, {reason}. Add it, or leave them out.")


def add_sampling(target: Parser, title: str = "sampling", *, skip: Collection[str] = ()) -> None:
    """The sampling options under our names and under those of the originals; `skip` leaves some out."""
    add_settings(target, SamplingParams, title, skip=skip)
    group = target.add_argument_group("sampling, as LLaDA, Fast-dLLM, Dream and SDAR name it (docs/migration.md)")
    own = {field.name for field in dataclasses.fields(SamplingParams)}
    for name in [*aliases.RENAMED, *aliases.TRANSLATED, *aliases.REFUSED]:
        if name not in own:
            option = "--" + name.replace("_", "-")
            spellings = [option] if "_" not in name else [option, "--" + name]
            text = argparse.SUPPRESS if name in aliases.REFUSED else _meaning(name)
            group.add_argument(
                *spellings, dest=name, nargs="?", const="true", default=argparse.SUPPRESS, metavar="VALUE", help=text
            )


def sampling(parsed: argparse.Namespace) -> SamplingParams:
    """The sampling parameters that the parsed options describe, whoever's names they bear."""
    given = {name: value for name, value in vars(parsed).items() if name in sampling_names()}
    if "steps" in given:  # which is shared out over the blocks, so these must be numbers before they are settings
        for name in ("steps", "max_new_tokens", "gen_length", "block_length"):
            _check_count(name, given.get(name))
    for name in ("use_cache", "dual_cache"):
        if given.get(name, "true").lower() not in ("true", "false"):
            raise SettingsError(f"{name} must be true or false, got {given[name][:80]!r}.")
    if "eps" in given and not re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", given["eps"], re.ASCII | re.IGNORECASE):
        raise SettingsError(f"eps must be a number, got {given['eps'][:80]!r}.")
    return config.from_tree(SamplingParams, aliases.translated(given))


def _check_count(name: str, value: str | None) -> None:
    if value is not None and (not value.isdecimal() or len(value) > 18 or int(value) < 1):
        raise SettingsError(f"{name} must be an integer from 1 on, got {value[:80]!r}.")


def sampling_names() -> set[str]:
    """Every option of `add_sampling`."""
    own = {field.name for field in dataclasses.fields(SamplingParams)}
    return own | {*aliases.RENAMED, *aliases.TRANSLATED, *aliases.REFUSED}


def _meaning(name: str) -> str:
    return (
        aliases.RENAMED.get(name)
        or {
            "steps": "denoising_steps, but over all blocks together",
            "remasking_strategy": "unmasking; entropy_bounded is entropy_bound",
            "alg": "unmasking, with reveal_schedule dream, confidence filtered and filter_order top_p_first",
            "threshold": "unmasking threshold, with confidence_threshold",
            "use_cache": "cache prefix",
            "dual_cache": "cache dual",
            "eps": "0.001, Dream's value, and no other",
        }[name]
    )


def quiet_libraries() -> None:
    """No progress bars and notices of libraries between our own lines."""
    stdlib_logging.getLogger("bitsandbytes").setLevel(stdlib_logging.ERROR)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def help_of_settings(kind: type, groups: Sequence[str] | None = None) -> str:
    """Every key of nested settings with type, default and description, for `key=value` verbs."""
    lines: list[str] = []
    for name, type_name, default, text in config.documented(kind):
        if groups is None or name.partition(".")[0] in groups:
            lines.append(f"  {name}={default or '...'}  [{type_name}]\n      {text}")
    return "\n".join(lines)

"""Settings of a program: from its command line, its environment and a TOML file.

A program has one table of :class:`Option`. The help, the names of environment variables, the keys
of the file and the documentation are generated from that table.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tomada._address import parse_address

PREFIX = "TOMADA_"
# The minimum similarity of a misspelled variable or key to the right one.
LIKELY = 0.8
# The largest whole number that an option accepts.
LARGEST = 2**63 - 1
COMMAND_LINE, ENVIRONMENT, FILE = range(3)  # the first has precedence


class ConfigError(ValueError):
    """A setting is wrong; the message names the option, the value and the source, in one line."""


@dataclass(frozen=True)
class Kind:
    """The values that an option can have.

    :param expected: A description for errors: "workers must be …".
    :param metavar: The word for a value in help.
    :param parse: Converts a string, or raises :class:`ValueError`.
    :param explains: Whether the error of `parse` explains the problem better than `expected`.
    :param is_switch: Whether the value is yes or no.
    :param is_list: Whether an option can have several values.
    """

    expected: str
    metavar: str
    parse: Callable[[str], Any]
    explains: bool = False
    is_switch: bool = False
    is_list: bool = False


@dataclass(frozen=True)
class Option:
    """An option of a program.

    :param name: As on the command line, without the hyphens in front.
    :param section: The heading in help and documentation.
    :param help: Its effect, in one sentence without a full stop.
    :param default: Shown in help and documentation; ``None`` if there is nothing to show.
    :param into: The object that uses it: ``"server"``, ``"guard"``, ``"dtls"``, or the
        ``"command"`` itself.
    :param parameter: The name of the parameter there, if it differs from `name`.
    :param excludes: Options with the same word here exclude each other.
    :param is_positional: Whether it is a positional argument on the command line.
    :param is_in_file: Whether it may be set in a file.
    """

    name: str
    kind: Kind
    section: str
    help: str
    default: Any = None
    into: str = "server"
    parameter: str = ""
    excludes: str = ""
    is_positional: bool = False
    is_in_file: bool = True

    @property
    def target(self) -> str:
        """The name of the parameter that takes the value."""
        return self.parameter or self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return PREFIX + self.name.upper().replace("-", "_")

    @property
    def flag(self) -> str:
        """The option as it is written on the command line."""
        if self.is_positional:
            return self.kind.metavar
        return f"--{self.name}"

    @property
    def usage(self) -> str:
        """The option with its value."""
        if self.is_positional:
            return self.kind.metavar
        if self.kind.is_switch:
            return f"--{self.name}, --no-{self.name}" if self.default else f"--{self.name}"
        return f"--{self.name} {self.kind.metavar}"


@dataclass(frozen=True)
class Setting:
    """The value of an option, and where it comes from."""

    value: Any
    source: str
    rank: int


@dataclass
class Settings:
    """The settings of a program. Options that were not set are missing."""

    by_name: dict[str, Setting] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an option."""
        setting = self.by_name.get(name)
        return default if setting is None else setting.value

    def source(self, name: str) -> str:
        """Return where the value of an option comes from."""
        return self.by_name[name].source

    def of(self, options: Iterable[Option], into: str) -> dict[str, Any]:
        """Return the arguments for the object `into`, from the options that are for it."""
        return {
            option.target: self.by_name[option.name].value
            for option in options
            if option.into == into and option.name in self.by_name
        }


# Kinds of values


def whole(least: int, most: int = LARGEST) -> Kind:
    """Make a kind for whole numbers."""

    def parse(text: str) -> int:
        found = int(text)
        if not least <= found <= most:
            raise ValueError
        return found

    limit = f"to {most}" if most < LARGEST else "up"
    return Kind(f"a whole number from {least} {limit}", "N", parse)


def number(what: str, metavar: str, *, is_positive: bool = False, may_be_inf: bool = False) -> Kind:
    """Make a kind for numbers, 0 or more."""

    def parse(text: str) -> float:
        value = float(text)
        if math.isnan(value) or value < 0 or (is_positive and not value):
            raise ValueError
        if math.isinf(value) and not may_be_inf:
            raise ValueError
        return value

    limit = " greater than 0" if is_positive else ", 0 or more"
    return Kind(f"{what}{limit}{' (or inf)' if may_be_inf else ''}", metavar, parse)


def seconds(*, is_positive: bool = False, may_be_inf: bool = False) -> Kind:
    """Make a kind for durations."""
    return number("a number of seconds", "S", is_positive=is_positive, may_be_inf=may_be_inf)


def choice(*values: str) -> Kind:
    """Make a kind for a fixed list of values."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    *first, last = values
    return Kind(f"{', '.join(first)} or {last}", "|".join(values), parse)


def text(expected: str, metavar: str) -> Kind:
    """Make a kind for any text that is not empty."""
    return Kind(expected, metavar, _parse_text)


def _parse_text(given: str) -> str:
    if not given or "\0" in given:
        raise ValueError
    return given


def several(kind: Kind) -> Kind:
    """Make a kind for lists of such values."""
    return replace(kind, is_list=True)


def _parse_size(given: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(i?B)?", given, re.ASCII | re.IGNORECASE)
    if found is None:
        raise ValueError
    factor: int = 1024 ** " KMG".index(found[2].upper() or " ")
    size = int(found[1]) * factor
    if size > LARGEST:
        raise ValueError
    return size


def _parse_switch(given: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    try:
        return words[given.lower()]
    except KeyError:
        raise ValueError from None


def _parse_network(given: str) -> str:
    return str(ipaddress.ip_network(given))


def _parse_prefixes(given: str) -> tuple[int, int]:
    v4, v6 = map(int, given.split(","))
    return v4, v6


SIZE = Kind("a number of bytes, such as 4194304 or 4M", "BYTES", _parse_size)
SWITCH = Kind("true or false", "", _parse_switch, is_switch=True)
NETWORK = Kind("a network, such as 192.0.2.0/24", "NETWORK", _parse_network, explains=True)
PREFIXES = Kind("two prefix lengths, such as 32,64", "V4,V6", _parse_prefixes)
PATH = text("a path", "FILE")
ADDRESS = Kind("an address, such as 127.0.0.1:1234", "HOST:PORT", parse_address, explains=True)


# Reading the sources


def resolve(
    options: Sequence[Option],
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    path: str | None = None,
) -> Settings:
    """Read all sources: the command line overrides the environment, which overrides the file.

    :param command_line: The values by option: strings, or booleans for switches and lists for
        lists.
    :param path: The TOML file.
    :raises ConfigError: A setting is wrong, or the file cannot be read.
    """
    settings = Settings()
    if path is not None:
        _read_file(options, path, settings)
    for option in options:
        given = environment.get(option.variable)
        if given:  # an empty variable counts as unset
            _set(settings, option, given, option.variable, ENVIRONMENT)
    for option in options:
        given = command_line.get(option.name)
        if given is not None:
            _set(settings, option, given, option.flag, COMMAND_LINE)
    _exclude(options, settings)
    return settings


def misspelled(options: Sequence[Option], environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables of the environment that are probably misspelled, with the likely name."""
    known = [option.variable.removeprefix(PREFIX) for option in options]
    found = {}
    for name in environment:
        bare = name.removeprefix(PREFIX)
        if bare != name and bare not in known:
            likely = difflib.get_close_matches(bare, known, 1, LIKELY)
            if likely:
                found[name] = PREFIX + likely[0]
    return found


def _read_file(options: Sequence[Option], path: str, settings: Settings) -> None:
    try:
        with Path(path).open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # or too long, or too deeply nested
        raise ConfigError(f"the configuration {path} is not valid TOML: {error}") from None
    known = {option.name: option for option in options if option.is_in_file}
    for name, value in content.items():
        option = known.get(name)
        if option is None:
            likely = difflib.get_close_matches(name.replace("_", "-"), known, 1, LIKELY)
            advice = f"; do you mean {likely[0]!r}?" if likely else ""
            raise ConfigError(f"there is no option {name!r}{advice} ({path})")
        _set(settings, option, value, path, FILE)


def _set(settings: Settings, option: Option, given: Any, source: str, rank: int) -> None:
    settings.by_name[option.name] = Setting(_convert(option, given, source), source, rank)


def _convert(option: Option, given: Any, source: str) -> Any:
    if not option.kind.is_list:
        return _convert_one(option, given, source)
    parts = given if isinstance(given, list) else [given]
    words = [
        word for part in parts for word in (part.split(",") if isinstance(part, str) else [part])
    ]
    return [_convert_one(option, word, source) for word in words]


def _convert_one(option: Option, given: Any, source: str) -> Any:
    kind = option.kind
    wrong = f"{option.name} must be {kind.expected}, not {given!r} ({source})"
    if isinstance(given, bool) and kind.is_switch:
        return given
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ConfigError(wrong)
    try:
        return kind.parse(str(given).strip())
    except (ValueError, OverflowError) as error:
        if kind.explains:
            wrong = f"{option.name}: {error} ({source})"
        raise ConfigError(wrong) from None


def _exclude(options: Sequence[Option], settings: Settings) -> None:
    """Among options that exclude each other, keep those from the source that has precedence."""
    chosen: dict[str, list[Option]] = {}
    for option in options:
        setting = settings.by_name.get(option.name)
        if option.excludes and setting is not None and setting.value is not False:
            chosen.setdefault(option.excludes, []).append(option)
    for rivals in chosen.values():
        rank = min(settings.by_name[option.name].rank for option in rivals)
        first = [option for option in rivals if settings.by_name[option.name].rank == rank]
        if len(first) > 1:
            names = " and ".join(option.name for option in first)
            sources = dict.fromkeys(settings.source(option.name) for option in first)
            raise ConfigError(f"set only one of {names} ({', '.join(sources)})")
        for option in rivals:
            if option not in first:
                del settings.by_name[option.name]

"""One source of settings each: a TOML file with the line of every key, a flag, an environment variable."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KeyPath = tuple[str, ...]


class ConfigError(ValueError):
    """Configuration that is refused: one line per problem, `FILE:LINE: KEY: what is wrong; what is allowed`."""


class Words(str):
    """Text from a flag or a variable: the field it lands in says whether it is a string, a number or a bool."""

    def meant(self) -> Any:
        try:
            table = tomllib.loads(f"value = {self}")
        except tomllib.TOMLDecodeError:
            return str(self)
        return table["value"] if len(table) == 1 else str(self)


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of settings: `lines` says where each key stands, `base` where relative paths start (else here)."""

    source: str
    table: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    base: Path | None = None

    def at(self, path: KeyPath) -> str:
        """`FILE:LINE` of a key, or of the nearest table around it."""
        for depth in range(len(path), 0, -1):
            if line := self.lines.get(dotted(path[:depth])):
                return f"{self.source}:{line}"
        return self.source


def dotted(path: KeyPath) -> str:
    """The key as TOML writes it: prices."llama-3.1".prompt."""
    return ".".join(p if re.fullmatch(r"[A-Za-z0-9_-]+", p) else json.dumps(p) for p in path)


def read_layer(path: Path) -> Layer:
    """Read a TOML file. Raises ConfigError when it is missing, unreadable or not TOML."""
    source = _shown(path)
    try:
        text = expanded(path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as e:
        raise ConfigError(f"{source}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{source}: is not UTF-8 text: {e}") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(_syntax_problem(source, text, str(e))) from e
    return Layer(source, table, _lines(text), Path(os.path.abspath(expanded(path))).parent)


def flag_layers(settings: Sequence[str]) -> list[Layer]:
    """A layer for each `--set a.b=value`; the value is TOML if it reads as TOML, else a string."""
    layers = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: has no value; write --set {setting or 'section.key'}=VALUE")
        try:
            path = _only_path(tomllib.loads(f"{key.strip()} = 0"))
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(f"--set {setting}: {key!r} is not a dotted key such as gateway.port") from e
        layers.append(Layer(f"--set {dotted(path)}", nest(path, read_text(text.strip()))))
    return layers


def expanded(path: Path) -> Path:
    """With the home directory that its ~ stands for. Raises ConfigError where nobody knows one."""
    try:
        return path.expanduser()
    except RuntimeError as e:
        raise ConfigError(f"{path}: no home directory is known for {path.parts[0]}") from e


def _shown(path: Path) -> str:
    """The path as a person here would type it."""
    absolute = os.path.abspath(expanded(path))
    here = os.getcwd() + os.sep
    return absolute.removeprefix(here)


def _syntax_problem(source: str, text: str, message: str) -> str:
    found = re.fullmatch(r"(?s)(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if not found:
        return f"{source}: not valid TOML: {message}"
    what, line, column = found.groups()
    line = line or str(text.rstrip("\n").count("\n") + 1)
    return f"{source}:{line}: not valid TOML: {what}" + (f" (column {column})" if column else " (at the end)")


def _lines(text: str) -> dict[str, int]:
    """The line of every key of a valid TOML document.

    tomllib keeps no positions. But a statement of TOML ends at the first line end where it parses on its own, so
    tomllib itself can cut the document into statements; a file of settings is small enough to ask it line by line.
    """
    lines: dict[str, int] = {}
    table_path: KeyPath = ()
    statement, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at characters TOML does not
        if not statement:
            first = number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # inside a list or string of several lines
        if statement.lstrip().startswith("["):
            table_path = _only_path(parsed)
            lines.setdefault(dotted(table_path), first)
        else:
            for path in _paths(parsed):
                lines.setdefault(dotted(table_path + path), first)
        statement = ""
    return lines


def _paths(table: Mapping[str, Any]) -> Iterator[KeyPath]:
    for key, value in table.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in _paths(value))


def _only_path(table: Mapping[str, Any]) -> KeyPath:
    """The one path in the parse of `[a.b]`, `[[a.b]]` or `a.b = 0`."""
    return max(_paths(table), key=len, default=())


def nest(path: KeyPath, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def read_text(text: str) -> Any:
    """A value given outside a file: TOML lists, tables and quoted strings are themselves, anything else is Words."""
    value = Words(text).meant()
    return value if isinstance(value, dict | list) or (isinstance(value, str) and value != text) else Words(text)

"""TOML in layers, read strictly into nested frozen dataclasses; every value remembers where it came from.

    layers = [read_layer(path), *environment_layers(Site, os.environ), *flag_layers(["gateway.port=8081"])]
    site, origins = build(Site, layers)       # origins["gateway.port"] == "--set gateway.port"

Later layers win, key by key; a list replaces the list below it. Unknown keys, wrong types, values out of bounds and
missing keys are all reported at once, each with its file, line and dotted key, and with what would have been allowed.

A field's `metadata` says what its type cannot:

    unit        "duration": written "90s", "8h", "1h30m", "8:00:00" or "7-00:00:00", held in seconds. The field's name
                ends in `_s` (the unit, for the reader of the code); the key in the file does not.
                "program": a string; with a slash in it a path, relative to the file, else a command of the PATH.
                "pattern": a string, or a list of them; a path or a pattern of paths, relative to the file, unless it
                begins with a brace ("{stdlib}").
    min, max    bounds of a number, both included
    above       a bound of a number, not included
    must_exist  True: a path that must be there; or a string, shown as the remedy when it is not
    computed    True: not a setting, and not looked for
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import operator
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from registry.toml_layers import (
    ConfigError,
    KeyPath,
    Layer,
    Words,
    dotted,
    expanded,
    flag_layers,
    nest,
    read_layer,
    read_text,
)

__all__ = [
    "ConfigError",
    "Layer",
    "build",
    "did_you_mean",
    "duration_seconds",
    "duration_text",
    "environment_layers",
    "flag_layers",
    "leaves",
    "read_layer",
]

T = TypeVar("T")


def environment_layers(cls: type, environ: Mapping[str, str], prefix: str = "HEADGATE") -> list[Layer]:
    """A layer for each variable PREFIX_SECTION__KEY, or PREFIX__KEY for a key outside any section.

    Two underscores separate levels, so PREFIX_ANYTHING_ELSE is not ours. Names are lower-cased, except the keys of
    a table of strings (environment variables to set, say), which keep their spelling.
    """
    layers = []
    for name, text in sorted(environ.items()):
        if name.startswith(f"{prefix}_") and "__" in name:
            levels = [level for level in name[len(prefix) :].split("__") if level]
            levels[:1] = [level.removeprefix("_") for level in levels[:1]]
            if levels:
                layers.append(Layer(f"environment {name}", nest(_spelled(cls, levels), read_text(text))))
    return layers


def _spelled(hint: Any, levels: Iterable[str]) -> KeyPath:
    path = []
    for level in levels:
        hint = _required(hint)
        key, below = level.lower(), None
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            below = next((get_type_hints(hint)[f.name] for k, f in settings_of(hint).items() if k == key), None)
        elif get_origin(hint) is dict:
            below = get_args(hint)[1]
            key = key if dataclasses.is_dataclass(below) else level
        path.append(key)
        hint = below
    return tuple(path)


# -- build ------------------------------------------------------------------------------------------------------------


def build(cls: type[T], layers: Sequence[Layer]) -> tuple[T, dict[str, str]]:
    """The settings of `cls` from the layers, later ones winning, and where each dotted key came from.

    Raises ConfigError with every problem found. A ValueError from a dataclass's own `__post_init__` is one of them.
    """
    root = _Node({}, layers[0] if layers else Layer("no file", {}))
    for layer in layers:
        _merge(root.value, layer.table, layer)
    builder = _Builder()
    instance = builder.table(cls, root, (), None)
    if builder.problems:
        raise ConfigError("\n".join(builder.problems))
    assert isinstance(instance, cls)
    return instance, {key: builder.origins.get(key, "default") for key, _ in leaves(instance)}


def leaves(instance: Any, path: KeyPath = ()) -> Iterator[tuple[str, Any]]:
    """Every setting of a built dataclass: its dotted key, and its value as one would write it."""
    for key, f in settings_of(type(instance)).items():
        value, here = getattr(instance, f.name), (*path, key)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, here)
        elif isinstance(value, dict) and value:
            for name, item in value.items():
                if dataclasses.is_dataclass(item):
                    yield from leaves(item, (*here, name))
                else:
                    yield dotted((*here, name)), item
        else:
            yield dotted(here), _written(value, f.metadata)


def settings_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Key in the file -> field."""
    return {_key(f): f for f in dataclasses.fields(cls) if not f.metadata.get("computed")}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` did you mean 'x'?` when one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" did you mean {close[0]!r}?" if close else ""


@dataclass(slots=True)
class _Node:
    """A merged value, or a table of nodes, and the layer to blame for it (of a table: the first that opened it)."""

    value: Any
    layer: Layer


def _merge(into: dict[str, _Node], table: Mapping[str, Any], layer: Layer) -> None:
    for key, value in table.items():
        if not isinstance(value, dict):
            into[key] = _Node(value, layer)
            continue
        if key not in into or not isinstance(into[key].value, dict):
            into[key] = _Node({}, layer)
        _merge(into[key].value, value, layer)


@dataclass(slots=True)
class _Builder:
    problems: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)

    def problem(self, layer: Layer, path: KeyPath, text: str) -> None:
        self.problems.append(": ".join(part for part in (layer.at(path), dotted(path), text) if part))

    def table(self, cls: type, node: _Node, path: KeyPath, fallback: Any) -> Any:
        """A dataclass from a table; what the table leaves out comes from `fallback`, else from the class."""
        if not isinstance(node.value, dict):
            return self.problem(node.layer, path, f"expects a table [{dotted(path)}], not {_said(node.value)}")
        settings, hints, values = settings_of(cls), get_type_hints(cls), {}
        before = len(self.problems)
        for key, child in node.value.items():
            if key not in settings:
                allowed = ", ".join(sorted(settings))
                hint = did_you_mean(key, settings)
                self.problem(child.layer, (*path, key), f"unknown key;{hint} allowed here: {allowed}")
        for key, f in settings.items():
            default = _default(f) if fallback is None else getattr(fallback, f.name)
            values[f.name] = self.setting(hints[f.name], f.metadata, node, (*path, key), default)
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except ValueError as e:
            return self.problem(node.layer, path, str(e))

    def setting(self, hint: Any, metadata: Mapping[str, Any], parent: _Node, path: KeyPath, default: Any) -> Any:
        inner = _required(hint)
        node: _Node | None = parent.value.get(path[-1])
        if dataclasses.is_dataclass(inner) and (node or default is not None):
            assert isinstance(inner, type)
            fallback = None if default is MISSING else default
            return self.table(inner, node or _Node({}, parent.layer), path, fallback)
        if node is None:
            if default is MISSING:
                self.problem(parent.layer, path, "is required and missing")
            return default
        if get_origin(inner) is tuple and dataclasses.is_dataclass(get_args(inner)[0]):
            return self.array(get_args(inner)[0], node, path)
        if get_origin(inner) is dict:
            return self.names(get_args(inner)[1], metadata, node, path, {} if default in (MISSING, None) else default)
        return self.leaf(inner, metadata, node, path)

    def names(self, hint: Any, metadata: Mapping[str, Any], node: _Node, path: KeyPath, default: Any) -> Any:
        """A table whose keys are names the site chooses: dict[str, Dataclass] or dict[str, str]."""
        if not isinstance(node.value, dict):
            return self.problem(node.layer, path, f"expects a table [{dotted(path)}], not {_said(node.value)}")
        values = dict(default)
        for name, child in node.value.items():
            here = (*path, name)
            if dataclasses.is_dataclass(hint):
                assert isinstance(hint, type)
                values[name] = self.table(hint, child, here, values.get(name))
            else:
                values[name] = self.leaf(hint, metadata, child, here)
        return values

    def array(self, cls: type, node: _Node, path: KeyPath) -> Any:
        """An array of tables, [[name]]: tuple[Dataclass, ...]. Problems and origins are of the array's first line."""
        if not isinstance(node.value, list) or not all(isinstance(item, dict) for item in node.value):
            return self.problem(node.layer, path, f"expects tables [[{dotted(path)}]], not {_said(node.value)}")
        items = []
        for number, item in enumerate(node.value):
            table: dict[str, _Node] = {}
            _merge(table, item, node.layer)
            items.append(self.table(cls, _Node(table, node.layer), (*path, str(number)), None))
        return tuple(items)

    def leaf(self, hint: Any, metadata: Mapping[str, Any], node: _Node, path: KeyPath) -> Any:
        if isinstance(node.value, dict):
            return self.problem(node.layer, path, "expects a single value, not a table")
        self.origins[dotted(path)] = node.layer.at(path)
        try:
            return _convert(hint, node.value, metadata, node.layer.base)
        except ValueError as e:
            return self.problem(node.layer, path, str(e))


def _key(f: dataclasses.Field[Any]) -> str:
    return f.name.removesuffix("_s") if f.metadata.get("unit") == "duration" else f.name


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _required(hint: Any) -> Any:
    """X of `X | None`, else the hint itself."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not type(None)]
        assert len(inner) == 1, f"{hint}: a setting has one type"
        return inner[0]
    return hint


# -- values -----------------------------------------------------------------------------------------------------------

_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number", list: "a list", dict: "a table"}
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATIONS = '"90s", "30m", "8h", "1h30m", "7d", "8:00:00" (hours) or "7-00:00:00" (days)'


def duration_seconds(text: str) -> float:
    """Seconds of "90s", "1h30m", "8:00:00" or "7-00:00:00". Raises ValueError saying what is allowed.

    Bare numbers and "10:00" are refused: Slurm reads them as minutes, everybody else as seconds or hours.
    """
    if clock := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text):
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if re.fullmatch(r"(\d+(\.\d+)?(ms|[smhdw]))+", text):
        return sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([\d.]+)(ms|[smhdw])", text))
    raise ValueError(f"{text!r} is not a duration; allowed: {_DURATIONS}")


def duration_text(seconds: float) -> str:
    """The shortest exact writing: 28800 -> "8h"."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{seconds:g}s" if seconds < 1e6 else f"{seconds}s"


def _convert(hint: Any, value: Any, metadata: Mapping[str, Any], base: Path | None) -> Any:
    """A leaf's value as its field's type. Raises ValueError saying what is wrong and what is allowed."""
    if metadata.get("unit") == "duration":
        return _bounded(_duration(hint, value), metadata)
    if isinstance(value, Words):
        value = str(value) if hint in (str, Path) else value.meant()
    if get_origin(hint) is Literal:
        return _chosen(value, {choice: choice for choice in get_args(hint)})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _chosen(value, {member.value: member for member in hint})
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"expects a list, not {_said(value)}")
        return tuple(_convert(get_args(hint)[0], item, metadata, base) for item in value)
    if hint is str and metadata.get("unit") == "pattern":
        text = _exactly(str, value)
        return text if text.startswith("{") else os.path.abspath((base or Path()) / expanded(Path(text)))
    if hint is Path:
        return _path(_exactly(str, value), metadata, base)
    if hint is float and type(value) is int:
        value = float(value)
    if hint is str and metadata.get("unit") == "program" and "/" in _exactly(str, value):
        return str(_path(value, metadata, base))
    return _bounded(_exactly(hint, value), metadata)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:  # not isinstance: a bool is an int to Python, and a mistake to us
        raise ValueError(f"expects {_NAMES[kind]}, not {_said(value)}")
    return value


def _duration(kind: type, value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError(f"expects a duration with its unit, not {_said(value)}; allowed: {_DURATIONS}")
    seconds = duration_seconds(value)
    if kind is float:
        return float(seconds)
    if seconds != int(seconds):
        raise ValueError(f"expects whole seconds, not {value!r}")
    return int(seconds)


def _bounded(value: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expects a finite number, not {value}")
    for name, holds, text in (
        ("min", operator.ge, "at least"),
        ("max", operator.le, "at most"),
        ("above", operator.gt, "above"),
    ):
        if name in metadata and not holds(value, metadata[name]):
            raise ValueError(f"must be {text} {_written(metadata[name], metadata)}, not {_written(value, metadata)}")
    return value


def _chosen(value: Any, choices: Mapping[Any, Any]) -> Any:
    if not isinstance(value, str | int) or value not in choices:
        hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
        raise ValueError(f"{value!r} is not a choice;{hint} allowed: {', '.join(map(str, choices))}")
    return choices[value]


def _path(text: str, metadata: Mapping[str, Any], base: Path | None) -> Path:
    # Links are not resolved: a virtual environment's bin/python is one, and is only itself under its own name.
    path = Path(os.path.abspath((base or Path()) / expanded(Path(text))))
    remedy = metadata.get("must_exist")
    if remedy and not path.exists():
        raise ValueError(f"there is no {path}" + (f"; {remedy}" if isinstance(remedy, str) else ""))
    return path


def _said(value: Any) -> str:
    kind = next((name for kind, name in _NAMES.items() if type(value) is kind), None)
    return f"{kind} ({value!r})" if kind and not isinstance(value, bool) else repr(value)


def _written(value: Any, metadata: Mapping[str, Any]) -> Any:
    if metadata.get("unit") == "duration" and value is not None:
        return duration_text(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [dict(leaves(item)) if dataclasses.is_dataclass(item) else item for item in value]
    return str(value) if isinstance(value, Path) else value

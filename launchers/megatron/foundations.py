"""What a recipe takes from elsewhere: a preset's shape, the shape and tokenizer of whoever's weights it begins with.

Each is a layer of settings below the recipe's own. A preset may be overridden; what weights or a tokenizer say may not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers.megatron import hugging_face, manifest
from launchers.megatron.presets import PRESETS
from launchers.megatron.recipe import RecipeError
from registry.strict_toml import Layer, did_you_mean
from registry.toml_layers import Words, expanded

_FREE = ("seq_length", "init_std")  # of [model]: how it is trained, not what it is


def below(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that these stand on. Raises RecipeError naming what is missing, or both sides of a contradiction."""
    found, fixed = [], []
    if preset := _said(layers, "model", "preset"):
        found.append(_preset(*preset))
    whose = [(name, said) for name in ("hugging_face", "checkpoint") if (said := _said(layers, "init", name))]
    for name, (layer, value) in whose:
        directory = _path(layer, value)
        fixed.append(_hugging_face(directory) if name == "hugging_face" else _checkpoint(directory))
        if preset:
            raise RecipeError(
                f"{preset[0].at(('model', 'preset'))}: model.preset = {preset[1]!r}: the shape is that of {directory}"
            )
    if not whose and (tokenizer := _said(layers, "data", "tokenizer")):
        directory = _path(*tokenizer)
        fixed.append(
            Layer(str(directory / hugging_face.TOKENIZER), {"data": {"vocab_size": hugging_face.vocabulary(directory)}})
        )
    for layer in fixed:
        _agree(layers, layer)
    return [*found, *fixed]


def _preset(layer: Layer, name: str) -> Layer:
    if name not in PRESETS:
        raise RecipeError(
            f"{layer.at(('model', 'preset'))}: model.preset = {name!r} is none of {', '.join(PRESETS)};"
            f"{did_you_mean(name, PRESETS)}"
        )
    return Layer(f"preset {name}", {"model": PRESETS[name]})


def _hugging_face(directory: Path) -> Layer:
    model = hugging_face.shape(directory)
    vocab_size, known = model.pop("vocab_size"), hugging_face.vocabulary(directory)
    if known > vocab_size:
        raise RecipeError(
            f"{directory}: {hugging_face.TOKENIZER} has {known} tokens, {hugging_face.CONFIG} vocab_size = {vocab_size}"
        )
    return Layer(
        str(directory / hugging_face.CONFIG),
        {
            "model": {**model, "seq_length": model["max_length"]},
            "data": {"vocab_size": vocab_size, "tokenizer": str(directory)},
        },
    )


def _checkpoint(directory: Path) -> Layer:
    try:
        facts = manifest.read(directory).facts
        recipe = json.loads((directory / "recipe.json").read_text(encoding="utf-8"))
        model = {k: v for k, v in recipe["model"].items() if k != "preset"}
        model["max_length"] = model.get("max_length") or model["seq_length"]
        vocab_size = facts.get("vocab", recipe["data"]["vocab_size"])
    except (manifest.CheckpointError, OSError) as e:
        raise RecipeError(f"{directory}: not a checkpoint to begin with: {e}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise RecipeError(f"{directory}: not a checkpoint to begin with: recipe.json: {type(e).__name__}: {e}") from e
    return Layer(
        str(directory / "recipe.json"),
        {"model": model, "data": {"vocab_size": vocab_size, "tokenizer": str(directory / "tokenizer")}},
    )


def _agree(layers: Sequence[Layer], fixed: Layer) -> None:
    for layer in layers:
        for section, known in fixed.table.items():
            table = layer.table.get(section)
            for key, said in table.items() if isinstance(table, dict) else ():
                said = said.meant() if isinstance(said, Words) else said
                if key == "tokenizer" and isinstance(said, str):
                    said = str(_path(layer, said))
                if key in known and key not in _FREE and said != known[key]:
                    raise RecipeError(
                        f"{layer.at((section, key))}: {section}.{key} = {said!r} contradicts {known[key]!r} "
                        f"of {fixed.source}; leave it out"
                    )


def _said(layers: Sequence[Layer], section: str, key: str) -> tuple[Layer, str] | None:
    """Who says a setting last, and what; None when nobody does (or not as text, which is found out later)."""
    for layer in reversed(layers):
        table: Any = layer.table.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str) and table[key]:
            return layer, str(table[key])
    return None


def _path(layer: Layer, said: str) -> Path:
    """As strict_toml makes a path of it, so that one directory is the same path whoever names it."""
    return Path(os.path.abspath((layer.base or Path()) / expanded(Path(said))))

"""Which model directories a shared control plane serves for anybody: what cannot run code where it is loaded.

Safetensors are numbers; the other formats are pickles, which run what they hold. `auto_map` names Python files that
come with a model; a draft model's `speculators_config` names a directory that the engine loads in its place, with the
service's eyes. Every engine is told the same (`--load-format safetensors`, no `--trust-remote-code`), unless an
administrator says otherwise; this is for the person who asks, who is told at once and in words. A published directory
stays its owner's, so the job looks again before each start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launchers.untrusted import Unbelievable, read_object

MAX_CONFIG_BYTES = 16 << 20
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
REFUSED = {
    "auto_map": "it brings Python code along",
    "speculators_config": "it has the engine load another model",
    "speculators_model_type": "it has the engine load another model",
    "configuration_files": "it has the engine read another file in its place",
}
ENGINE_ARGS = ("--load-format", "safetensors")


def check(path: Path) -> None:
    """Raises ValueError, naming the directory and the file, for a model that only an administrator may serve."""
    if not any(_regular(file) for file in path.glob("*.safetensors")):
        raise ValueError(f"{path}: there are no weights in safetensors (*.safetensors); others are for administrators")
    if _config(path, "config.json") is None:
        raise ValueError(f"{path}: there is no config.json in it")
    for name in CONFIGS:
        for key in REFUSED.keys() & (_config(path, name) or {}).keys():
            raise ValueError(f"{path}: its {name} has {key}: {REFUSED[key]}, which is for administrators")


def _config(path: Path, name: str) -> dict[str, Any] | None:
    """None where there is no such file. The directory may be anybody's: a link in it may lead to a file that is not."""
    try:
        return read_object(path / name, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return None
    except Unbelievable as e:
        raise ValueError(f"{path}: its {name} cannot be read: {e}") from e


def _regular(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()

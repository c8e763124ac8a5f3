"""LoRA adapters of a running engine: which are wanted, and how it comes to have them.

The controller writes the wanted ones into a replica's run folder; the supervisor there looks, loads and unloads them
through the engine's own routes, which only the replica's key opens and no gateway passes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.run_folder import RunFolder
from launchers.spec import ServeSpec
from launchers.untrusted import Unbelievable, read_object
from launchers.vllm.endpoint import Endpoint, call

ASKED = "adapters.json"
MAX_BYTES = 1 << 20
MAX_ADAPTERS = 64  # of one replica
MAX_AT_A_TIME = 8  # in one batch: each takes room beside the model's weights
IN_MEMORY = 32  # loaded, and ready to take such a place; more are read again from disk when they are called
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for
LOAD_TIMEOUT_S = 120.0


class LoadError(ValueError):
    """The engine did not take an adapter, or did not let one go; the message names it, and has the engine's words."""


def rank_of(directory: Path) -> int:
    """The rank of a LoRA adapter. Raises ValueError, naming the directory, when it is none that may be loaded.

    Its weights must be safetensors: what else PEFT writes are pickles, which run what they hold.
    """
    if not directory.is_absolute():
        raise ValueError(f"adapter {directory}: not an absolute path")
    if not (directory / "adapter_model.safetensors").is_file():
        raise ValueError(f"adapter {directory}: there is no adapter_model.safetensors in it")
    try:
        config = read_object((directory / "adapter_config.json").resolve(), MAX_BYTES)
    except FileNotFoundError as e:
        raise ValueError(f"adapter {directory}: there is no adapter_config.json in it") from e
    except Unbelievable as e:
        raise ValueError(f"adapter {directory}: its adapter_config.json cannot be read: {e}") from e
    if config.get("peft_type") != "LORA":
        raise ValueError(f"adapter {directory}: peft_type is {config.get('peft_type')!r}; only LORA can be served")
    of_modules = config.get("rank_pattern") or {}
    ranks: list[Any] = [config.get("r"), *(of_modules.values() if isinstance(of_modules, dict) else [of_modules])]
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANKS[-1]:
            raise ValueError(f"adapter {directory}: its rank (r, rank_pattern) is {rank!r}, not 1 ... {RANKS[-1]}")
    return int(max(ranks))


def engine_args(spec: ServeSpec) -> tuple[str, ...]:
    """What makes the engine one that takes such adapters. Reads them; raises ValueError as `rank_of` does."""
    if not spec.adapters:
        return ()
    highest = max(rank_of(Path(directory)) for directory in spec.adapters.values())
    return (
        "--enable-lora",
        *("--max-lora-rank", str(next(rank for rank in RANKS if rank >= highest))),
        *("--max-loras", str(min(len(spec.adapters), MAX_AT_A_TIME))),
        *("--max-cpu-loras", str(IN_MEMORY)),
    )


def env(spec: ServeSpec) -> dict[str, str]:
    """The engine's loading routes exist only where they are needed."""
    return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if spec.adapters else {}


def ask(folder: RunFolder, adapters: Mapping[str, str]) -> None:
    """Ask a running replica for these adapters (name -> absolute directory) and no others. Raises OSError."""
    path = folder.root / ASKED
    temporary = path.with_name(f".{ASKED}.{os.getpid()}")
    temporary.write_text(json.dumps({"adapters": dict(adapters)}), encoding="utf-8")
    os.rename(temporary, path)


def wanted(folder: RunFolder) -> dict[str, str] | None:
    """What was asked for since the replica was launched; None: nothing was.

    Raises ValueError for a file that `ask` did not write, OSError where a second look may succeed.
    """
    try:
        asked = read_object(folder.root / ASKED, MAX_BYTES, os.getuid())["adapters"]
    except FileNotFoundError:
        return None
    except KeyError as e:
        raise ValueError(f"{folder.root / ASKED}: adapters are missing") from e
    except Unbelievable as e:
        raise ValueError(f"{folder.root / ASKED}: {e}") from e
    if not isinstance(asked, dict) or not all(isinstance(path, str) for path in asked.values()):
        raise ValueError(f"{folder.root / ASKED}: adapters are not names with directories")
    return asked


def renewed(spec: ServeSpec, folder: RunFolder) -> ServeSpec:
    """The spec of a replica's next engine, which is to be one for the adapters that are wanted now.

    Those it was launched with and are still wanted must be there. Any other that cannot be read is left to `change`:
    it keeps no engine from its work.
    """
    try:
        asked = wanted(folder) or {}
    except (OSError, ValueError):
        return spec  # not to be read now, or not ours: as it was
    needed = {name: directory for name, directory in asked.items() if name in spec.adapters or _readable(directory)}
    return dataclasses.replace(spec, adapters=needed or spec.adapters)


def _readable(directory: str) -> bool:
    try:
        rank_of(Path(directory))
    except (OSError, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine has after it was asked to change."""

    adapters: Mapping[str, str]  # name -> directory
    problem: str | None = None  # why that is not what was wanted, in words
    again: bool = False  # whether the same may succeed later: the file system or the engine gave no answer


def load(endpoint: Endpoint, wanted: Mapping[str, str]) -> list[str]:
    """Give a new engine all its adapters; the names under which they answer now. Raises LoadError."""
    loaded = change(endpoint, {}, wanted)
    if loaded.problem is not None:
        raise LoadError(loaded.problem)
    return sorted(loaded.adapters)


def change(endpoint: Endpoint, has: Mapping[str, str], wanted: Mapping[str, str]) -> Loaded:
    """From the adapters that an engine has to those wanted: what is new first, so that nothing that stays goes away.

    One that moved to another directory is replaced in place. What is refused leaves the rest to be done all the same;
    what is not answered leaves it for later: an engine that hangs would keep whoever watches it waiting for each.
    """
    now, problems, again = dict(has), [], False
    for name, directory in sorted(wanted.items()):
        if has.get(name) != directory:
            try:
                rank_of(Path(directory))  # vLLM would take a pickle
            except (OSError, ValueError) as e:
                problems.append(f"adapter {name} could not be loaded: {e}")
                again |= isinstance(e, OSError)
                continue
            # In place: an engine may have it since a call to which it gave no answer.
            body = {"lora_name": name, "lora_path": directory, "load_inplace": True}
            status, said = call(endpoint, "POST", "/v1/load_lora_adapter", body, LOAD_TIMEOUT_S)
            if status == 200:
                now[name] = directory
                continue
            problems.append(f"adapter {name} could not be loaded: {_words(status, said)}")
            if status == 0:
                return Loaded(now, "; ".join(problems), again=True)
    for name in sorted(has.keys() - wanted.keys()):
        status, said = call(endpoint, "POST", "/v1/unload_lora_adapter", {"lora_name": name}, LOAD_TIMEOUT_S)
        if status in (200, 404):  # 404: it has none of that name
            del now[name]
            continue
        problems.append(f"adapter {name} could not be unloaded: {_words(status, said)}")
        if status == 0:
            return Loaded(now, "; ".join(problems), again=True)
    return Loaded(now, "; ".join(problems) or None, again)


def _words(status: int, said: bytes) -> str:
    """What the engine said, as short as it can be told."""
    if status == 0:
        return "the engine did not answer"
    try:
        message = json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = said.decode(errors="replace")
    return f"HTTP {status}: {str(message)[:500]}"

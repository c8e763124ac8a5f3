"""What the programs of a promotion's steps have in common: their spec, the step before, and how they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from launchers.evaluation import before
from launchers.evaluation.engine import EngineError
from launchers.run_folder import RunFolder
from launchers.spec import EvaluateSpec, SmokeSpec, SpecError, StepSpec, load

REFUSED = 78  # EX_CONFIG: a person must change something
PROGRAMS = {SmokeSpec: "launchers.evaluation.smoke", EvaluateSpec: "launchers.evaluation.evaluate"}

S = TypeVar("S", SmokeSpec, EvaluateSpec)


class Refused(RuntimeError):
    """The model is not what was asked for; another attempt would find the same."""


class _Stopped(BaseException):
    """SIGTERM."""


def child_argv(spec: StepSpec, folder: RunFolder) -> list[str]:
    """What the supervisor starts: ours, in its own Python; the engine and the harness are in environments of theirs."""
    return [sys.executable, "-m", PROGRAMS[type(spec)], str(folder.root)]


def run(arguments: Sequence[str], kind: type[S], work: Callable[[RunFolder, S], None]) -> int:
    """Do a step's work once the step before has come to its end. Returns the exit code; says why it is not 0."""
    if len(arguments) != 1:
        print(f"usage: python -m {PROGRAMS[kind]} RUN_FOLDER", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _on_signal)
    folder = RunFolder(Path(arguments[0]).absolute())
    try:
        spec = load(folder.spec)
        if not isinstance(spec, kind):
            raise SpecError(f"{folder.spec}: kind {spec.kind!r}, but this program reads {kind.kind}")
        if spec.after is not None:
            before.wait(RunFolder(Path(spec.after)))
        if not (Path(spec.model_path) / "config.json").is_file():
            raise Refused(f"{spec.model_path}: there is no model (config.json)")
        work(folder, spec)
    except (Refused, before.NotReached, SpecError) as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return REFUSED
    except (EngineError, OSError) as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 1
    except _Stopped:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # whoever waits for us sees what ended us
    return 0


def _on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the engine is being ended
    raise _Stopped

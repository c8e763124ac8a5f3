"""How `headgate show` prints a run. Pure: text from what was gathered."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
import typing
from datetime import UTC, datetime
from typing import Any

from cli.curve import curve
from cli.metrics import Training
from cli.runs import progress
from cli.table import ago, printable, table
from launchers.megatron.recipe import Recipe
from slurm import amounts

LAST_ATTEMPTS = 12
TELLING_S = 600  # a run without a failure says something about failures after so long
MARGIN = 12
RECIPE_FIRST = ("kind", "model", "data", "train", "parallel")  # then the rest, as it stands
_UNSET: tuple[Any, ...] = (None, 0, False, "", [], ())
ATTEMPTS = ("attempt", "job", "nodes", "started", "lasted", "iterations", "ended", "lost")


def render(said: dict[str, Any], training: Training, width: int) -> str:
    """The whole screen, in lines of at most `width` where they can be folded."""
    parts = [
        _head(said),
        _section("asked", [asked(said["resources"])] if said["resources"] else [], width),
        _section("asked", _submitted(said["submitted"]), 0),
        _section("code", _code(said["git"]), width),
        _section("recipe", recipe_lines(said["recipe"] or {}), width),
        _section("progress", _progress(said, training), width),
        _attempts(said["attempts"]),
        _section("checkpoints", _checkpoints(said["checkpoints"]), width),
        _section("time", _time(said["time"]), width),
        _section("lineage", _lineage(said["lineage"]), width),
        _section("files", _files(said["files"]), 0),
        "\n" + "\n".join(curve(training.losses, width, marks=[life.begun_after for life in training.lives[1:]])),
    ]
    return printable("\n".join(part for part in parts if part.strip()))


def _head(said: dict[str, Any]) -> str:
    run = said["run"]
    state = run["state"] + (f" ({said['phase']})" if said["phase"] not in (None, "training") else "")
    if said["silent_s"] is not None:
        state += f", and nothing was heard of it for {amounts.duration(said['silent_s'])}"
    cause = f": {run['cause']}" if run["cause"] else ""
    whose = f"{run['kind']}, {run['owner']}'s, made {ago(run['created_at'])} ago"
    unheard = "" if said["registry"] else "; as its folder tells, no controller does"
    return f"{run['id']}  {state}{cause}\n{whose}{unheard}"


def asked(resources: dict[str, Any]) -> str:
    """What its job asks of Slurm, in words."""
    r = resources
    words = [
        f"{amounts.counted(r['nodes'], 'node')} x {amounts.counted(r['tasks_per_node'], 'task')} "
        f"x {amounts.counted(r['cpus_per_task'], 'CPU')}",
        f"{amounts.counted(r['gpus_per_node'], 'GPU')} per node" if r["gpus_per_node"] else "",
        f"{r['mem_gb']:g} GiB per node" if r["mem_gb"] is not None else "",
        f"for up to {amounts.duration(r['time_limit_s'])}",
        *(f"{name} {r[name]}" for name in ("partition", "account", "qos") if r[name]),
        *r.get("options", ()),
    ]
    return ", ".join(word for word in words if word)


def _submitted(script: dict[str, Any] | None) -> list[str]:
    return [f"sbatch {shlex.join(script['argv'])}", f"in {script['cwd']}"] if script else []


def _code(git: dict[str, Any] | None) -> list[str]:
    if not git or not git.get("commit"):
        return []
    changed = "; changed since (code/changes.diff)" if git.get("changed") else ""
    branch = f" on {git['branch']}" if git.get("branch") else ""
    return [f"{git.get('repository')}, commit {str(git['commit'])[:12]}{branch}{changed}"]


def recipe_lines(recipe: dict[str, Any]) -> list[str]:
    """A line for each table of a recipe, without what is not set, or as a recipe that does not say it has it."""
    names = [n for n in RECIPE_FIRST if n in recipe] + [n for n in recipe if n not in RECIPE_FIRST]
    lines = []
    for name in names:
        value = recipe[name]
        settings = value if isinstance(value, dict) else {"": value}
        usual = defaults(name)
        told = {k: v for k, v in settings.items() if (_plain(v) != usual[k] if k in usual else v not in _UNSET)}
        words = [f"{key} {_value(v)}".strip() for key, v in told.items()]
        if words:
            lines.append(f"{name}: {', '.join(words)}")
    return lines


def defaults(table: str) -> dict[str, Any]:
    """What a recipe's table has where nothing else is said; nothing for what is no table."""
    kind = typing.get_type_hints(Recipe).get(table)
    if not dataclasses.is_dataclass(kind):
        return {}
    return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _value(value: Any) -> str:
    match value:
        case bool():
            return "" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return " ".join(_value(v) for v in value)
        case dict():
            return "(" + ", ".join(f"{k} {_value(v)}" for k, v in value.items() if v not in (None, "", [], ())) + ")"
    return str(value)


def _progress(said: dict[str, Any], training: Training) -> list[str]:
    run = said["run"]
    if run["iteration"] is None:
        return []
    words = [f"iteration {progress(run)}", f"loss {run['loss']:.4f}"]
    if training.validation:
        iteration, loss = training.validation[-1]
        words.append(f"validation {loss:.4f} (at {iteration:,})")
    if run["tokens_per_s"] is not None:
        words.append(f"{run['tokens_per_s']:,.0f} tokens/s")
    if run["mfu"] is not None:
        words.append(f"MFU {run['mfu']:.1%}")
    if run["eta_s"] is not None and run["state"] == "running":
        words.append(f"ETA {amounts.duration(run['eta_s'])}")
    if isinstance(said["parameters"], int):
        words.append(f"{said['parameters']:,} parameters")
    return ["  ".join(words)]


def _attempts(attempts: list[dict[str, Any]]) -> str:
    if not attempts:
        return ""
    shown = attempts[-LAST_ATTEMPTS:]
    earlier = len(attempts) - len(shown)
    now = datetime.now(UTC)
    rows = [
        {
            "attempt": str(a["number"]),
            "job": a["job"],
            "nodes": a["nodes"],
            "started": amounts.localised(amounts.moment(datetime.fromisoformat(a["started_at"])), now),
            "lasted": amounts.duration(a["lasted_s"]),
            "iterations": _iterations(a),
            "ended": _ended(a, last=a is attempts[-1]),
            "lost": None if a["lost_s"] is None else amounts.duration(a["lost_s"]),
        }
        for a in shown
    ]
    more = f"\n({earlier} earlier; --json has them all)" if earlier else ""
    return f"\n{table(rows, ATTEMPTS)}{more}\n"


def _iterations(a: dict[str, Any]) -> str | None:
    if a["first_iteration"] is None:
        return None
    again = f" ({a['computed_in_vain']:,} again)" if a["computed_in_vain"] else ""
    return f"{a['first_iteration']:,}-{a['last_iteration']:,}{again}"


def _ended(a: dict[str, Any], *, last: bool) -> str:
    if a["cause"] is None:
        return "runs" if last else "without a word"
    failed = a["exit_code"] and a["words"]
    words = f"{a['cause']}: {a['words']}" if failed and a["words"] != a["cause"] else a["cause"]
    return textwrap.shorten(str(words), 72, placeholder=" …")


def _checkpoints(c: dict[str, Any]) -> list[str]:
    if not c["complete"]:
        return ["none complete"] if c["incomplete"] else []
    unfinished = f"; not complete: {', '.join(map(str, c['incomplete']))}" if c["incomplete"] else ""
    return [f"{c['complete']} complete, {size(c['bytes'])}; newest: iteration {c['newest']:,}{unfinished}"]


def size(count: int) -> str:
    """Bytes in words: "7 bytes", "1.5 MiB"."""
    for unit, length in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return amounts.counted(count, "byte")


def _time(t: dict[str, Any] | None) -> list[str]:
    if t is None:
        return []
    lines = [
        f"{amounts.duration(t['productive'])} of {amounts.duration(t['wall'])} went into iterations that count: "
        f"Effective Training Time Ratio {t['effective_training_time_ratio']:.3f}"
    ]
    if t["restarts"]:
        lines.append(
            f"{amounts.counted(t['restarts'], 'restart')} cost {amounts.duration(t['lost_to_restarts_s'])}, "
            f"{amounts.duration(t['lost'])} of it for iterations computed in vain"
        )
    if (suggested := t["suggested_interval"]) is not None and (t["failures"] or t["wall"] >= TELLING_S):
        failing = f"a failure every {amounts.duration(t['between_failures_s'])}"
        if not t["failures"]:
            failing = f"no failure in {amounts.duration(t['between_failures_s'])}"
        lines.append(
            f"suggested: a checkpoint every {amounts.counted(suggested['iterations'], 'iteration')} "
            f"({amounts.duration(suggested['seconds'])}): a save costs {suggested['save_costs_s']:.2f} s, {failing}"
        )
    return lines


def _lineage(lineage: dict[str, Any]) -> list[str]:
    lines = [f"from {lineage['from']}"] if lineage["from"] else []
    for m in lineage["models"]:
        users = [*(f"@{alias}" for alias in m["aliases"]), *(f"deployment {name}" for name in m["deployments"])]
        lines.append(f"checkpoint {m['checkpoint']} -> model {m['model']} ({', '.join([m['state'], *users])})")
    return lines


def _files(files: dict[str, str | None]) -> list[str]:
    return [f"{name}: {path}" for name, path in files.items() if path]


def _section(title: str, lines: list[str], width: int) -> str:
    """Lines under a title at their left. `width` 0: never folded, so that they can be copied whole."""
    folded = [
        part
        for line in lines
        for part in (textwrap.wrap(line, max(40, width - MARGIN), subsequent_indent="  ") if width else [line])
    ]
    return "\n".join(f"{title if i == 0 else '':<{MARGIN}}{line}" for i, line in enumerate(folded))

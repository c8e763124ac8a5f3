"""`headgate diff RUN RUN`: what was asked differently, and which code. Reads run folders; needs no control plane.

`headgate diff -f FILE` is another question, which the control plane answers: what `headgate apply` would change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.context import Context
from cli.folders import kind_of, run_folder
from cli.table import printable
from launchers.megatron.manifest import CheckpointError, sha256
from launchers.run_folder import RunFolder
from launchers.spec import SpecError, load
from launchers.untrusted import Unbelievable, read_bytes, read_object

OWN = ("id", "created_at")  # what no two runs share
MAX_BYTES = 1 << 20  # of a file that is shown line by line


class Trouble(click.ClickException):
    """As diff(1) says it: neither the same nor different."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Setting:
    key: str  # dotted: recipe.train.lr
    old: Any  # None: not there
    new: Any


@dataclass(frozen=True, slots=True)
class File:
    path: str  # in the run folder
    lines: tuple[str, ...]  # a unified diff's, without their ends; none for what is no text, or too long

    @property
    def added(self) -> int:
        return sum(line.startswith("+") for line in self.lines[2:])

    @property
    def removed(self) -> int:
        return sum(line.startswith("-") for line in self.lines[2:])


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN RUN]")
@click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path), help="What `headgate apply` of this file would change."
)
@click.option("--stat", is_flag=True, help="Of changed files only how many lines were added and removed.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def diff(context: Context, /, runs: tuple[str, ...], path: Path | None, stat: bool, as_json: bool) -> None:
    """How a run differs from another: recipe, resources, environment, frozen code. Or deployments from a FILE.

    The exit status is diff(1)'s: 0 when nothing differs, 1 when something does, 2 for trouble.
    """
    if len(runs) != (0 if path else 2):
        raise click.UsageError("two runs are compared (RUN RUN), or the deployments with a file (-f FILE)")
    try:
        differs = (
            of_deployments(context, path, as_json) if path else of_runs(context, *runs, stat=stat, as_json=as_json)
        )
    except click.ClickException as e:
        raise Trouble(e.message) from e
    except (OSError, SpecError) as e:
        raise Trouble(str(e)) from e
    raise SystemExit(1 if differs else 0)


def of_runs(context: Context, old: str, new: str, *, stat: bool, as_json: bool) -> bool:
    """Print what differs, and whether anything does. Raises ClickException, OSError, SpecError."""
    site = context.site()
    a, b = run_folder(site, old), run_folder(site, new)
    changed = settings(_spec(a), _spec(b))
    files = list(code(a, b))
    if as_json:
        facts = [{"path": f.path, "added": f.added, "removed": f.removed} for f in files]
        click.echo(json.dumps({"settings": [dataclasses.asdict(s) for s in changed], "files": facts}, indent=2))
    elif changed or files:
        click.echo(printable(render(a.id, b.id, changed, files, stat)))
    return bool(changed or files)


def of_deployments(context: Context, path: Path, as_json: bool) -> bool:
    """The same of the deployments and a file of them. Raises ClickException."""
    from cli import apply
    from cli.client import Control

    found = apply.differences(Control(context.site().control_socket), path)
    differ = [(spec, said) for spec, said in found if said["done"] != "unchanged"]
    if as_json:
        told = [{"name": spec.name, "done": said["done"], "changes": said["changes"]} for spec, said in differ]
        click.echo(json.dumps(told, indent=2))
    elif differ:
        click.echo(apply.render(path, differ))
    return bool(differ)


def settings(old: dict[str, Any], new: dict[str, Any]) -> list[Setting]:
    """What two specs say differently, as JSON would have it; keys in the order in which they stand."""
    a, b = dict(_flat(old)), dict(_flat(new))
    keys = [*a, *(key for key in b if key not in a)]
    return [Setting(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]


def code(old: RunFolder, new: RunFolder) -> Iterator[File]:
    """The files of the frozen code that differ, by path."""
    a, b = _files(old.code), _files(new.code)
    yield from _script(old, new)
    for path in sorted({*a, *b}):
        where = f"code/{path}"
        try:
            before = read_bytes(a[path], MAX_BYTES) if path in a else None
            after = read_bytes(b[path], MAX_BYTES) if path in b else None
        except Unbelievable:
            if not (path in a and path in b and _same(a[path], b[path])):
                yield File(where, ())
            continue
        if before != after:
            yield File(where, tuple(_lines(where, before, after)))


def _script(old: RunFolder, new: RunFolder) -> Iterator[File]:
    """A script of the owner's own is code; job.sh of a training run follows from its settings."""
    if {kind_of(old), kind_of(new)} != {"script"}:
        return
    try:
        before, after = (read_bytes(f.script, MAX_BYTES).replace(f.id.encode(), b"RUN") for f in (old, new))
    except Unbelievable:
        yield File("job.sh", ())
        return
    if before != after:
        yield File("job.sh", tuple(_lines("job.sh", before, after)))


def render(old: str, new: str, changed: list[Setting], files: list[File], stat: bool) -> str:
    lines = [f"--- {old}", f"+++ {new}"]
    lines += [f"{s.key}: {_shown(s.old)} -> {_shown(s.new)}" for s in changed]
    if files and changed:
        lines.append("")
    for file in files:
        if not file.lines:
            lines.append(f"{file.path}: differs")
        elif stat:
            lines.append(f"{file.path}: +{file.added} -{file.removed}")
        else:
            lines += file.lines
    return "\n".join(lines)


def _spec(folder: RunFolder) -> dict[str, Any]:
    spec = load(folder.spec)
    plain = {"kind": spec.kind, **json.loads(json.dumps(dataclasses.asdict(spec)))}
    shell: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, Unbelievable):
        shell["shell"] = read_object(folder.environment, MAX_BYTES)
    return {key: value for key, value in (plain | shell).items() if key not in OWN}


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner):
            inner = {str(i): item for i, item in enumerate(inner)}
        if isinstance(inner, dict):
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner


def _files(root: Path) -> dict[str, Path]:
    """Every regular file under `root`, by its path there. Links are not followed."""
    found = {}
    for directory, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                found[path.relative_to(root).as_posix()] = path
    return found


def _same(a: Path, b: Path) -> bool:
    try:
        return a.stat().st_size == b.stat().st_size and sha256(a) == sha256(b)
    except CheckpointError:
        return False


def _lines(path: str, old: bytes | None, new: bytes | None) -> Iterator[str]:
    if b"\0" in (old or b"") or b"\0" in (new or b""):
        return
    before, after = ((raw or b"").decode(errors="replace").splitlines() for raw in (old, new))
    from_path, to_path = (path if raw is not None else os.devnull for raw in (old, new))
    yield from difflib.unified_diff(before, after, from_path, to_path, lineterm="")


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)

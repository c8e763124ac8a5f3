"""Parameter sweeps: one recipe, several values of some of its settings, one job array with a run for each combination.

A sweep has a folder of its own, with job.sh and sweep.json, and each of its runs is a run like any other: with its own
id, folder, recipe and job.sh. Which task of the array is which run, launchers/array_task.py looks up in sweep.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import tomllib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers import spec as specs
from launchers.array_task import NAME
from launchers.freeze import note_environment
from launchers.job_array import array_of
from launchers.launch import (
    Launched,
    freeze,
    new_id,
    program,
    remove,
    request_for,
    submit_or_remove,
    write_job,
    write_whole,
)
from launchers.megatron.recipe import Recipe
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, Scheduler
from registry.strict_toml import ConfigError, Layer, did_you_mean, settings_of
from registry.toml_layers import Words, dotted, nest, read_text
from slurm.client import SlurmClient

RANGE = re.compile(r"\s*(-?\d+)\.\.(-?\d+)\s*")
MAX_RUNS = 10_000  # before the cluster is even asked


@dataclass(frozen=True, slots=True)
class Axis:
    key: tuple[str, ...]  # ("train", "lr")
    values: tuple[Any, ...]  # as a TOML file would have them, or Words


def axis_of(asked: str) -> Axis:
    """KEY=VALUE,VALUE,...: 1..4 stands for 1,2,3,4, and of a key its last word is enough where it is the only one.

    Raises ConfigError.
    """
    typed, equals, text = asked.partition("=")
    if not equals or not text.strip():
        raise ConfigError(f"--sweep {asked}: has no values; write --sweep train.lr=1e-3,3e-4 or --sweep seed=1..4")
    values = tuple(_values(asked, text))
    if len(set(map(repr, values))) < len(values):
        raise ConfigError(f"--sweep {asked}: the same value stands there twice")
    return Axis(_key(typed.strip()), values)


def _key(typed: str) -> tuple[str, ...]:
    known = {dotted(path): path for path in _settings(Recipe)}
    fitting = [typed] if typed in known else [key for key in known if key.endswith(f".{typed}")]
    if len(fitting) > 1:
        raise ConfigError(f"--sweep {typed}: could be any of {', '.join(fitting)}")
    if not fitting:
        hint = did_you_mean(typed, [*known, *(path[-1] for path in known.values())])
        raise ConfigError(f"--sweep {typed}: a recipe has no such setting{hint and ';' + hint}")
    return known[fitting[0]]


def _settings(cls: type, above: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    hints = typing.get_type_hints(cls)
    for name, field in settings_of(cls).items():
        kinds = [hints[field.name], *typing.get_args(hints[field.name])]
        table = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if isinstance(table, type) and typing.get_origin(hints[field.name]) is not tuple:
            yield from _settings(table, (*above, name))
        else:
            yield (*above, name)


def _values(asked: str, text: str) -> Iterable[Any]:
    try:
        table = tomllib.loads(f"values = [{text}]")  # quoted texts and lists may have commas of their own
        if len(table) == 1 and ".." not in text:
            yield from table["values"]
            return
    except tomllib.TOMLDecodeError:
        pass
    for piece in text.split(","):
        if found := RANGE.fullmatch(piece):
            first, last = int(found[1]), int(found[2])
            if not first <= last < first + MAX_RUNS:
                raise ConfigError(f"--sweep {asked}: {piece.strip()} is no range: FIRST..LAST, the smaller one first")
            yield from range(first, last + 1)
        else:
            value = Words(piece.strip()).meant()
            yield read_text(piece.strip()) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Combination:
    """One value for each axis."""

    values: tuple[tuple[tuple[str, ...], Any], ...]  # (key, value)

    def layers(self) -> list[Layer]:
        """What overrides the recipe's file."""
        return [Layer(f"--sweep {dotted(key)}", nest(key, value)) for key, value in self.values]

    def shown(self) -> dict[str, Any]:
        """By dotted key."""
        return {dotted(key): value for key, value in self.values}


def combinations(asked: Sequence[str]) -> list[Combination]:
    """Every combination of the axes' values, the last axis changing fastest. Raises ConfigError."""
    axes = [axis_of(text) for text in asked]
    keys = [dotted(axis.key) for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--sweep {key}: said twice; one --sweep takes all values of a setting")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_RUNS:
        raise ConfigError(f"--sweep: {count:,} combinations; at most {MAX_RUNS:,} are made of one command")
    keyed = [[(axis.key, value) for value in axis.values] for axis in axes]
    return [Combination(some) for some in itertools.product(*keyed)]


def refuse_too_many(runs: int, client: SlurmClient) -> None:
    """Raises ValueError for more than the cluster takes in one array; SlurmError when it does not say."""
    allowed = client.config().max_array_size  # indices are below it, and ours begin at 0
    if runs > allowed:
        raise ValueError(
            f"--sweep: {runs:,} combinations, and an array of this cluster has at most {allowed:,} tasks (MaxArraySize)"
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    folder: RunFolder
    job: JobRef
    runs: tuple[Launched, ...]


def array_request(
    sweep_id: str, folder: RunFolder, like: specs.TrainSpec, runs: int, parallel: int | None
) -> JobRequest:
    """The array: each task becomes its run, by `launchers.array_task`. `parallel`: at most so many at once."""
    array = f"--array=0-{runs - 1}" + (f"%{parallel}" if parallel else "")
    request = request_for(like, folder)
    resources = dataclasses.replace(like.resources, options=(*like.resources.options, array))
    start = program(folder, "launchers.array_task")
    return dataclasses.replace(request, key=sweep_id, name=like.name, batch=start, resources=resources)


def launch_sweep(
    runs: Sequence[specs.TrainSpec],
    combined: Sequence[Combination],
    runs_dir: Path,
    scheduler: Scheduler,
    parallel: int | None = None,
) -> Sweep:
    """Make all folders, then submit one array. Raises as `launch` does, and leaves as much."""
    taken = {spec.id for spec in runs}
    assert len(taken) == len(runs) == len(combined)
    sweep_id = next(i for i in iter(lambda: new_id(runs[0].name), None) if i not in taken)
    folder = RunFolder(runs_dir.resolve() / sweep_id)
    made: list[RunFolder] = []  # one that is there already is somebody else's
    try:
        for each in (folder, *(RunFolder(folder.root.parent / spec.id) for spec in runs)):
            each.create()
            made.append(each)
        freeze(folder.code)
        for spec, run in zip(runs, made[1:], strict=True):
            _write_run(run, spec, folder, scheduler)
        request = array_request(sweep_id, folder, runs[0], len(runs), parallel)
        folder.script.write_text(scheduler.script(request), encoding="utf-8")
        told = [{"run": spec.id, "values": c.shown()} for spec, c in zip(runs, combined, strict=True)]
        write_whole(folder.root / NAME, json.dumps({"name": runs[0].name, "runs": told}, indent=2) + "\n")
        for index, (spec, run) in enumerate(zip(runs, made[1:], strict=True)):  # last: from here on they are adopted
            write_whole(run.spec, specs.dump(dataclasses.replace(spec, sweep=sweep_id, sweep_index=index)))
    except BaseException:
        remove(made)
        raise
    job = submit_or_remove(request, scheduler, made)
    array = array_of(job.job_id)
    launched = [Launched(run, dataclasses.replace(job, job_id=f"{array}_{n}")) for n, run in enumerate(made[1:])]
    for one in launched:
        write_job(one.folder, one.job)
    return Sweep(folder, dataclasses.replace(job, job_id=array), tuple(launched))


def _write_run(run: RunFolder, spec: specs.TrainSpec, sweep: RunFolder, scheduler: Scheduler) -> None:
    shutil.copytree(sweep.code, run.code, copy_function=os.link)  # the same files: a sweep may have a thousand runs
    note_environment(run.environment, os.environ)
    run.script.write_text(scheduler.script(request_for(spec, run)), encoding="utf-8")

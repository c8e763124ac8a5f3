"""The environments that heavy programs run in: whether the interpreter starts, and what it can import."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launchers.environment import child_env, inside
from launchers.resources import engine_environment, training_environment
from launchers.spec import Environment, Resources
from registry.site import DefaultResources, Site
from slurm.findings import Finding, ok, problem, warning
from slurm.process import Runner, run_process

CODE = Path(__file__).resolve().parents[2]
IMPORT_TIMEOUT_S = 90.0  # importing vLLM from a cold file system takes half a minute
RUNTIME_TIMEOUT_S = 10.0
MARK = "headgate-doctor:"
# In the environment, maybe in a container: says what it imported, on one line among whatever else is printed.
PROGRAM = f"""
import importlib, importlib.metadata, json, sys
said = {{"python": sys.version.split()[0], "versions": {{}}, "errors": {{}}, "gpu_build": None}}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        said["versions"][name] = getattr(module, "__version__", "")
    except (Exception, SystemExit) as e:
        said["errors"][name] = f"{{type(e).__name__}}: {{e}}"
if "torch" in sys.modules and "torch" in said["versions"]:
    version = sys.modules["torch"].version
    said["gpu_build"] = bool(version.cuda or getattr(version, "hip", None))
print("\\n{MARK}" + json.dumps(said), flush=True)
"""
Name = Literal["training", "engine"]


@dataclass(frozen=True, slots=True)
class Runtimes:
    """What starts containers here: version by name."""

    found: Mapping[str, str]


def runtimes(environment: Mapping[str, str], run: Runner = run_process) -> Runtimes:
    """Apptainer (or Singularity), enroot, and whether srun has Pyxis."""
    found = {}
    for name, argv, pattern in (
        ("apptainer", ("apptainer", "--version"), r"version (\S+)"),
        ("singularity", ("singularity", "--version"), r"version (\S+)"),
        ("enroot", ("enroot", "version"), r"(\S+)"),
        ("pyxis", ("srun", "--help"), r"(--container-image)"),
    ):
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            continue
        try:
            done = run(argv, environment, RUNTIME_TIMEOUT_S)
        except (OSError, TimeoutError):
            continue  # what does not start is not there
        if match := re.search(pattern, done.stdout):
            found[name] = match[1]
    return Runtimes(found)


def runtimes_finding(here: Runtimes) -> Finding:
    said = ", ".join(name if name == "pyxis" else f"{name} {version}" for name, version in here.found.items())
    return ok("containers", said or "no runtime on this host (apptainer, or Slurm with Pyxis)")


def check(
    site: Site, name: Name, here: Runtimes, environ: Mapping[str, str], run: Runner = run_process
) -> list[Finding]:
    """One environment of the site: present, startable, and with what our programs import."""
    return list(_check(site, name, here, environ, run))


def _check(site: Site, name: Name, here: Runtimes, environ: Mapping[str, str], run: Runner) -> Iterator[Finding]:
    if (site.environments.training if name == "training" else site.environments.engine) is None:
        what = "train and publish" if name == "training" else "serve"
        yield warning(name, f"this site has none: it cannot {what}", f"[environments.{name}] in {site.file}")
        return
    environment = training_environment(site) if name == "training" else engine_environment(site)
    faults = list(_absent(name, environment, here))
    yield from faults
    if environment.kind == "pyxis":
        if not faults:
            yield ok(name, f"pyxis, {environment.image}: not looked into, which would take a job")
    elif not any(f.subject == name for f in faults):
        yield from _look_into(site, name, environment, environ, run)


def _absent(name: Name, environment: Environment, here: Runtimes) -> Iterator[Finding]:
    """What can be told without starting anything."""
    if environment.kind == "venv":  # whose interpreter is there, else the settings had been refused
        program = environment.command[0].replace("{python}", environment.python) if environment.command else None
        if program and shutil.which(program) is None:
            yield problem(name, f"there is no program {program}", f"environments.{name}.command")
        return
    if environment.kind not in here.found:
        remedy = "install Apptainer" if environment.kind == "apptainer" else "install enroot and Pyxis (plugstack.conf)"
        if environment.kind == "apptainer" and "singularity" in here.found:
            remedy = "Singularity is here: link its program as `apptainer`"
        yield problem(name, f"needs {environment.kind}, which this host does not have", remedy)
    image = environment.image or ""
    if (is_file := image.startswith(("/", ".")) or image.endswith((".sif", ".sqsh"))) and not Path(image).exists():
        yield problem(name, f"there is no image {image}", f"environments.{name}.image, or build it")
    for mount in environment.mounts:
        if not Path(mount.partition(":")[0]).exists():
            says = f"mounts {mount}, and there is no {mount.partition(':')[0]} on this host"
            yield warning(f"{name} mounts", says, f"environments.{name}.mounts")
    if not is_file and environment.kind == "apptainer":
        yield ok(f"{name} image", f"{image}: fetched by whoever uses it first")


def _look_into(
    site: Site, name: Name, environment: Environment, environ: Mapping[str, str], run: Runner
) -> Iterator[Finding]:
    modules = wanted_modules(name, environment.command)
    argv = inside(environment, ["{python}", "-c", PROGRAM, *modules], Resources(), places=(str(CODE),))
    remedy = f"`{environment.python} -c 'import {modules[0]}'` in that environment shows it whole"
    try:
        done = run(argv, child_env(environ, environment, CODE, cpus=1), IMPORT_TIMEOUT_S)
    except TimeoutError:
        says = f"{environment.python} had not imported {', '.join(modules)} after {IMPORT_TIMEOUT_S:g} s"
        yield problem(name, says, "a file system that slow makes every start slow: install it elsewhere, or try again")
        return
    except OSError as e:
        yield problem(name, f"{argv[0]} cannot be run: {e.strerror}", f"environments.{name}.python")
        return
    line = next((text for text in done.stdout.splitlines() if text.startswith(MARK)), None)
    if line is None:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        says = f"{environment.python} is no Python that works: exit status {done.returncode}: {last[:200]}"
        yield problem(name, says, remedy)
        return
    yield from judge(name, environment, json.loads(line.removeprefix(MARK)), _gpus(site, name), remedy)


def wanted_modules(name: Name, command: Sequence[str]) -> tuple[str, ...]:
    """What our programs import there: first the library that the environment is named for, last our own code."""
    if name == "training":
        return ("megatron.core", "torch", "launchers.megatron.recipe")
    if command and "vllm" not in " ".join(command):
        return ("launchers.vllm.guard",)  # a server of the site's own
    return ("vllm", "torch", "launchers.vllm.guard")


def _gpus(site: Site, name: Name) -> int:
    wanted: DefaultResources = site.defaults.train if name == "training" else site.defaults.serve
    return wanted.gpus_per_node


def judge(name: Name, environment: Environment, said: dict[str, object], gpus: int, remedy: str) -> Iterator[Finding]:
    """`said`: what PROGRAM printed; `gpus`: how many a node's job asks for by default. Pure."""
    versions, errors = said["versions"], said["errors"]
    assert isinstance(versions, dict) and isinstance(errors, dict)
    inside_of = f"{environment.kind} {environment.image}" if environment.image else environment.python
    if errors:
        failed = "; ".join(f"{module}: {why}" for module, why in errors.items())
        yield problem(name, f"{inside_of} cannot import {failed}", remedy)
        return
    libraries = ", ".join(f"{module} {version}" for module, version in versions.items() if version)
    yield ok(name, ", ".join(filter(None, (f"Python {said['python']}", libraries))) + f" ({inside_of})")
    if gpus and said["gpu_build"] is False:
        section = "train" if name == "training" else "serve"
        says = f"torch is built for CPUs, and jobs ask for GPUs ({gpus} per node) that it cannot use"
        yield warning(name, says, f"install a CUDA or ROCm build there, or set defaults.{section}.gpus_per_node = 0")

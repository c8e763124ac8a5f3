"""`headgate serve`: one deployment, asked for in options."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import Control
from cli.context import Context
from cli.moments import Duration
from cli.resources import WithSbatchOptions, asked, resource_options
from cli.settling import Changes, wait_settled
from registry import canary as percent
from registry.toml_layers import ConfigError, expanded

if TYPE_CHECKING:
    from launchers.deployment_spec import DeploymentSpec

# As launchers.deployment_spec has them, whose import --help need not wait for; a test holds them equal.
ROUTING = ("least-work", "least-outstanding", "round-robin")
RUNNERS = ("generate", "embed", "score")


class Adapter(click.ParamType[tuple[str, str]]):
    """NAME=DIRECTORY."""

    name = "adapter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        adapter, equals, directory = str(value).partition("=")
        if not (adapter and equals and directory):
            self.fail(f"{value!r} is not NAME=DIRECTORY", param, ctx)
        try:
            return adapter, str(expanded(Path(directory)).absolute())
        except ConfigError as e:
            self.fail(str(e), param, ctx)


class Words(click.ParamType[tuple[str, ...]]):
    """Several words in one, quoted as in a shell."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(str(value)))
        except ValueError as e:
            self.fail(f"{value!r} cannot be split into words: {e}", param, ctx)


@click.command(cls=WithSbatchOptions)
@click.argument("model")
@click.option("--name", help="What clients call it; default: the model's name.")
@click.option(
    "--min", "least", type=click.IntRange(0), help="Replicas at least; 0: none while nobody calls.  [default: 1]"
)
@click.option("--max", "most", type=click.IntRange(1), help="Replicas at most.  [default: --min, at least --pack]")
@click.option("--replicas", type=click.IntRange(0), help="Short for --min N --max N.")
@click.option(
    "--target-tokens",
    type=click.IntRange(1),
    help="Queued and running tokens that one replica is to have: more start another, up to --max.",
)
@click.option("--idle", type=Duration(), help="Without a call, until one with --min 0 sleeps: 15m.")
@click.option("--engine-args", type=Words(), default="", metavar="'WORD ...'", help="Arguments for the engine.")
@click.option("--engine-arg", "engine_words", multiple=True, metavar="WORD", help="One more of them; repeatable.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=Adapter(),
    metavar="NAME=DIRECTORY",
    help="A LoRA adapter, which clients call by NAME; repeatable.",
)
@click.option("--runner", type=click.Choice(RUNNERS), default="generate", show_default=True, help="What it is for.")
@click.option("--routing", type=click.Choice(ROUTING), help="How a replica is chosen.  [default: least-work]")
@click.option("--pack", type=click.IntRange(1), default=1, show_default=True, help="Replicas that share one job.")
@click.option("--stage", is_flag=True, help="Copy the weights to the node's own disk first.")
@click.option("--overflow-qos", metavar="QOS", help="Of replicas above --min, which may be preempted.")
@click.option("--overflow-partition", metavar="PARTITION", help="Where those run.")
@click.option(
    "--canary",
    type=click.IntRange(percent.LEAST, percent.MOST),
    metavar="PERCENT",
    help="Of the calls, for a new revision on trial.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it serves what was asked for.")
@resource_options
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def serve(
    context: Context,
    /,
    model: str,
    name: str | None,
    least: int | None,
    most: int | None,
    replicas: int | None,
    engine_args: tuple[str, ...],
    engine_words: tuple[str, ...],
    overflow_qos: str | None,
    overflow_partition: str | None,
    adapters: tuple[tuple[str, str], ...],
    idle: int | None,
    wait: bool,
    as_json: bool,
    target_tokens: int | None,
    runner: str,
    routing: str | None,
    pack: int,
    stage: bool,
    canary: int | None,
    **options: Any,
) -> None:
    """Deploy MODEL: NAME, NAME@VERSION, NAME@ALIAS (whose moves it follows), RUN[/ITERATION], or a model directory.

    A deployment of that name is changed to what is asked for, without a gap: new replicas prove themselves before
    they take the place of the old ones. No job's time limit ends it, but `headgate delete`.

    All of it: what is not said goes back to its default (one replica, no adapters, no arguments for the engine).
    `headgate rollout NAME --to MODEL@VERSION` changes the version alone, `headgate scale` the replicas.

    sbatch's options say what each replica's job asks for; with --time-min beside -t Slurm may give it less time where
    that starts it sooner.
    """
    if replicas is not None and (least, most) != (None, None):
        raise click.UsageError("--replicas is short for --min and --max: say it, or them")
    if len(dict(adapters)) < len(adapters):
        raise click.UsageError("--adapter names an adapter twice")
    least = replicas if least is None else least
    other = {"qos": overflow_qos, "partition": overflow_partition}
    overflow = {key: value for key, value in other.items() if value is not None}
    wanted = {
        "name": name or default_name(model),
        "model": reference(model),
        "min": 1 if least is None else least,
        "max": most if replicas is None else replicas or None,  # 0: how many a call wakes is left open
        "resources": asked(options),
        "overflow": overflow or None,
        "engine_args": [*engine_args, *engine_words],
        "adapters": dict(adapters),
        "idle_timeout_s": idle,
        "target_tokens": target_tokens,
        "runner": runner,
        "routing": routing,
        "pack": pack,
        "stage": stage,
        "canary": canary,
    }
    control = Control(context.site().control_socket)
    made = apply(control, spec_of(wanted))
    deployment = made["deployment"]["name"]
    if made["done"] != "created":
        click.echo(f"deployment {deployment}: {changes_in_words(made['changes'])}", err=True)
    if wait:
        made = wait_settled(control, deployment, made["deployment"]["revision"], Changes())
    if as_json:
        click.echo(json.dumps(made, indent=2))
    else:
        click.echo(f"deployment {deployment} is {made['deployment']['state']}")


def reference(model: str) -> str:
    """The model as the control API takes it: a directory by its absolute path, the rest as it was typed."""
    if model.startswith(("/", ".", "~")) or Path(model, "config.json").is_file():
        try:
            return str(expanded(Path(model)).absolute())
        except ConfigError as e:
            raise click.ClickException(str(e)) from e
    return model


def default_name(model: str) -> str:
    """The model's own. Raises click.UsageError for what has none."""
    if "/" in model or model.startswith((".", "~")):
        raise click.UsageError(f"{model} is no model's name: say under which one clients are to call it (--name)")
    return model.partition("@")[0]


def spec_of(wanted: dict[str, Any]) -> DeploymentSpec:
    """What is wrong in it ends the command."""
    from launchers.deployment_spec import from_document

    try:
        return from_document(wanted)
    except ValueError as e:
        raise click.ClickException(str(e)) from e


def apply(control: Control, spec: DeploymentSpec, dry_run: bool = False) -> dict[str, Any]:
    """Have a deployment as this says; what changed, and the deployment."""
    from launchers.deployment_spec import to_document

    said: dict[str, Any] = control.post("/v1/deployments/{}/apply", spec.name, spec=to_document(spec), dry_run=dry_run)
    return said


def changes_in_words(changes: list[dict[str, Any]]) -> str:
    """Each field with what it was and what it is: `min: 1 -> 2, model: llama@3 -> llama@4`."""
    return ", ".join(f"{c['field']}: {value(c['from'])} -> {value(c['to'])}" for c in changes) or "nothing changes"


def value(of: Any) -> str:
    return "-" if of is None else of if isinstance(of, str) else json.dumps(of)

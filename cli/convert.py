"""`headgate convert`: a checkpoint becomes a Hugging Face model directory, or such a directory a checkpoint."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any, Literal

import click

from cli.context import Context
from cli.folders import ID
from cli.resources import asked, resource_options
from cli.train import find_checkpoint, submit
from launchers.launch import new_id
from launchers.megatron import hugging_face, manifest
from launchers.megatron.recipe import RecipeError
from launchers.resources import resources_from, training_environment
from launchers.spec import ConvertSpec
from launchers.submission import safe_name
from registry import clock
from registry.site import Site


@click.command()
@click.argument("source", metavar="RUN[/ITERATION]|DIRECTORY")
@resource_options
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def convert(context: Context, /, source: str, as_json: bool, **options: Any) -> None:
    """Convert a checkpoint to Hugging Face format, or a Hugging Face model DIRECTORY to a checkpoint.

    Either way both sides' logits are compared, and what differs is not kept. The job's run folder holds the result;
    nothing is registered (`headgate publish` does that).
    """
    site = context.site()
    try:
        spec = spec_for(site, source, asked(options))
    except ValueError as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:
        raise click.ClickException(f"{e.filename or source}: {e.strerror}") from e
    launched = submit(site, spec)
    folder = launched.folder
    result = folder.model if spec.direction == "to-hf" else folder.checkpoints / manifest.name_of(0)
    if as_json:
        said = {"run": folder.id, "folder": str(folder.root), "job": launched.job.job_id, "result": str(result)}
        click.echo(json.dumps(said))
    else:
        click.echo(f"run {folder.id} submitted as job {launched.job.job_id} on {launched.job.cluster}")
        click.echo(f"when it is completed, the result is {result}")


def spec_for(site: Site, source: str, resources: dict[str, Any]) -> ConvertSpec:
    """By what `source` is. Raises ValueError for a directory that is neither, OSError for one that cannot be read."""
    directory = Path(source).absolute()
    direction: Literal["to-hf", "from-hf"] = "to-hf"
    if (directory / manifest.NAME).is_file() and manifest.read(directory).kind == "checkpoint":
        path, checkpoint_id = str(directory), ""
    elif (directory / "config.json").is_file():
        hugging_face.shape(directory)  # refused before anything is submitted
        path, checkpoint_id, direction = str(directory), "", "from-hf"
    elif directory.is_dir():
        raise RecipeError(f"{directory}: no model (config.json) and no checkpoint ({manifest.NAME}) is in it")
    else:
        found = find_checkpoint(site, source)
        path, checkpoint_id = found["path"], found["id"]
    run = ID.fullmatch(checkpoint_id.partition("/")[0])
    name = safe_name(f"convert-{run['name'] if run else directory.name}").rstrip("-._")
    return ConvertSpec(
        id=new_id(name),
        name=name,
        owner=getpass.getuser(),
        created_at=clock.now(),
        resources=resources_from(site.defaults.convert, resources),
        environment=training_environment(site),
        direction=direction,
        checkpoint=path,
        checkpoint_id=checkpoint_id,
        model="",
    )

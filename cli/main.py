"""The `headgate` command: parse, call, print. Each command's module is imported when it is called, not before."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from cli.context import Context

# name -> (module, attribute, what --help says): the help of the whole is printed without importing any of them.
COMMANDS = {
    "up": ("cli.services", "up", "Start the gateway and the controller on this machine."),
    "upgrade": ("cli.services", "upgrade", "Replace the running gateway by a new one, refusing nobody."),
    "down": ("cli.services", "down", "Stop them; what runs as local processes stops too."),
    "doctor": ("cli.doctor", "doctor", "Whether this site can train, serve and count, and what to mend."),
    "status": ("cli.listing", "status", "Services, runs and deployments at a glance."),
    "submit": ("cli.submit", "submit", "Submit a script as sbatch does, with all of its options."),
    "train": ("cli.train", "train", "Submit a training run: RECIPE.toml becomes a job."),
    "publish": ("cli.train", "publish", "Convert a checkpoint and register it as a model."),
    "promote": ("cli.promote", "promote", "From a run's checkpoint to an alias: converted, tried, evaluated."),
    "promotions": ("cli.promote", "promotions", "Promotions: how far they are, and what they measured."),
    "serve": ("cli.serve", "serve", "Deploy a model on replicas of the engine, or change how."),
    "apply": ("cli.apply", "apply", "Have deployments as a file says."),
    "get": ("cli.deployments", "get", "Deployments: what is wanted of each, and what there is."),
    "explain": ("cli.deployments", "explain", "What a deployment wants, has, and does next, in plain words."),
    "scale": ("cli.deployments", "scale", "Have more or fewer replicas of a deployment."),
    "rollout": ("cli.rollout", "rollout", "Roll another model version out, with a trial."),
    "rollback": ("cli.rollout", "rollback", "Serve again what an earlier revision did."),
    "history": ("cli.rollout", "history", "The revisions of a deployment, and what became of them."),
    "pause": ("cli.deployments", "pause", "Roll out and scale nothing of a deployment, or go on."),
    "delete": ("cli.deployments", "delete", "Stop a deployment for good."),
    "alias": ("cli.aliases", "alias", "Aliases of models: set, list, who moved them, back."),
    "endpoint": ("cli.endpoints", "endpoint", "Endpoints: stable names, with weights, shadows and fallbacks."),
    "runs": ("cli.runs", "runs", "List runs, with how far they are."),
    "show": ("cli.show", "show", "One run on one screen: attempts, losses, checkpoints, lineage."),
    "logs": ("cli.logs", "logs", "Print (or follow) what a run, a replica or a service printed."),
    "stop": ("cli.stop", "stop", "Stop a deployment or a run."),
    "save": ("cli.stop", "save", "Have a run save a checkpoint now, and go on."),
    "resume": ("cli.resume", "resume", "Submit a run that ended again: it goes on from its newest checkpoint."),
    "diff": ("cli.diff", "diff", "How two runs differ, or deployments from a file."),
    "queue": ("cli.queue", "queue", "My runs, replicas and jobs, and why they wait."),
    "nodes": ("cli.nodes", "nodes", "Free GPUs by partition and type; nodes that are out."),
    "usage": ("cli.usage", "usage", "My accounts' use against their limits."),
    "checkpoints": ("cli.checkpoints", "checkpoints", "List checkpoints."),
    "verify": ("cli.checkpoints", "verify", "Compare checkpoints with their manifests."),
    "convert": ("cli.convert", "convert", "A checkpoint to Hugging Face format, or the other way round."),
    "prune": ("cli.prune", "prune", "Delete checkpoints that nobody needs any more."),
    "models": ("cli.listing", "models", "List models, their versions and aliases."),
    "tenant": ("cli.tenants", "tenant", "Tenants: who is billed, who belongs to them, and their limits."),
    "key": ("cli.keys", "key", "Keys: what users and applications call with."),
    "limit": ("cli.limits", "limit", "Limits of tenants, users, keys and models."),
    "price": ("cli.prices", "price", "Prices of tokens and GPU hours, in versions."),
    "login": ("cli.login", "login", "Get a key for this cluster's user that you are, by MUNGE."),
    "report": ("cli.report", "report", "What was used, by whom, and what is left."),
    "ledger": ("cli.ledger", "ledger", "The ledger: prove it, export it, copy it, correct it."),
    "config": ("cli.config", "config", "Settings of the site."),
    "demo": ("cli.demo", "demo", "From raw text to a metered answer, on this machine."),
    "gateway": ("cli.services", "gateway", "Run the gateway in the foreground (a service)."),
    "controller": ("cli.services", "controller", "Run the controller in the foreground (a service)."),
}


class Lazy(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--site",
    "site_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The site's TOML file; else HEADGATE_SITE, else site-configs/laptop.toml.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one setting: gateway.port=8081.")
@click.version_option(package_name="headgate", message="headgate %(version)s")
@click.pass_context
def main(ctx: click.Context, site_file: Path | None, settings: tuple[str, ...]) -> None:
    """A model platform on Slurm: train, serve, one OpenAI-compatible URL, reports that add up."""
    ctx.obj = Context(site_file, settings)


if __name__ == "__main__":
    main()

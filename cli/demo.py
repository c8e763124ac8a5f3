"""`headgate demo`: from raw text to a metered answer. Everything it does, a person can do with the same commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from cli import serve
from cli.client import Control, Refused
from cli.context import Context
from cli.follow import follow, show
from cli.metrics import Tail
from cli.progress import Display, display
from cli.render import render
from cli.report import fetch
from cli.services import start_services, stop_local_jobs, stop_services, url
from cli.settling import wait_settled, waiting_for
from cli.train import publish_spec, submit, train_spec
from launchers import spec as specs
from launchers.launch import Launched, read_job
from launchers.megatron.manifest import CheckpointError, verify
from launchers.run_folder import RunFolder
from launchers.scheduler import SchedulerError
from launchers.schedulers import scheduler_for
from registry.report import Report
from registry.site import Site

RECIPE = Path(__file__).parent / "recipes" / "demo.toml"
NAME = "demo"
QUESTION = "Write a function that reads a file."
PROMPT = "def read_file(path):\n    "
STAGES = 6
SETTLED_S = 10.0


@click.command()
@click.option("--once", is_flag=True, help="Stop everything at the end; leave no process.")
@click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    default=RECIPE,
    help="Train this instead of the demo's own few million parameters.",
)
@click.pass_obj
def demo(context: Context, /, once: bool, recipe: Path) -> None:
    """Train a small GPT on Python's own sources, serve it, call it as an application would, and show what it cost."""
    site = context.site()
    started = Started(site)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # whoever ends us, what we started ends too
    try:
        with display(STAGES) as shown:
            key = Demo(site, shown, started, once, recipe, context).run()
    except KeyboardInterrupt:
        click.echo("\ninterrupted: stopping what the demo started", err=True)
        started.stop()
        raise SystemExit(130) from None
    except BaseException:
        started.stop()
        raise
    if once:
        started.stop()
        click.echo("everything was stopped; the next demo reuses the data and the checkpoint")
    else:
        click.echo(how_to_go_on(context, site, key))


@dataclass(slots=True)
class Started:
    """What the demo started, and so must stop when it is interrupted."""

    site: Site
    services: list[str] = field(default_factory=list)
    run: RunFolder | None = None
    deployment: str | None = None

    def stop(self) -> None:
        """Jobs first: the controller winds them down. What cannot be stopped is said, and the rest is stopped."""
        try:
            if self.run is not None and (job := read_job(self.run)) is not None:
                self._cancel_and_wait(job)
            if self.deployment is not None:
                stop_deployment(self.site, self.deployment)
        except click.ClickException as e:
            click.echo(f"not stopped: {e.message}", err=True)
        finally:
            if self.services and self.site.scheduler.kind == "local":
                stop_local_jobs(self.site)
            stop_services(self.site, self.services)

    def _cancel_and_wait(self, job: Any) -> None:
        scheduler = scheduler_for(self.site)
        try:
            scheduler.cancel(job)
            deadline = time.monotonic() + 90
            while not scheduler.states([job])[job].state.ended and time.monotonic() < deadline:
                time.sleep(0.3)
        except SchedulerError as e:
            click.echo(f"job {job.job_id} was not stopped: {e}", err=True)


class Demo:
    def __init__(
        self, site: Site, shown: Display, started: Started, once: bool, recipe: Path, context: Context
    ) -> None:
        self.site, self.display, self.started, self.once = site, shown, started, once
        self.recipe, self.context = recipe, context
        self.control = Control(site.control_socket)
        self.ours: set[str] = set()  # the runs and replicas that this demo launched
        self.before = (0, 0, 0)
        self.since = str((datetime.now(UTC) - timedelta(days=1)).date())  # what it reports: midnight may pass

    def run(self) -> str:
        """All stages; returns the key that it called with."""
        self.display.stage(f"start the gateway and the controller (site {self.site.name})")
        self.started.services = start_services(self.context)
        self.display.note(f"applications call {url(self.site)}/v1")

        self.display.stage("train a small GPT on the Python standard library's sources")
        checkpoint = self.train()
        self.display.stage("convert the checkpoint to Hugging Face format and register it")
        self.publish(checkpoint)
        self.display.stage("deploy the model on vLLM")
        self.deploy()
        self.display.stage("call it as an application would (the openai package, a key of its own)")
        key, usages = self.ask()
        self.display.stage("report")
        self.report(usages)
        return key

    def train(self) -> dict[str, Any]:
        spec = train_spec(self.site, self.recipe, NAME, {})
        found = self.trained_before(spec)
        if found is not None:
            self.display.note(f"reused: checkpoint {found['id']}, trained earlier with the same recipe and data")
            for fact in Tail(RunFolder(Path(found["path"]).parent.parent).metrics).read():
                if fact.get("stage") in ("data", "model", "done"):
                    show(fact, self.display)
            return found
        launched = self._submit(spec)
        self.display.note(f"run {spec.id}, job {launched.job.job_id} on {launched.job.cluster}")
        follow(self.site, launched.folder, self.display)
        self.started.run = None
        checkpoint: dict[str, Any] = self.control.get("/v1/checkpoints/{}", spec.id)
        return checkpoint

    def _submit(self, spec: specs.SupervisedSpec) -> Launched:
        launched = submit(self.site, spec)
        self.started.run = launched.folder
        self.ours.add(spec.id)
        return launched

    def trained_before(self, spec: specs.TrainSpec) -> dict[str, Any] | None:
        """The last checkpoint of a completed run of the same recipe, if it is whole."""
        for run in reversed(self.control.get("/v1/runs")):
            if run["kind"] != "train" or run["name"] != NAME or run["state"] != "completed":
                continue
            try:
                old = specs.load(RunFolder(Path(run["folder"])).spec)
                checkpoint: dict[str, Any] = self.control.get("/v1/checkpoints/{}", run["id"])
                if isinstance(old, specs.TrainSpec) and _same_recipe(old.recipe, spec.recipe):
                    verify(Path(checkpoint["path"]))
                    return checkpoint
            except (specs.SpecError, Refused, CheckpointError) as e:
                self.display.note(f"run {run['id']} cannot be reused: {e}")
        return None

    def publish(self, checkpoint: dict[str, Any]) -> None:
        for model in self.control.get("/v1/models"):
            if model["name"] == NAME and model["checkpoint"] == checkpoint["id"] and "latest" in model["aliases"]:
                try:
                    verify(Path(model["path"]))
                except CheckpointError as e:
                    self.display.note(f"model {NAME}@{model['version']} cannot be reused: {e}")
                    continue
                self.display.note(f"reused: model {NAME}@latest, version {model['version']}")
                return
        launched = self._submit(publish_spec(self.site, checkpoint, f"{NAME}@latest", {}))
        follow(self.site, launched.folder, self.display)
        self.started.run = None
        made = next(m for m in reversed(self.control.get("/v1/models")) if m["checkpoint"] == checkpoint["id"])
        self.display.note(
            f"model {NAME}@latest, version {made['version']}: {made['parameters']:,} parameters, logits differ from "
            f"Megatron's by at most {made['max_logit_difference']:.1e}"
        )

    def deploy(self) -> None:
        wanted = next(m for m in self.control.get("/v1/models") if m["name"] == NAME and "latest" in m["aliases"])
        for described in self.control.get("/v1/deployments"):
            old = described["deployment"]
            if old["name"] == NAME and old["state"] in ("starting", "ready"):
                if old["version"] == wanted["version"]:
                    self.display.note(f"reused: deployment {NAME} is {old['state']}")
                    break
                stop_deployment(self.site, NAME)
        else:
            # By its version: one that followed the alias would roll the next one out beside it, and take its time.
            serve.apply(self.control, serve.spec_of({"name": NAME, "model": f"{NAME}@{wanted['version']}"}))
        self.started.deployment = NAME
        began = time.monotonic()
        described = wait_settled(self.control, NAME, None, lambda d: self.display.update(waiting_for(d)))
        replica = next(r["replica"] for r in described["replicas"] if r["replica"]["state"] == "ready")
        self.ours.add(replica["id"])
        took = time.monotonic() - began
        self.display.note(
            f"replica {replica['id']} on {replica['host']}:{replica['port']}: healthy, and it generated a token "
            f"(after {took:.0f} s)"
        )

    def ask(self) -> tuple[str, list[Any]]:
        """A streamed chat and a plain completion. Returns the key and the engine's own usage of both answers."""
        from openai import OpenAI

        if NAME not in [t["name"] for t in self.control.get("/v1/tenants")]:
            self.control.post("/v1/tenants", name=NAME)
        key: str = self.control.post("/v1/keys", tenant=NAME)["secret"]
        self.before = self._ledger()
        client = OpenAI(base_url=f"{url(self.site)}/v1", api_key=key, max_retries=2)
        usages: list[Any] = []
        text, began, first = "", time.monotonic(), 0.0
        stream = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=64,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic() - began
                text += chunk.choices[0].delta.content
                self.display.update(text.replace("\n", " ")[-60:])
            if chunk.usage:
                usages.append(chunk.usage)
        self.display.note(f"chat, streamed (first token after {first * 1000:.0f} ms):")
        self.display.note("\n".join(f"  | {line}" for line in text.splitlines()))
        plain = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=48, temperature=0)
        self.display.note("completion:")
        self.display.note("\n".join(f"  | {line}" for line in (PROMPT + plain.choices[0].text).splitlines()))
        usages.append(plain.usage)
        client.close()
        return key, usages

    def _ledger(self) -> tuple[int, int, int]:
        """(requests, prompt tokens, completion tokens) of the demo's tenant and model, so far."""
        for r in self._report("usage", "tenant,model").sections[0].rows:
            if (r["tenant"], r["model"]) == (NAME, NAME):
                return _whole(r["requests"]), _whole(r["prompt_tokens"]), _whole(r["completion_tokens"])
        return 0, 0, 0

    def _report(self, kind: str, by: str) -> Report:
        return fetch(self.control, kind, since=self.since, by=by)

    def report(self, usages: list[Any]) -> None:
        requests, prompt, completion = self.before
        expected = (
            requests + len(usages),
            prompt + sum(u.prompt_tokens for u in usages),
            completion + sum(u.completion_tokens for u in usages),
        )
        deadline = time.monotonic() + SETTLED_S
        while (billed := self._ledger()) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.once:
            stop_deployment(self.site, NAME)  # so that every job's seconds are final
            self.started.deployment = None
        usage, time_used = self._report("usage", "tenant,model"), self._report("gpu", "subject")
        for made in (usage, time_used):
            self.display.note(str(render(made, "table")))
            if wrong := [check.text for check in made.checks if not check.holds]:
                raise click.ClickException(f"the report of {made.kind} does not add up: {'; '.join(wrong)}")
        if billed != expected:
            raise click.ClickException(f"the ledger says {billed}, the engine said {expected}")
        tokens = sum(u.total_tokens for u in usages)
        self.display.note(f"check: the ledger's tokens of these two requests ({tokens}) are the engine's own")
        if self.site.scheduler.kind == "slurm" and self.once:
            ours = {
                str(r["subject"]): round(float(r["cpu_hours"] or 0) * 3600)
                for section in time_used.sections[:1]
                for r in section.rows
                if r["subject"] in self.ours
            }
            self.display.note(check_against_sacct(self.site, ours, self._jobs()))

    def _jobs(self) -> dict[str, str]:
        """The ids of the jobs that the demo launched, with the run or replica of each."""
        jobs = [j for d in self.control.get("/v1/deployments/{}", NAME)["replicas"] for j in d["jobs"]]
        for run in self.control.get("/v1/runs"):
            if run["id"] in self.ours:
                jobs += self.control.get("/v1/runs/{}", run["id"])["jobs"]
        return {j["job_id"]: j["subject"] for j in jobs if j["subject"] in self.ours}


def stop_deployment(site: Site, name: str) -> None:
    """Stop it and wait until its jobs are gone from the scheduler and in the books."""
    control = Control(site.control_socket)
    described = control.post("/v1/deployments/{}/stop", name)
    deadline = time.monotonic() + site.replicas.drain_timeout_s + site.replicas.shutdown_timeout_s + 60
    while time.monotonic() < deadline:
        jobs = [j for r in described["replicas"] for j in r["jobs"]]
        if described["deployment"]["state"] in ("stopped", "failed") and all(j["settled"] for j in jobs):
            return
        time.sleep(0.3)
        described = control.get("/v1/deployments/{}", name)
    raise click.ClickException(f"deployment {name} did not stop; `headgate status` shows it")


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def check_against_sacct(site: Site, ours: dict[str, int], jobs: dict[str, str]) -> str:
    """Ask sacct itself, past everything of ours, and compare. A difference ends the command.

    `ours`: CPU-seconds by run or replica; `jobs`: job id -> its run or replica.
    """
    env = dict(os.environ)
    if site.scheduler.slurm_conf:
        env["SLURM_CONF"] = str(site.scheduler.slurm_conf)
    said = subprocess.run(
        ["sacct", "-X", "-D", "-n", "-P", "-j", ",".join(jobs), "-o", "JobIDRaw,ElapsedRaw,AllocCPUS"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=site.scheduler.command_timeout_s,
    ).stdout
    theirs: dict[str, int] = {}
    for line in said.split():
        job, elapsed, cpus = line.split("|")
        theirs[jobs[job]] = theirs.get(jobs[job], 0) + int(elapsed) * int(cpus)
    if ours != theirs:
        raise click.ClickException(f"the report's CPU-seconds {ours} are not sacct's {theirs}")
    return f"check: the report's job seconds are sacct's ({len(jobs)} jobs, {sum(ours.values()):,} CPU-seconds)"


def _same_recipe(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def how_to_go_on(context: Context, site: Site, key: str) -> str:
    program = "headgate" if shutil.which("headgate") else os.path.relpath(sys.argv[0])
    words = [program, *(["--site", str(context.site_file)] if context.site_file else [])]
    again = shlex.join([*words, *(word for setting in context.settings for word in ("--set", setting))])
    down = "down" if site.scheduler.kind == "local" else "down --stop-deployments"
    return f"""
It stays up. The URL is {url(site)}/v1 and the key {key}. Try:

  curl {url(site)}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model": "{NAME}", "messages": [{{"role": "user", "content": "{QUESTION}"}}], "max_tokens": 64}}'

  {again} status    what runs
  {again} {down}      stop it"""

"""What a plan decides of replicas, done: their jobs are started, drained, stopped and shortened."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launchers import facts, replica_launch
from launchers.deployment_spec import DeploymentSpec, spec_of
from launchers.job_facts import ref_of
from launchers.launch import new_id
from launchers.planning.facts import Settle, Shorten, StartReplica
from launchers.resources import REPLICA_OPTIONS, engine_environment, resources_from
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, SchedulerError, SchedulerUnavailable, passes
from launchers.situations import resources_asked
from launchers.spec import ServeSpec
from launchers.vllm import adapters, pack
from registry import accounting, clock, deployments, replicas, revisions
from registry.db import RegistryError, transaction
from registry.deployments import Deployment, DeploymentState, ReplicaState
from registry.revisions import Revision
from registry.site import Site

if TYPE_CHECKING:
    from launchers.controller import Controller

log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 60.0  # how much longer than its drain may take a job has, before it is cancelled outright
STOP = "stop"  # the switch in a folder at which its supervisor ends this one replica


class ReplicaJobs:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.site, self.db = controller.site, controller.db
        # When a replica was last told to end, by its switch or by its job's: by the monotonic clock.
        self._told: dict[tuple[str, JobRef], float] = {}
        # Since when all replicas of a job that goes on are over, or when it was cancelled last, by the same clock.
        self._left: dict[JobRef, float] = {}

    async def start(self, planned: Sequence[StartReplica]) -> None:
        """Replicas that are planned in a row and alike share jobs, as many as the deployment says.

        One that is refused keeps those of its kind back until the next turn, and a scheduler that is silent all.
        """
        for alike, some in itertools.groupby(planned, key=_alike):
            try:
                revision = await self._controller.write(revisions.get, self.db, alike[0], alike[1])
                for members in _batched(some, int(revision.request.get("pack") or 1)):
                    if await self._controller.other_leads():
                        return
                    if not await self._start(alike[0], revision, members):
                        break
            except SchedulerUnavailable:
                return
            except RegistryError as e:
                log.error("%s: no replica was started: %s", alike[0], e)

    async def _start(self, name: str, revision: Revision, members: Sequence[StartReplica]) -> bool:
        """Whether the next ones like these may be tried. Raises SchedulerUnavailable."""
        controller, runs_dir = self._controller, self.site.runs_dir
        deployment = await controller.write(deployments.get, self.db, name)
        if deployment.state is DeploymentState.STOPPING or deployment.state.ended:
            return False  # stopped since this was planned
        try:
            specs = replica_launch.together(
                [serve_spec(self.site, deployment, revision, one, len(members)) for one in members]
            )
        except ValueError as e:
            await controller.write(self._refused, deployment, revision, members, str(e))
            return False
        await controller.write(self._note, deployment, [spec.id for spec in specs], members)
        controller.specs.update({spec.id: spec for spec in specs})
        try:
            launched = await controller.ask(replica_launch.launch, specs, runs_dir, controller.scheduler)
        except SchedulerUnavailable as e:
            log.warning("%s: whether it was submitted will be asked by its key: %s", specs[0].id, e)
            raise
        except (SchedulerError, OSError, ValueError) as e:
            cause = f"the replica could not be submitted: {e}"
            # Of a limit that is full, or a disk that is away, the revision is not to blame.
            lasting = isinstance(e, SchedulerError) and not passes(e)
            state = ReplicaState.FAILED if lasting else ReplicaState.LOST
            for spec in specs:
                await controller.write(deployments.set_replica_state, self.db, spec.id, state, cause)
            return False
        await controller.write(controller.record_job, specs[0].id, launched.job)
        return True

    def _refused(self, deployment: Deployment, revision: Revision, members: Sequence[StartReplica], cause: str) -> None:
        """This site, as it is set up now, takes no such job. What serves, or has proven itself, is not given up for
        that: it is tried again later, as after any loss."""
        theirs = replicas.unended_of(self.db, deployment.name)
        ready = [r for r in theirs if r.state is ReplicaState.READY and deployments.is_current(deployment, r)]
        serves = {r.revision for r in ready}
        if revision.revision in (deployment.stable, *serves) or (deployment.stable is None and serves):
            ids = [new_id(deployment.name) for _ in members]
            with transaction(self.db):
                self._note(deployment, ids, members)
                for one in ids:
                    words = f"the replica could not be started: {cause}"
                    deployments.set_replica_state(self.db, one, ReplicaState.LOST, words)
        elif deployment.stable is not None:
            self._controller.plans.note(Settle(deployment.name, revision.revision, False, cause))
        else:
            deployments.set_state(self.db, deployment.name, DeploymentState.FAILED, cause)

    def _note(self, deployment: Deployment, ids: Sequence[str], members: Sequence[StartReplica]) -> None:
        with transaction(self.db):  # all that share a job, or none
            for one, planned in zip(ids, members, strict=True):
                deployments.add_replica(
                    self.db,
                    one,
                    deployment.name,
                    deployment.owner,
                    str(self.site.runs_dir / one),
                    revision=planned.revision,
                    reason=planned.why,
                    replaces=planned.replaces,
                    overflow=planned.overflow,
                    pack=ids[0] if len(ids) > 1 else None,
                )

    async def stop(self, replica_id: str, why: str) -> None:
        """End a replica; one that was never submitted is over. What has begun drains as long as it may."""
        controller = self._controller
        try:
            jobs = [j for j in await self._jobs_of(replica_id) if not JobState(j.state).ended]
            if not jobs:
                await controller.write(self._was_stopped, replica_id, why)
            for job in map(ref_of, jobs):
                if (end := await controller.write(self._tell, replica_id, job, why)) is not None:
                    await controller.ask(end, job)
                    self._told[replica_id, job] = time.monotonic()
        except SchedulerError as e:
            log.warning("%s: not stopped yet: %s", replica_id, e)

    def _tell(self, replica_id: str, job: JobRef, why: str) -> Callable[[JobRef], None] | None:
        """Tell a replica that has begun by its switch. Returns what the scheduler has to do of its job, if anything.

        A signal of the scheduler's may reach the engine's own processes, which then die under their requests. It is for
        what has not begun, does not listen, or has a folder that cannot be written; and never for one of several that
        share a job, unless none of them is to go on.
        """
        scheduler = self._controller.scheduler
        if self._has_time(replica_id, job):
            return None
        late = (replica_id, job) in self._told
        shared = [r for r in replicas.replicas_of_job(self.db, self._subject(replica_id)) if not r.state.ended]
        alone = all(r.id == replica_id or self._is_late(r.id, job) for r in shared)
        self._drains(replica_id, why)
        try:
            (self._folder(replica_id).switches / STOP).touch()
            begun = job.job_id in facts.announced_jobs(self._folder(replica_id))
        except OSError as e:
            log.warning("%s: cannot be told to stop by its switch: %s", replica_id, e)
            return (scheduler.cancel if late else scheduler.drain) if alone else None
        if begun and not late:
            self._told[replica_id, job] = time.monotonic()
            return None
        if alone:
            return scheduler.cancel
        if not begun:  # it is over as soon as it begins
            deployments.set_replica_state(self.db, replica_id, ReplicaState.STOPPED)
        return None

    def _has_time(self, replica_id: str, job: JobRef) -> bool:
        """Whether it was told, and may still drain."""
        since = self._told.get((replica_id, job))
        return since is not None and time.monotonic() - since < self._patience_s

    @property
    def _patience_s(self) -> float:
        return self.site.replicas.shutdown_timeout_s + CANCEL_AGAIN_S

    def _is_late(self, replica_id: str, job: JobRef) -> bool:
        return (replica_id, job) in self._told and not self._has_time(replica_id, job)

    async def end_left(self) -> None:
        """Cancel jobs that go on though all their replicas are over: one was given up, and came to light late."""
        controller = self._controller
        for job in await controller.write(self._left_over):
            log.warning("job %s is cancelled: none of its replicas is wanted any more", job.job_id)
            self._left[job] = time.monotonic()
            try:
                await controller.ask(controller.scheduler.cancel, job)
            except SchedulerError as e:
                log.warning("job %s is not cancelled yet: %s", job.job_id, e)

    def _left_over(self) -> list[JobRef]:
        """Those that had the time to end by themselves."""
        now, over = time.monotonic(), []
        for job in accounting.unsettled(self.db):
            if job.purpose == ServeSpec.kind and not JobState(job.state).ended:
                members = replicas.replicas_of_job(self.db, job.subject)
                if members and all(r.state.ended for r in members):
                    over.append(ref_of(job))
        self._left = {job: self._left.get(job, now) for job in over}
        return [job for job, since in self._left.items() if now - since >= self._patience_s]

    def _was_stopped(self, replica_id: str, why: str) -> None:
        """By us, which counts as no loss."""
        self._drains(replica_id, why)
        deployments.set_replica_state(self.db, replica_id, ReplicaState.STOPPED, why)

    def _drains(self, replica_id: str, why: str) -> None:
        if not deployments.drain_replica(self.db, replica_id, why):
            deployments.set_replica_state(self.db, replica_id, ReplicaState.DRAINING)

    async def shorten(self, action: Shorten) -> None:
        controller = self._controller
        try:
            for job in await self._jobs_of(action.replica):
                if not JobState(job.state).ended:
                    await controller.ask(controller.scheduler.shorten, ref_of(job), action.time_limit_s)
                    controller.plans.shortened[action.replica] = action.time_limit_s
        except SchedulerError as e:
            log.warning("%s: its job's time limit is as it was: %s", action.replica, e)

    async def _jobs_of(self, replica_id: str) -> list[accounting.Job]:
        """A replica's jobs, also one whose submission left no note."""
        controller = self._controller
        subject = self._subject(replica_id)
        jobs = await controller.write(accounting.of_subject, self.db, subject)
        if not jobs and subject in controller.specs:
            found = await controller.ask(controller.scheduler.find, subject)
            if found is not None:
                await controller.write(controller.note_job, subject, found)
                jobs = await controller.write(accounting.of_subject, self.db, subject)
        return jobs

    def ask_adapters(self, wanted: Mapping[str, dict[str, str]]) -> None:
        """Have engines load other adapters than they were started with or asked for last, and drop the rest.

        `wanted`: by the replica's id, name -> directory.
        """
        for replica_id, names in wanted.items():
            spec, folder = self._controller.specs.get(replica_id), self._folder(replica_id)
            if not isinstance(spec, ServeSpec):
                continue  # it is not known yet what it has
            try:
                asked = adapters.wanted(folder)
                if (spec.adapters if asked is None else asked) != names:
                    adapters.ask(folder, names)
            except (OSError, ValueError) as e:
                log.warning("%s: not asked for other adapters: %s", folder.root, e)

    def _subject(self, replica_id: str) -> str:
        return subject_of(self._controller.specs.get(replica_id), replica_id)

    def _folder(self, replica_id: str) -> RunFolder:
        return RunFolder(self.site.runs_dir / replica_id)


def serve_spec(
    site: Site, deployment: Deployment, revision: Revision, one: StartReplica, members: int = 1
) -> ServeSpec:
    """What one replica's job is told, or that of `members`. Raises ValueError for what this site does not take."""
    asked = _spec_of(deployment, revision)
    resources = resources_asked(asked, overflow=one.overflow)
    if one.exclude:
        given = resources.get("options")
        resources["options"] = _excluding(given if isinstance(given, list | tuple) else (), one.exclude)
    if one.time_limit_s is not None:
        resources["time_limit_s"] = one.time_limit_s
    return ServeSpec(
        id=new_id(deployment.name),
        name=deployment.name,
        owner=deployment.owner,
        created_at=clock.now(),
        resources=pack.part(resources_from(site.defaults.serve, resources, REPLICA_OPTIONS), members, asked.pack),
        environment=engine_environment(site),
        model_path=revision.model_path,
        safetensors_only=bool(revision.request.get("safetensors_only")),
        listen=site.replicas.listen,
        tls=site.replicas.tls,
        engine_args=(*site.environment("engine").args, *asked.engine_args, *_trusted(revision)),
        shutdown_timeout_s=site.replicas.shutdown_timeout_s,
        start_timeout_s=site.replicas.start_timeout_s,
        revision=revision.revision,
        runner=asked.runner,
        adapters=dict(asked.adapters),
        stage_dir=site.replicas.stage_dir if asked.stage else None,
        multi_node=site.replicas.multi_node,
        max_restarts=site.replicas.max_restarts,
        hang_timeout_s=site.replicas.hang_timeout_s,
    )


def _excluding(options: Iterable[str], nodes: Sequence[str]) -> list[str]:
    """The options with nodes left out beside their own: of an option that is said twice only the last one counts."""
    own, others = "", []
    for option in options:
        name, _, value = option.partition("=")
        if name == "--exclude":
            own = value
        else:
            others.append(option)
    return [*others, f"--exclude={','.join(filter(None, (own, *nodes)))}"]


def subject_of(spec: object, replica_id: str) -> str:
    """What a replica's job is known by: its own id, or that of the first of those that share the job."""
    return spec.pack[0] if isinstance(spec, ServeSpec) and spec.pack else replica_id


def _spec_of(deployment: Deployment, revision: Revision) -> DeploymentSpec:
    return spec_of(
        dataclasses.replace(
            deployment, model=revision.model, version=revision.version, follows=None, request=revision.request
        )
    )


def _trusted(revision: Revision) -> tuple[str, ...]:
    """The last word: whatever the site's own arguments say, what nobody vouched for loads no pickles."""
    return ("--load-format", "safetensors") if revision.request.get("safetensors_only") else ()


def _alike(one: StartReplica) -> tuple[str, int, bool, int | None, tuple[str, ...]]:
    return one.deployment, one.revision, one.overflow, one.time_limit_s, one.exclude


def _batched(some: Iterable[StartReplica], size: int) -> Iterator[list[StartReplica]]:
    left = list(some)
    for n in range(0, len(left), size):
        yield left[n : n + size]

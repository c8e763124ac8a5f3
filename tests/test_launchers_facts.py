"""What a job announces becomes rows, once; what cannot be believed is set aside, and what cannot be read yet waits."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from certificates import minted
from specs import CREATED_AT, convert, evaluate, folder_of, serve, smoke, train

from launchers import facts
from launchers.announce import announce
from launchers.run_folder import RunFolder
from launchers.spec import Promotion, Spec
from launchers.vllm import adapters
from registry import attempts, checkpoints, deployments, models, revisions, runs
from registry.db import Database, NotFound, StorageError, row
from registry.deployments import Replica, ReplicaState
from registry.models import ModelState
from registry.runs import RunState
from registry.steps import Hold, Outcome, Step, UsageEvent

CHECKPOINT = {"iteration": 10, "path": "checkpoints/10", "bytes": 5, "manifest_sha256": "abc"}
CONVERTED = {"path": "model", "parameters": 7, "bytes": 9, "max_logit_difference": 1e-6}


class Subject:
    """A run folder, and its rows in the registry as the controller makes them."""

    def __init__(self, db: Database, spec: Spec, runs_dir: Path) -> None:
        self.db, self.spec, self.folder = db, spec, folder_of(spec, runs_dir)
        self.booked: list[list[Step]] = []
        self.disk_full = False

    def say(self, kind: str, **what: Any) -> str:
        return announce(self.folder.announcements, kind, **what).name

    def ingest(self) -> int:
        return facts.ingest(self.db, self.folder, self.spec, self.book)

    def book(self, steps: Sequence[Step]) -> None:
        if self.disk_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.booked.append(list(steps))

    @property
    def run(self) -> runs.Run:
        return runs.get(self.db, self.spec.id)

    @property
    def replica(self) -> Replica:
        return next(r for r in deployments.replicas(self.db) if r.id == self.spec.id)


def offline(db: Database, spec: Spec, runs_dir: Path) -> Subject:
    made = Subject(db, spec, runs_dir)
    runs.adopt(
        db, spec.id, kind=spec.kind, name=spec.name, owner="ada", folder=str(made.folder.root), created_at=CREATED_AT
    )
    return made


@pytest.fixture
def run(registry: Database, tmp_path: Path) -> Subject:
    return offline(registry, train(), tmp_path)


@pytest.fixture
def conversion(registry: Database, tmp_path: Path, run: Subject) -> Subject:
    checkpoints.add(registry, run.spec.id, "ada", iteration=10, path="/c/10", size=1, manifest_sha256="x")
    return offline(registry, convert(alias="prod"), tmp_path)


@pytest.fixture
def replica(registry: Database, tmp_path: Path) -> Subject:
    models.register(registry, "tiny", "ada", "/models/tiny")
    deployments.create(
        registry,
        "chat",
        "ada",
        model="tiny",
        version=1,
        model_path="/models/tiny",
        min_replicas=1,
        max_replicas=1,
        request={},
        by="ada",
        why="served",
    )
    made = Subject(registry, serve(), tmp_path)
    deployments.add_replica(registry, made.spec.id, "chat", "ada", str(made.folder.root))
    made.folder.secret.write_text("upstream-key\n")
    return made


def test_a_run_starts_makes_checkpoints_and_completes(registry: Database, run: Subject) -> None:
    run.say("attempt-started", attempt="7.0")
    assert run.ingest() == 1 and run.run.state is RunState.RUNNING
    run.say("checkpoint", **CHECKPOINT)
    run.say("attempt-ended", exit_code=0, cause="completed")
    assert run.ingest() == 2
    (checkpoint,) = checkpoints.everything(registry)
    assert checkpoint.path == str(run.folder.root / "checkpoints" / "10")
    assert (checkpoint.id, checkpoint.bytes, checkpoint.manifest_sha256) == ("pretrain-1/10", 5, "abc")
    assert checkpoint.owner == facts.owner_of(run.folder)[0]  # by the file system, not by the spec's word
    assert run.run.state is RunState.COMPLETED


@pytest.mark.parametrize(
    ("exit_code", "cause", "state", "shown"),
    [
        (0, "completed", RunState.COMPLETED, None),
        (0, "cancelled", RunState.STOPPED, None),
        (0, "timeout", RunState.STOPPED, "time limit; `headgate resume` goes on"),
        (1, "ValueError: wrong", RunState.FAILED, "ValueError: wrong"),
    ],
)
def test_how_an_attempt_ended_is_how_its_run_did(
    run: Subject, exit_code: int, cause: str, state: RunState, shown: str | None
) -> None:
    run.say("attempt-started")
    run.say("attempt-ended", exit_code=exit_code, cause=cause)
    run.ingest()
    assert (run.run.state, run.run.cause) == (state, shown)


@pytest.mark.parametrize(
    ("step", "option"), [(convert("convert-1"), "--convert-time"), (smoke(), "-t"), (evaluate(), "-t")]
)
def test_a_step_of_a_promotion_that_ran_out_of_time_says_what_helps(
    registry: Database, tmp_path: Path, step: Spec, option: str
) -> None:
    steps = ("convert-1", "smoke-1", "evaluate-1")
    whole = Promotion(id="p", source="pretrain-1/10", model="tiny", alias="prod", steps=steps)
    subject = offline(registry, dataclasses.replace(step, promotion=whole), tmp_path)
    subject.say("attempt-started")
    subject.say("attempt-ended", exit_code=0, cause="timeout")
    subject.ingest()
    assert subject.run.cause == f"time limit; promote again with more ({option})"


def test_a_conversion_registers_its_model_and_moves_its_alias(registry: Database, conversion: Subject) -> None:
    conversion.say("model-converted", **CONVERTED)
    conversion.ingest()
    model = models.resolve(registry, "tiny@prod")
    assert model.path == str(conversion.folder.model)
    assert (model.checkpoint, model.parameters, model.bytes, model.max_logit_difference) == (
        "pretrain-1/10", 7, 9, 1e-6
    )  # fmt: skip
    assert model.state is ModelState.CONVERTED


def test_a_conversion_counts_although_its_checkpoint_was_not_heard_of_yet(registry: Database, tmp_path: Path) -> None:
    """Both were made while the control plane was down, and the conversion is read first."""
    early = offline(registry, convert("publish-2", checkpoint_id="zeta-1/10"), tmp_path)
    early.say("model-converted", **CONVERTED)
    early.ingest()
    assert models.resolve(registry, "tiny").checkpoint == "zeta-1/10"


def test_a_replica_is_ready_at_its_endpoint_and_its_model_servable(registry: Database, replica: Subject) -> None:
    replica.say("attempt-started")
    replica.ingest()
    assert replica.replica.state is ReplicaState.STARTING
    replica.say("replica-ready", host="g1", port=8000)
    replica.ingest()
    found = replica.replica
    assert (found.state, found.host, found.port, found.upstream_key) == (ReplicaState.READY, "g1", 8000, "upstream-key")
    assert found.certificate is None  # it speaks plain HTTP
    assert models.resolve(registry, "tiny").state is ModelState.SERVABLE


def test_a_replicas_certificate_is_taken_in_and_what_is_none_makes_it_no_replica(replica: Subject) -> None:
    theirs = minted("g1").certificate
    replica.say("replica-ready", host="evil", port=8000, certificate=theirs + minted("g1").certificate)
    replica.say("replica-ready", host="evil", port=8000, certificate="x" * 100_000)
    assert replica.ingest() == 2
    assert replica.replica.state is ReplicaState.PENDING
    replica.say("replica-ready", host="g1", port=8000, certificate=theirs)
    replica.ingest()
    assert (replica.replica.state, replica.replica.certificate) == (ReplicaState.READY, theirs)


@pytest.mark.parametrize(
    ("exit_code", "cause", "state", "shown"),
    [
        (0, "cancelled", ReplicaState.STOPPED, None),
        (0, "timeout", ReplicaState.STOPPED, "time limit"),
        (3, "no kernel", ReplicaState.FAILED, "no kernel"),
    ],
)
def test_how_an_engine_ended_is_how_its_replica_did(
    replica: Subject, exit_code: int, cause: str, state: ReplicaState, shown: str | None
) -> None:
    replica.say("attempt-ended", exit_code=exit_code, cause=cause)
    replica.ingest()
    assert (replica.replica.state, replica.replica.cause) == (state, shown)


def test_each_announcement_is_taken_in_once(registry: Database, run: Subject) -> None:
    run.say("attempt-started")
    run.say("checkpoint", **CHECKPOINT)
    run.say("attempt-ended", exit_code=1, cause="x")
    assert run.ingest() == 3
    before = (run.run, checkpoints.everything(registry))
    assert run.ingest() == 0
    assert (run.run, checkpoints.everything(registry)) == before


def test_taking_in_the_same_facts_again_changes_nothing(
    registry: Database, conversion: Subject, replica: Subject
) -> None:
    """A controller that died between a fact's row and its own note takes the fact in again."""
    conversion.say("model-converted", **CONVERTED)
    replica.say("replica-ready", host="g1", port=8000)
    conversion.ingest(), replica.ingest()
    before = (models.everything(registry), replica.replica)
    registry.conn.execute("DELETE FROM announcements")
    assert (conversion.ingest(), replica.ingest()) == (1, 1)
    assert (models.everything(registry), replica.replica) == before


PROBE = {"prompt_tokens": 2, "completion_tokens": 1, "cached_tokens": 1}


def test_the_token_a_replica_proved_itself_with_is_the_platforms(replica: Subject) -> None:
    name = replica.say("replica-ready", host="g1", port=8000, probe=PROBE)
    replica.ingest()
    ((hold, used),) = replica.booked
    assert isinstance(hold, Hold) and isinstance(used, UsageEvent) and hold.attempt == used.attempt
    assert (hold.tokens, hold.microcredits, used.microcredits) == (0, 0, 0)
    assert (used.attempt.tenant, used.attempt.user, used.attempt.kind) == ("(platform)", "probe", "probe")
    assert (used.attempt.model, used.attempt.replica, used.attempt.key_id) == ("chat", replica.spec.id, "")
    assert (used.prompt_tokens, used.completion_tokens, used.cached_tokens) == (2, 1, 1)
    assert used.outcome is Outcome.COMPLETED and name[:20] in used.attempt.event_id
    assert replica.ingest() == 0 and len(replica.booked) == 1


def test_a_controller_that_died_books_a_probe_again_under_the_same_id(registry: Database, replica: Subject) -> None:
    replica.say("replica-ready", host="g1", port=8000, probe=PROBE)
    replica.ingest()
    registry.conn.execute("DELETE FROM announcements")
    replica.ingest()
    first, second = replica.booked
    assert first == second
    replica.say("replica-ready", host="g1", port=8001, probe=PROBE)  # its job was requeued
    replica.ingest()
    assert replica.booked[2] != first


def test_a_probe_that_cannot_be_booked_now_is_booked_at_the_next_look(replica: Subject) -> None:
    replica.say("replica-ready", host="g1", port=8000, probe=PROBE)
    replica.disk_full = True
    with pytest.raises(OSError, match="No space"):
        replica.ingest()
    assert replica.replica.state is ReplicaState.READY  # it serves meanwhile
    replica.disk_full = False
    assert replica.ingest() == 1 and len(replica.booked) == 1


@pytest.mark.parametrize("wrong", [None, {}, {**PROBE, "prompt_tokens": "many"}])
def test_a_probe_that_is_none_keeps_no_replica_from_being_ready(replica: Subject, wrong: Any) -> None:
    replica.say("replica-ready", host="g1", port=8000, probe=wrong)
    assert replica.ingest() == 1 and not replica.booked
    assert replica.replica.state is ReplicaState.READY


# -- a replica's life -------------------------------------------------------------------------------------------------


def test_a_replica_that_drains_gets_nothing_new_and_says_why_once(replica: Subject) -> None:
    replica.say("attempt-started", attempt="7.0", job_id="7")
    replica.say("replica-ready", host="g1", port=8000)
    replica.say("replica-draining", why="time limit")
    replica.say("replica-draining", why="asked")
    replica.ingest()
    now = replica.replica
    assert (now.state, now.drain_why) == (ReplicaState.DRAINING, "time limit") and now.started_at is not None


def test_a_replica_whose_engine_is_started_again_is_not_ready_until_it_says_so(replica: Subject) -> None:
    replica.say("attempt-started", attempt="7.0", job_id="7")
    replica.say("replica-ready", host="g1", port=8000)
    replica.say("engine-restarting", failure="hung", cause="the engine hangs", restarts=1)
    replica.ingest()
    now = replica.replica
    assert (now.state, now.cause, now.restarts) == (ReplicaState.STARTING, "the engine hangs", 1)
    replica.say("replica-ready", host="g1", port=8000)
    replica.ingest()
    assert replica.replica.state is ReplicaState.READY


@pytest.mark.parametrize(("failure", "kept"), [("bad-model", "bad-model"), (None, None), ("bad-luck", None)])
def test_why_a_replica_failed_is_kept_where_it_is_a_kind_that_we_know(
    replica: Subject, failure: str | None, kept: str | None
) -> None:
    replica.say("attempt-ended", attempt="7.0", exit_code=1, cause="it is broken", failure=failure)
    replica.ingest()
    assert replica.replica.failure == kept
    assert (replica.replica.state is ReplicaState.FAILED) == (failure != "bad-luck")


@pytest.mark.parametrize(
    "wrong", [{"restarts": -1}, {"restarts": True}, {"restarts": "1"}, {"failure": "x"}, {"cause": 1}]
)
def test_a_restart_that_cannot_be_believed_changes_nothing(replica: Subject, wrong: dict[str, Any]) -> None:
    replica.say("replica-ready", host="g1", port=8000)
    replica.say("engine-restarting", **{"failure": "crashed", "cause": "it fell", "restarts": 1, **wrong})
    assert replica.ingest() == 2
    assert (replica.replica.state, replica.replica.restarts) == (ReplicaState.READY, 0)


def test_what_probes_of_a_ready_replica_took_is_the_platforms_too(replica: Subject) -> None:
    name = replica.say("probes", probe={"prompt_tokens": 20, "completion_tokens": 10, "cached_tokens": 0}, count=10)
    replica.ingest()
    ((hold, used),) = replica.booked
    assert isinstance(used, UsageEvent) and hold.attempt == used.attempt and name[:20] in used.attempt.event_id
    assert (used.attempt.tenant, used.prompt_tokens, used.completion_tokens) == ("(platform)", 20, 10)


@pytest.mark.parametrize("tokens", [-1, 1 << 60, 1.5, True, "1"])
def test_tokens_that_no_probe_can_have_taken_are_not_booked(replica: Subject, tokens: Any) -> None:
    replica.say("probes", probe={"prompt_tokens": tokens, "completion_tokens": 1, "cached_tokens": 0}, count=1)
    assert replica.ingest() == 1 and not replica.booked


def test_a_replica_has_only_adapters_that_it_was_to_have(registry: Database, replica: Subject) -> None:
    replica.spec = serve(adapters={"polite": "/adapters/polite"})
    adapters.ask(replica.folder, {"terse": "/adapters/terse"})
    replica.say("adapters-loaded", adapters=["terse", "polite"], problem=None)
    replica.ingest()
    assert replica.replica.adapters == ("polite", "terse")
    for wrong in (["chat"], "polite", [7], None):
        replica.say("adapters-loaded", adapters=wrong, problem=None)
    replica.ingest()
    assert replica.replica.adapters == ("polite", "terse")
    replica.say("adapters-loaded", adapters=[], problem="adapter polite could not be loaded")
    replica.ingest()
    assert replica.replica.adapters == ()


# -- what is set aside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"path": "/etc/passwd"},
        {"path": "../other-run/checkpoints/10"},
        {"path": "checkpoints/../../10"},
        {"iteration": "ten"},
        {"iteration": 10**30},
        {"bytes": float("inf")},
        {"bytes": None},
        {"manifest_sha256": "\ud800"},
    ],
)
def test_a_checkpoint_that_cannot_be_is_set_aside_and_the_rest_counts(
    registry: Database, run: Subject, changed: dict[str, Any]
) -> None:
    run.say("checkpoint", **(CHECKPOINT | changed))
    run.say("checkpoint", **(CHECKPOINT | {"iteration": 20, "path": "checkpoints/20"}))
    assert run.ingest() == 2 and run.ingest() == 0
    assert [c.iteration for c in checkpoints.everything(registry)] == [20]


def test_a_fact_without_its_fields_is_set_aside(registry: Database, run: Subject) -> None:
    run.say("checkpoint", iteration=1)
    run.say("attempt-ended", exit_code=0, cause="completed")
    run.ingest()
    assert checkpoints.everything(registry) == [] and run.run.state is RunState.COMPLETED


def test_one_path_is_one_checkpoint(registry: Database, run: Subject) -> None:
    run.say("checkpoint", **CHECKPOINT)
    run.say("checkpoint", **(CHECKPOINT | {"iteration": 20}))
    assert run.ingest() == 2
    assert [c.iteration for c in checkpoints.everything(registry)] == [10]


def test_a_kind_of_fact_that_is_not_this_subjects_is_set_aside(
    registry: Database, run: Subject, replica: Subject
) -> None:
    replica.say("checkpoint", **CHECKPOINT)
    replica.say("model-converted", **CONVERTED)
    run.say("model-converted", **CONVERTED)
    run.say("replica-ready", host="g1", port=1)
    assert (replica.ingest(), run.ingest()) == (2, 2)
    assert checkpoints.everything(registry) == [] and len(models.everything(registry)) == 1
    assert replica.replica.state is ReplicaState.PENDING


def test_a_forged_announcement_is_set_aside(run: Subject) -> None:
    directory = run.folder.announcements
    forged = json.dumps({"schema": 1, "kind": "attempt-ended", "at": 1, "exit_code": 0, "cause": "completed"})
    (run.folder.root / "elsewhere").write_text(forged)
    (directory / "00000000000000000001-attempt-ended.json").symlink_to(run.folder.root / "elsewhere")
    (directory / "00000000000000000002-attempt-ended.json").write_text(forged.replace('"schema": 1', '"schema": 9'))
    if os.getuid() == 0:
        (directory / "00000000000000000003-attempt-ended.json").write_text(forged)
        os.chown(directory / "00000000000000000003-attempt-ended.json", 4711, 4711)
    assert run.ingest() >= 2
    assert run.run.state is RunState.PENDING


def test_a_folder_that_calls_itself_a_replica_makes_no_model_servable(
    registry: Database, replica: Subject, tmp_path: Path
) -> None:
    stranger = Subject(registry, serve("chat-2"), tmp_path)
    stranger.folder.secret.write_text("k")
    stranger.say("replica-ready", host="evil", port=1)
    stranger.ingest()
    assert models.resolve(registry, "tiny").state is ModelState.CONVERTED
    assert [r.state for r in deployments.live_replicas(registry)["chat"]] == [ReplicaState.PENDING]


def test_a_conversion_into_anothers_model_is_set_aside(registry: Database, conversion: Subject) -> None:
    models.register(registry, "tiny", "somebody-else", "/models/theirs")
    conversion.say("model-converted", **CONVERTED)
    conversion.ingest()
    (only,) = models.everything(registry)
    assert (only.path, only.aliases) == ("/models/theirs", ())


# -- what waits -------------------------------------------------------------------------------------------------------


def test_a_replica_whose_key_cannot_be_read_yet_is_ready_when_it_can(replica: Subject) -> None:
    replica.folder.secret.unlink()
    replica.say("replica-ready", host="g1", port=8000)
    with pytest.raises(FileNotFoundError):
        replica.ingest()
    assert replica.replica.state is ReplicaState.PENDING
    replica.folder.secret.write_text("upstream-key")
    assert replica.ingest() == 1
    assert replica.replica.state is ReplicaState.READY


def test_a_registry_that_cannot_be_written_loses_no_fact(registry: Database, run: Subject) -> None:
    for n in range(100):
        run.say("checkpoint", **(CHECKPOINT | {"iteration": n, "path": f"{n}/" + "x" * 500}))
    pages = row(registry, "PRAGMA page_count")[0]
    registry.conn.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageError, match="full"):
        run.ingest()
    assert len(checkpoints.everything(registry)) < 100
    registry.conn.execute("PRAGMA max_page_count = 100000")
    run.ingest()
    assert len(checkpoints.everything(registry)) == 100


def test_a_key_that_is_a_link_is_not_followed(replica: Subject, tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("secret of somebody")
    replica.folder.secret.unlink()
    replica.folder.secret.symlink_to(tmp_path / "shadow")
    replica.say("replica-ready", host="g1", port=8000)
    assert replica.ingest() == 1
    assert replica.replica.state is ReplicaState.PENDING


def test_the_owner_is_the_folders_owner(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.create()
    assert facts.owner_of(folder)[1] == os.getuid()
    if os.getuid() == 0:
        os.chown(folder.root, 4711, 4711)
        assert facts.owner_of(folder) == ("4711", 4711)
    assert stat.S_ISDIR(folder.root.stat().st_mode)


# Attempts, and what the batch script makes of them.


def attempt(run: Subject, name: str, *, end: str, **judged: Any) -> None:
    """One attempt from its start to its judgement, as supervisor and batch script state it."""
    run.say("attempt-started", attempt=name, job_id="7", host="g1", nodes="g[1-2]", saved=None)
    run.say("attempt-ended", attempt=name, exit_code=1, cause="it fell", end=end, judged=True, iteration=47)
    run.ingest()
    if judged:
        run.say("attempt-judged", **{"attempt": name, "saved": 40, "successor": None, **judged})
        run.ingest()


def test_a_run_whose_attempt_is_not_judged_yet_is_not_over(run: Subject) -> None:
    attempt(run, "7.0", end="crashed")
    assert run.run.state is RunState.RUNNING
    (known,) = attempts.of_run(run.db, run.spec.id)
    assert (known.cause, known.detail, known.nodes, known.last_iteration) == ("crashed", "it fell", "g[1-2]", 47)


@pytest.mark.parametrize(
    ("cause", "action", "state", "words"),
    [
        ("completed", "stop", RunState.COMPLETED, None),
        ("cancelled", "stop", RunState.STOPPED, None),
        ("time-limit", "restart", RunState.PENDING, "time-limit; it goes on"),
        ("requeued", "wait", RunState.PENDING, "requeued; it goes on"),
        ("crashed", "restart", RunState.PENDING, "it fell; it goes on"),
        ("crashed", "stop", RunState.FAILED, "it fell; it goes on"),
        ("time-limit", "stop", RunState.FAILED, "time-limit; it goes on"),
    ],
)
def test_what_follows_an_attempt_is_the_batch_scripts_to_say(
    run: Subject, cause: str, action: str, state: RunState, words: str | None
) -> None:
    attempt(run, "7.0", end="cancelled", cause=cause, action=action, why="it goes on")
    assert (run.run.state, run.run.cause) == (state, words)
    (known,) = attempts.of_run(run.db, run.spec.id)
    assert (known.cause, known.saved_iteration, known.verdict) == (cause, 40, "it goes on")


def test_a_run_that_goes_on_is_running_again_and_forgets_why_it_waited(run: Subject) -> None:
    attempt(run, "7.0", end="crashed", cause="crashed", action="restart", why="it goes on")
    run.say("attempt-started", attempt="7.1", job_id="7", host="g1", saved=40)
    run.ingest()
    assert (run.run.state, run.run.cause) == (RunState.RUNNING, None)
    assert [(a.number, a.first_iteration) for a in attempts.of_run(run.db, run.spec.id)] == [(1, None), (2, 40)]


def test_the_job_that_follows_one_that_could_not_be_requeued_is_known_until_it_begins(run: Subject) -> None:
    assert facts.successor(run.folder) is None
    attempt(run, "7.0", end="crashed", cause="crashed", action="restart", why="", successor="8")
    assert facts.successor(run.folder) == "8"
    run.say("attempt-started", attempt="8.0", job_id="8", host="g1")
    assert facts.successor(run.folder) is None


def test_a_checkpoint_that_was_pruned_is_not_there_any_more_until_it_is_written_again(run: Subject) -> None:
    run.say("checkpoint", **CHECKPOINT)
    run.say("checkpoint-pruned", iteration=10, path="checkpoints/10")
    run.ingest()
    assert checkpoints.everything(run.db) == []
    with pytest.raises(NotFound):
        checkpoints.get(run.db, f"{run.spec.id}/10")
    run.say("checkpoint", **CHECKPOINT)
    run.ingest()
    assert [c.iteration for c in checkpoints.everything(run.db)] == [10]


def test_an_attempt_that_never_came_to_its_supervisor_is_known_when_it_is_judged(run: Subject) -> None:
    run.say("attempt-judged", attempt="7.0", saved=None, successor=None, cause="lost", action="restart", why="again")
    run.ingest()
    (known,) = attempts.of_run(run.db, run.spec.id)
    assert (known.attempt, known.job_id, known.cause) == ("7.0", "7", "lost")
    assert (run.run.state, run.run.cause) == (RunState.PENDING, "lost; again")


def test_a_judgement_that_comes_after_the_next_attempt_began_does_not_stop_the_clock(run: Subject) -> None:
    """Another node's clock may be ahead."""
    attempt(run, "7.0", end="crashed")
    run.say("attempt-started", attempt="7.1", job_id="7", host="g2", saved=40)
    run.say("attempt-judged", attempt="7.0", saved=40, successor=None, cause="crashed", action="restart", why="")
    run.ingest()
    assert run.run.state is RunState.RUNNING
    assert attempts.of_run(run.db, run.spec.id)[0].saved_iteration == 40


def test_a_replica_that_is_ready_proves_the_model_of_its_own_revision_only(
    registry: Database, replica: Subject
) -> None:
    models.register(registry, "tiny", "ada", "/models/tiny-2")
    revisions.add(
        registry, "chat", model="tiny", version=2, model_path="/models/tiny-2", request={}, by="ada", why="rolled out"
    )
    replica.say("replica-ready", host="n1", port=8000)
    replica.ingest()
    assert models.get(registry, "tiny", 1).state is ModelState.SERVABLE
    assert models.get(registry, "tiny", 2).state is ModelState.CONVERTED

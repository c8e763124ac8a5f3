"""Deployments through the control API: what is wanted is changed, rolled out and rolled back by whoever may."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from launchers.control import CONTROLLER, make_app
from launchers.control_http import PRINCIPAL
from launchers.controller import Controller
from launchers.deployment_file import read
from launchers.deployment_spec import to_document
from launchers.local_scheduler import LocalScheduler
from launchers.planning.facts import Cluster, Plan
from registry import aliases, checkpoints, deployments, models, revisions, runs, tenants
from registry.access import Principal
from registry.db import Database, transaction
from registry.deployments import Deployment, DeploymentState, ReplicaState
from registry.revisions import RevisionState
from registry.settings import Replicas
from registry.site import Environment, Environments, Scheduler, Site

ROOT = Principal("root", 0, admin=True)
ADA = Principal("ada", 1001, admin=False)
BOB = Principal("bob", 1002, admin=False)


@dataclass
class Api:
    root: Path
    controller: Controller
    session: aiohttp.ClientSession
    principal: Principal = field(default_factory=lambda: ADA)

    @property
    def db(self) -> Database:
        return self.controller.db

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.request(method, f"http://control/v1/{path}", json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Any:
        status, answer = await self.call("GET", path)
        assert status == 200, answer
        return answer

    async def post(self, path: str, body: Any = None) -> Any:
        status, answer = await self.call("POST", path, body or {})
        assert status in (200, 201), answer
        return answer

    async def refused(self, path: str, body: Any = None) -> tuple[int, str]:
        status, answer = await self.call("POST", path, body or {})
        return status, str(answer["error"]["message"]) if "error" in answer else f"done: {answer}"

    def model(self, *versions: int, name: str = "tiny", **config: Any) -> None:
        """Versions of a published model, in this order."""
        for version in versions:
            directory = self.root / "models" / f"{name}-{version}"
            directory.mkdir(parents=True)
            (directory / "config.json").write_text(json.dumps(config))
            (directory / "model.safetensors").write_bytes(b"")
            models.register(self.db, name, "ada", str(directory))

    @property
    def chat(self) -> Deployment:
        return deployments.get(self.db, "chat")

    def states(self) -> list[RevisionState]:
        return [r.state for r in revisions.of(self.db, "chat")]

    def proves_itself(self) -> None:
        revisions.settle(self.db, "chat", self.chat.revision, True, "good")


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, for a Unix socket
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def api(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async def no_turn(controller: Controller) -> None:
        """Nothing is started: what is wanted is what these tests are about."""

    monkeypatch.setattr(Controller, "turn", no_turn)
    site = Site(
        name="test",
        state_dir=root,
        shared_dir=root,
        scheduler=Scheduler(kind="local"),
        environments=Environments(engine=Environment(kind="venv", python="python3", command=("false",))),
        replicas=Replicas(isolated_network=False),
    )
    app = make_app(site, LocalScheduler(root / "jobs"))
    made: list[Api] = []

    @web.middleware
    async def as_somebody(request: web.Request, handler: Any) -> Any:
        request[PRINCIPAL] = made[0].principal
        return await handler(request)

    app.middlewares.append(as_somebody)  # after the one that asks the kernel
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.control_socket))) as session:
            made.append(Api(root, app[CONTROLLER], session))
            made[0].model(1, 2, 3)
            yield made[0]
    finally:
        await runner.cleanup()


SPEC = {"model": "tiny@1", "min": 1, "max": 4, "engine_args": ["--max-model-len", "64"]}


async def served(api: Api, **spec: Any) -> Any:
    return await api.post("deployments", {"name": "chat", **SPEC, **spec})


# -- serving ----------------------------------------------------------------------------------------------------------


async def test_a_deployment_is_described_with_its_spec_its_revisions_and_its_replicas(api: Api) -> None:
    made = await served(api, target_tokens=2000, canary=10, resources={"cpus_per_task": 2})
    assert (made["deployment"]["min_replicas"], made["deployment"]["max_replicas"]) == (1, 4)
    assert made["spec"]["resources"] == {"cpus_per_task": 2}
    asked = {key: made["spec"][key] for key in ("name", "model", "min", "max", "target_tokens", "canary")}
    assert asked == {"name": "chat", "model": "tiny@1", "min": 1, "max": 4, "target_tokens": 2000, "canary": 10}
    assert [(r["revision"], r["state"], r["version"]) for r in made["revisions"]] == [(1, "rolling", 1)]
    assert made["replicas"] == []
    assert await api.get("deployments") == [await api.get("deployments/chat")] == [made]
    (whole,) = await api.get("deployments/chat/revisions")
    assert (whole["created_by"], whole["why"], whole["request"]["target_tokens"]) == ("ada", "served", 2000)


async def test_one_that_no_release_would_take_today_is_listed_with_all_others(api: Api) -> None:
    await served(api)
    with transaction(api.db) as c:
        c.execute("UPDATE deployments SET max_replicas = 0, request = json_set(request, '$.canary', 100)")
    (listed,) = await api.get("deployments")
    assert (listed["spec"]["max"], listed["spec"]["canary"]) == (0, 100)
    assert (await api.post("deployments/chat/stop"))["deployment"]["state"] == "stopping"


async def test_a_model_by_its_alias_is_followed_and_by_its_name_or_version_is_not(api: Api) -> None:
    aliases.move(api.db, "tiny", "prod", 2, "ada", "")
    for ref, version, follows in (("tiny", 3, None), ("tiny@1", 1, None), ("tiny@prod", 2, "tiny@prod")):
        made = await api.post("deployments", {"model": ref, "name": f"of-{version}"})
        assert (made["deployment"]["version"], made["deployment"]["follows"]) == (version, follows)
        assert made["spec"]["model"] == (follows or f"tiny@{version}")


async def test_a_deployment_without_a_name_has_its_models(api: Api) -> None:
    assert (await api.post("deployments", {"model": "tiny@2"}))["deployment"]["name"] == "tiny"


async def test_a_checkpoint_is_served_by_the_model_that_was_made_of_it(api: Api) -> None:
    runs.adopt(api.db, "r-1", kind="train", name="r", owner="ada", folder="/r-1", created_at="2026-01-01")
    for iteration in (10, 20):
        checkpoints.add(
            api.db, "r-1", "ada", iteration=iteration, path=f"/r-1/{iteration}", size=1, manifest_sha256="x"
        )
    directory = api.root / "models" / "made"
    shutil.copytree(api.root / "models" / "tiny-1", directory)
    models.register(api.db, "made", "ada", str(directory), checkpoint="r-1/10")
    made = await api.post("deployments", {"model": "r-1/10"})
    assert (made["deployment"]["name"], made["deployment"]["model"]) == ("made", "made")
    for ref in ("r-1/20", "r-1", "r"):
        status, words = await api.refused("deployments", {"model": ref})
        assert status == 404 and "no model was made of checkpoint r-1/20 yet: `headgate publish r-1/20`" in words
    assert "no model is called 'r-1/30'; there are: " in (await api.refused("deployments", {"model": "r-1/30"}))[1]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"min": 5}, "max: must be at least min (5), not 4"),
        ({"max": 257}, "max: must be at most 256"),
        ({"canary": 100}, "canary: must be at most 99"),
        ({"replicas": 2}, "unknown field 'replicas'; allowed: "),
        ({"runner": "sing"}, "runner: 'sing'"),
        ({"resources": {"tasks_per_node": 2}}, "'tasks_per_node' must be 1, not 2"),
        ({"resources": {"nodes": 2}}, "'nodes' must be 1, not 2"),
        ({"resources": {"gpus": 1}}, "resources.gpus: unknown; allowed: "),
        ({"overflow": {"qos": "a b"}}, "overflow: resources.qos: 'a b' is not a name"),
        ({"overflow": {"nodes": 2}}, "'nodes' must be 1, not 2"),
        ({"pack": 0}, "pack: must be at least 1"),
        ({"pack": 5}, "'pack' must be at most 'max' (4), not 5"),
        ({"stage": True}, "'stage' needs a node-local directory, and this site names none (replicas.stage_dir)"),
        ({"engine_args": ["--trust-remote-code"]}, "engine argument --trust-remote-code is for administrators"),
        ({"engine_args": [1]}, "engine_args: "),
        ({"model": "absent"}, "no model is called 'absent'; there are: tiny"),
        ({"model": "tiny@qa"}, "model tiny has no alias 'qa'"),
        ({"name": "A B"}, "deployment name 'A B' is not allowed"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_its_field(api: Api, spec: dict[str, Any], words: str) -> None:
    for path, body in (
        ("deployments", {"name": "chat", **SPEC, **spec}),
        (f"deployments/{spec.get('name', 'chat')}/apply", {"spec": {"name": "chat", **SPEC, **spec}}),
    ):
        status, said = await api.refused(path, body)
        assert status in (400, 404) and words in said, said
    assert await api.get("deployments") == []


async def test_what_may_run_code_or_read_files_is_for_administrators(api: Api) -> None:
    api.model(1, name="coded", auto_map={"AutoModel": "code.Model"})
    lora = api.root / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (lora / "adapter_model.safetensors").write_bytes(b"")
    asked = [
        ({"model": "coded@1"}, 400, "its config.json has auto_map"),
        ({"adapters": {"poet": str(lora)}}, 403, "ada may not administer this adapter directory"),
        ({"model": str(api.root / "models" / "tiny-1")}, 403, "ada may not administer this model directory"),
    ]
    for spec, status, words in asked:
        said = await api.refused("deployments", {"name": "chat", **SPEC, **spec})
        assert said[0] == status and words in said[1], said
    api.principal = ROOT
    for number, (spec, _, _) in enumerate(asked):
        made = await api.post("deployments", {**SPEC, "name": f"chat-{number}", **spec})
        assert made["deployment"]["request"]["safetensors_only"] is False
    api.principal = ADA
    assert (await served(api))["deployment"]["request"]["safetensors_only"] is True
    api.principal = ROOT
    restarted = await api.post("deployments/chat/rollout", {"restart": True})
    assert restarted["deployment"]["request"]["safetensors_only"] is True  # its owner's model may change
    aliases.move(api.db, "tiny", "prod", 1, "ada", "")
    followed = await api.post("deployments", {**SPEC, "name": "follows", "model": "tiny@prod"})
    assert followed["deployment"]["request"]["safetensors_only"] is True  # so may where the alias is


async def test_a_deployment_is_paid_for_by_an_account_of_its_owners_tenants_or_the_sites_own(api: Api) -> None:
    tenants.create(api.db, "physics", "root", account="phys")
    tenants.create(api.db, "teaching", "root", account="students")
    served_by_default = replace(api.controller.site.defaults.serve, account="staff")
    api.controller.site = replace(
        api.controller.site, defaults=replace(api.controller.site.defaults, serve=served_by_default)
    )
    phys, students = {"resources": {"account": "phys"}}, {"resources": {"account": "students"}}
    taken = [({}, ADA), (phys, replace(ADA, tenants=frozenset({"physics"}))), (phys, ROOT)]
    taken += [({"resources": {"account": "staff"}, "overflow": {"account": "staff"}}, ADA)]
    for number, (asked, api.principal) in enumerate(taken):
        await api.post("deployments", {**SPEC, "name": f"taken-{number}", **asked})
    api.principal = replace(ADA, tenants=frozenset({"physics"}))
    words = (
        "account students may not pay for a deployment of ada's; allowed: phys, staff; an administrator may name any"
    )
    await served(api)
    for asked in (students, {"overflow": {"account": "students"}}, {**phys, "overflow": {"account": "students"}}):
        for path, body in (
            ("deployments", {**SPEC, "name": "other", **asked}),
            ("deployments/chat/apply", {"spec": {**SPEC, **asked}}),
        ):
            assert await api.refused(path, body) == (403, words)
    await api.post("deployments/taken-1/rollout", {"model": "tiny@2"})
    api.principal = ADA  # no member any more
    assert (await api.refused("deployments/taken-1/rollout", {"model": "tiny@3"}))[0] == 403
    await api.post("deployments/taken-1/scale", {"min": 0})


async def test_the_example_can_be_applied(api: Api) -> None:
    api.principal = ROOT
    for name in ("llama", "embedder"):
        api.model(1, name=name)
    aliases.move(api.db, "llama", "prod", 1, "ada", "")
    adapter = api.root / "adapters" / "support"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    shutil.copy(Path(__file__).parent.parent / "cli" / "deployments.toml", api.root)
    bounds = {}
    for spec in read(api.root / "deployments.toml"):
        made = await api.post(f"deployments/{spec.name}/apply", {"spec": to_document(spec)})
        bounds[spec.name] = (made["deployment"]["min_replicas"], made["deployment"]["max_replicas"])
    assert bounds == {"chat": (1, 8), "embeddings": (0, 4)}


@contextmanager
def unreadable(api: Api, model: str) -> Iterator[Path]:
    """A model's directory, to the service, which is not root meanwhile."""
    directory, root = api.root / "models" / model, os.geteuid() == 0
    for path, mode in ((api.root, 0o711), (api.root / "control.sock", 0o666), (directory, 0)):
        os.chmod(path, mode)
    try:
        if root:
            os.seteuid(65534)
        yield directory
    finally:
        if root:
            os.seteuid(0)
        os.chmod(directory, 0o755)


async def test_what_the_service_cannot_read_is_refused_in_words(api: Api) -> None:
    api.principal = ROOT
    await served(api)
    api.proves_itself()
    await api.post("deployments/chat/rollout", {"model": "tiny@2"})
    with unreadable(api, "tiny-1") as hidden:
        for path, body in (
            ("deployments", {**SPEC, "name": "other", "model": "tiny@1"}),
            ("deployments", {**SPEC, "name": "other", "model": str(hidden)}),
            ("deployments", {**SPEC, "name": "other", "model": "tiny@2", "adapters": {"poet": str(hidden)}}),
            ("deployments/chat/apply", {"spec": {**SPEC, "model": "tiny@1"}, "dry_run": True}),
            ("deployments/chat/rollout", {"model": "tiny@1"}),
            ("deployments/chat/rollback", {}),
        ):
            status, words = await api.refused(path, body)
            assert (status, words) == (400, f"{hidden} cannot be read by the service: Permission denied"), path


async def test_one_whose_alias_is_at_a_model_that_cannot_be_read_goes_on_and_so_do_all_others(api: Api) -> None:
    aliases.move(api.db, "tiny", "prod", 1, "ada", "")
    await served(api, model="tiny@prod")
    await api.post("deployments", {**SPEC, "name": "other"})
    aliases.move(api.db, "tiny", "prod", 2, "ada", "")
    with unreadable(api, "tiny-2") as hidden:
        await api.controller.write(api.controller.plans.make, Cluster())
    plans = api.controller.plans.latest
    assert plans["other"].actions and plans["chat"].actions
    assert plans["chat"].why[-1] == (
        f"tiny@prod is version 2, which it may not serve: {hidden} cannot be read by the service: Permission denied"
    )


# -- applying ---------------------------------------------------------------------------------------------------------


async def apply(api: Api, spec: Any = None, **body: Any) -> Any:
    return await api.post("deployments/chat/apply", {"spec": {**SPEC, **(spec or {})}, **body})


async def test_what_is_applied_twice_is_made_once(api: Api) -> None:
    first = await apply(api)
    assert first["done"] == "created"
    assert {"field": "model", "from": None, "to": "tiny@1"} in first["changes"]
    again = await apply(api)
    assert (again["done"], again["changes"], again["deployment"]) == ("unchanged", [], first["deployment"])
    told = await api.get("deployments/chat")
    same = await api.post("deployments/chat/apply", {"spec": told["spec"]})  # as it was shown
    assert (same["done"], same["changes"], len(api.states())) == ("unchanged", [], 1)


async def test_how_many_and_how_calls_are_shared_changes_in_place(api: Api) -> None:
    await apply(api)
    scaled = await apply(api, {"min": 2, "max": 8, "target_tokens": 500, "routing": "round-robin", "canary": 5})
    assert scaled["done"] == "scaled"
    assert scaled["changes"] == [
        {"field": "canary", "from": None, "to": 5},
        {"field": "max", "from": 4, "to": 8},
        {"field": "min", "from": 1, "to": 2},
        {"field": "routing", "from": "least-work", "to": "round-robin"},
        {"field": "target_tokens", "from": None, "to": 500},
    ]
    now = api.chat
    assert (now.revision, now.min_replicas, now.max_replicas, now.routing, now.canary) == (1, 2, 8, "round-robin", 5)
    assert revisions.get(api.db, "chat", 1).request["target_tokens"] == 500
    assert (await apply(api, {"min": 2, "max": 8, "routing": "round-robin", "canary": 5}))["changes"] == [
        {"field": "target_tokens", "from": 500, "to": None}
    ]


async def test_anything_that_an_engine_knows_makes_a_new_revision(api: Api) -> None:
    await apply(api)
    api.proves_itself()
    changed = await apply(
        api, {"model": "tiny@2", "resources": {"cpus_per_task": 2}, "max": 5, "canary": 20}, why="it is better"
    )
    assert changed["done"] == "changed"
    assert changed["changes"][-2:] == [
        {"field": "model", "from": "tiny@1", "to": "tiny@2"},
        {"field": "resources.cpus_per_task", "from": None, "to": 2},
    ]
    now = api.chat
    assert (now.revision, now.stable, now.version, now.max_replicas, now.canary) == (2, 1, 2, 5, 20)
    assert revisions.get(api.db, "chat", 2).why == "it is better"
    assert (await apply(api, {"model": "tiny@2", "max": 5, "canary": 20}))["done"] == "changed"
    assert revisions.get(api.db, "chat", 3).why == "applied: resources.cpus_per_task"


async def test_the_same_version_by_another_word_is_followed_without_a_new_revision(api: Api) -> None:
    aliases.move(api.db, "tiny", "prod", 1, "ada", "")
    await apply(api)
    told = await apply(api, {"model": "tiny@prod"})
    assert (told["done"], told["changes"]) == ("scaled", [{"field": "model", "from": "tiny@1", "to": "tiny@prod"}])
    assert (api.chat.follows, api.chat.revision) == ("tiny@prod", 1)


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(api: Api) -> None:
    api.principal = ROOT
    directory = {"model": str(api.root / "models" / "tiny-1")}
    told = await apply(api, directory, dry_run=True)
    assert (told["done"], told["deployment"], await api.get("deployments")) == ("created", None, [])
    assert [m.name for m in models.everything(api.db)] == ["tiny"] * 3
    await apply(api)
    before = api.chat
    told = await apply(api, {"model": "tiny@2", "min": 0}, dry_run=True)
    assert (told["done"], [c["field"] for c in told["changes"]]) == ("changed", ["min", "model"])
    assert (api.chat, len(api.states())) == (before, 1)
    status, words = await api.refused(
        "deployments/chat/apply", {"spec": {**SPEC, "resources": {"nodes": 2}}, "dry_run": True}
    )
    assert status == 400 and "'nodes' must be 1" in words


async def test_what_has_ended_is_created_again_and_what_ends_must_end_first(api: Api) -> None:
    await apply(api)
    deployments.set_state(api.db, "chat", DeploymentState.STOPPING)
    status, words = await api.refused("deployments/chat/apply", {"spec": SPEC})
    assert status == 409 and "deployment chat is being stopped; serve it again once it is" in words
    deployments.set_state(api.db, "chat", DeploymentState.STOPPED)
    assert (await apply(api))["done"] == "created"
    assert (api.chat.revision, len(api.states())) == (2, 1)


async def test_a_spec_of_another_name_is_refused(api: Api) -> None:
    status, words = await api.refused("deployments/chat/apply", {"spec": {**SPEC, "name": "other"}})
    assert status == 400 and "the spec's is 'other', and the request is about 'chat'" in words


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("apply", {"spec": SPEC}),
        ("apply", {"spec": SPEC, "dry_run": True}),
        ("scale", {"replicas": 2}),
        ("pause", {"paused": True}),
        ("rollout", {"restart": True}),
        ("rollback", {}),
        ("stop", {}),
    ],
)
async def test_only_its_owner_and_an_administrator_change_a_deployment(api: Api, path: str, body: Any) -> None:
    await served(api)
    api.proves_itself()
    roll = {"model": "tiny@2", "request": {}, "by": "ada", "why": ""}
    revisions.add(api.db, "chat", **{**roll, "model": "tiny", "version": 2, "model_path": api.chat.model_path})
    before = api.chat
    api.principal = BOB
    status, words = await api.refused(f"deployments/chat/{path}", body)
    assert status == 403 and "its owner ada or an administrator may" in words
    assert api.chat == before
    api.principal = ROOT
    await api.post(f"deployments/chat/{path}", body)


# -- scaling, pausing -------------------------------------------------------------------------------------------------


async def test_it_is_scaled_to_bounds_or_to_a_number(api: Api) -> None:
    await served(api)
    for body, bounds in (
        ({"min": 0}, (0, 4)),
        ({"max": 8}, (0, 8)),
        ({"min": 2, "max": 3}, (2, 3)),
        ({"replicas": 5}, (5, 5)),
        ({"replicas": 0}, (0, 1)),
    ):
        told = await api.post("deployments/chat/scale", body)
        assert (told["deployment"]["min_replicas"], told["deployment"]["max_replicas"]) == bounds
    assert len(api.states()) == 1


async def test_a_packed_one_is_sent_to_sleep(api: Api) -> None:
    await served(api, pack=4)
    told = await api.post("deployments/chat/scale", {"replicas": 0})
    assert (told["deployment"]["min_replicas"], told["deployment"]["max_replicas"]) == (0, 4)
    status, words = await api.refused("deployments/chat/scale", {"replicas": 3})
    assert status == 400 and "'max' must be at least 'pack' (4), not 3" in words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "say either 'replicas', or 'min', 'max' or both"),
        ({"replicas": 1, "min": 1}, "say either 'replicas', or 'min', 'max' or both"),
        ({"replicas": 257}, "'replicas' must be 0 ... 256, not 257"),
        ({"max": -1}, "'max' must be 0 ... 256, not -1"),
        ({"min": 5}, "'min' must be 0 ... 'max'"),
        ({"max": 0}, "'max' at least 1"),
        ({"min": True}, "'min' must be int, not True"),
    ],
)
async def test_a_scale_that_makes_no_sense_is_refused(api: Api, body: Any, words: str) -> None:
    await served(api)
    status, said = await api.refused("deployments/chat/scale", body)
    assert status == 400 and words in said
    assert (api.chat.min_replicas, api.chat.max_replicas) == (1, 4)


async def test_it_is_paused_and_goes_on(api: Api) -> None:
    await served(api)
    assert (await api.post("deployments/chat/pause", {}))["deployment"]["paused"] is True
    assert (await api.post("deployments/chat/pause", {"paused": False}))["deployment"]["paused"] is False


# -- rolling out and back ---------------------------------------------------------------------------------------------


async def test_another_version_is_rolled_out_with_the_same_words(api: Api) -> None:
    await served(api, canary=10)
    api.proves_itself()
    told = await api.post("deployments/chat/rollout", {"model": "tiny@2"})
    assert (told["deployment"]["revision"], told["deployment"]["version"], told["deployment"]["canary"]) == (2, 2, 10)
    assert told["spec"]["engine_args"] == SPEC["engine_args"]
    assert (await api.post("deployments/chat/rollout", {"model": "tiny@2"}))["deployment"]["revision"] == 2
    again = await api.post("deployments/chat/rollout", {"restart": True, "canary": 50, "why": "stuck"})
    assert (again["deployment"]["revision"], again["deployment"]["version"]) == (3, 2)
    assert again["deployment"]["canary"] == 50 and revisions.get(api.db, "chat", 3).why == "stuck"
    assert api.states() == [RevisionState.GOOD, RevisionState.SUPERSEDED, RevisionState.ROLLING]


async def test_where_its_alias_is_is_rolled_out_unless_another_model_is_named(api: Api) -> None:
    aliases.move(api.db, "tiny", "prod", 1, "ada", "")
    await served(api, model="tiny@prod")
    aliases.move(api.db, "tiny", "prod", 3, "ada", "")
    assert (await api.post("deployments/chat/rollout", {"restart": True}))["deployment"]["version"] == 1
    assert (await api.post("deployments/chat/rollout", {}))["deployment"]["version"] == 3
    assert api.chat.follows == "tiny@prod"
    assert (await api.post("deployments/chat/rollout", {"model": "tiny@2"}))["deployment"]["version"] == 2
    assert api.chat.follows is None
    status, words = await api.refused("deployments/chat/rollout", {})
    assert status == 400 and "'model' is missing: chat follows no alias; or say 'restart'" in words
    for canary in (0, 100):
        assert (await api.refused("deployments/chat/rollout", {"model": "tiny@1", "canary": canary}))[0] == 400


async def test_a_rollout_that_goes_on_gives_way_to_the_stable_revision(api: Api) -> None:
    await served(api)
    api.proves_itself()
    await api.post("deployments/chat/rollout", {"model": "tiny@2"})
    told = await api.post("deployments/chat/rollback", {"why": "it sings"})
    assert (told["deployment"]["revision"], told["deployment"]["version"]) == (1, 1)
    assert api.states() == [RevisionState.GOOD, RevisionState.BAD]
    assert revisions.get(api.db, "chat", 2).cause == "ada rolled it back: it sings"


async def test_what_proved_itself_before_comes_back_as_a_new_revision_and_follows_nothing(api: Api) -> None:
    aliases.move(api.db, "tiny", "prod", 1, "ada", "")
    await served(api, model="tiny@prod", canary=10)
    api.proves_itself()
    await api.post("deployments/chat/rollout", {"model": "tiny@2"})
    api.proves_itself()
    aliases.move(api.db, "tiny", "prod", 3, "ada", "")
    await api.post("deployments/chat/rollout", {"model": "tiny@prod"})
    api.proves_itself()
    back = await api.post("deployments/chat/rollback")
    assert (back["deployment"]["revision"], back["deployment"]["version"]) == (4, 2)
    assert (back["deployment"]["canary"], back["deployment"]["follows"], back["spec"]["model"]) == (
        None,
        None,
        "tiny@2",
    )
    assert revisions.get(api.db, "chat", 4).why == "back to revision 2"
    assert (await api.post("deployments/chat/rollback", {"revision": 1}))["deployment"]["version"] == 1


async def test_only_what_proved_itself_is_gone_back_to(api: Api) -> None:
    await served(api)
    assert "no good revision before 1" in (await api.refused("deployments/chat/rollback"))[1]
    api.proves_itself()
    await api.post("deployments/chat/rollout", {"model": "tiny@2"})
    revisions.settle(api.db, "chat", 2, False, "it fails")
    for revision, words in (
        (2, "cannot go back to revision 2, which is bad; it can to: none"),
        (1, "cannot go back to revision 1, which is good and wanted already"),
        (7, "cannot go back to revision 7, which is not one of its own"),
    ):
        status, said = await api.refused("deployments/chat/rollback", {"revision": revision})
        assert status == 409 and words in said
    await api.post("deployments/chat/rollout", {"model": "tiny@3"})
    shutil.rmtree(api.root / "models" / "tiny-1")
    status, said = await api.refused("deployments/chat/rollback")
    assert status == 404 and "model tiny@1 of revision 1 is gone" in said
    assert api.chat.version == 3


# -- replicas, and why ------------------------------------------------------------------------------------------------


async def test_a_replica_is_shown_with_what_it_says_of_its_load(api: Api) -> None:
    await served(api)
    for name in ("r-1", "r-2", "r-3"):
        (api.root / name).mkdir()
        deployments.add_replica(
            api.db, name, "chat", "root", str(api.root / name), revision=1, reason="one is wanted", replaces="r-0"
        )
    deployments.replica_is_ready(api.db, "r-1", "node-1", 8000, "secret")
    (api.root / "r-1" / "load.json").write_text('{"running": 3, "waiting": 1, "note": "x", "odd": NaN, "flag": true}')
    (api.root / "r-2" / "load.json").write_text("[" * 100)
    (api.root / "r-3" / "load.json").symlink_to("/etc/passwd")
    found = (await api.get("deployments/chat"))["replicas"]
    assert [r["load"] for r in found] == [{"running": 3, "waiting": 1}, None, None]
    first = found[0]["replica"]
    assert (first["reason"], first["replaces"], first["revision"], first["restarts"]) == ("one is wanted", "r-0", 1, 0)
    assert "upstream_key" not in first


async def test_of_the_replicas_that_ended_the_last_few_are_shown(api: Api) -> None:
    await served(api)
    for number in range(9):
        deployments.add_replica(api.db, f"r-{number}", "chat", "root", f"/runs/r-{number}")
        if number:
            deployments.set_replica_state(api.db, f"r-{number}", ReplicaState.LOST)
    found = (await api.get("deployments/chat"))["replicas"]
    assert [r["replica"]["id"] for r in found] == ["r-0", "r-4", "r-5", "r-6", "r-7", "r-8"]


async def test_it_is_explained_as_it_was_last_planned(api: Api) -> None:
    await served(api)
    told = await api.get("deployments/chat/explain")
    assert told["why"] == ["the controller has not planned anything for it since it was started"]
    assert (told["next"], told["planned_at"], told["deployment"]["name"]) == ([], None, "chat")
    api.controller.plans.latest["chat"] = Plan(
        why=("wants 2 replicas", "has 1"), next=((1767362700.0, "r-2 starts"), (None, "its revision proves itself"))
    )
    told = await api.get("deployments/chat/explain")
    assert told["why"] == ["wants 2 replicas", "has 1"]
    assert told["next"] == [
        {"at": "2026-01-02T14:05:00.000000Z", "words": "r-2 starts"},
        {"at": None, "words": "its revision proves itself"},
    ]
    deployments.set_state(api.db, "chat", DeploymentState.FAILED, "out of memory")
    assert (await api.get("deployments/chat/explain"))["why"] == ["chat has failed: out of memory"]


# -- aliases ----------------------------------------------------------------------------------------------------------


async def test_an_alias_is_moved_by_its_models_owner_and_goes_back(api: Api) -> None:
    body = {"model": "tiny", "alias": "prod", "version": 1, "why": "the first"}
    assert (await api.post("aliases", body))["to_version"] == 1
    moved = await api.post("aliases", {**body, "version": 2, "why": "better", "canary": 10})
    assert (moved["from_version"], moved["to_version"], moved["by"], moved["canary"]) == (1, 2, "ada", 10)
    assert await api.post("aliases", {**body, "version": 2}) == moved  # it is there
    assert (await api.post("aliases/rollback", {"model": "tiny", "alias": "prod"}))["to_version"] == 1
    assert [a["version"] for a in await api.get("aliases")] == [1]
    assert [m["to_version"] for m in await api.get("aliases/moves?model=tiny&alias=prod")] == [1, 2, 1]
    assert await api.get("aliases/moves?model=big") == []


async def test_nobody_else_moves_it(api: Api) -> None:
    aliases.move(api.db, "tiny", "prod", 1, "ada", "")
    aliases.move(api.db, "tiny", "prod", 2, "ada", "")
    api.principal = BOB
    for path, more in (("aliases", {"version": 3}), ("aliases/rollback", {})):
        status, words = await api.refused(path, {"model": "tiny", "alias": "prod", **more})
        assert (status, words) == (403, "bob may not change this alias; its owner ada or an administrator may")
    assert aliases.everything(api.db)[0].version == 2
    api.principal = ROOT
    assert (await api.post("aliases", {"model": "tiny", "alias": "prod", "version": 3}))["by"] == "root"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("aliases", {"model": "tiny", "alias": "prod", "version": 9}, 404, "model tiny has no version 9"),
        ("aliases", {"model": "big", "alias": "prod", "version": 1}, 404, "no model is called 'big'"),
        ("aliases", {"model": "tiny", "alias": "7", "version": 1}, 400, "a number after '@' names a version"),
        ("aliases", {"model": "tiny", "alias": "prod", "version": 1, "canary": 0}, 400, "canary: must be 1 ... 99"),
        ("aliases", {"model": "tiny", "version": 1}, 400, "'alias' is missing"),
        ("aliases/rollback", {"model": "tiny", "alias": "prod"}, 404, "model tiny has no alias 'prod'"),
    ],
)
async def test_a_move_that_cannot_be_is_refused(api: Api, path: str, body: Any, status: int, words: str) -> None:
    said = await api.refused(path, body)
    assert said[0] == status and words in said[1]
    assert await api.get("aliases") == []

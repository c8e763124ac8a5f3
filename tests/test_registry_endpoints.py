"""Endpoints in the registry: what may stand behind a name, and which names are free."""

from __future__ import annotations

from typing import Any

import click
import pytest

from cli.serve import serve
from gateway.routing import Policy
from registry import deployments, endpoints
from registry.db import Conflict, Database, NotFound, RegistryError
from registry.deployments import DeploymentState


def deploy(registry: Database, *names: str) -> None:
    for name in names:
        deployments.create(
            registry,
            name,
            "ada",
            model=name,
            version=1,
            model_path="/m",
            min_replicas=1,
            max_replicas=1,
            request={},
            by="ada",
            why="served",
        )


def end(registry: Database, name: str) -> None:
    deployments.set_state(registry, name, DeploymentState.FAILED)


def test_an_endpoint_is_kept_as_it_was_asked_for(registry: Database) -> None:
    deploy(registry, "v1", "v2", "v3", "small")
    made = endpoints.put(
        registry,
        "chat",
        "ada",
        targets=[("v1", 95), ("v2", 5)],
        sticky="header:X-Session",
        shadow=[("v3", 10)],
        fallbacks=["small", "claude"],
        external={"claude"},
    )
    assert endpoints.everything(registry) == [made]
    assert made == endpoints.get(registry, "chat")
    assert (made.targets, made.shadow) == ((("v1", 95), ("v2", 5)), (("v3", 10),))
    assert (made.owner, made.sticky, made.fallbacks) == ("ada", "header:x-session", ("small", "claude"))


def test_setting_again_replaces_everything_but_the_owner(registry: Database) -> None:
    deploy(registry, "v1", "v2")
    first = endpoints.put(registry, "chat", "ada", targets=[("v1", 1)], sticky="key", fallbacks=["v2"])
    second = endpoints.put(registry, "chat", "root", targets=[("v2", 1)])
    assert (second.targets, second.sticky, second.fallbacks) == ((("v2", 1),), None, ())
    assert (second.owner, second.created_at) == ("ada", first.created_at)
    assert second.changed_at >= first.changed_at


def test_a_name_is_an_endpoint_or_a_deployment_or_an_external_model(registry: Database) -> None:
    deploy(registry, "v1")
    with pytest.raises(Conflict, match="v1 is a deployment"):
        endpoints.put(registry, "v1", "ada", targets=[("v1", 1)])
    with pytest.raises(Conflict, match="claude is an external model"):
        endpoints.put(registry, "claude", "ada", targets=[("v1", 1)], external={"claude"})
    endpoints.put(registry, "chat", "ada", targets=[("v1", 1)])
    with pytest.raises(Conflict, match="chat is an endpoint"):
        deploy(registry, "chat")
    endpoints.delete(registry, "chat")
    deploy(registry, "chat")


def test_the_name_of_a_deployment_that_ended_is_free(registry: Database) -> None:
    deploy(registry, "chat", "v1")
    end(registry, "chat")
    endpoints.put(registry, "chat", "ada", targets=[("v1", 1)])
    with pytest.raises(Conflict, match="chat is an endpoint"):
        deploy(registry, "chat")


def lora(registry: Database, name: str, *adapters: str) -> None:
    words = ["--enable-lora", "--lora-modules", *(f"{adapter}=/m/{adapter}" for adapter in adapters)]
    request = {"engine_args": words}
    deployments.create(
        registry,
        name,
        "ada",
        model=name,
        version=1,
        model_path="/m",
        min_replicas=1,
        max_replicas=1,
        request=request,
        by="ada",
        why="served",
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], []),
        (["--enable-lora"], []),
        (["--lora-modules", "a=/p", "b=/q=1", "--max-loras", "2"], ["a", "b"]),
        (["--lora-modules", "a=/p", "-tp", "2=3"], ["a"]),
        (["--lora-modules=a=/p", "--max-loras=2"], ["a"]),
        (["--lora_modules=a=/p"], ["a"]),
        (["--lora-modules", '{"name": "a", "path": "/p", "base_model_name": "m=1"}', "b=/q"], ["a", "b"]),
        (['--lora-modules={"name":"a","path":"/p"}'], ["a"]),
        (["--lora-modules", "{broken", '{"path": "/p"}', "neither"], []),
        (["--lora-modules", "a=/p", "--lora-modules", "b=/q"], ["b"]),
        (["--lora-modules=a=/p", "--max-loras", "2", "--lora-modules", "b=/q", "c=/r"], ["b", "c"]),
    ],
)
def test_adapters_are_known_by_whichever_form_their_engines_were_given(arguments: list[str], names: list[str]) -> None:
    assert deployments.adapters({"engine_args": arguments}) == names


def test_a_live_deployments_adapters_keep_their_names_to_themselves(registry: Database) -> None:
    lora(registry, "base", "poet", "clerk")
    with pytest.raises(Conflict, match="poet is a LoRA adapter of deployment base; the endpoint"):
        endpoints.put(registry, "poet", "eve", targets=[("base", 1)])
    with pytest.raises(Conflict, match="clerk is a LoRA adapter of deployment base; the deployment"):
        deploy(registry, "clerk")
    end(registry, "base")
    deploy(registry, "clerk")
    endpoints.put(registry, "poet", "eve", targets=[("clerk", 1)])


def test_an_adapter_needs_a_name_that_nothing_else_has(registry: Database) -> None:
    deploy(registry, "v1")
    endpoints.put(registry, "chat", "ada", targets=[("v1", 1)])
    lora(registry, "base", "poet")
    for taken, told in (("v1", "deployment"), ("chat", "endpoint"), ("poet", "LoRA adapter"), ("own", "deployment")):
        with pytest.raises(Conflict, match=f"{taken} is an? {told}.*; the LoRA adapter needs a name of its own"):
            lora(registry, "own", "fine", taken)
    lora(registry, "own", "fine")


@pytest.mark.parametrize(
    "asked",
    [
        {"targets": [("v1", 1), ("v2", 1)]},
        {"targets": [("v1", 1)], "shadow": [("v2", 5)]},
        {"targets": [("v1", 1)], "fallbacks": ["v2"]},
    ],
)
def test_calls_to_an_endpoint_are_not_caught_by_taking_the_name_of_what_ended_behind_it(
    registry: Database, asked: dict[str, Any]
) -> None:
    deploy(registry, "v1", "v2", "other")
    endpoints.put(registry, "chat", "ada", **asked)
    again: dict[str, Any] = {
        "model": "m",
        "version": 1,
        "model_path": "/m",
        "request": {},
        "by": "eve",
        "why": "served",
    }
    again |= {"min_replicas": 1, "max_replicas": 1}
    for name in ("v2", "other"):
        end(registry, name)
    with pytest.raises(Conflict, match="endpoint chat sends calls to v2, and is not eve's"):
        deployments.create(registry, "v2", "eve", **again)
    deployments.create(registry, "other", "eve", **again)
    deployments.create(registry, "v2", "ada", **again)


def test_whoever_had_the_deployment_behind_anothers_endpoint_may_start_it_again(registry: Database) -> None:
    deploy(registry, "v1")
    endpoints.put(registry, "chat", "root", targets=[("v1", 1)])
    end(registry, "v1")
    deploy(registry, "v1")


@pytest.mark.parametrize(
    "asked",
    [
        {"targets": [("gone", 1)]},
        {"targets": [("ended", 1)]},
        {"targets": [("v1", 1)], "shadow": [("gone", 5)]},
        {"targets": [("v1", 1)], "fallbacks": ["gone"]},
        {"targets": [("claude", 1)]},  # an external model is for when nothing of ours answers
        {"targets": [("other", 1)]},  # nor does an endpoint stand behind another
    ],
)
def test_what_stands_behind_an_endpoint_must_exist(registry: Database, asked: dict[str, Any]) -> None:
    deploy(registry, "v1", "ended")
    end(registry, "ended")
    endpoints.put(registry, "other", "ada", targets=[("v1", 1)])
    with pytest.raises(NotFound, match=r"there are: .*v1"):
        endpoints.put(registry, "chat", "ada", external={"claude"}, **asked)
    assert [e.name for e in endpoints.everything(registry)] == ["other"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"targets": []}, "needs a target"),
        ({"targets": [("v1", 0)]}, "v1 has 0, not a whole number from 1 to 1000000"),
        ({"targets": [("v1", 1), ("v1", 2)]}, "named twice"),
        ({"targets": [("v1", 1)], "shadow": [("v1", 101)]}, "v1 has 101, not a whole number from 1 to 100"),
        ({"targets": [("v1", 1)], "fallbacks": ["v1", "v1"]}, "named twice"),
        ({"targets": [("v1", 1)], "sticky": "cookie"}, "allowed: 'key', 'header:NAME'"),
        ({"targets": [("v1", 1)], "sticky": "header:a b"}, "allowed: 'key', 'header:NAME'"),
        ({"targets": [("v1", 1)], "sticky": "header:"}, "allowed: 'key', 'header:NAME'"),
    ],
)
def test_what_is_not_allowed_is_refused_in_words(registry: Database, asked: dict[str, Any], told: str) -> None:
    deploy(registry, "v1")
    with pytest.raises(RegistryError, match=told):
        endpoints.put(registry, "chat", "ada", **asked)
    assert endpoints.everything(registry) == []


def test_deleting_what_is_not_there_says_what_is(registry: Database) -> None:
    deploy(registry, "v1")
    endpoints.put(registry, "chat", "ada", targets=[("v1", 1)])
    with pytest.raises(NotFound, match="'chats'; there are: chat"):
        endpoints.delete(registry, "chats")


def test_a_deployment_says_how_its_replicas_are_chosen(registry: Database) -> None:
    deploy(registry, "v1")
    made = deployments.create(
        registry,
        "v2",
        "ada",
        model="m",
        version=1,
        model_path="/m",
        min_replicas=1,
        max_replicas=1,
        request={"routing": "round-robin"},
        by="ada",
        why="served",
    )
    assert (deployments.get(registry, "v1").routing, made.routing) == ("least-work", "round-robin")


def test_every_policy_of_the_gateway_can_be_asked_for() -> None:
    (option,) = [param for param in serve.params if param.name == "routing"]
    assert isinstance(option, click.Option) and isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(deployments.ROUTING) == [policy.value for policy in Policy]
    assert option.help is not None and f"[default: {deployments.ROUTING[0]}]" in option.help

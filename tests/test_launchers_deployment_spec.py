"""What is asked of a deployment: as a body of the control API, and as a deployment keeps it."""

from typing import Any, get_args, get_type_hints

import pytest

from launchers import deployment_spec
from launchers.deployment_spec import DeploymentSpec, from_document, spec_of, to_document, to_request
from registry import deployments
from registry.deployments import Deployment, DeploymentState

FULL = DeploymentSpec(
    name="chat",
    model="llama@prod",
    min=1,
    max=8,
    target_tokens=20000,
    target_wait_s=2.5,
    idle_timeout_s=900,
    routing="round-robin",
    runner="embed",
    resources={"partition": "gpu", "time_limit_s": 3600, "options": ["--time-min=30"]},
    overflow={"qos": "preemptible"},
    engine_args=("--max-model-len=8192",),
    adapters={"support": "/adapters/support"},
    stage=True,
    pack=2,
    canary=10,
    bake_s=60,
    bake_requests=0,
)


@pytest.mark.parametrize("spec", [DeploymentSpec(name="chat", model="llama"), FULL])
def test_a_document_reads_as_what_it_was_made_of(spec: DeploymentSpec) -> None:
    assert from_document(to_document(spec)) == spec


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    assert from_document({"name": "chat", "model": "llama", "max": None, "overflow": None}).most == 1
    assert from_document({"name": "chat", "model": "llama", "min": 0, "pack": 4}).most == 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"replicas": 2}, "unknown field 'replicas'"),
        ({"idle_timeout": "15m"}, "did you mean 'idle_timeout_s'?"),
        ({"min": -1}, "min: must be at least 0, not -1"),
        ({"min": 257}, "min: must be at most 256"),
        ({"min": True}, "min: True is not of type int"),
        ({"max": 0}, "max: must be at least 1"),
        ({"min": 3, "max": 2}, r"max: must be at least min \(3\), not 2"),
        ({"target_tokens": 0}, "target_tokens: must be at least 1"),
        ({"target_wait_s": 0}, "target_wait_s: must be above 0"),
        ({"idle_timeout_s": float("inf")}, "idle_timeout_s: must be at most"),
        ({"bake_s": float("nan")}, "bake_s: must be above 0"),
        ({"canary": 100}, "canary: must be at most 99"),
        ({"pack": 0}, "pack: must be at least 1"),
        ({"routing": "random"}, "routing: 'random' is not of type"),
        ({"runner": "train"}, "runner: 'train' is not of type"),
        ({"engine_args": "--seed=1"}, "engine_args: '--seed=1' is not of type"),
        ({"engine_args": [1]}, "engine_args"),
        ({"resources": {"node": 1}}, "resources.node: unknown"),
        ({"resources": {"options": ["--array=1-9"]}}, "--array is not for a deployment's jobs"),
        ({"resources": {"partition": "a\nrm"}}, "resources.partition"),
        ({"overflow": {"qos": 3}}, "overflow: resources.qos"),
        ({"adapters": {"support": "adapters/support"}}, "adapters.support: .* is not an absolute directory"),
        ({"adapters": {"Support": "/a"}}, "adapter name 'Support' is not allowed"),
        ({"adapters": ["support"]}, "adapters: "),
        ({"name": "Chat"}, "deployment name 'Chat' is not allowed"),
        ({"name": None}, "name is missing"),
        ({"model": ""}, "model: '' names no model"),
    ],
)
def test_what_is_wrong_in_a_document_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_document({"name": "chat", "model": "llama", **wrong})


def test_a_short_job_may_be_asked_for_that_starts_sooner() -> None:
    spec = from_document({"name": "chat", "model": "llama", "resources": {"options": ["--time-min=2:00:00"]}})
    assert spec.resources == {"options": ["--time-min=2:00:00"]}


def test_ways_of_routing_are_those_of_the_registry() -> None:
    literal = get_args(get_type_hints(DeploymentSpec)["routing"])[0]
    assert get_args(literal) == deployments.ROUTING


def deployment(**fields: Any) -> Deployment:
    return Deployment(
        **{
            **dict.fromkeys(("cause", "ended_at")),
            **{"name": "chat", "owner": "ada", "state": DeploymentState.READY, "created_at": "2026-11-29T00:00:00Z"},
            **{"model": "llama", "version": 3, "model_path": "/models/3", "min_replicas": 1, "request": {}},
            **fields,
        }
    )


def test_what_a_deployment_keeps_reads_as_what_was_asked() -> None:
    kept = deployment(follows="llama@prod", max_replicas=8, request=to_request(FULL), min_replicas=FULL.min)
    assert spec_of(kept) == FULL
    assert not {"name", "model", "min", "max"} & kept.request.keys()


def test_a_deployment_of_a_former_or_a_later_release_is_understood() -> None:
    former = {"resources": {"partition": "gpu"}, "engine_args": ["--seed=1"], "routing": "least-work"}
    spec = spec_of(deployment(request={**former, "colour": "red"}))
    assert (spec.model, spec.max, spec.engine_args) == ("llama@3", 1, ("--seed=1",))
    assert (spec.resources, spec.pack) == (
        {"partition": "gpu"},
        deployment_spec.DeploymentSpec(name="a", model="b").pack,
    )


def test_what_is_out_of_bounds_in_the_registry_is_shown_all_the_same() -> None:
    spec = spec_of(deployment(min_replicas=3, max_replicas=2, request={"pack": 0, "canary": 100}))
    shown = to_document(spec)
    assert (shown["canary"], shown["min"], shown["max"], shown["pack"]) == (100, 3, 2, 0)
    with pytest.raises(ValueError, match="pack: must be at least 1, not 0"):
        from_document(shown)


def test_an_overflow_that_asks_for_nothing_is_none() -> None:
    assert from_document({"name": "chat", "model": "llama", "overflow": {}}).overflow is None

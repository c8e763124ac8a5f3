"""How what is asked of a deployment differs from what was, and whether that takes new replicas. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launchers.deployment_spec import DeploymentSpec, to_document, to_request
from registry.deployments import ROUTING

# How many there are, who gets which call, and when there are more: nothing of it an engine knows.
IN_PLACE = frozenset(
    ("min", "max", "canary", "target_tokens", "target_wait_s", "idle_timeout_s", "routing", "bake_s", "bake_requests")
)
_ABSENT = object()


def between(before: DeploymentSpec | None, after: DeploymentSpec) -> list[dict[str, Any]]:
    """Field by field, {"field", "from", "to"}; in tables like `resources.partition`. None: it is left to the site, or,
    of `before`, there is no such deployment."""
    old = _flat(before) if before is not None else {}
    new = _flat(after)
    return [
        {"field": field, "from": old.get(field), "to": new.get(field)}
        for field in sorted(old.keys() | new.keys())
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    ]


def takes_new_replicas(changes: Iterable[dict[str, Any]]) -> bool:
    return any(change["field"] not in IN_PLACE for change in changes)


def in_place(after: DeploymentSpec) -> dict[str, Any]:
    """What a deployment's `request` has to say of such fields; None: nothing, it is left to the site."""
    asked = to_request(after)
    return {field: asked.get(field) for field in sorted(IN_PLACE) if field not in ("min", "max")}


def _flat(spec: DeploymentSpec) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field, value in {**to_document(spec), "max": spec.most, "routing": spec.routing or ROUTING[0]}.items():
        if field == "name":
            continue
        if isinstance(value, dict):
            flat |= {f"{field}.{key}": list(v) if isinstance(v, tuple) else v for key, v in value.items()}
        else:
            flat[field] = value
    return flat

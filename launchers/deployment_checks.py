"""Whether a site's scheduler and engines can do what is asked of a deployment, and whether its asker may ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from launchers.deployment_spec import DeploymentSpec
from launchers.resources import REPLICA_OPTIONS, resources_from
from launchers.spec import Resources
from launchers.untrusted import read_by_service
from launchers.vllm import adapters, multi_node, pack, weights
from launchers.vllm.arguments import refuse_unlisted
from registry import tenants
from registry.access import Forbidden, Object, Principal, Verb, require
from registry.db import Database
from registry.site import Site


def check(site: Site, db: Database, principal: Principal, spec: DeploymentSpec, model_path: str) -> None:
    """Raises ValueError, naming the field and what is allowed; Forbidden."""
    site.environment("engine")
    if not principal.admin:
        refuse_unlisted(spec.engine_args)
        with read_by_service(Path(model_path)):
            weights.check(Path(model_path))
    asks = resources_from(site.defaults.serve, spec.resources, REPLICA_OPTIONS)
    shapes = [asks]
    if spec.overflow is not None:
        try:
            shapes.append(resources_from(site.defaults.serve, {**spec.resources, **spec.overflow}, REPLICA_OPTIONS))
        except ValueError as e:
            raise ValueError(f"overflow: {e}") from e
    if not principal.admin:
        _check_accounts(site, db, principal, shapes)
    for shape in shapes:
        multi_node.check(shape, spec.engine_args, site.replicas)
        pack.check(shape, spec.engine_args, spec.pack)
    if spec.pack > spec.most:
        raise ValueError(f"'pack' must be at most 'max' ({spec.most}), not {spec.pack}: so many share one job")
    if spec.stage and site.replicas.stage_dir is None:
        raise ValueError("'stage' needs a node-local directory, and this site names none (replicas.stage_dir)")
    if spec.adapters:
        _check_adapters(principal, spec)


def _check_accounts(site: Site, db: Database, principal: Principal, shapes: Iterable[Resources]) -> None:
    # Slurm asks whether the service may use an account, not whether they may.
    allowed = tenants.accounts_of(db, principal.tenants) | {site.defaults.serve.account}
    for account in (shape.account for shape in shapes if shape.account not in allowed):
        raise Forbidden(
            f"account {account} may not pay for a deployment of {principal.name}'s; "
            f"allowed: {', '.join(sorted(filter(None, allowed))) or 'none'}; an administrator may name any"
        )


def _check_adapters(principal: Principal, spec: DeploymentSpec) -> None:
    # Engines read them with the service's eyes, not their owners'.
    require(principal, Verb.ADMINISTER, Object("adapter directory", principal.name))
    if spec.runner != "generate":
        raise ValueError(f"'adapters' are for runner generate, not {spec.runner}")
    if len(spec.adapters) > adapters.MAX_ADAPTERS:
        raise ValueError(f"'adapters' may be at most {adapters.MAX_ADAPTERS}, not {len(spec.adapters)}")
    for directory in spec.adapters.values():
        with read_by_service(Path(directory)):
            adapters.rank_of(Path(directory))

"""The site: one cluster's settings, from its TOML file, HEADGATE_SECTION__KEY variables and `--set` flags (last wins).

Settings are in registry.settings.
Nothing is read at import; `load_site` reads once, and the frozen Site is handed to whoever needs it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from registry.settings import Alerts as Alerts
from registry.settings import Attribution as Attribution
from registry.settings import Control as Control
from registry.settings import Controller as Controller
from registry.settings import DefaultResources as DefaultResources
from registry.settings import Defaults as Defaults
from registry.settings import Deployments as Deployments
from registry.settings import Environment as Environment
from registry.settings import Environments as Environments
from registry.settings import External as External
from registry.settings import Gateway as Gateway
from registry.settings import GpuPrice as GpuPrice
from registry.settings import Keys as Keys
from registry.settings import Ledger as Ledger
from registry.settings import Mail as Mail
from registry.settings import Partition as Partition
from registry.settings import Price as Price
from registry.settings import Replicas as Replicas
from registry.settings import Scheduler as Scheduler
from registry.settings import TenantDefault as TenantDefault
from registry.settings import Tenants as Tenants
from registry.settings import Tls as Tls
from registry.settings import Weights as Weights
from registry.strict_toml import (
    ConfigError,
    build,
    did_you_mean,
    environment_layers,
    flag_layers,
    leaves,
    read_layer,
)
from registry.toml_layers import expanded

SITE_CONFIGS = Path(__file__).resolve().parent.parent / "site-configs"
SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108 with the final NUL
PROVIDER_SOCKET_BYTES = 8  # of a name in `providers_dir`: two gateways of a site may run for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    name: str
    state_dir: Path  # local disk of the service host: databases, control socket, service logs
    shared_dir: Path  # seen by jobs and services alike: run folders, datasets
    gateway: Gateway = Gateway()
    controller: Controller = Controller()
    scheduler: Scheduler
    replicas: Replicas = Replicas()
    deployments: Deployments = Deployments()
    environments: Environments = Environments()
    defaults: Defaults = Defaults()
    prices: dict[str, Price] = field(default_factory=dict)  # by model; "default" for every other model. What
    # `headgate price set` says goes before these
    gpu_prices: dict[str, GpuPrice] = field(default_factory=dict)  # by type of GPU; "default" for every other
    tenants: Tenants = Tenants()
    keys: Keys = Keys()
    control: Control = Control()
    attribution: Attribution = Attribution()
    ledger: Ledger = Ledger()
    alerts: Alerts = Alerts()
    external: dict[str, External] = field(default_factory=dict)  # by the name clients call
    partitions: dict[str, Partition] = field(default_factory=dict)

    # Not settings: the file this was read from, and where each dotted key's value came from.
    file: Path | None = field(default=None, compare=False, metadata={"computed": True})
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, metadata={"computed": True})

    @property
    def registry_db(self) -> Path:
        return self.state_dir / "registry.db"

    @property
    def ledger_db(self) -> Path:
        return self.state_dir / "ledger.db"

    @property
    def key_secret(self) -> Path:
        """What the hashes of keys are keyed with."""
        return self.state_dir / "key.secret"

    @property
    def control_socket(self) -> Path:
        return self.state_dir / "control.sock"

    @property
    def takeover_socket(self) -> Path:
        """Where a running gateway hands its listening socket to the one that replaces it."""
        return self.state_dir / "gateway.sock"

    @property
    def providers_dir(self) -> Path:
        """The socket of the process that calls other providers' models; nobody else may enter."""
        return self.state_dir / "providers"

    @property
    def services_dir(self) -> Path:
        """Pid files and logs of the gateway and the controller."""
        return self.state_dir / "services"

    @property
    def runs_dir(self) -> Path:
        return self.shared_dir / "runs"

    @property
    def datasets_dir(self) -> Path:
        return self.shared_dir / "datasets"

    def environment(self, name: Literal["training", "engine", "evaluation"]) -> Environment:
        """Raises ConfigError when the site has none. Evaluations without one of their own have the training one."""
        theirs = self.environments
        found = theirs.engine if name == "engine" else theirs.training
        if name == "evaluation":
            found = theirs.evaluation or found
        if found is None:
            raise ConfigError(f"{self.file or self.name}: has no [environments.{name}], which this needs")
        return found

    def peak_tflops(self, partition: str | None) -> float | None:
        """Of one of the partition's GPUs, dense, in bf16; None where the site file does not say."""
        found = self.partitions.get(partition or "")
        return found.peak_tflops if found else None


def load_site(path: Path | None, environ: Mapping[str, str], flags: Sequence[str] = ()) -> Site:
    """The site of a file, else of HEADGATE_SITE, else the laptop's. Raises ConfigError with every problem found."""
    asked_by = (
        "the command line" if path else "HEADGATE_SITE" if environ.get("HEADGATE_SITE") else "nobody: the default"
    )
    path = path or Path(environ.get("HEADGATE_SITE") or SITE_CONFIGS / "laptop.toml")
    if not expanded(path).is_file():
        known = ", ".join(sorted(str(p) for p in SITE_CONFIGS.glob("*.toml")))
        raise ConfigError(
            f"{path}: no such site file (asked for by {asked_by}); those that come along: {known or 'none'}"
        )
    file = read_layer(path)
    site, origins = build(Site, [file, *environment_layers(Site, environ), *flag_layers(flags)])
    site = dataclasses.replace(site, file=Path(os.path.abspath(expanded(path))), origins=origins)
    site = dataclasses.replace(site, environments=_resolved(site))
    if problems := list(_problems(site)):
        raise ConfigError("\n".join(f"{_origin(site, key)}: {key}: {text}" for key, text in problems))
    return site


def show(site: Site) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, value as one would write it, where it came from)."""
    return [(key, value, site.origins.get(key, "default")) for key, value in leaves(site)]


def _resolved(site: Site) -> Environments:
    """The environments with their placeholders replaced."""

    def resolve(environment: Environment | None) -> Environment | None:
        if environment is None:
            return None

        def fill(text: str, *also: tuple[str, str]) -> str:
            for name, value in (("state_dir", site.state_dir), ("shared_dir", site.shared_dir), *also):
                text = text.replace(f"{{{name}}}", str(value))
            return text

        return dataclasses.replace(
            environment,
            mounts=tuple(fill(mount) for mount in environment.mounts),
            command=tuple(fill(word, ("python", environment.python)) for word in environment.command),
            env={name: fill(value) for name, value in environment.env.items()},
            args=tuple(fill(arg) for arg in environment.args),
        )

    return Environments(
        training=resolve(site.environments.training),
        engine=resolve(site.environments.engine),
        evaluation=resolve(site.environments.evaluation),
    )


def _origin(site: Site, key: str) -> str:
    origin = site.origins.get(key, "default")
    return str(site.file) if origin == "default" else origin


def _problems(site: Site) -> Iterator[tuple[str, str]]:
    """What no single field can see: (key, problem)."""
    longest = site.providers_dir / ("0" * PROVIDER_SOCKET_BYTES) if site.external else site.control_socket
    socket = len(os.fsencode(longest))
    if socket > SOCKET_PATH_BYTES:
        yield (
            "state_dir",
            f"{longest} is {socket} bytes long, and a Unix socket's path holds {SOCKET_PATH_BYTES}; "
            "choose a shorter directory",
        )
    for network in site.gateway.metrics_from:
        try:
            ipaddress.ip_network(network)
        except ValueError as e:
            yield "gateway.metrics_from", f'{e}; write a network ("10.2.0.0/16", "fd00::/8") or one address'
    if site.control.port is not None and site.control.tls is None and not _is_loopback(site.control.host):
        yield (
            "control.tls",
            f"is needed where others can reach the control API (control.host is {site.control.host}): keys would "
            "cross the network in the clear; set control.tls.certificate and control.tls.key",
        )
    if site.scheduler.min_poll_s > site.scheduler.max_poll_s:
        lowest = f"{site.scheduler.min_poll_s:g} s (scheduler.min_poll)"
        yield "scheduler.max_poll", f"must be at least {lowest}, not {site.scheduler.max_poll_s:g} s"
    for name in ("training", "engine", "evaluation"):
        environment = getattr(site.environments, name)
        if environment is not None:
            yield from _environment_problems(f"environments.{name}", environment)
            if environment.modules and site.scheduler.kind == "local":
                yield f"environments.{name}.modules", "are loaded in a Slurm job's script; here is none"
    for name, external in site.external.items():
        variable = external.api_key_env
        if variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
            # Not echoed: whoever put the key itself here does not want it in a log as well.
            yield (
                f"external.{name}.api_key_env",
                "names the environment variable that holds the key, in capitals; never the key itself",
            )
    yield from _alert_problems(site.alerts)


def _alert_problems(alerts: Alerts) -> Iterator[tuple[str, str]]:
    for threshold in alerts.thresholds:
        if not 1 <= threshold <= 100:
            yield "alerts.thresholds", f"are percent, from 1 to 100, not {threshold}"
    if alerts.webhook is not None and not _is_url(alerts.webhook):  # not echoed: it may be a secret
        yield "alerts.webhook", "must be a URL that begins with http:// or https:// and names a host"
    mail = alerts.mail
    if mail is not None and not _is_host(mail.host):
        yield "alerts.mail.host", f"{mail.host!r} is no host's name"
    if mail is not None and not mail.to:
        yield "alerts.mail.to", "names nobody who gets the mail"
    if mail is not None and (mail.user is None) != (mail.password_env is None):
        yield "alerts.mail.user", "and alerts.mail.password_env (the variable that holds its password) go together"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  parsed when it is asked for
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and _is_host(parts.hostname or "")


def _is_host(text: str) -> bool:
    try:
        return bool(text.encode("idna"))
    except UnicodeError:  # an empty label, or one over 63 characters
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _environment_problems(key: str, environment: Environment) -> Iterator[tuple[str, str]]:
    if environment.kind == "venv":
        if shutil.which(environment.python) is None:
            yield (
                f"{key}.python",
                f"there is no program {environment.python}; `make environments` builds the usual ones",
            )
        if environment.image is not None:
            yield f"{key}.image", "a venv has no image; allowed with kind apptainer or pyxis"
    elif environment.image is None:
        yield f"{key}.kind", f"{environment.kind} needs an image: set {key}.image"
    for module in environment.modules:
        if not re.fullmatch(r"[A-Za-z0-9._/+-]+", module):
            yield f"{key}.modules", f"{module!r} is no module's name: letters, digits and any of . _ / + -"
    texts = {
        f"{key}.mounts": environment.mounts,
        f"{key}.command": environment.command,
        f"{key}.args": environment.args,
        **{f"{key}.env.{name}": (value,) for name, value in environment.env.items()},
    }
    for where, words in texts.items():
        known = ["python", "state_dir", "shared_dir"] if where.endswith(".command") else ["state_dir", "shared_dir"]
        for placeholder in re.findall(r"\{([a-z_]+)\}", " ".join(words)):
            yield where, f"unknown {{{placeholder}}};{did_you_mean(placeholder, known)} allowed: {', '.join(known)}"

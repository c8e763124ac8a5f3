"""Who is measured: our gateway on a prepared site, and its peers, each as it comes.

A peer that cannot be installed or started is left out, with the reason on stderr; no figure is made up for it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gateway_parts import (
    ENGINE_KEY,
    HERE,
    MODEL,
    REPLICAS,
    Cores,
    Missing,
    Router,
    answers,
    chat,
    free_ports,
    started,
    until,
)
from registry import deployments, keys, migrations, tenants
from registry.db import Database, open_writer
from registry.limits import Limits

OURS = "headgate"
VLLM_ROUTER = "vllm-router, round robin"  # its cheapest policy: it looks at no prompt
VLLM_ROUTER_AS_IT_COMES = "vllm-router, as it comes"  # cache-aware: it has every replica render every chat, by a call
VLLM_ROUTER_ONE = "vllm-router, as it comes, one replica"  # so it makes one such call for each chat
VLLM_ROUTERS = (VLLM_ROUTER, VLLM_ROUTER_AS_IT_COMES, VLLM_ROUTER_ONE)
NGINX = "nginx"
LITELLM = "LiteLLM's proxy"
PEERS = (*VLLM_ROUTERS, NGINX, LITELLM)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The engine behind a model; `certificate` is what it shows where it speaks TLS, in PEM."""

    port: int
    certificate: str | None = None


def environ(**more: str) -> dict[str, str]:
    """Ours, less what would change a router: settings of a site, and the want of bytecode."""
    return {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE") and "BYTECODE" not in k} | more


def prepared(state_dir: Path, port: int, upstreams: Mapping[str, Upstream]) -> tuple[Path, str]:
    """A site with a tenant whose limits are set and far away, and a deployment for each model: (site file, key)."""
    site = state_dir / "site.toml"
    site.write_text(
        f'name = "bench"\nstate_dir = "{state_dir}"\nshared_dir = "{state_dir}"\n'
        f'[scheduler]\nkind = "local"\n[gateway]\nport = {port}\nmax_in_flight = 4096\n'
        "[prices.default]\nprompt = 1\ncompletion = 2\n"
    )
    registry = open_writer(state_dir / "registry.db", migrations.MIGRATIONS)
    with contextlib.closing(registry):
        tenants.create(registry, "physics", "root", limited=Limits(requests_per_minute=10**9, token_budget=10**15))
        key = keys.create(registry, keys.secret_for(registry, state_dir / "key.secret"), "physics", "root")[1]
        for model, upstream in upstreams.items():
            deployments.create(
                registry,
                model,
                "root",
                model=model,
                version=1,
                model_path="/m",
                min_replicas=REPLICAS,
                max_replicas=max(REPLICAS, 1),
                request={},
                by="root",
                why="served",
            )
            for n in range(REPLICAS):
                replica = f"{model}-{n + 1}"
                deployments.add_replica(registry, replica, model, "root", f"/runs/{replica}")
                replica_is_ready(registry, replica, upstream.port + n, upstream.certificate)
    return site, key


def replica_is_ready(registry: Database, replica: str, port: int, certificate: str | None = None) -> None:
    pinned: dict[str, Any] = {} if certificate is None else {"certificate": certificate}
    deployments.replica_is_ready(registry, replica, "127.0.0.1", port, ENGINE_KEY, **pinned)


def pins_certificates() -> bool:
    return "certificate" in inspect.signature(deployments.replica_is_ready).parameters


@contextlib.contextmanager
def gateway(at: Cores, folder: Path, upstreams: Mapping[str, Upstream]) -> Iterator[Router]:
    """Ours, as a process, with everything on."""
    folder.mkdir()
    port = free_ports(1)
    site, key = prepared(folder, port, upstreams)
    log = folder / "gateway.log"
    with started([sys.executable, "-m", "gateway", site], at.router, log, environ()) as pid:
        until(lambda: answers(port, "/ready"), "our gateway", pid, log)
        for model in upstreams:
            until(partial(answers, port, "/v1/chat/completions", chat(model), key), f"model {model}", pid, log)
        yield Router(OURS, port, key, pid, log)


@contextlib.contextmanager
def peers(at: Cores, folder: Path, upstream: Upstream, wanted: Sequence[str]) -> Iterator[list[Router]]:
    """Those of the wanted that can be had."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        running = []
        for name in wanted:
            try:
                running.append(stack.enter_context(peer(name, at, folder, upstream)))
            except Missing as e:
                print(f"left out: {name}: {e}", file=sys.stderr)
        yield running


@contextlib.contextmanager
def peer(name: str, at: Cores, folder: Path, upstream: Upstream) -> Iterator[Router]:
    """Raises Missing."""
    urls = [f"http://127.0.0.1:{upstream.port + n}" for n in range(REPLICAS)]
    port = free_ports(2)
    log = folder / f"{name.partition(' ')[0]}-{port}.log"
    key, env = ENGINE_KEY, environ()
    words: list[str | Path]
    if name in VLLM_ROUTERS:
        urls = urls[:1] if name == VLLM_ROUTER_ONE else urls
        words = [installed("vllm-router") / "bin" / "vllm-router", "--worker-urls", *urls, "--port", str(port)]
        words += ["--prometheus-port", str(port + 1), "--log-level", "warning"]
        words += ["--policy", "round_robin"] if name == VLLM_ROUTER else []
    elif name == NGINX:
        conf = folder / "nginx.conf"
        servers = "".join(f"server {url.removeprefix('http://')};" for url in urls)
        text = (HERE / "peers" / "nginx.conf").read_text()
        conf.write_text(
            text.replace("{folder}", str(folder)).replace("{port}", str(port)).replace("{servers}", servers)
        )
        words = [installed("nginx") / "usr" / "sbin" / "nginx", "-c", conf, "-e", log, "-g", "daemon off;"]
    elif name == LITELLM:
        key = "sk-litellm"
        conf = folder / "litellm.json"  # JSON is YAML
        conf.write_text(json.dumps(litellm_settings(urls, key)))
        env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"}  # it would ask the network at its start
        words = [installed("litellm") / "bin" / "litellm", "--config", conf, "--host", "127.0.0.1", "--port", str(port)]
    else:
        raise ValueError(f"no peer is called {name!r}; there are {', '.join(PEERS)}")
    with started(words, at.router, log, env) as pid:
        until(lambda: answers(port, "/v1/chat/completions", chat(), key), name, pid, log)
        yield Router(name, port, key, pid, log, slow=name == LITELLM)


def litellm_settings(urls: Sequence[str], key: str) -> dict[str, object]:
    upstreams = [{"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": ENGINE_KEY} for url in urls]
    return {
        "model_list": [{"model_name": MODEL, "litellm_params": upstream} for upstream in upstreams],
        "general_settings": {"master_key": key},
    }


def installed(which: str) -> Path:
    """Where a peer stands, installing it first if it is not there. Raises Missing."""
    done = subprocess.run([HERE / "peers" / "install.sh", which], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Missing(f"benchmarks/peers/install.sh {which} failed, see above")
    return Path(done.stdout.splitlines()[-1])

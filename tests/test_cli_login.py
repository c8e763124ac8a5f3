"""`headgate login`, and commands on a host that has no control socket: over real HTTPS, with a real munged."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from certificates import minted
from munge_fixtures import Munged, munged
from platform_fixtures import Platform, free_port, platform
from waiting import wait_for

from cli import credentials
from cli.client import Control, Refused, Unreachable
from cli.credentials import Credentials
from registry import tenants
from registry.db import open_writer
from registry.migrations import MIGRATIONS

ME = pwd.getpwuid(os.getuid()).pw_name


@dataclass(frozen=True)
class Hosts:
    """The service host, and another one: the same cluster, and no state directory."""

    service: Platform
    away: Platform
    url: str
    certificate: Path
    munged: Munged

    @property
    def stored(self) -> Path:
        return Path(self.away.env["XDG_CONFIG_HOME"]) / "headgate" / "credentials.json"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key, ours = folder / "certificate.pem", folder / "key.pem", minted()
    certificate.write_text(ours.certificate)
    key.touch(0o600)
    key.write_text(ours.key)
    with munged() as cluster:
        port = free_port()
        quick = ("environments.engine.python=/bin/sh", "environments.training.python=/bin/sh")
        tls = (f"control.port={port}", f"control.tls.certificate={certificate}", f"control.tls.key={key}")
        slurm = f"scheduler.slurm_conf={cluster.slurm_conf}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        environment |= {"PATH": cluster.environment["PATH"], "XDG_CONFIG_HOME": str(folder / "config")}
        with platform("laptop.toml", *quick, *tls, slurm, env=environment) as service:
            state = service.root / "state"
            state.mkdir()
            with closing(open_writer(state / "registry.db", MIGRATIONS)) as db:
                for name in ("acme", "beta"):
                    tenants.create(db, name, "admin")
                tenants.add_member(db, "acme", ME)
            controller = service.start("controller")
            try:
                wait_for((state / "control.sock").exists, 60)
                with platform("laptop.toml", *quick, slurm, env=environment) as away:
                    yield Hosts(service, away, f"https://127.0.0.1:{port}", certificate, cluster)
            finally:
                controller.send_signal(signal.SIGTERM)
                said, _ = controller.communicate()
            assert controller.returncode == 0, said
            assert not (state / "control.sock").exists()


@pytest.fixture(autouse=True)
def logged_out(hosts: Hosts) -> None:
    hosts.stored.unlink(missing_ok=True)


def log_in(hosts: Hosts, *words: str) -> subprocess.CompletedProcess[str]:
    return hosts.away.run("login", "--url", hosts.url, "--cacert", str(hosts.certificate), *words)


def test_a_user_of_the_cluster_logs_in_and_asks_the_control_api_from_another_host(hosts: Hosts) -> None:
    done = log_in(hosts)
    assert done.returncode == 0, done.stderr
    stored = json.loads(hosts.stored.read_text())
    assert stat.S_IMODE(hosts.stored.stat().st_mode) == 0o600
    assert (stored["url"], stored["tenant"]) == (hosts.url, "acme")
    assert f"logged in as {ME} of tenant acme until {stored['expires'][:10]}" in done.stdout
    assert stored["key"].startswith("sk-hg-") and stored["key"] not in done.stdout + done.stderr
    assert hosts.away.json("models") == []
    # Not an administrator, whoever the user is on the service host: it is only a key's word.
    refused = hosts.away.run("tenant", "create", "mine")
    assert refused.returncode == 1 and "an administrator may" in refused.stderr


def test_the_key_is_printed_when_it_is_asked_for(hosts: Hosts) -> None:
    said = log_in(hosts, "--show").stdout
    assert json.loads(hosts.stored.read_text())["key"] in said


def test_a_refused_login_stores_nothing_and_says_why(hosts: Hosts) -> None:
    done = log_in(hosts, "--tenant", "beta")
    assert done.returncode == 1
    assert f"{ME} is no member of tenant 'beta'; a member of: acme" in done.stderr
    assert "Traceback" not in done.stderr
    assert not hosts.stored.exists()


def test_a_certificate_that_nobody_vouches_for_is_refused(hosts: Hosts) -> None:
    done = hosts.away.run("login", "--url", hosts.url)
    assert done.returncode == 1
    assert "its certificate is not trusted" in done.stderr and "--cacert" in done.stderr
    trusting = {**hosts.away.env, "SSL_CERT_FILE": str(hosts.certificate)}
    assert Platform(hosts.away.root, hosts.away.site_file, 1, hosts.away.settings, trusting).ok(
        "login", "--url", hosts.url
    )


def elsewhere(hosts: Hosts, slurm_conf: Path) -> subprocess.CompletedProcess[str]:
    """A login from a host with this slurm.conf."""
    settings = (*hosts.away.settings, f"scheduler.slurm_conf={slurm_conf}")
    return log_in(dataclasses.replace(hosts, away=dataclasses.replace(hosts.away, settings=settings)))


def test_a_host_whose_munge_is_another_clusters_or_down_cannot_log_in(hosts: Hosts, tmp_path: Path) -> None:
    with munged() as foreign:
        done = elsewhere(hosts, foreign.slurm_conf)
    assert done.returncode == 1 and "munge refuses the credential: Invalid credential" in done.stderr
    (tmp_path / "slurm.conf").write_text(f"AuthInfo=socket={tmp_path}/nobody\n")
    done = elsewhere(hosts, tmp_path / "slurm.conf")
    assert done.returncode == 1 and "munge makes no credential" in done.stderr
    assert not hosts.stored.exists()


def test_on_the_service_host_the_socket_is_asked_and_login_works_over_it(hosts: Hosts) -> None:
    assert hosts.service.ok("login").startswith("logged in as")
    assert json.loads(hosts.stored.read_text())["url"] is None
    log_in(hosts)
    before = json.loads(hosts.stored.read_text())
    assert hosts.service.ok("login").startswith("logged in as")
    after = json.loads(hosts.stored.read_text())
    assert (after["url"], after["cacert"]) == (before["url"], before["cacert"]) and after["key"] != before["key"]
    assert hosts.away.json("models") == []  # where this home is, too
    hosts.stored.write_text("{")
    assert hosts.service.ok("login").startswith("logged in as")
    assert hosts.service.ok("tenant", "create", "made-here")  # by the kernel's word: the service's own account
    done = hosts.away.run("models")
    assert done.returncode == 1 and "headgate login --url" in done.stderr


def test_plain_http_on_the_tls_port_is_not_answered(hosts: Hosts) -> None:
    port = int(hosts.url.rpartition(":")[2])
    with pytest.raises(Unreachable):
        Control(Path("/none"), 10, remote=Credentials(f"http://127.0.0.1:{port}", "x")).get("/v1/status")
    with pytest.raises(Refused, match="unknown or was revoked") as said:
        Control(Path("/none"), 10, remote=Credentials(hosts.url, "x", cacert=str(hosts.certificate))).get("/v1/status")
    assert said.value.status == 401


def test_a_control_port_that_is_taken_is_named(hosts: Hosts) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with platform("laptop.toml", *hosts.away.settings, f"control.port={port}", env=hosts.away.env) as other:
            done = other.run("controller", timeout=60)
    assert done.returncode == 1
    assert f"control.host, control.port: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


# What is kept, and which of it is used.


def test_the_environment_goes_before_what_was_stored(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert credentials.load(environ) is None
    kept = Credentials("https://gate:8443", "sk-hg-1", "acme", "2026-12-29T00:00:00.000000Z")
    path = credentials.store(kept, environ)
    assert credentials.load(environ) == kept
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["credentials.json"]
    environ |= {"HEADGATE_URL": "https://other/", "HEADGATE_KEY": "sk-hg-2"}
    assert credentials.load(environ) == Credentials("https://other", "sk-hg-2")
    del environ["HEADGATE_URL"]  # some application's key
    assert credentials.load(environ) == kept


def test_a_job_that_was_submitted_is_no_failure_where_the_key_is_not_good(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    credentials.store(Credentials(hosts.url, "sk-hg-old", cacert=str(hosts.certificate)), os.environ)
    with pytest.raises(Refused):
        Control(tmp_path / "none").get("/v1/runs")
    assert not Control(tmp_path / "none").poke()
    credentials.path_of(os.environ).write_text("{")
    assert not Control(tmp_path / "none").poke()


def test_credentials_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = credentials.store(Credentials(None, "x"), environ)
    for text in ("{", "[]", '{"url": null, "key": "x", "more": 1}'):
        path.write_text(text)
        with pytest.raises(click.ClickException, match=str(path)):
            credentials.load(environ)


@pytest.mark.parametrize(
    "url", ("gate:8443", "ftp://gate", "https://", "https://gate/v1", "https://gate:x", "https://g?a")
)
def test_what_is_no_url_of_a_control_api_is_refused(url: str) -> None:
    with pytest.raises(click.ClickException, match="allowed: https://HOST"):
        credentials.checked_url(url)


def test_a_key_crosses_no_network_in_the_clear() -> None:
    assert credentials.checked_url("http://127.0.0.1:8082") == "http://127.0.0.1:8082"
    with pytest.raises(click.ClickException, match="in the clear"):
        credentials.checked_url("http://gate:8082")

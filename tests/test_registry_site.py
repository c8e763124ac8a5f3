"""Site settings: the shipped files, the layers over them, and what a mistake in them says."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.config import config
from cli.context import Context
from registry.site import SITE_CONFIGS, GpuPrice, Price, load_site, show
from registry.strict_toml import ConfigError

SHIPPED = sorted(SITE_CONFIGS.glob("*.toml"))
SMALL = """\
name = "small"
state_dir = "state"
shared_dir = "/scratch/headgate"

[scheduler]
kind = "slurm"

[environments.engine]
kind = "venv"
python = "/bin/sh"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(tmp_path: Path):
    def small(more: str = "") -> Path:
        path = tmp_path / "small.toml"
        path.write_text(SMALL + more)
        return path

    return small


def environments_that_exist(path: Path) -> list[str]:
    """Flags that point the interpreters of a shipped file's virtual environments at one which is here."""
    environments = tomllib.loads(path.read_text())["environments"]
    return [f"environments.{name}.python=/bin/sh" for name, e in environments.items() if e["kind"] == "venv"]


def refused(path: Path | None, environ: dict[str, str] | None = None, flags: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as e:
        load_site(path, environ or {}, flags)
    return str(e.value)


# -- shipped files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_sites_load_and_every_key_in_them_is_a_setting_from_its_line(path):
    site = load_site(path, {}, environments_that_exist(path))
    lines = path.read_text().splitlines()
    from_file = {k: o for k, _, o in show(site) if o.startswith(str(path))}
    assert len(from_file) > 15
    for key, origin in from_file.items():
        last = key.split(".")[-1].strip('"')
        assert re.match(rf"\s*{re.escape(last)}\s*=", lines[int(origin.rsplit(":", 1)[1]) - 1]), (key, origin)
    assert site.file == path and site.name in (path.stem, "example")


def test_the_laptop_is_the_default_and_keeps_its_state_beside_the_packages():
    laptop = SITE_CONFIGS / "laptop.toml"
    site = load_site(None, {}, environments_that_exist(laptop))
    root = SITE_CONFIGS.parent
    assert site.file == laptop and site.scheduler.kind == "local"
    assert site.registry_db == root / ".headgate/state/registry.db"
    assert site.ledger_db == root / ".headgate/state/ledger.db"
    assert site.control_socket == root / ".headgate/state/control.sock"
    assert site.services_dir == root / ".headgate/state/services"
    assert site.runs_dir == root / ".headgate/shared/runs"
    assert site.datasets_dir == root / ".headgate/shared/datasets"
    engine = site.environment("engine")
    assert engine.command == ("/bin/sh", "-m", "vllm.entrypoints.openai.api_server")
    assert engine.env["VLLM_CACHE_ROOT"] == f"{root}/.headgate/state/vllm"
    assert engine.args[:2] == ("--dtype", "bfloat16")


def test_the_private_cluster_trains_on_cpu_nodes_and_serves_where_the_gpus_are(tmp_path):
    (conf := tmp_path / "slurm.conf").touch()
    path = SITE_CONFIGS / "private-cluster.toml"
    site = load_site(path, {}, [*environments_that_exist(path), f"scheduler.slurm_conf={conf}"])
    train, serve = site.defaults.train, site.defaults.serve
    assert (train.partition, train.nodes, train.tasks_per_node, train.gpus_per_node) == ("cpu", 2, 1, 0)
    assert (serve.partition, serve.nodes, serve.gpus_per_node) == ("gpu", 1, 1)
    assert train.account == serve.account == "research" and site.scheduler.slurm_conf == conf


def test_the_example_prices_models_and_names_others_without_their_keys():
    site = load_site(SITE_CONFIGS / "slurm-example.toml", {})
    assert site.prices["llama-3.1-70b"] == Price(prompt=4.0, cached=0.4, completion=12.0)
    assert site.gpu_prices["h100"] == GpuPrice(hour=2.5) and site.tenants.default.burst == 100
    assert site.ledger.keep_months == 24 and site.attribution.idle == "pro-rata"
    assert site.external["claude"].api_key_env == "ANTHROPIC_API_KEY"
    assert site.defaults.train.time_limit_s == 86400 and site.defaults.serve.time_limit_s == 7 * 86400
    assert site.partitions["gpu"].peak_tflops == 989
    assert site.replicas.listen == "0.0.0.0" and site.replicas.start_timeout_s == 1800


def test_the_example_shows_every_setting_of_replicas_and_deployments():
    site = load_site(SITE_CONFIGS / "slurm-example.toml", {})
    silent = [key for key, _, origin in show(site) if origin == "default"]
    assert [key for key in silent if key.startswith(("replicas.", "deployments."))] == []


# -- layers -----------------------------------------------------------------------------------------------------------


def test_headgate_site_names_the_file_and_an_argument_wins_over_it(small, tmp_path):
    environ = {"HEADGATE_SITE": str(small())}
    assert load_site(None, environ).name == "small"
    (tmp_path / "other.toml").write_text(SMALL.replace('"small"', '"other"'))
    assert load_site(Path("other.toml"), environ).name == "other"


def test_file_then_environment_then_flags_and_each_value_says_which(small):
    environ = {"HEADGATE_GATEWAY__PORT": "1", "HEADGATE_GATEWAY__HOST": "h", "HEADGATE__STATE_DIR": "/s", "HOME": "/"}
    site = load_site(small("[gateway]\nport = 3\nmax_body_mb = 4\n"), environ, ["gateway.port=2"])
    assert (site.gateway.port, site.gateway.host, site.gateway.max_body_mb) == (2, "h", 4)
    assert site.state_dir == Path("/s")
    assert site.origins["gateway.port"] == "--set gateway.port"
    assert site.origins["gateway.host"] == "environment HEADGATE_GATEWAY__HOST"
    assert site.origins["gateway.max_body_mb"] == "small.toml:13"
    assert site.origins["state_dir"] == "environment HEADGATE__STATE_DIR"
    assert site.origins["gateway.read_timeout"] == "default"


def test_a_relative_directory_starts_at_its_file_and_at_the_working_directory_in_a_flag(small, tmp_path, monkeypatch):
    path = small()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_site(path, {}).state_dir == tmp_path / "state"
    assert load_site(path, {}, ["state_dir=s"]).state_dir == tmp_path / "elsewhere" / "s"


def test_equal_settings_make_equal_sites_wherever_they_came_from(small):
    assert load_site(small("[gateway]\nport = 8081\n"), {}) == load_site(small(), {}, ["gateway.port=8081"])


def test_placeholders_are_filled_in_every_text_of_an_environment(small, tmp_path):
    more = """command = ["{python}", "--at", "{shared_dir}"]
args = ["--x={state_dir}"]
env = { JSON = '{"a": {"b": 1}}', CACHE = "{shared_dir}/c" }
"""
    engine = load_site(small(more), {}).environment("engine")
    assert engine.command == ("/bin/sh", "--at", "/scratch/headgate") and engine.args == (f"--x={tmp_path}/state",)
    assert engine.env == {"JSON": '{"a": {"b": 1}}', "CACHE": "/scratch/headgate/c"}


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_missing_site_file_says_who_asked_and_which_there_are():
    message = refused(Path("nowhere.toml"))
    assert message.startswith("nowhere.toml: no such site file (asked for by the command line); ")
    assert "laptop.toml" in message
    assert "(asked for by HEADGATE_SITE)" in refused(None, {"HEADGATE_SITE": "nowhere.toml"})


def test_a_virtual_environment_that_is_not_there_names_the_remedy(small):
    path = small()
    path.write_text(SMALL.replace("/bin/sh", "venv/bin/python"))
    assert refused(path) == (
        f"small.toml:10: environments.engine.python: there is no program {path.parent}/venv/bin/python; "
        "`make environments` builds the usual ones"
    )


def test_a_container_needs_an_image_and_a_virtual_environment_has_none(small):
    path = small()
    message = refused(path, {}, ("environments.engine.kind=apptainer",))
    assert message == (
        "--set environments.engine.kind: environments.engine.kind: apptainer needs an image: "
        "set environments.engine.image"
    )
    message = refused(small('image = "x.sif"\n'))
    assert message.startswith(
        "small.toml:11: environments.engine.image: a venv has no image; allowed with kind apptain"
    )
    # Inside an image nothing can be looked up from here.
    pyxis = load_site(
        small('image = "x"\n'), {}, ["environments.engine.kind=pyxis", "environments.engine.python=/none"]
    )
    assert pyxis.environment("engine").python == "/none"


def test_a_state_directory_too_long_for_a_socket_is_refused_with_the_limit(small):
    message = refused(small(), {}, ("state_dir=/" + "d" * 95,))
    assert message.startswith("--set state_dir: state_dir: /ddd")
    assert "is 109 bytes long, and a Unix socket's path holds 107; choose a shorter directory" in message
    assert load_site(small(), {}, ["state_dir=/" + "d" * 93])
    external = small('[external.claude]\nmodel = "anthropic/x"\n')
    message = refused(external, {}, ("state_dir=/" + "d" * 93,))
    assert "/providers/00000000 is 113 bytes long" in message
    assert load_site(external, {}, ["state_dir=/" + "d" * 87])


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0", "localhost", "", "10.0.0.0/33"])
def test_networks_that_are_none_are_refused_with_how_one_is_written(small, network: str) -> None:
    said = refused(small(f'[gateway]\nmetrics_from = ["::1/128", "{network}"]\n'))
    assert "gateway.metrics_from: " in said and network in said
    assert 'write a network ("10.2.0.0/16", "fd00::/8") or one address' in said


def test_a_longest_wait_for_slurm_below_the_shortest_is_refused(small):
    assert "keys.rotation_grace: must be at most" in refused(small(), {}, ("keys.rotation_grace=400d",))
    said = refused(small(), {}, ("scheduler.min_poll=40s",))
    assert "scheduler.max_poll: must be at least 40 s (scheduler.min_poll), not 30 s" in said


def test_a_key_in_place_of_its_variables_name_is_refused_without_being_printed(small):
    message = refused(small('[external.claude]\nmodel = "anthropic/x"\napi_key_env = "sk-secret-123"\n'))
    assert message.startswith("small.toml:13: external.claude.api_key_env: names the environment variable")
    assert "secret" not in message
    message = refused(small('[external.claude]\nmodel = "anthropic/x"\napi_key = "sk-secret-123"\n'))
    assert "small.toml:13: external.claude.api_key: unknown key; did you mean 'api_key_env'?" in message
    assert "secret" not in message


def test_an_unknown_placeholder_is_refused_with_the_known_ones(small):
    message = refused(small('env = { CACHE = "{shard_dir}/c" }\n'))
    assert message == (
        "small.toml:11: environments.engine.env.CACHE: unknown {shard_dir}; did you mean 'shared_dir'? "
        "allowed: state_dir, shared_dir"
    )


def test_an_environment_the_site_lacks_is_named_when_it_is_needed(small):
    site = load_site(small(), {})
    with pytest.raises(ConfigError, match=r"small\.toml: has no \[environments\.training\], which this needs"):
        site.environment("training")


def test_mistyped_variables_and_flags_are_refused_like_lines_of_the_file(small):
    message = refused(small(), {"HEADGATE_GATEWAY__PROT": "1"}, ("defaults.train.partion=gpu",))
    gateway, train = message.splitlines()
    assert gateway.startswith("environment HEADGATE_GATEWAY__PROT: gateway.prot: unknown key; did you mean 'port'? all")
    assert train.startswith(
        "--set defaults.train.partion: defaults.train.partion: unknown key; did you mean 'partition'"
    )


# -- headgate config show ---------------------------------------------------------------------------------------------


def test_config_show_prints_toml_that_means_the_same_site(small):
    result = CliRunner().invoke(config, ["show"], obj=Context(small("[gateway]\nread_timeout = '90s'\n")))
    assert result.exit_code == 0 and 'gateway.read_timeout = "90s"' in result.output
    assert "# scheduler.slurm_conf is not set" in result.output
    printed = tomllib.loads(result.output)
    some = {"host": "127.0.0.1", "port": 8080, "read_timeout": "90s", "max_body_mb": 32, "media_hosts": []}
    assert printed["gateway"].items() >= some.items()
    Path("again.toml").write_text(result.output)
    assert load_site(Path("again.toml"), {}) == load_site(Path("small.toml"), {})


def test_config_show_origin_and_json_say_where_each_value_came_from(small):
    context = Context(small(), ("gateway.port=9",))
    lines = CliRunner().invoke(config, ["show", "--origin"], obj=context).output.splitlines()
    assert any(re.fullmatch(r"gateway\.port = 9 +# --set gateway\.port", line) for line in lines)
    assert any(re.fullmatch(r'name = "small" +# small\.toml:1', line) for line in lines)
    rows = json.loads(CliRunner().invoke(config, ["show", "--json"], obj=context).output)
    assert {"key": "gateway.port", "value": 9, "origin": "--set gateway.port"} in rows
    assert {"key": "scheduler.slurm_conf", "value": None, "origin": "default"} in rows


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "gate.example.org", "10.1.2.3"])
def test_the_control_api_is_not_offered_to_other_hosts_without_tls(small, host: str):
    said = refused(small(f'[control]\nport = 8082\nhost = "{host}"\n'))
    assert "control.tls: is needed where others can reach the control API" in said and host in said


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_control_api_may_be_plain_on_this_machine(small, host: str):
    assert load_site(small(f'[control]\nport = 8082\nhost = "{host}"\n'), {}).control.port == 8082
    assert load_site(small('[control]\nhost = "0.0.0.0"\n'), {}).control.port is None


def test_config_show_of_a_broken_site_prints_the_problem_and_fails(small):
    result = CliRunner().invoke(config, ["show"], obj=Context(small("[gateway]\nport = 'x'\n")))
    assert result.exit_code == 1
    assert result.output == "Error: small.toml:12: gateway.port: expects an integer, not a string ('x')\n"


def test_alerts_that_could_never_be_told_are_refused(small) -> None:
    mail = '\n[alerts.mail]\nhost = "relay"\nsender = "hg@example.org"\nto = []\nuser = "hg"\n'
    said = refused(small('\n[alerts]\nthresholds = [0, 90]\nwebhook = "chat/hush"\n' + mail))
    assert [line.split(": ", 1)[1] for line in said.splitlines()] == [
        "alerts.thresholds: are percent, from 1 to 100, not 0",
        "alerts.webhook: must be a URL that begins with http:// or https:// and names a host",
        "alerts.mail.to: names nobody who gets the mail",
        "alerts.mail.user: and alerts.mail.password_env (the variable that holds its password) go together",
    ]


@pytest.mark.parametrize(
    "url", ("http://[hush", "http://chat:hush/", "http://:80/hush", "http://chat..org/hush", "https://")
)
def test_a_webhook_that_is_no_url_is_refused_without_being_repeated(small, url) -> None:
    said = refused(small(f'\n[alerts]\nwebhook = "{url}"\n'))
    assert said.endswith("alerts.webhook: must be a URL that begins with http:// or https:// and names a host")
    assert "hush" not in said


@pytest.mark.parametrize("host", ("a..b", "x" * 64 + ".org", ""))
def test_a_mail_host_that_can_be_no_hosts_name_is_refused(small, host) -> None:
    said = refused(small(f'\n[alerts.mail]\nhost = "{host}"\nsender = "hg@example.org"\nto = ["ops@example.org"]\n'))
    assert said.endswith(f"alerts.mail.host: {host!r} is no host's name")

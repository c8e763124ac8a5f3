"""Strict TOML: what is accepted, where it came from, and what an error says."""

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from registry.strict_toml import (
    ConfigError,
    Layer,
    build,
    duration_seconds,
    duration_text,
    environment_layers,
    flag_layers,
    read_layer,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    prompt: float = field(metadata={"min": 0})
    completion: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    host: str = "localhost"
    port: int = field(default=80, metadata={"min": 1, "max": 65535})
    debug: bool = False
    ratio: float | None = field(default=None, metadata={"above": 0})
    timeout_s: int = field(default=60, metadata={"unit": "duration", "min": 1})
    pause_s: float = field(default=1.0, metadata={"unit": "duration"})
    args: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    name: str
    kind: Literal["local", "slurm"] = "local"
    colour: Colour = Colour.RED
    data: Path | None = None
    here: Path | None = field(default=None, metadata={"must_exist": "run `make data`"})
    program: str = field(default="python3", metadata={"unit": "program"})
    server: Server = Server(host="fallback.example")
    spare: Server | None = None
    prices: dict[str, Price] = field(default_factory=dict)
    read_from: str = field(default="nowhere", metadata={"computed": True})


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # so that errors name files the way a person here would

    def write(text: str, name: str = "c.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def built(*layers: Layer) -> Config:
    return build(Config, layers)[0]


def refused(*layers: Layer) -> str:
    with pytest.raises(ConfigError) as e:
        build(Config, layers)
    return str(e.value)


# -- what is accepted -------------------------------------------------------------------------------------------------


def test_every_kind_of_value_arrives_as_its_type(write, tmp_path):
    config = built(
        read_layer(
            write("""
name = "n"
kind = "slurm"
colour = "blue"
data = "../elsewhere"
[server]
port = 8080
debug = true
ratio = 2
timeout = "1h30m"
pause = "0.5s"
args = ["a", "b"]
ranks = [1, 2]
env = { A = "1" }
[prices."m-3.1"]
prompt = 1
""")
        )
    )
    assert config.kind == "slurm" and config.colour is Colour.BLUE and config.data == tmp_path.parent / "elsewhere"
    assert config.server == Server(
        host="fallback.example", port=8080, debug=True, ratio=2.0, timeout_s=5400, pause_s=0.5, args=("a", "b"),
        ranks=(1, 2), env={"A": "1"},
    )  # fmt: skip
    assert isinstance(config.server.ratio, float)
    assert config.prices == {"m-3.1": Price(prompt=1.0)}


def test_a_table_left_out_keeps_its_default_and_an_optional_one_stays_none(write):
    config = built(read_layer(write("name = 'n'")))
    assert config.server.host == "fallback.example" and config.spare is None


def test_a_table_given_in_part_keeps_the_rest_of_its_default(write):
    config = built(read_layer(write("name = 'n'\n[server]\nport = 1\n[spare]\n")))
    assert config.server == Server(host="fallback.example", port=1)
    assert config.spare == Server()


def test_paths_expand_the_home_directory_and_keep_links(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "link").symlink_to("/bin/sh")
    config = built(read_layer(write("name = 'n'\ndata = '~/d'\nhere = 'link'")))
    assert config.data == Path("/home/someone/d") and config.here == tmp_path / "link"


def test_a_program_with_a_slash_is_relative_to_its_file_and_a_bare_one_is_not(write, tmp_path):
    assert built(read_layer(write("name = 'n'\nprogram = 'venv/bin/python'"))).program == f"{tmp_path}/venv/bin/python"
    assert built(read_layer(write("name = 'n'\nprogram = 'python3.12'"))).program == "python3.12"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("8h", 28800), ("1h30m", 5400), ("7d", 604800), ("8:00:00", 28800), ("0.5s", 0.5),
     ("7-00:00:00", 604800), ("1-02:03:04", 93784), ("500ms", 0.5), ("2w", 1209600)],
)  # fmt: skip
def test_durations_are_written_with_their_unit_or_as_slurm_does(text, seconds):
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("seconds", [0, 1, 90, 3600, 5400, 86400, 604800, 0.5, 1234567])
def test_a_duration_written_out_reads_back_the_same(seconds):
    assert duration_seconds(duration_text(seconds)) == seconds


# -- layers -----------------------------------------------------------------------------------------------------------


def test_later_layers_win_key_by_key_and_a_list_replaces_the_list_below(write):
    low = read_layer(
        write("name = 'low'\n[server]\nport = 1\nargs = ['a', 'b']\nenv = { A = '1', B = '2' }", "low.toml")
    )
    high = read_layer(write("[server]\nargs = ['c']\nenv = { B = '3' }", "high.toml"))
    config, origins = build(Config, [low, high])
    assert config.name == "low" and config.server.port == 1 and config.server.args == ("c",)
    assert config.server.env == {"A": "1", "B": "3"}
    assert origins["server.port"] == "low.toml:3" and origins["server.args"] == "high.toml:2"
    assert origins["server.env.A"] == "low.toml:5" and origins["server.env.B"] == "high.toml:3"
    assert origins["server.debug"] == origins["spare"] == "default"


def test_origins_count_lines_across_comments_long_strings_lists_and_quoted_keys(write):
    path = write('''# a comment with = and [brackets], and a line separator \u2028 that TOML takes for a letter
name = """
[server]
port = 9
"""

[server] # not there: here
args = [
  "x", # ]
  "y",
]
port = 5
env."ODD.KEY" = "#"

[prices."m-3.1"]
prompt = 1
[prices]
other.prompt = 2
''')
    config, origins = build(Config, [read_layer(path)])
    assert config.name == "[server]\nport = 9\n" and config.server.env == {"ODD.KEY": "#"}
    assert (
        origins["name"] == "c.toml:2" and origins["server.args"] == "c.toml:8" and origins["server.port"] == "c.toml:12"
    )
    assert origins['server.env."ODD.KEY"'] == "c.toml:13" and origins['prices."m-3.1".prompt'] == "c.toml:16"
    assert origins["prices.other.prompt"] == "c.toml:18"


def test_flags_and_variables_read_as_what_their_field_is(write):
    flags = ["name=12", "server.port=8", "server.debug=true", "server.host=h", "server.args=['a']", "server.timeout=2m"]
    config, origins = build(Config, flag_layers([*flags, 'prices."m-1.0".prompt=3', "spare.env={ A = 'x' }"]))
    assert config.name == "12" and config.server == Server(port=8, debug=True, host="h", args=("a",), timeout_s=120)
    assert config.prices["m-1.0"].prompt == 3.0 and config.spare == Server(env={"A": "x"})
    assert origins["server.port"] == "--set server.port" and origins["spare.env.A"] == "--set spare.env"
    assert built(*flag_layers(["name='quoted'"])).name == "quoted"


def test_variables_name_levels_with_two_underscores_and_keep_the_case_of_a_string_tables_keys():
    environ = {"X__NAME": "n", "X_SERVER__PORT": "8", "X_SERVER__ENV__OMP_NUM_THREADS": "1"}
    environ |= {"X_PRICES__BIG__PROMPT": "2", "X_SITE": "ignored", "XY__NAME": "ignored", "OTHER__NAME": "ignored"}
    config, origins = build(Config, environment_layers(Config, environ, prefix="X"))
    assert config.name == "n" and config.server.port == 8 and config.prices == {"big": Price(prompt=2.0)}
    assert config.server.env == {"OMP_NUM_THREADS": "1"}
    assert origins["server.port"] == "environment X_SERVER__PORT" and origins["name"] == "environment X__NAME"


# -- what is refused --------------------------------------------------------------------------------------------------


def test_an_unknown_key_names_file_line_and_key_suggests_and_lists_what_is_allowed(write):
    message = refused(read_layer(write("name = 'n'\n\n[server]\nprot = 1\n")))
    assert message.startswith(
        "c.toml:4: server.prot: unknown key; did you mean 'port'? allowed here: args, debug, env, "
    )
    assert "timeout" in message and "timeout_s" not in message


def test_an_unknown_table_is_refused_at_its_header(write):
    message = refused(read_layer(write("name = 'n'\n[sever]\nport = 1\n")))
    assert message.startswith("c.toml:2: sever: unknown key; did you mean 'server'? allowed here: colour, data, ")
    assert "read_from" not in message  # computed: not a setting


def test_an_unknown_key_like_no_other_gets_no_suggestion(write):
    message = refused(read_layer(write("name = 'n'\nzzzzzz = 1")))
    assert "did you mean" not in message and message.startswith("c.toml:2: zzzzzz: unknown key; allowed here: ")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("port = '8080'", "server.port: expects an integer, not a string ('8080')"),
        ("port = 1.5", "server.port: expects an integer, not a number (1.5)"),
        ("port = true", "server.port: expects an integer, not True"),
        ("port = 0", "server.port: must be at least 1, not 0"),
        ("port = 65536", "server.port: must be at most 65535, not 65536"),
        ("port.x = 1", "server.port: expects a single value, not a table"),
        ("ratio = 0", "server.ratio: must be above 0, not 0.0"),
        ("ratio = nan", "server.ratio: expects a finite number, not nan"),
        ("ratio = 'x'", "server.ratio: expects a number, not a string ('x')"),
        ("debug = 1", "server.debug: expects true or false, not an integer (1)"),
        ("host = 1", "server.host: expects a string, not an integer (1)"),
        ("args = 'a'", "server.args: expects a list, not a string ('a')"),
        ("args = ['a', 1]", "server.args: expects a string, not an integer (1)"),
        ("env = 'A=1'", "server.env: expects a table [server.env], not a string ('A=1')"),
        ("env.A = 1", "server.env.A: expects a string, not an integer (1)"),
        ("timeout = 90", 'server.timeout: expects a duration with its unit, not an integer (90); allowed: "90s", '),
        ("timeout = '90'", "server.timeout: '90' is not a duration; allowed: \"90s\", "),
        ("timeout = '10:00'", "server.timeout: '10:00' is not a duration; allowed: "),
        ("timeout = '1.5s'", "server.timeout: expects whole seconds, not '1.5s'"),
        ("timeout = '0s'", "server.timeout: must be at least 1s, not 0s"),
        ("host = 1979-05-27", "server.host: expects a string, not datetime.date(1979, 5, 27)"),
    ],
)
def test_a_wrong_value_says_where_it_stands_what_it_is_and_what_is_expected(write, line, problem):
    assert refused(read_layer(write(f"name = 'n'\n[server]\n{line}\n"))).startswith(f"c.toml:3: {problem}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("kind = 'slrum'", "kind: 'slrum' is not a choice; did you mean 'slurm'? allowed: local, slurm"),
        ("kind = ['x']", "kind: ['x'] is not a choice; allowed: local, slurm"),
        ("data = '~nosuch/d'", "data: ~nosuch/d: no home directory is known for ~nosuch"),
        ("colour = 'bleu'", "colour: 'bleu' is not a choice; did you mean 'blue'? allowed: red, blue"),
        ("server = 1", "server: expects a table [server], not an integer (1)"),
        ("prices.big = 1", "prices.big: expects a table [prices.big], not an integer (1)"),
        ("prices.big.prompt = -1", "prices.big.prompt: must be at least 0, not -1.0"),
        (
            "prices.big.promt = 1",
            "prices.big.promt: unknown key; did you mean 'prompt'? allowed here: completion, prompt",
        ),
    ],
)
def test_a_wrong_choice_or_table_is_refused_by_name(write, line, problem):
    assert refused(read_layer(write(f"name = 'n'\n{line}\n"))).startswith(f"c.toml:2: {problem}")


def test_a_missing_required_key_is_reported_at_its_table(write):
    assert refused(read_layer(write("kind = 'local'"))) == "c.toml: name: is required and missing"
    message = refused(read_layer(write("name = 'n'\n\n[prices.big]\ncompletion = 1\n")))
    assert message == "c.toml:3: prices.big.prompt: is required and missing"


def test_a_path_that_must_exist_names_the_remedy(write, tmp_path):
    message = refused(read_layer(write("name = 'n'\nhere = 'absent'")))
    assert message == f"c.toml:2: here: there is no {tmp_path}/absent; run `make data`"


def test_all_problems_are_reported_at_once(write):
    message = refused(read_layer(write("nam = 'n'\n[server]\nport = 'x'\n")))
    assert [line.split(": ")[1] for line in message.splitlines()] == ["nam", "name", "server.port"]


def test_the_layer_that_won_is_the_one_blamed(write):
    layers = [read_layer(write("name = 'n'\n[server]\nport = 'x'\n")), *flag_layers(["server.port=y"])]
    assert refused(*layers) == "--set server.port: server.port: expects an integer, not a string ('y')"
    message = refused(*environment_layers(Config, {"HEADGATE__NAME": "n", "HEADGATE_SERVER__PROT": "1"}))
    assert message.startswith("environment HEADGATE_SERVER__PROT: server.prot: unknown key; did you mean 'port'?")


def test_a_dataclasses_own_check_is_reported_at_its_table(write):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Range:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) is above high ({self.high})")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Holder:
        range: Range

    with pytest.raises(ConfigError, match=r"^c\.toml:2: range: low \(2\) is above high \(1\)$"):
        build(Holder, [read_layer(write("\n[range]\nlow = 2\nhigh = 1\n"))])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name = 'n'\nport = \n", "c.toml:2: not valid TOML: Invalid value (column 8)"),
        ("a = 1\na = 2\n", "c.toml:2: not valid TOML: Cannot overwrite a value"),
        ("a = 1\nb = [1,\n", "c.toml:2: not valid TOML: "),
    ],
)
def test_broken_toml_names_the_line(write, text, problem):
    with pytest.raises(ConfigError) as e:
        read_layer(write(text))
    assert str(e.value).startswith(problem)


def test_a_file_that_cannot_be_read_says_why(write, tmp_path):
    write("")
    with pytest.raises(ConfigError, match=r"^~nosuch/c\.toml: no home directory is known for ~nosuch$"):
        read_layer(Path("~nosuch/c.toml"))
    with pytest.raises(ConfigError, match=r"^absent\.toml: cannot be read: No such file or directory$"):
        read_layer(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match=r"^latin\.toml: is not UTF-8 text"):
        read_layer(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("gateway.port", "--set gateway.port: has no value; write --set gateway.port=VALUE"),
        ("a b=1", "--set a b=1: 'a b' is not a dotted key such as gateway.port"),
        ("=1", "--set =1: '' is not a dotted key such as gateway.port"),
    ],
)
def test_a_flag_that_is_not_key_equals_value_is_refused(flag: str, problem: str):
    with pytest.raises(ConfigError) as e:
        flag_layers([flag])
    assert str(e.value) == problem


def test_a_name_inside_a_value_cannot_smuggle_in_another_key():
    values: Any = flag_layers(["name=1\nkind='slurm'"])
    assert built(*values).name == "1\nkind='slurm'" and built(*values).kind == "local"

"""sbatch's words, read on data. That sbatch reads them so too is shown in test_cli_submit.py."""

from __future__ import annotations

import pytest

from launchers import sbatch
from launchers.sbatch import CommandLine, NotUnderstood, Option, assembled, parse, said_by_script, said_by_variables


def told(command: CommandLine) -> list[tuple[str, str | None]]:
    return [(option.flag, option.value) for option in command.components[0]]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("-p cpu", [("--partition", "cpu")]),
        ("-pcpu", [("--partition", "cpu")]),
        ("--partition cpu", [("--partition", "cpu")]),
        ("--partition=cpu", [("--partition", "cpu")]),
        ("--part=cpu", [("--partition", "cpu")]),  # no other option begins so
        ("--par cpu", [("--par", None)]),  # --parsable does: sbatch will say so
        ("-HQpcpu", [("--hold", None), ("--quiet", None), ("--partition", "cpu")]),
        ("--exclusive", [("--exclusive", None)]),
        ("--exclusive=user", [("--exclusive", "user")]),
        ("-k", [("--no-kill", None)]),
        ("-koff", [("--no-kill", "off")]),
        ("--mem=1G --mem 2G", [("--mem", "1G"), ("--mem", "2G")]),
        ("--gpus-per-node=h100:2", [("--gpus-per-node", "h100:2")]),
        ("--comment=", [("--comment", "")]),
        ("--of-a-plugin=x --and-another", [("--of-a-plugin", "x"), ("--and-another", None)]),
        ("-Z", [("-Z", None)]),
    ],
)
def test_options_are_read_as_getopt_reads_them(words: str, options: list[tuple[str, str | None]]) -> None:
    command = parse([*words.split(), "job.sh"] if words != "--par cpu" else words.split())
    assert told(command) == options
    assert command.script == ("cpu" if words == "--par cpu" else "job.sh")


def test_what_follows_the_script_is_its_own() -> None:
    command = parse(["-p", "cpu", "job.sh", "-p", "x", "--", "--wait"])
    assert (told(command), command.script, command.args) == (
        [("--partition", "cpu")],
        "job.sh",
        ("-p", "x", "--", "--wait"),
    )


@pytest.mark.parametrize(
    ("words", "script"),
    [(["--", "-odd.sh"], "-odd.sh"), (["-H", "--", "job.sh"], "job.sh"), (["-H"], None), (["-"], "-")],
)
def test_options_end_at_a_double_dash_or_the_first_word_that_is_none(words: list[str], script: str | None) -> None:
    assert parse(words).script == script


@pytest.mark.parametrize("words", [["-p"], ["--partition"], ["-Hp"], ["--mem"]])
def test_an_option_without_its_value_is_not_understood(words: list[str]) -> None:
    with pytest.raises(NotUnderstood, match="requires an argument"):
        parse(words)


def test_words_stay_as_they_were_typed() -> None:
    typed = ["-pcpu", "-N", "2", "--part=x", "--time", "5", "--new=1"]
    assert [word for option in parse([*typed, "job.sh"]).components[0] for word in option.words] == typed


def test_a_colon_begins_the_next_component_of_a_heterogeneous_job() -> None:
    command = parse(["-N1", "-pcpu", ":", "-N2", "job.sh", ":"])
    assert [[option.value for option in component] for component in command.components] == [["1", "cpu"], ["2"]]
    assert (command.script, command.args) == ("job.sh", (":",))


def test_the_last_word_on_an_option_counts() -> None:
    command = parse(["-J", "a", "--job-name=b", "job.sh"])
    assert command.last("job-name") == Option("--job-name", "b", ("--job-name=b",))
    assert command.last("qos") is None


def test_variables_say_what_the_man_page_lists() -> None:
    environ = {
        "SBATCH_PARTITION": "cpu",
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_EXCLUSIVE": "",
        "SBATCH_REQUEUE": "1",
        "SBATCH_REQ_SWITCH": "2",
        "SBATCH_WAIT4SWITCH": "1:00",
        "SLURM_HINT": "nomultithread",
        "SBATCH_WAIT": "1",  # of the submission
        "SBATCH_COMMENT": "no such variable",
        "SLURM_JOB_ID": "7",
    }
    assert {(option.flag, option.value) for option in said_by_variables(environ)} == {
        ("--partition", "cpu"),
        ("--time", "5"),
        ("--exclusive", None),
        ("--requeue", None),
        ("--switches", "2@1:00"),
        ("--hint", "nomultithread"),
    }


SCRIPT = b"""\
#!/bin/bash
# a comment
#SBATCH -p cpu -H  # why

#SBATCH --comment="a\\"b \\\\ 'c' # d"
  #SBATCH --qos=indented-lines-are-comments
echo "$@"
#SBATCH --time=1
"""


def test_a_script_says_things_until_its_first_command() -> None:
    assert [(o.flag, o.value) for o in said_by_script(SCRIPT)[0]] == [
        ("--partition", "cpu"),
        ("--hold", None),
        ("--comment", "a\"b \\ 'c' # d"),
    ]


def assemble(body: bytes, *typed: str, variables: tuple[Option, ...] = ()) -> str:
    return assembled(body, [Option("--job-name", "j b")], variables, parse(typed).components, "/home/ada").decode()


def test_ours_stand_around_the_scripts_own_lines_and_the_rest_is_byte_for_byte() -> None:
    script = assemble(SCRIPT, "-N2", variables=(Option("--qos", "high"),))
    assert script == (
        "#!/bin/bash\n"
        "# a comment\n"
        "# Added by Headgate, what sbatch takes by itself:\n"
        '#SBATCH --job-name="j b"\n'
        + SCRIPT.decode().partition("# a comment\n")[2].partition("  #SBATCH")[0]
        + "# Added by Headgate, said by variables:\n"
        "#SBATCH --qos=high\n"
        "# Added by Headgate, said on the command line:\n"
        "#SBATCH --nodes=2\n"
        "  #SBATCH" + SCRIPT.decode().partition("  #SBATCH")[2]
    )


@pytest.mark.parametrize("value", ["plain", "two words", 'a "b"', "it's", "back\\slash", "#hash", "$HOME `x`", "", "é"])
def test_any_value_on_one_line_is_read_back_from_the_script(value: str) -> None:
    script = assemble(b"#!/bin/sh\n", "--comment", value)
    assert said_by_script(script.encode())[0][-1].value == value


def test_a_value_of_several_lines_cannot_become_a_command() -> None:
    script = assemble(b"#!/bin/sh\necho\n", "--comment", "a\nrm -rf /")
    assert "rm -rf" not in script
    assert "# left out, because its value has more than one line: --comment\n" in script


def test_what_is_about_the_submission_does_not_stay_in_the_script() -> None:
    script = assemble(b"#!/bin/sh\n", "--wait", "--parsable", "-Q", "-v", "--wrap=x", "--dry-run", "-H")
    assert script.partition("command line:\n")[2] == "#SBATCH --hold\n"


def test_files_that_sbatch_reads_are_named_from_the_root() -> None:
    script = assemble(b"#!/bin/sh\n", "-D", "work", "-F", "/etc/nodes", "-o", "out/%j")
    assert script.partition("command line:\n")[2] == (
        "#SBATCH --chdir=/home/ada/work\n#SBATCH --nodefile=/etc/nodes\n#SBATCH --output=out/%j\n"
    )


@pytest.mark.parametrize(
    ("own", "variable", "stays"),
    [
        ("--mem=1G", "mem-per-cpu", False),
        ("--mem=1G", "mem", True),
        ("--core-spec=1", "thread-spec", False),
        ("--gpus-per-task=1", "gpus-per-node", True),
    ],
)
def test_a_variable_that_the_script_overrules_by_another_option_is_left_out(
    own: str, variable: str, stays: bool
) -> None:
    script = assemble(f"#!/bin/sh\n#SBATCH {own}\n".encode(), variables=(Option(f"--{variable}", "2"),))
    assert (f"#SBATCH --{variable}=2\n" in script) is stays


def test_each_component_of_a_heterogeneous_job_gets_its_own_lines() -> None:
    body = b"#!/bin/sh\n#SBATCH -N1\n#SBATCH hetjob\n#SBATCH -N2\necho\n"
    script = assemble(body, "-pa", ":", "-pb", ":", "-pc", variables=(Option("--qos", "high"),))
    assert [[(o.name, o.value) for o in component] for component in said_by_script(script.encode())] == [
        [("job-name", "j b"), ("nodes", "1"), ("qos", "high"), ("partition", "a")],
        [("job-name", "j b"), ("nodes", "2"), ("qos", "high"), ("partition", "b")],
        [("job-name", "j b"), ("qos", "high"), ("partition", "c")],
    ]


def test_pythons_encoding_stays_in_the_second_line() -> None:
    script = assemble(b"#!/usr/bin/env python3\n# -*- coding: latin-1 -*-\nprint()\n", "-H")
    assert script.splitlines()[1] == "# -*- coding: latin-1 -*-"


@pytest.mark.parametrize("body", [b"", b"echo hi\n", b"#SBATCH -H\n"])
def test_what_is_no_script_is_left_for_sbatch_to_refuse(body: bytes) -> None:
    assert assemble(body, "-H") == body.decode()


def test_bytes_that_are_no_text_pass_through() -> None:
    body = b"#!/bin/sh\n#\xff\necho '\xfe\r\n'"
    made = assembled(body, [], (), parse(["-J", "x\udcff"]).components, "/")
    title = b"# Added by Headgate, said on the command line:\n"
    assert made == b"#!/bin/sh\n" + title + b"#SBATCH --job-name=x\xff\n#\xff\necho '\xfe\r\n'"


def test_what_wrap_makes_is_a_script() -> None:
    assert sbatch.wrapped("echo x") == b"#!/bin/sh\n# This script was created by sbatch --wrap.\n\necho x\n"

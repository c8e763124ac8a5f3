"""sbatch's own words: its command line, its SBATCH_* variables and a script's #SBATCH lines, as sbatch reads them.

Knows the options of Slurm 22.05 to 26.05 (sbatch(1)); what it does not know is kept as it was typed. Pure: nothing
here reads a file, a variable or a clock.
"""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

_FLAGS = """
    consolidate-segments contiguous h:help H:hold ignore-pbs no-requeue O:overcommit s:oversubscribe parsable Q:quiet
    reboot spread-job spread-segments stepmgr test-only usage use-min-nodes v:verbose V:version W:wait
"""
_OPTIONAL = "exclusive get-user-env nice k:no-kill oom-kill-step propagate requeue resv-ports"  # a value after "=" only
_VALUED = """
    A:account acctg-freq a:array batch bb bbf b:begin D:chdir cluster-constraint M:clusters cluster comment
    C:constraint container container-id container-type context S:core-spec cores-per-socket cpu-freq cpus-per-gpu
    c:cpus-per-task deadline delay-boot d:dependency m:distribution e:error x:exclude export export-file extra
    B:extra-node-info gid gpu-bind gpu-freq G:gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint
    i:input J:job-name kill-on-invalid-dep L:licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu
    mem-per-gpu mem-update mincpus network F:nodefile w:nodelist N:nodes n:ntasks ntasks-per-core ntasks-per-gpu
    ntasks-per-node ntasks-per-socket ntasks-per-tres open-mode o:output p:partition power prefer priority profile
    q:qos reservation resources segment signal sockets-per-node switches tasks-per-node thread-spec threads-per-core
    t:time time-min tmp tres-bind tres-per-task uid wait-all-nodes wckey wrap
"""


def _table(*sources: str) -> tuple[dict[str, str], dict[str, str]]:
    """(long names by themselves, long names by letter)."""
    entries = [entry.rpartition(":") for source in sources for entry in source.split()]
    return {name: name for _, _, name in entries}, {letter: name for letter, _, name in entries if letter}


_NAMES, _LETTERS = _table(_FLAGS, _OPTIONAL, _VALUED)
_TAKES_VALUE = frozenset(_table(_VALUED)[0])
_MAY_TAKE_VALUE = _TAKES_VALUE | _table(_OPTIONAL)[0].keys()
_TAKES_NEXT_LETTERS = frozenset(_table(_VALUED, _OPTIONAL)[1])  # -kno is -k with a value

# About one submission, not about the job: whoever submits again says them anew. --dry-run is `headgate submit`'s own.
OF_THE_SUBMISSION = frozenset(
    {"dry-run", "help", "parsable", "quiet", "test-only", "usage", "verbose", "version", "wait", "wrap"}
)
# sbatch reads these files itself, wherever it was called.
_PATHS = frozenset({"bbf", "chdir", "export-file", "nodefile"})
# sbatch refuses two of a kind on its command line or in the script, but lets either beat one that a variable said.
_EXCLUDE_EACH_OTHER = (
    frozenset({"mem", "mem-per-cpu", "mem-per-gpu"}),
    frozenset({"core-spec", "thread-spec"}),
    frozenset({"ntasks-per-gpu", "gpus-per-task"}),
    frozenset({"ntasks-per-gpu", "gpus-per-socket"}),
    frozenset({"tres-per-task", "gpus-per-task"}),
)

# Input variables that are not SBATCH_ and the option's name in capitals.
_OTHER_VARIABLES = {
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_BURST_BUFFER": "bb",
    "SBATCH_CPU_FREQ_REQ": "cpu-freq",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_SEGMENT_SIZE": "segment",
    "SBATCH_TIMELIMIT": "time",
    "SLURM_CLUSTERS": "clusters",
    "SLURM_HINT": "hint",
}
# The man page's list, which is not every option: a variable outside it means nothing to sbatch.
_VARIABLES = {
    **_OTHER_VARIABLES,
    **{
        "SBATCH_" + name.replace("-", "_").upper(): name
        for name in """
            account acctg-freq batch clusters cluster-constraint constraint container container-id container-type
            core-spec cpus-per-gpu delay-boot distribution error exclusive export get-user-env gpu-bind gpu-freq gpus
            gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint ignore-pbs input job-name mem-bind
            mem-per-cpu mem-per-gpu network no-kill no-requeue open-mode output overcommit partition power profile qos
            requeue reservation signal spread-job thread-spec threads-per-core tres-bind tres-per-task use-min-nodes
            wait-all-nodes wckey
        """.split()
    },
}


class NotUnderstood(ValueError):
    """sbatch would refuse these words too; it has the better ones for that."""


@dataclass(frozen=True, slots=True)
class Option:
    flag: str  # "--partition", whatever way it was typed; of an unknown one just what was typed: "--new", "-Z"
    value: str | None = None
    words: tuple[str, ...] = ()  # as typed; of a bundle of letters (-Hv) each has its own

    @property
    def name(self) -> str:
        return self.flag.lstrip("-")

    def from_directory(self, cwd: str) -> Option:
        """The same, wherever it is said: files that sbatch itself reads are named from the root."""
        if self.value is None or self.name not in _PATHS or self.value.isdigit():  # an open file's number
            return self
        return replace(self, value=os.path.join(cwd, self.value))

    def __str__(self) -> str:
        return self.flag if self.value is None else f"{self.flag}={self.value}"


Component = tuple[Option, ...]  # what is said of one component of a heterogeneous job; other jobs have just one


@dataclass(frozen=True, slots=True)
class CommandLine:
    components: tuple[Component, ...]
    script: str | None  # None: it is read from standard input, or given by --wrap
    args: tuple[str, ...]  # the script's own

    def last(self, name: str) -> Option | None:
        """What was said last of an option, of the first component."""
        return last(name, self.components[0])

    def says(self, *names: str) -> bool:
        return any(option.name in names for component in self.components for option in component)


def last(name: str, *levels: Component) -> Option | None:
    """The option as the first level that speaks of it says it."""
    for level in levels:
        for option in reversed(level):
            if option.name == name:
                return option
    return None


def parse(words: Sequence[str]) -> CommandLine:
    """sbatch's command line by getopt's rules: options end at `--` or before the first word that is none.

    Raises NotUnderstood where an option lacks its value.
    """
    components: list[Component] = []
    rest = list(words)
    while True:
        options, rest = _options(rest)
        components.append(options)
        if rest[:1] != [":"]:
            break
        del rest[0]
    if rest[:1] == ["--"]:
        del rest[0]
    return CommandLine(tuple(components), rest[0] if rest else None, tuple(rest[1:]))


def _options(words: list[str]) -> tuple[Component, list[str]]:
    """The options at the start, and the words after them."""
    found: list[Option] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        found += [_long(word, rest)] if word.startswith("--") else _letters(word, rest)
    return tuple(found), rest


def _long(word: str, rest: list[str]) -> Option:
    typed, has_value, value = word[2:].partition("=")
    name = _whole_name(typed)
    if has_value or name not in _TAKES_VALUE:
        return Option(f"--{name}", value if has_value else None, (word,))
    if not rest:
        raise NotUnderstood(f"option '--{typed}' requires an argument")
    value = rest.pop(0)
    return Option(f"--{name}", value, (word, value))


def take(word: str, rest: list[str]) -> list[Option]:
    """The options of one word, with a value from `rest` if they need one; none, where sbatch knows no such option.

    For command lines on which sbatch's options stand among others. Raises NotUnderstood for a missing value.
    """
    known = _whole_name(word[2:].partition("=")[0]) in _NAMES if word.startswith("--") else word[1:2] in _LETTERS
    if not known or not word.startswith("-"):
        return []
    return [_long(word, rest)] if word.startswith("--") else _letters(word, rest)


def _whole_name(typed: str) -> str:
    """getopt_long takes any beginning that fits one option only."""
    if typed in _NAMES:
        return typed
    fitting = [name for name in _NAMES if name.startswith(typed)]
    return fitting[0] if len(fitting) == 1 else typed


def _letters(word: str, rest: list[str]) -> list[Option]:
    found: list[Option] = []
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        name = _LETTERS.get(letter)
        flag = f"--{name}" if name else f"-{letter}"
        if letter in _TAKES_NEXT_LETTERS and letters:
            return [*found, Option(flag, letters, (f"-{letter}{letters}",))]
        if name in _TAKES_VALUE:
            if not rest:
                raise NotUnderstood(f"option requires an argument -- '{letter}'")
            value = rest.pop(0)
            return [*found, Option(flag, value, (f"-{letter}", value))]
        found.append(Option(flag, None, (f"-{letter}",)))
    return found


def said_by_variables(environ: Mapping[str, str]) -> Component:
    """What SBATCH_* variables ask of a job, as options. They stand above #SBATCH lines and below the command line."""
    found = []
    for variable, name in _VARIABLES.items():
        if (value := environ.get(variable)) is not None:
            takes = name in _TAKES_VALUE or (value != "" and name in _MAY_TAKE_VALUE)
            if name == "requeue":  # it took no value before 26.05, and SBATCH_REQUEUE=1 means none
                takes = value == "expedite"
            found.append(Option(f"--{name}", value if takes else None))
    if (count := environ.get("SBATCH_REQ_SWITCH")) is not None:
        longest = environ.get("SBATCH_WAIT4SWITCH")
        found.append(Option("--switches", count + (f"@{longest}" if longest else "")))
    return tuple(found)


# Scripts.

_HETEROGENEOUS = re.compile(rb"#SBATCH\s+(hetjob|packjob)\b")
_ENCODING = re.compile(rb"#.*coding[:=]")  # PEP 263: it counts in the first two lines only


def wrapped(command: str) -> bytes:
    """The script that sbatch makes of --wrap."""
    return b"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n" + os.fsencode(command) + b"\n"


def said_by_script(body: bytes) -> tuple[Component, ...]:
    """What a script's #SBATCH lines say. sbatch reads them before the first line that is neither comment nor blank.

    What cannot be understood is left out: sbatch will say so.
    """
    components: list[Component] = [()]
    for line in _header(body):
        if _HETEROGENEOUS.match(line):
            components.append(())
        elif line.startswith(b"#SBATCH"):
            try:
                components[-1] += _options(_words(os.fsdecode(line[len("#SBATCH") :])))[0]
            except NotUnderstood:
                continue
    return tuple(components)


def assembled(
    body: bytes, defaults: Sequence[Option], variables: Component, components: Sequence[Component], cwd: str
) -> bytes:
    """The script with all that was said beside it, as #SBATCH lines of its own: submitted as it is, the same job.

    `defaults` stand before the script's own lines, and so below them; after those come what variables and then what
    the command line said, with paths as they are from `cwd`. The rest is the script, byte for byte. A body without
    "#!" is left alone, for sbatch to refuse.
    """
    if not body.startswith(b"#!"):
        return body
    header = _header(body)
    tail = body[sum(map(len, header)) :]
    header[-1] = header[-1] if header[-1].endswith(b"\n") else header[-1] + b"\n"
    below = _lines("what sbatch takes by itself", defaults, cwd)
    parts = _parts(header)
    parts += [([b"#SBATCH hetjob\n"], [], []) for _ in components[len(parts) :]]
    spoken = list(said_by_script(body)) + [()] * len(parts)
    text = b""
    for i, (start, own, end) in enumerate(parts):
        typed = components[i] if i < len(components) else ()
        above = _lines("said by variables", unchallenged(variables, (*spoken[i], *typed)), cwd)
        above += _lines("said on the command line", typed, cwd)
        text += b"".join([*start, *below, *own, *above, *end])
    return text + tail


def _parts(header: list[bytes]) -> list[tuple[list[bytes], list[bytes], list[bytes]]]:
    """The header by components: what stands before its first directive, up to its last one, and after it."""
    starts = [0, *(i for i, line in enumerate(header) if _HETEROGENEOUS.match(line))]
    parts = []
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(header)], strict=True)):
        lines = header[start:end]
        first = 1 if n or len(lines) < 2 or not _ENCODING.match(lines[1]) else 2
        own = [i for i, line in enumerate(lines) if i >= first and line.startswith((b"#SBATCH", b"#PBS"))]
        begin, close = (own[0], own[-1] + 1) if own else (first, first)
        parts.append((lines[:begin], lines[begin:close], lines[close:]))
    return parts


def unchallenged(variables: Component, others: Component) -> Component:
    """What variables said, without what `others`, who stand above them, rule out by another option."""
    said = {option.name for option in others}

    def stands(option: Option) -> bool:
        return not any(option.name in kind and (kind - {option.name}) & said for kind in _EXCLUDE_EACH_OTHER)

    return tuple(filter(stands, variables))


def _lines(title: str, options: Iterable[Option], cwd: str) -> list[bytes]:
    lines = [line for option in options if (line := directive(option, cwd)) is not None]
    return [os.fsencode(f"{line}\n") for line in (f"# Added by Headgate, {title}:", *lines)] if lines else []


def directive(option: Option, cwd: str) -> str | None:
    """The option as an #SBATCH line; None for one that is not about the job."""
    if option.name in OF_THE_SUBMISSION:
        return None
    if option.value is None:
        return f"#SBATCH {option.flag}"
    value = option.from_directory(cwd).value or ""
    if re.search(r"[\n\0]", value):
        return f"# left out, because its value has more than one line: {option.flag}"
    return f"#SBATCH {option.flag}={_quoted(value)}"


def _quoted(value: str) -> str:
    """As sbatch reads it back, which is not as a shell does: a backslash counts inside single quotes too."""
    if not re.search(r"""[\s"'\\#]""", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _header(body: bytes) -> list[bytes]:
    """The lines, with their ends, before the first command."""
    return list(itertools.takewhile(lambda line: line.lstrip()[:1] in (b"", b"#"), io.BytesIO(body)))


def _words(text: str) -> list[str]:
    """The words of an #SBATCH line, by sbatch's own rules: a # outside of quotes ends the line."""
    words: list[str] = []
    word: str | None = None
    quote, characters = "", iter(text)
    for c in characters:
        if c == "\\":
            word = (word or "") + next(characters, "")
        elif c == quote:
            quote = ""
        elif not quote and c in "\"'":
            word, quote = word or "", c
        elif not quote and c == "#":
            break
        elif not quote and c.isspace():
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + c
    return words if word is None else [*words, word]

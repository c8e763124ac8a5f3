"""A script's own job, submitted as sbatch would have done it, and a run folder that says what it was.

Nothing of ours stands between Slurm and the script. The folder's job.sh is the script with everything that was said
beside it, and what sbatch is given; its path, which names the run, stands in the job's submit line and finds the job
again.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from launchers import sbatch, spec
from launchers.freeze import Git, names_only, note_environment
from launchers.launch import new_id, write_job, write_whole
from launchers.run_folder import RunFolder
from launchers.sbatch import CommandLine, Option
from launchers.scheduler import JobRef
from registry import clock
from slurm.commands import CommandClient
from slurm.errors import SlurmError

log = logging.getLogger(__name__)

NOT_SBATCHS = frozenset({"dry-run", "quiet", "wrap"})  # what is dealt with here
JOB = re.compile(rb"(?:Submitted batch job )?(\d+)(?:(?:;| on cluster )(\S+))?\n")
COMPLAINT = re.compile(rb"sbatch: (error|fatal):")
NOTE_TIMEOUT_S = 5.0
# slurmctld may have taken the job although sbatch had no answer. "Unable to contact" says that it had no question.
NO_ANSWER = re.compile(rb"timed out|Zero Bytes|[Cc]ommunication|reset by peer|unexpected message")


@dataclass(frozen=True, slots=True)
class Submission:
    """All that will be submitted, before anything is made."""

    spec: spec.ScriptSpec
    script: bytes  # job.sh
    options: tuple[str, ...]  # sbatch's, as they were typed


def find_script(command: CommandLine, cwd: str, environ: Mapping[str, str]) -> Path | None:
    """The script file as sbatch looks for it: in --chdir (else here), then in PATH. None: it has none."""
    if command.script is None:
        return None
    if not command.script.startswith((".", "/")):
        chdir = command.last("chdir")
        places = [os.path.join(cwd, (chdir and chdir.value) or ""), *environ.get("PATH", "").split(":")]
        for place in places:
            if os.access(path := Path(cwd, place, command.script), os.R_OK):
                return path
    return Path(cwd, command.script)


def prepare(
    words: Sequence[str],
    command: CommandLine,
    body: bytes,
    path: Path | None,
    cwd: str,
    environ: Mapping[str, str],
    runs_dir: Path,
) -> Submission:
    """`body` is the script's text, `path` its file if it has one."""
    wrap = command.last("wrap")
    variables, own = sbatch.said_by_variables(environ), sbatch.said_by_script(body)[0]
    levels = (command.components[0], variables, own)

    def said(name: str) -> str | None:
        option = sbatch.last(name, *levels)
        return None if option is None else option.value

    script_name = "sbatch" if command.script is None else os.path.basename(command.script)
    job_name = said("job-name") or ("wrap" if wrap else script_name)
    name = safe_name(job_name)
    # Ids made within one second differ by four digits, which are drawn by lot: a loop of submissions meets itself.
    run_id = next(i for i in iter(lambda: new_id(name), None) if not (runs_dir / i).exists())
    work = os.path.join(cwd, said("chdir") or "")
    default = "slurm-%j.out" if said("array") is None else "slurm-%A_%a.out"
    error = said("error")
    described = spec.ScriptSpec(
        id=run_id,
        name=name,
        owner=getpass.getuser(),
        created_at=clock.now(),
        argv=_told(words, command),
        args=command.args,
        cwd=cwd,
        script=None if path is None else str(path),
        job_name=job_name,
        output=os.path.join(work, said("output") or default),
        error=None if error is None else os.path.join(work, error),
    )
    # The lowest of all levels: what sbatch would take by itself, and the key.
    defaults = [
        Option("--job-name", "wrap" if wrap else script_name),
        Option("--comment", run_id),
        Option("--chdir", cwd),
    ]
    typed = []
    for n, component in enumerate(command.components):
        typed += [":"] if n else []
        typed += [word for option in component if option.name not in NOT_SBATCHS for word in option.words]
    script = sbatch.assembled(body, defaults, variables, command.components, cwd)
    return Submission(described, script, tuple(typed))


def _told(words: Sequence[str], command: CommandLine) -> tuple[str, ...]:
    """The words as they were typed, for everybody to read: without what --export gives away, and --wrap's text."""
    told = {}
    for option in (option for component in command.components for option in component):
        if option.name == "export" and option.value is not None:
            told[option.words] = f"--export={names_only(option.value)}"
        elif option.name == "wrap":
            told[option.words] = "--wrap=(in job.sh)"
    shown: list[str] = []
    left = list(words)
    while left:
        hit = next((typed for typed in told if typed and tuple(left[: len(typed)]) == typed), None)
        shown.append(left[0] if hit is None else told[hit])
        del left[: 1 if hit is None else len(hit)]
    return tuple(shown)


def safe_name(job_name: str) -> str:
    """A job's name, which may hold anything, as a run's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", job_name.lower()).strip("-._")[:40] or "script"


@dataclass(frozen=True, slots=True)
class Outcome:
    returncode: int
    folder: RunFolder | None  # None: nothing was submitted, and nothing is kept
    job_id: str | None  # None with a folder: it is not known whether there is a job


def submit(
    submission: Submission,
    runs_dir: Path,
    environ: Mapping[str, str],
    out: IO[bytes],
    err: IO[bytes],
    *,
    quiet: bool = False,
) -> Outcome:
    """Make the run folder and run sbatch to its end, which with --wait is the job's; what it says goes to `out`, `err`.

    Raises OSError when the folder cannot be made or sbatch not be run; then nothing is left.
    """
    folder = RunFolder(runs_dir.resolve() / submission.spec.id)
    described = submission.spec
    folder.create()
    with ExitStack() as stack:
        try:
            folder.script.touch(0o600)  # a script, and what is exported to it, may hold anything
            folder.script.write_bytes(submission.script)
            note_environment(folder.environment, environ)
            write_whole(folder.spec, spec.dump(described))
            git = stack.enter_context(Git(Path(os.path.dirname(described.script or "") or described.cwd)))
            argv = ["sbatch", *submission.options, str(folder.script), *described.args]
            process = stack.enter_context(_started(argv, environ))
        except OSError:
            shutil.rmtree(folder.root, ignore_errors=True)
            raise
        assert process.stdout is not None and process.stderr is not None
        job_id, printed = None, b""
        complaints = _Pump(process.stderr, err, COMPLAINT if quiet else None)
        for line in process.stdout:
            printed += line
            if not quiet:
                _pass_on(line, out)
            if job_id is None and (found := JOB.fullmatch(line)):
                job_id = found[1].decode()
                _note(folder, job_id, found[2].decode() if found[2] else None, environ, git)
        complaints.join()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if job_id is None and process.returncode >= 0 and not printed and not NO_ANSWER.search(complaints.text):
        shutil.rmtree(folder.root, ignore_errors=True)
        return Outcome(code, None, None)
    return Outcome(code, folder, job_id)


def _note(folder: RunFolder, job_id: str, cluster: str | None, environ: Mapping[str, str], git: Git) -> None:
    """Write job.json, and what git knows. Where that fails the job is there all the same, and the key finds it."""
    try:
        if cluster is not None:  # another one, which only sbatch knows how to reach
            write_job(folder, JobRef(cluster, job_id, datetime.now(UTC).replace(microsecond=0)))
        else:
            client = CommandClient(environment=environ, timeout_s=NOTE_TIMEOUT_S)
            for job in client.jobs([job_id])[:1]:
                write_job(folder, JobRef(client.config().name, job_id, job.submitted_at))
        git.code().save(folder.code)
    except (SlurmError, OSError) as e:
        log.warning("run %s: job %s is not noted in its folder: %s", folder.id, job_id, e)


@contextmanager
def _started(argv: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running sbatch. What would end us ends it instead: its last words are still to be passed on, and noted."""
    early: list[int] = []
    take: Callable[[int], None] = early.append
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, lambda number, _: take(number)) for signum in ends}
    try:
        # Open files go along, as they would from a shell: --export-file takes the number of one.
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, env=environ, stdout=pipe, stderr=pipe, close_fds=False) as process:
            take = process.send_signal
            for signum in early:
                take(signum)
            yield process
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _pass_on(text: bytes, to: IO[bytes]) -> None:
    try:
        to.write(text)
        to.flush()
    except BrokenPipeError:
        pass  # nobody reads it any more; what it is about goes on


class _Pump(threading.Thread):
    """Copies a stream to another as it comes; of `only`, just the lines that begin so."""

    def __init__(self, source: IO[bytes], to: IO[bytes], only: re.Pattern[bytes] | None) -> None:
        super().__init__(daemon=True)
        self.text = b""
        self._source, self._to, self._only = source, to, only
        self.start()

    def run(self) -> None:
        for line in self._source:
            self.text += line
            if self._only is None or self._only.match(line):
                _pass_on(line, self._to)

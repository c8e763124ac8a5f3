"""`headgate submit` beside bare sbatch on the same cluster: whatever is typed, both say and do the same."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT, PrivateCluster
from waiting import wait_for

from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import ScriptSpec, load
from slurm.commands import CommandClient

Typed = subprocess.CompletedProcess[str]


@dataclass
class Desk:
    """Where somebody types: a directory with scripts, and a site on the cluster."""

    here: Path
    site: Path
    env: dict[str, str]
    jobs: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunFolder]:
        return [RunFolder(p) for p in sorted((self.site.parent / "shared" / "runs").glob("*"))]

    def script(self, text: str, name: str = "job.sh") -> str:
        (self.here / name).write_text(text)
        return name

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", "--site", str(self.site), "submit", *words]

    def ours(self, *words: str, stdin: str = "", **env: str) -> Typed:
        return self._run(self.argv(*words), stdin, env)

    def theirs(self, *words: str, stdin: str = "", **env: str) -> Typed:
        return self._run(["sbatch", *words], stdin, env)

    def _run(self, argv: list[str], stdin: str, env: Mapping[str, str]) -> Typed:
        done = subprocess.run(
            argv, cwd=self.here, env={**self.env, **env}, input=stdin, text=True, check=False, capture_output=True
        )
        self.jobs += re.findall(r"\d+", done.stdout)[:1]
        return done

    def shown(self, done: Typed) -> str:
        """What Slurm says of a job that was just submitted, but for what is the job's own: its number, times, script.

        Its comment is the run's id unless its owner gave one.
        """
        assert done.returncode == 0, done.stderr
        job = re.findall(r"\d+", done.stdout)[0]
        text = subprocess.run(
            ["scontrol", "show", "job", job], env=self.env, text=True, check=True, capture_output=True
        ).stdout
        text = re.sub(r"Comment=\S+-\d{8}-\d{6}-[0-9a-f]{4} *\n\s*", "", text)
        text = re.sub(
            r"\b(JobId|HetJobId|HetJobIdSet|HetJobIdOffset|ArrayJobId|slurm-|script-|/)=?[\d,-]+", r"\1", text
        )
        return re.sub(r"((Submit|Eligible|Accrue|Start|End|LastSchedEval)(Time)?|Command|Priority)=\S+", "", text)


@pytest.fixture
def desk(slurm_cluster: PrivateCluster, tmp_path: Path) -> Iterator[Desk]:
    here = tmp_path / "here"
    here.mkdir()
    made = Desk(
        here, site_file(tmp_path, slurm_cluster.env["SLURM_CONF"]), {**slurm_cluster.env, "PYTHONPATH": str(ROOT)}
    )
    yield made
    subprocess.run(["scancel", *made.jobs], env=slurm_cluster.env, check=False, capture_output=True)


def site_file(root: Path, conf: str) -> Path:
    path = root / "site.toml"
    path.write_text(
        f'name = "test"\nstate_dir = "{root}/state"\nshared_dir = "{root}/shared"\n'
        f'[scheduler]\nkind = "slurm"\nslurm_conf = "{conf}"\n'
    )
    return path


BASH = """#!/bin/bash
#SBATCH -p cpu
for word in "$@"; do echo "<$word>"; done
pwd; echo "$SLURM_JOB_NAME $SLURM_SUBMIT_DIR $FROM_OUTSIDE"; basename "$0"; echo end
"""
PYTHON = f"""#!{sys.executable}
#SBATCH -p cpu
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["SLURM_JOB_NAME"], "end")
"""


@pytest.mark.parametrize(
    ("text", "words", "from_stdin"),
    [
        (BASH, ["a b", "--wait", "$HOME"], False),
        (PYTHON, ["x"], False),
        (
            BASH.replace("$SLURM_JOB_NAME", ""),
            [],
            True,
        ),  # which sbatch alone leaves unset there, for all the job's name
        (None, ["-p", "cpu", "--wrap", "echo \"$SLURM_JOB_NAME\" '#' \\\\; pwd; echo end"], False),
    ],
    ids=["bash with arguments", "python", "from standard input", "--wrap"],
)
def test_a_script_prints_under_both_the_same(desk: Desk, text: str | None, words: list[str], from_stdin: bool) -> None:
    script = [] if text is None or from_stdin else [desk.script(text)]
    stdin = text or "" if from_stdin else ""
    outputs = []
    for n, submit in enumerate((desk.ours, desk.theirs)):
        done = submit("-o", f"{n}.out", *script, *words, stdin=stdin, FROM_OUTSIDE="here")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"Submitted batch job \d+\n", done.stdout)
        outputs.append(desk.here / f"{n}.out")
    wait_for(lambda: all(output.exists() and output.read_text().endswith("end\n") for output in outputs))
    assert outputs[0].read_text() == outputs[1].read_text()


SAYS = (
    "#!/bin/bash\n#SBATCH -p cpu -J from-script --mem=100 --time=7 --hold\n#SBATCH --comment='its \"own\" words'\n:\n"
)
PLAIN = "#!/bin/bash\n:\n"


@pytest.mark.parametrize(
    ("text", "words", "env"),
    [
        (PLAIN, ["-H"], {}),
        (SAYS, [], {}),
        (SAYS, [], {"SBATCH_JOB_NAME": "from-variable", "SBATCH_TIMELIMIT": "8", "SBATCH_PARTITION": "gpu"}),
        (SAYS, ["-J", "typed", "-t9"], {"SBATCH_JOB_NAME": "from-variable", "SBATCH_TIMELIMIT": "8"}),
        (SAYS, ["--comment", 'a "b" \\ #c', "--nice=5", "-n2", "--exclusive"], {"SBATCH_REQUEUE": "1"}),
        (SAYS, [], {"SBATCH_MEM_PER_CPU": "50"}),  # the script's --mem beats it; as two #SBATCH lines they would clash
        (SAYS, ["-D", "/tmp", "-o", "%x-%j.out", "-e", "err", "--mail-type=END", "--begin=now+1hour"], {}),
        (PLAIN, ["-H", "-p", "gpu", "--gpus-per-node=1", "-C", "h100", "--export=A=1,B", "--signal=B:USR1@30"], {}),
        (PLAIN, ["-H", "-a", "1-4%2"], {}),
        (PLAIN, ["-H", "-n1", ":", "-n2"], {}),
    ],
)
def test_slurm_sees_the_same_job_and_sees_it_again_when_job_sh_is_submitted_by_hand(
    desk: Desk, text: str, words: list[str], env: dict[str, str]
) -> None:
    script = desk.script(text, "a.sh")
    expected = desk.shown(desk.theirs(*words, script, "x", **env))
    assert desk.shown(desk.ours(*words, script, "x", **env)) == expected
    (run,) = desk.runs
    elsewhere = Desk(run.root, desk.site, desk.env, desk.jobs)
    again = elsewhere.shown(elsewhere.theirs("job.sh", "x"))
    assert again == expected


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-file"],
        ["-p", "nowhere", "job.sh"],
        ["--no-such-option", "job.sh"],
        ["-p"],
        ["--p=cpu", "job.sh"],
        ["--wrap", "echo", "job.sh"],
        ["-v", "-Q", "job.sh"],
        ["--mem=lots", "job.sh"],
        ["dos.sh"],
        ["text.txt"],
        ["-d", "whenever:1", "job.sh"],
        [],  # nothing on standard input
        ["--version"],
        ["--usage"],
        ["-p", "cpu", "--test-only", "job.sh"],
        ["testonly.sh"],
    ],
)
def test_sbatchs_own_words_and_exit_code_are_given_and_nothing_is_left(desk: Desk, words: list[str]) -> None:
    desk.script(PLAIN)
    desk.script("#!/bin/bash\r\n:\r\n", "dos.sh")
    desk.script("no shebang\n", "text.txt")
    desk.script("#!/bin/sh\n#SBATCH -p cpu --test-only\n", "testonly.sh")
    theirs, ours = desk.theirs(*words), desk.ours(*words)

    def said(done: Typed) -> tuple[int, str, str]:
        return done.returncode, done.stdout, re.sub(r"Job \d+ to start at \S+", "Job N to start", done.stderr)

    if words == ["--usage"]:
        assert ours.stdout.startswith("Usage: headgate submit ") and ours.stdout.endswith(theirs.stdout)
    else:
        assert said(ours) == said(theirs)
    assert desk.runs == []


def test_parsable_prints_the_number_and_quiet_prints_nothing(desk: Desk) -> None:
    script = desk.script(PLAIN)
    assert re.fullmatch(r"\d+\n", desk.ours("-H", "--parsable", script).stdout)
    assert re.fullmatch(
        r"\d+\n", desk.ours("-H", "-p", "cpu", desk.script("#!/bin/sh\n#SBATCH --parsable\n", "p.sh")).stdout
    )
    quiet = desk.ours("-HQ", script)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    noted = [read_job(run) for run in desk.runs]
    assert len(noted) == 3 and all(noted)
    desk.jobs += [job.job_id for job in noted if job]


def test_a_dependency_holds_a_job_until_the_other_has_ended(desk: Desk) -> None:
    script = desk.script(PLAIN)
    first = desk.ours("-H", "--parsable", script).stdout.strip()
    second = desk.ours("--parsable", "-d", f"afterok:{first}", script).stdout.strip()
    squeue = ["squeue", "-h", "-j", second, "-o", "%E"]
    assert first in subprocess.run(squeue, env=desk.env, text=True, check=True, capture_output=True).stdout


def test_wait_says_the_job_at_once_and_ends_as_the_job_does(desk: Desk) -> None:
    script = desk.script("#!/bin/bash\n#SBATCH -p cpu\nwhile [ ! -e go ]; do sleep 0.1; done; exit 7\n")
    with subprocess.Popen(
        desk.argv("--wait", script), cwd=desk.here, env=desk.env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        job = process.stdout.readline().removeprefix("Submitted batch job ").strip()
        desk.jobs.append(job)
        noted = wait_for(lambda: read_job(desk.runs[0]))
        assert (noted.job_id, process.poll()) == (job, None)
        (desk.here / "go").touch()
        assert process.wait(60) == 7


def test_the_run_folder_says_what_was_submitted(desk: Desk) -> None:
    text = "#!/bin/bash\n#SBATCH -o logs/%x.out\necho 'x'\r#"
    script = desk.script(text, "My Job.sh")
    done = desk.ours(
        "-H", "-J", "My Job", script, "a", "b", SECRET_TOKEN="s3cret", SLURM_MY_KEY="s3cret", OMP_NUM_THREADS="3"
    )
    assert done.returncode == 0, done.stderr
    (run,) = desk.runs
    described = load(run.spec)
    assert isinstance(described, ScriptSpec)
    assert (described.id, described.name, described.job_name) == (run.id, "my-job", "My Job")
    assert described.argv == ("-H", "-J", "My Job", script, "a", "b")
    assert (described.args, described.cwd) == (("a", "b"), str(desk.here))
    assert described.script == str(desk.here / script)
    assert described.output == str(desk.here / "logs/%x.out")
    assert run.script.read_bytes().endswith(b"echo 'x'\r#")
    assert json.loads(run.environment.read_text())["OMP_NUM_THREADS"] == "3"
    assert "s3cret" not in run.environment.read_text()
    assert (run.code / "git.json").exists()


def test_dry_run_prints_the_script_and_submits_nothing(desk: Desk) -> None:
    script = desk.script(SAYS, "a.sh")
    printed = desk.ours("--dry-run", "-N2", script)
    assert (printed.returncode, printed.stderr, desk.runs) == (0, "", [])
    desk.ours("-N2", script)
    (run,) = desk.runs
    an_id = r"a\.sh-\d{8}-\d{6}-[0-9a-f]{4}|from-script-\d{8}-\d{6}-[0-9a-f]{4}"
    assert re.sub(an_id, "ID", printed.stdout) == re.sub(an_id, "ID", run.script.read_text())


def test_open_files_go_along_to_sbatch(desk: Desk) -> None:
    (desk.here / "exported").write_bytes(b"A=1\0")
    script = desk.script(PLAIN)
    line = shlex.join([*desk.argv("-H", "--export-file=3", script)]) + " 3<exported"
    done = subprocess.run(["sh", "-c", line], cwd=desk.here, env=desk.env, text=True, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    desk.jobs += re.findall(r"\d+", done.stdout)


def test_scripts_are_looked_for_where_sbatch_looks(desk: Desk) -> None:
    for place in ("bin", "work"):
        (desk.here / place).mkdir()
    desk.script(PLAIN, "bin/in-path.sh")
    desk.script(PLAIN, "work/in-chdir.sh")
    path = f"{desk.here / 'bin'}:{os.environ['PATH']}"
    for words in (["in-path.sh"], ["-D", "work", "in-chdir.sh"]):
        assert desk.shown(desk.ours("-H", *words, PATH=path)) == desk.shown(desk.theirs("-H", *words, PATH=path))
    found = [load(run.spec) for run in desk.runs]
    assert {s.script for s in found if isinstance(s, ScriptSpec)} == {
        str(desk.here / "bin/in-path.sh"),
        str(desk.here / "work/in-chdir.sh"),
    }


@pytest.mark.parametrize("own", [[], ["--comment=mine"]], ids=["no comment", "a comment of its owner's"])
def test_killed_before_the_job_was_noted_its_key_finds_it(desk: Desk, own: list[str]) -> None:
    killer = desk.here / "squeue"  # the first thing that is run after sbatch
    killer.write_text("#!/bin/sh\nkill -9 $PPID\n")
    killer.chmod(0o755)
    script = desk.script(PLAIN)
    done = desk.ours("-pcpu", *own, script, PATH=f"{desk.here}:{os.environ['PATH']}")
    assert done.returncode == -9
    (run,) = desk.runs
    assert read_job(run) is None
    scheduler = SlurmScheduler(CommandClient(environment=desk.env))
    found = wait_for(lambda: scheduler.find(run.id))
    assert done.stdout == f"Submitted batch job {found.job_id}\n"


# Without a cluster.


@pytest.fixture
def pretended(tmp_path: Path) -> Callable[[str], Typed]:
    """`headgate submit job.sh` with an sbatch that does as a test says: for faults that no cluster has at will."""

    def submit(sbatch: str) -> Typed:
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{sbatch}\n")
        (tmp_path / "sbatch").chmod(0o755)
        (tmp_path / "slurm.conf").touch()
        (tmp_path / "job.sh").write_text(PLAIN)
        site = site_file(tmp_path, str(tmp_path / "slurm.conf"))
        argv = [sys.executable, "-m", "cli.main", "--site", str(site), "submit", "job.sh"]
        env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        return subprocess.run(argv, cwd=tmp_path, env=env, text=True, check=False, capture_output=True)

    return submit


def test_a_submission_without_an_answer_keeps_its_folder_and_says_so(
    pretended: Callable[[str], Typed], tmp_path: Path
) -> None:
    words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    done = pretended(f"echo '{words}' >&2; exit 1")
    (folder,) = (tmp_path / "shared" / "runs").iterdir()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{words}\n")
    assert f"whether there is a job is not known; run {folder.name}" in done.stderr


def test_a_slurmctld_that_was_never_reached_leaves_nothing(pretended: Callable[[str], Typed], tmp_path: Path) -> None:
    done = pretended(
        "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller' >&2; exit 1"
    )
    assert (done.returncode, list((tmp_path / "shared" / "runs").iterdir())) == (1, [])


def test_an_interrupt_ends_the_wait_and_not_the_job(pretended: Callable[[str], Typed], tmp_path: Path) -> None:
    done = pretended("echo Submitted batch job 7; kill -INT $PPID; exec sleep 60")
    assert (done.returncode, done.stdout) == (130, "Submitted batch job 7\n")
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "shared" / "runs").iterdir())) == 1


def test_a_site_without_slurm_says_so(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(f'name = "x"\nstate_dir = "{tmp_path}"\nshared_dir = "{tmp_path}"\n[scheduler]\nkind = "local"\n')
    argv = [sys.executable, "-m", "cli.main", "--site", str(site), "submit", "job.sh"]
    done = subprocess.run(argv, cwd=ROOT, text=True, check=False, capture_output=True)
    assert done.returncode == 1
    assert f"{site}: scheduler.kind is 'local', and `headgate submit` needs Slurm" in done.stderr

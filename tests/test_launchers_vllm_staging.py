"""Weights are copied to a node's own disk once, and stay there while somebody loads them."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from platform_fixtures import ROOT
from specs import serve

from launchers.spec import ServeSpec
from launchers.vllm.staging import MAKING, RESERVE, files_of, name_of, staged

PLENTY = 1 << 50

# Says what it was told and the path, then holds the copy until its standard input ends.
HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from specs import serve
from launchers.vllm.staging import staged
with staged(serve(model_path=sys.argv[2], stage_dir=sys.argv[3]), lambda words: print(words, flush=True)) as path:
    print("path", path, flush=True)
    sys.stdin.read()
"""


def model(root: Path, name: str = "tiny", size: int = 3000) -> Path:
    directory = root / name
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(name.encode()[:1] * size)
    (directory / "1_Pooling" / "config.json").write_text("[]")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "x").write_text("not copied")
    return directory


def spec_of(directory: Path, stage_dir: Path) -> ServeSpec:
    return serve(model_path=str(directory), stage_dir=str(stage_dir))


def copies(stage_dir: Path) -> list[str]:
    return sorted(e.name.rpartition("-")[0] for e in stage_dir.iterdir() if e.is_dir())


def test_a_copy_is_whole_and_found_again(tmp_path: Path) -> None:
    source, stage_dir, told = model(tmp_path), tmp_path / "stage", list[str]()
    for _ in range(2):
        with staged(spec_of(source, stage_dir), told.append) as path:
            assert Path(path).parent == stage_dir
            assert [f.name for f in files_of(Path(path))] == [f.name for f in files_of(source)]
            assert (Path(path) / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert len(told) == 1
    assert "staged" in told[0]
    assert copies(stage_dir) == ["tiny"]


def test_without_a_stage_directory_the_model_stays_where_it_is(tmp_path: Path) -> None:
    with staged(serve(model_path="/models/m"), pytest.fail) as path:
        assert path == "/models/m"


def test_two_processes_share_one_copy_which_nobody_removes_under_them(tmp_path: Path) -> None:
    source, stage_dir = model(tmp_path, size=40 << 20), tmp_path / "stage"
    argv = [sys.executable, "-c", HOLD, str(ROOT / "tests"), str(source), str(stage_dir)]
    both = [
        subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        said: list[list[str]] = [[], []]
        for process, lines in zip(both, said, strict=True):
            assert process.stdout is not None
            while not lines or not lines[-1].startswith("path"):
                lines.append(process.stdout.readline().strip())
        assert said[0][-1] == said[1][-1]
        assert len([line for lines in said for line in lines if "are staged at" in line]) == 1
        # One of them uses it still: another model finds no room, and is told so.
        assert both[0].stdin is not None
        both[0].stdin.close()
        both[0].wait(60)
        told: list[str] = []
        other = model(tmp_path, "other")
        with staged(spec_of(other, stage_dir), told.append, free=lambda _: 0) as path:
            assert path == str(other)
        assert "more than can be freed" in told[0]
        assert copies(stage_dir) == ["tiny"]
        both[1].kill()  # a lock ends with its process, however that ends
        both[1].wait()
        with staged(spec_of(other, stage_dir), told.append, free=lambda _: RESERVE) as path:
            assert path != str(other)
        assert copies(stage_dir) == ["other"]
    finally:
        for process in both:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def test_the_least_recently_used_copy_goes_first_and_only_when_that_helps(tmp_path: Path) -> None:
    stage_dir, told = tmp_path / "stage", list[str]()
    for n, name in enumerate(("a", "b", "c")):
        source = model(tmp_path, name)
        with staged(spec_of(source, stage_dir), told.append):
            pass
        os.utime(stage_dir / f"{name_of(source, files_of(source))}.lock", (n, n))
    with staged(spec_of(tmp_path / "a", stage_dir), told.append):
        pass  # now the most recent one
    huge = model(tmp_path, "huge", 1_000_000)
    with staged(spec_of(huge, stage_dir), told.append, free=lambda _: RESERVE) as path:
        assert path == str(huge)
    assert copies(stage_dir) == ["a", "b", "c"]
    small = model(tmp_path, "small")
    with staged(spec_of(small, stage_dir), told.append, free=lambda _: RESERVE):
        assert copies(stage_dir) == ["a", "c", "small"]


def test_what_is_no_copy_is_not_removed_to_make_room(tmp_path: Path) -> None:
    stage_dir, told = tmp_path / "stage", list[str]()
    for name in ("results", f"cache-{'0' * 32}"):  # the other one looks like a copy, and has no lock
        (stage_dir / name).mkdir(parents=True, mode=0o700)
        (stage_dir / name / "precious").write_bytes(bytes(100_000))
    stage_dir.chmod(0o700)
    source = model(tmp_path)
    with staged(spec_of(source, stage_dir), told.append, free=lambda _: RESERVE) as path:
        assert path == str(source)
    assert "more than can be freed" in told[0]
    assert len(list(stage_dir.glob("*/precious"))) == 2 and not list(stage_dir.glob("results*.lock"))


def test_a_model_that_changed_is_another(tmp_path: Path) -> None:
    source, stage_dir = model(tmp_path), tmp_path / "stage"
    with staged(spec_of(source, stage_dir), lambda _: None) as before:
        (source / "model.safetensors").write_bytes(b"new")
        with staged(spec_of(source, stage_dir), lambda _: None) as after:
            assert after != before
            assert (Path(after) / "model.safetensors").read_bytes() == b"new"


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    source, stage_dir = model(tmp_path), tmp_path / "stage"
    with staged(spec_of(source, stage_dir), lambda _: None) as path:
        damaged = Path(path) / "model.safetensors"
    os.truncate(damaged, 10)
    with staged(spec_of(source, stage_dir), lambda _: None) as path:
        assert damaged.read_bytes() == (source / "model.safetensors").read_bytes()


def test_what_a_killed_process_left_half_done_is_removed(tmp_path: Path) -> None:
    source, stage_dir = model(tmp_path), tmp_path / "stage"
    stage_dir.mkdir(mode=0o700)
    (stage_dir / ".copy-tiny-1" / "below").mkdir(parents=True)
    with staged(spec_of(source, stage_dir), lambda _: None):
        assert not list(stage_dir.glob(".copy-*"))


def test_whoever_is_told_to_end_does_not_wait_for_anothers_copy(tmp_path: Path) -> None:
    source, stage_dir, told = model(tmp_path), tmp_path / "stage", list[str]()
    stage_dir.mkdir(mode=0o700)
    with (stage_dir / MAKING).open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        with staged(spec_of(source, stage_dir), told.append, give_up=lambda: True) as path:
            assert path == str(source)
    assert "told to end while another one copied" in told[0]


def test_who_is_told_to_end_leaves_nothing_half_done(tmp_path: Path) -> None:
    source, stage_dir, told = model(tmp_path), tmp_path / "stage", list[str]()
    with staged(spec_of(source, stage_dir), told.append, give_up=lambda: True) as path:
        assert path == str(source)
    assert "told to end while it copied" in told[0]
    assert not [e for e in stage_dir.iterdir() if e.is_dir()]


@pytest.mark.parametrize(
    ("stage_dir", "why"),
    [
        ("$NO_SUCH_VARIABLE/stage", r"\$NO_SUCH_VARIABLE is not set in this job"),
        ("stage", "stage is not an absolute path"),
        ("/proc/stage", "/proc/stage"),
    ],
)
def test_where_nothing_can_be_staged_the_original_serves_and_it_is_said_why(
    stage_dir: str, why: str, tmp_path: Path
) -> None:
    source, told = model(tmp_path), list[str]()
    with staged(serve(model_path=str(source), stage_dir=stage_dir), told.append) as path:
        assert path == str(source)
    assert f"read from {source}" in told[0]
    assert re.search(why, told[0])


def test_a_directory_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    source, stage_dir, told = model(tmp_path), tmp_path / "stage", list[str]()
    stage_dir.mkdir()
    stage_dir.chmod(0o777)
    with staged(spec_of(source, stage_dir), told.append) as path:
        assert path == str(source)
    assert f"only uid {os.getuid()} may write" in told[0]


def test_a_jobs_own_variables_name_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_SCRATCH", str(tmp_path / "scratch"))
    source = model(tmp_path)
    with staged(serve(model_path=str(source), stage_dir="$JOB_SCRATCH/weights"), lambda _: None) as path:
        assert Path(path).parent == tmp_path / "scratch" / "weights"

"""What a supervisor says while the shared file system takes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launchers import announce
from launchers.voice import MOST, RETRY_S, Voice


class Now:
    def __init__(self) -> None:
        self.ns, self.s, self.slept = 10**18, 100.0, 0.0

    def sleep(self, seconds: float) -> None:
        self.s += seconds
        self.slept += seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def voice(tmp_path: Path, now: Now) -> Voice:
    return Voice(tmp_path / "said", lambda: now.ns, lambda: now.s, now.sleep)


def said(tmp_path: Path) -> list[announce.Announcement]:
    directory = tmp_path / "said"
    return [announce.read(directory / name, os.getuid()) for name in announce.names(directory)]


def test_what_could_not_be_written_is_said_later_with_its_own_time_and_in_order(
    tmp_path: Path, voice: Voice, now: Now
) -> None:
    voice.say("attempt-started", job_id="7")
    now.ns -= 10**9  # the clock was set back
    voice.say("replica-ready", port=1)
    assert said(tmp_path) == []
    (tmp_path / "said").mkdir()
    voice.retry()
    assert said(tmp_path) == []  # not every time it is asked
    now.s += RETRY_S
    voice.retry()
    assert [(a.kind, a.at) for a in said(tmp_path)] == [("attempt-started", 1e9), ("replica-ready", 1e9)]
    voice.say("attempt-ended", exit_code=0)
    assert [a.kind for a in said(tmp_path)][-1] == "attempt-ended"
    assert sorted(path.name[0] for path in (tmp_path / "said").iterdir()) == ["0"] * 3  # and nothing half done


def test_the_last_word_is_waited_for_but_not_for_ever(tmp_path: Path, voice: Voice, now: Now) -> None:
    (tmp_path / "said").touch()  # no directory: as one that cannot be reached
    voice.say("attempt-ended", exit_code=0)
    assert not voice.finish(60) and now.slept == 60
    (tmp_path / "said").unlink()
    (tmp_path / "said").mkdir()
    assert voice.finish(60) and [a.kind for a in said(tmp_path)] == ["attempt-ended"]
    assert voice.finish(60) and now.slept <= 62


def test_nobody_waits_for_a_run_that_was_deleted(voice: Voice, now: Now) -> None:
    voice.say("attempt-ended", exit_code=0)
    assert not voice.finish(60) and now.slept == 0


def test_of_too_many_that_wait_the_oldest_go_first(tmp_path: Path, voice: Voice, now: Now) -> None:
    for n in range(MOST + 3):
        voice.say("checkpoint", iteration=n)
    (tmp_path / "said").mkdir()
    assert voice.finish()
    assert [a.facts["iteration"] for a in said(tmp_path)] == list(range(3, MOST + 3))

"""Who may write a run, by files on a disk that the run's jobs share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from specs import folder_of, train

from launchers import claims
from launchers.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = folder_of(train(), tmp_path)
    claims.claim(made, "7.0")
    return made


def aged(path: Path, seconds: float) -> None:
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def test_whoever_claims_a_run_first_has_it_and_a_second_waits(folder: RunFolder) -> None:
    aged(folder.rendezvous / "7.0.claim", 1)
    claims.claim(folder, "8.0")
    assert claims.rival(folder, "8.0", ()) == "7.0"
    assert claims.rival(folder, "7.0", ()) is None


def test_of_two_that_claim_it_in_the_same_instant_exactly_one_has_it(folder: RunFolder) -> None:
    claims.claim(folder, "8.0")
    same = os.stat(folder.rendezvous / "7.0.claim")
    os.utime(folder.rendezvous / "8.0.claim", ns=(same.st_atime_ns, same.st_mtime_ns))
    assert [claims.rival(folder, attempt, ()) for attempt in ("7.0", "8.0")] == [None, "7.0"]


def test_one_that_ended_gave_up_or_fell_silent_holds_nothing(folder: RunFolder) -> None:
    aged(folder.rendezvous / "7.0.claim", 1)
    claims.claim(folder, "8.0")
    assert claims.rival(folder, "8.0", {"7.0"}) is None
    aged(folder.rendezvous / "7.0.claim", claims.SILENT_S)
    assert claims.rival(folder, "8.0", ()) is None
    claims.show_alive(folder, "7.0")
    assert claims.rival(folder, "8.0", ()) == "7.0"
    claims.give_up(folder, "7.0")
    assert claims.rival(folder, "8.0", ()) is None


def test_an_earlier_life_of_the_same_job_is_waited_for_less_long_and_ends_when_it_sees_the_later(
    folder: RunFolder,
) -> None:
    assert not claims.superseded(folder, "7.0")
    aged(folder.rendezvous / "7.0.claim", claims.SILENT_BEFORE_S - 5)
    claims.claim(folder, "7.1")
    assert claims.rival(folder, "7.1", ()) == "7.0"
    assert claims.superseded(folder, "7.0") and not claims.superseded(folder, "7.1")
    aged(folder.rendezvous / "7.0.claim", claims.SILENT_BEFORE_S)
    assert claims.rival(folder, "7.1", ()) is None


def test_one_that_wakes_up_after_another_job_took_over_sees_that(folder: RunFolder) -> None:
    aged(folder.rendezvous / "7.0.claim", claims.SILENT_S)
    claims.claim(folder, "8.0")
    assert claims.rival(folder, "8.0", ()) is None
    assert not claims.superseded(folder, "7.0")  # 8.0 may still find that 7.0 lives
    claims.show_alive(folder, "8.0")
    assert claims.superseded(folder, "7.0") and not claims.superseded(folder, "8.0")


def test_a_sign_of_life_that_the_disk_does_not_take_is_missed_and_nothing_more(folder: RunFolder) -> None:
    shutil.rmtree(folder.rendezvous)
    claims.beat(folder, "7.0")
    claims.show_alive(folder, "7.0")
    assert claims.alive_at(folder, "7.0") is None and not claims.superseded(folder, "7.0")

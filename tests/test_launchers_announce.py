"""Announcements: whole or absent when written, and believed only when nothing about them is off when read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launchers import announce
from launchers.announce import Announcement, AnnouncementError

STATED = "00000000000000000007-checkpoint.json"


def read(path: Path) -> Announcement:
    return announce.read(path, os.getuid())


def test_a_fact_is_read_back_as_it_was_stated(tmp_path: Path) -> None:
    path = announce.announce(tmp_path, "checkpoint", iteration=10, path="checkpoints/10")
    said = read(path)
    assert (said.name, said.kind, said.facts) == (path.name, "checkpoint", {"iteration": 10, "path": "checkpoints/10"})
    assert abs(said.at - path.stat().st_mtime) < 5
    assert os.listdir(tmp_path) == [path.name]  # no temporary file is left


def test_names_are_in_the_order_in_which_facts_were_stated(tmp_path: Path) -> None:
    kinds = ["attempt-started", "replica-ready", "checkpoint", "attempt-ended", "attempt-started"]
    for kind in kinds:
        announce.announce(tmp_path, kind)
    assert [read(tmp_path / name).kind for name in announce.names(tmp_path)] == kinds


def test_a_fact_that_could_not_be_written_whole_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        announce.announce(tmp_path, "checkpoint", path=Path("not JSON"))
    assert list(announce.names(tmp_path)) == []


def test_only_files_that_are_named_like_announcements_are_looked_at(tmp_path: Path) -> None:
    for name in (f".{STATED}.12", "notes.json", "7-checkpoint.json", f"{STATED}~", "core.1"):
        (tmp_path / name).touch()
    os.close(os.open(os.fsencode(tmp_path) + b"/00000000000000000008-\xff.json", os.O_CREAT))
    assert list(announce.names(tmp_path)) == []
    assert list(announce.names(tmp_path / "absent")) == []


def truth(**changed: Any) -> str:
    return json.dumps({"schema": announce.SCHEMA, "kind": "checkpoint", "at": 7.0, **changed})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (truth(schema=2), "schema 2 is not known here; this Headgate reads schema 1"),
        (truth(kind="rumour"), "kind 'rumour' is none of attempt-started, "),
        (truth(kind=["checkpoint"]), "is none of attempt-started, "),
        (truth(at="soon"), "could not convert string to float"),
        (truth(at=[]), "not an announcement"),
        *((truth(at=at), "is no instant") for at in (1e300, 1e15, -1.0, float("nan"), float("inf"))),
        ('{"schema": 1, "kind": "checkpoint"}', "'at' is missing"),
        ("[1]", "not a JSON object"),
        ("", "not JSON"),
        (truth()[:-5], "not JSON"),
        ("[" * 100_000, "not JSON"),
        (truth(path="\ud800"), "not JSON"),
        (truth(tail="x" * announce.MAX_BYTES), f"more than {announce.MAX_BYTES} bytes"),
    ],
)
def test_what_is_not_an_announcement_is_not_believed(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / STATED
    path.write_text(text)
    with pytest.raises(AnnouncementError) as e:
        read(path)
    assert str(e.value).startswith(f"{path}: ") and problem in str(e.value)


def test_what_is_not_utf8_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / STATED).write_bytes(b'{"schema": 1, "kind": "\xff"}')
    with pytest.raises(AnnouncementError):
        read(tmp_path / STATED)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.symlink_to(path.with_name("real")), "symbolic links"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
    ],
)
def test_links_pipes_and_directories_are_not_followed_waited_for_or_read(
    tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    (tmp_path / "real").write_text(truth())
    make(tmp_path / STATED)
    with pytest.raises(AnnouncementError, match=problem):
        read(tmp_path / STATED)


def test_another_users_file_is_not_believed(tmp_path: Path) -> None:
    path = announce.announce(tmp_path, "checkpoint")
    with pytest.raises(AnnouncementError, match=f"owned by uid {os.getuid()}, the run belongs to uid 4711"):
        announce.read(path, 4711)


def test_a_file_that_is_not_there_may_be_there_later(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / STATED)

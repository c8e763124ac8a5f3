"""What is asked of a run, where its checkpoints lie, and what it says of itself: without any training."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from launchers.megatron import manifest, shelf
from launchers.megatron.progress import Progress
from launchers.megatron.stop import Asked, Switches


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_switches_are_looked_at_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    switches = Switches(tmp_path, clock)
    assert not switches.on("save")
    (tmp_path / "save").touch()
    clock.now += 0.9
    assert not switches.on("save")
    clock.now += 0.1
    assert switches.on("save")
    switches.turn_off("save", "stop")
    assert not switches.on("save")
    assert not (tmp_path / "save").exists()


def test_only_plain_files_are_switches_and_a_folder_without_any_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    (tmp_path / "kill").symlink_to("/etc/passwd")
    switches = Switches(tmp_path)
    assert not switches.on("stop")
    assert not switches.on("kill")
    assert not Switches(tmp_path / "absent").on("stop")


def test_a_file_system_that_fails_for_a_moment_does_not_end_training_and_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    (tmp_path / "save").touch()
    switches, progress = Switches(tmp_path, clock), Progress(tmp_path / "progress.json", True, "7.0", clock)
    assert switches.on("save")

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as broken:
        broken.setattr(os, "scandir", stale)
        broken.setattr(os, "rename", stale)
        for _ in range(2):
            clock.now += 1
            assert switches.on("save")  # as it last was
            progress.phase("training")
        with pytest.raises(OSError, match="Stale"):  # never taken for "nothing is pinned"
            switches.pinned()
    assert capsys.readouterr().out.count("Stale file handle") == 2  # one for each of the two
    progress.phase("training", iteration=3)
    assert json.loads((tmp_path / "progress.json").read_text())["iteration"] == 3


def test_pins_name_the_iterations_to_keep(tmp_path: Path) -> None:
    for name in ("keep-iter_0000100", "keep-iter_0012000", "keep-iter_7", "keep-all", "save"):
        (tmp_path / name).touch()
    assert Switches(tmp_path).pinned() == {100, 12000}


def test_saving_alone_does_not_end_a_run_and_kill_is_the_strongest_reason() -> None:
    assert not Asked(save=True).ends
    assert Asked(signal=True).ends
    assert Asked(signal=True, stop=True, kill=True).words == "the switch kill"
    assert Asked(signal=True).words == "a signal"


def test_progress_is_replaced_at_every_phase_and_else_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "progress.json", Clock()
    progress = Progress(path, True, "7.0", clock)
    progress.phase("training", iteration=4, iterations=20)
    progress.at(iteration=5)
    assert json.loads(path.read_text())["iteration"] == 4
    clock.now += 1
    progress.at(iteration=6)
    told = json.loads(path.read_text())
    assert (told["attempt"], told["phase"], told["iteration"], told["at"]) == ("7.0", "training", 6, 101.0)
    assert [p.name for p in tmp_path.iterdir()] == ["progress.json"]


def test_what_the_last_save_took_is_known_to_the_next_attempt(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    Progress(path, True, "7.0").phase("done", saved=20, save_s=3.5, iteration=20)
    Progress(path, True, "7.1")
    told = json.loads(path.read_text())
    assert (told["attempt"], told["phase"], told["iteration"]) == ("7.1", "starting", 0)
    assert (told["saved"], told["save_s"]) == (20, 3.5)


def test_another_rank_does_not_write_progress(tmp_path: Path) -> None:
    Progress(tmp_path / "progress.json", False, "7.0").phase("training")
    assert not list(tmp_path.iterdir())


def checkpoint(home: Path, iteration: int, *, whole: bool = True) -> Path:
    path = home / manifest.name_of(iteration)
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w")
    if whole:
        manifest.write(path, "checkpoint", iteration=iteration)
    return path


def test_what_an_attempt_left_unfinished_is_taken_out_of_sight_and_deleted(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, whole=False)
    (tmp_path / ".going-iter_0000000.1").mkdir()
    left = shelf.remains(tmp_path)
    assert not (tmp_path / "iter_0000002").exists()
    shelf.delete(left)
    assert [p.name for p in tmp_path.iterdir()] == ["iter_0000001"]
    assert shelf.complete(tmp_path) == [1]


def test_a_checkpoint_set_aside_is_no_checkpoint_any_more(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    going = shelf.set_aside(path)
    assert going and (going / manifest.NAME).exists()
    assert shelf.complete(tmp_path) == []
    assert manifest.newest_complete(tmp_path) is None
    assert shelf.set_aside(path) is None


def test_latest_is_replaced_whole_and_goes_when_there_is_none(tmp_path: Path) -> None:
    shelf.note_latest(tmp_path, "iter_0000001")
    shelf.note_latest(tmp_path, "iter_0000002")
    assert (tmp_path / "latest").read_text() == "iter_0000002\n"
    shelf.note_latest(tmp_path, None)
    shelf.note_latest(tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_its_writer_sealed_is_not_read_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    sealed = manifest.seal(tmp_path, tmp_path / "b")
    (tmp_path / "b").write_text("B")
    done = manifest.write(tmp_path, "checkpoint", sealed=[sealed])
    assert [(f.path, f.size) for f in done.files] == [("a", 1), ("b", 1)]
    assert done.files[1] == sealed

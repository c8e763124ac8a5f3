"""Training that is interrupted, in real processes: stopped, killed, switched, damaged, continued in another layout."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
from typing import Any

import pytest
from megatron_fixtures import LIMIT_S, Bench, announced, losses, metrics, progress
from waiting import wait_for

from launchers.megatron import manifest
from launchers.run_folder import RunFolder
from launchers.spec import dump, load

FOR_EVER = 100_000  # batches of an evaluation: a place where a run can be met


def at_line(process: subprocess.Popen[str], beginning: str) -> None:
    """Read what it says up to a line that begins so."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"it ended without a line that begins with {beginning!r}")


def saved(folder: RunFolder) -> list[str]:
    return sorted(p.name for p in folder.checkpoints.glob("iter_*"))


def test_a_run_that_was_asked_to_stop_continues_with_the_very_same_losses(bench: Bench, trained: RunFolder) -> None:
    folder = bench.train_folder("stopped", checkpoint={"interval": 1})
    (process,) = bench.start(folder)
    at_line(process, "iteration  4/20")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    bench.finish([process])
    stopped = metrics(folder)[-1]
    n = stopped["iterations"]
    assert stopped["stage"] == "stopped"
    assert 4 <= n < 20
    assert (progress(folder)["phase"], progress(folder)["saved"]) == ("stopped", n)
    assert announced(folder, "checkpoint")[-1]["iteration"] == n

    # The newest checkpoint was cut short on disk, another was never finished, a third one half deleted.
    shard = next((folder.checkpoints / manifest.name_of(n)).glob("*.distcp"))
    short = shard.stat().st_size - 1
    os.truncate(shard, short)
    (folder.checkpoints / "iter_0000019").mkdir()
    (folder.checkpoints / ".going-iter_0000001.7").mkdir()
    # And that attempt was killed before it could announce the one before: the next makes up for it.
    for path in folder.announcements.glob("*-checkpoint.json"):
        path.unlink()

    said = bench.run(folder)
    assert f"continues after iteration {n - 1}" in said
    assert "iter_0000019: not complete" in said
    assert f"passed over: {shard}: {short} bytes, the manifest promises {short + 1}" in said
    assert losses(folder) == losses(trained)
    assert announced(folder, "checkpoint")[0]["iteration"] == n - 1
    assert saved(folder) == [manifest.name_of(i) for i in range(1, 21)]
    assert all(manifest.verify(folder.checkpoints / name) for name in saved(folder))
    assert not list(folder.checkpoints.glob(".*"))
    assert [m["reused"] for m in metrics(folder) if m.get("stage") == "data"] == [True, True]


def test_switches_save_a_run_or_kill_it_unsaved_and_evaluation_does_not_hold_it_up(
    bench: Bench, trained: RunFolder
) -> None:
    folder = bench.train_folder(
        "switched", evaluation={"interval": 3, "iterations": FOR_EVER}, checkpoint={"interval": 0}
    )
    (folder.switches / "save").touch()
    (process,) = bench.start(folder)
    wait_for(lambda: progress(folder).get("phase") == "evaluating", timeout=LIMIT_S)
    assert not (folder.switches / "save").exists()
    (folder.switches / "kill").touch()
    assert "as asked by the switch kill, and not saved, after iteration 3 of 20" in bench.finish([process])
    assert saved(folder) == ["iter_0000001"]
    assert not (folder.switches / "kill").exists()
    assert (metrics(folder)[-1]["stage"], progress(folder)["phase"]) == ("stopped", "stopped")

    (process,) = bench.start(folder)
    wait_for(lambda: progress(folder).get("phase") == "evaluating", timeout=LIMIT_S)
    process.send_signal(signal.SIGQUIT)
    at_line(process, "Current thread")  # where every thread is, and nothing else happens
    process.send_signal(signal.SIGUSR2)
    bench.finish([process])
    assert saved(folder) == ["iter_0000001", "iter_0000003"]
    assert folder.latest.read_text() == "iter_0000003\n"
    assert losses(folder) == {i: loss for i, loss in losses(trained).items() if i <= 3}


def test_a_checkpoint_is_complete_while_the_evaluation_after_it_goes_on(bench: Bench) -> None:
    folder = bench.train_folder(
        "evaluated", evaluation={"interval": 3, "iterations": FOR_EVER}, checkpoint={"interval": 3}
    )
    (process,) = bench.start(folder)
    wait_for((folder.checkpoints / "iter_0000003" / manifest.NAME).exists, timeout=LIMIT_S)
    wait_for(lambda: progress(folder)["saved"] == 3, timeout=LIMIT_S)
    assert progress(folder)["phase"] == "evaluating"
    (folder.switches / "kill").touch()
    bench.finish([process])


def test_a_run_that_is_asked_to_stop_while_data_are_prepared_ends_without_any(bench: Bench) -> None:
    folder = bench.train_folder("early", data={"vocab_size": 640})
    (folder.switches / "stop").touch()
    before = sorted((bench.root / "datasets").glob("*"))
    said = bench.run(folder, ranks=2)
    assert "stopped as asked before the first iteration" in said
    assert (metrics(folder)[-1]["stage"], progress(folder)["phase"]) == ("stopped", "stopped")
    assert sorted((bench.root / "datasets").glob("*")) == before
    assert not folder.checkpoints.exists()
    assert not (folder.switches / "stop").exists()


def test_a_checkpoint_that_cannot_be_written_ends_the_attempt_and_says_why(bench: Bench, trained: RunFolder) -> None:
    folder = bench.train_folder("full", checkpoint={"interval": 5})
    (process,) = bench.start(folder)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))  # a full disk, for this process
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    told = f"error: rank 0 could not write its part of a checkpoint: {folder.checkpoints}/iter_0000005: [Errno 27]"
    assert said.splitlines()[-1].startswith(told)
    assert announced(folder, "checkpoint") == []
    assert not folder.latest.exists()


@pytest.fixture(scope="module")
def shared(bench: Bench) -> RunFolder:
    """Two ranks that share each batch and the optimizer's state, 20 iterations, never interrupted."""
    folder = bench.train_folder(
        "shared", model={"kv_heads": 2}, parallel={"distributed_optimizer": True}, checkpoint={"interval": 5}
    )
    bench.run(folder, ranks=2)
    return folder


def copy_of(folder: RunFolder, name: str, iteration: int, **parallel: Any) -> RunFolder:
    """The same run, with nothing but one of its checkpoints, to go on in another layout."""
    made = RunFolder(folder.root.with_name(name))
    made.create()
    made.code.symlink_to(folder.code)
    spec = load(folder.spec)
    recipe = {**spec.recipe, "parallel": {**spec.recipe["parallel"], **parallel}}
    made.spec.write_text(dump(dataclasses.replace(spec, id=name, recipe=recipe)))
    path = manifest.name_of(iteration)
    shutil.copytree(folder.checkpoints / path, made.checkpoints / path)
    return made


def test_two_ranks_stop_together_when_one_is_asked_and_continue_with_the_very_same_losses(
    bench: Bench, shared: RunFolder
) -> None:
    folder = copy_of(shared, "shared-stopped", 5)
    group = bench.start(folder, ranks=2)
    at_line(group[0], "iteration 12/20")
    group[1].send_signal(signal.SIGUSR2)
    bench.finish(group)
    stopped = metrics(folder)[-1]["iterations"]
    assert 12 <= stopped < 20
    assert saved(folder)[-1] == manifest.name_of(stopped)
    bench.run(folder, ranks=2)
    assert losses(folder) == {i: loss for i, loss in losses(shared).items() if i > 5}
    assert [t["iteration"] for t in announced(folder, "checkpoint")] == sorted({5, 10, stopped, 15, 20})


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"pipeline": 2}], ids=["tensor", "pipeline"])
def test_a_run_of_two_copies_continues_as_one_model_on_two_ranks(
    bench: Bench, shared: RunFolder, layout: dict[str, int]
) -> None:
    folder = copy_of(shared, f"shared-{next(iter(layout))}", 5, **layout)
    bench.run(folder, ranks=2)
    together, before = losses(folder), losses(shared)
    assert sorted(together) == list(range(6, 21))
    for iteration, loss in together.items():
        assert loss == pytest.approx(before[iteration], abs=1e-6), iteration
    facts = manifest.read(folder.checkpoints / "iter_0000020").facts
    assert facts["parallel"] == {"tensor": 1, "pipeline": 1, **layout}


def test_a_run_keeps_to_its_kind_of_optimizer(bench: Bench, shared: RunFolder) -> None:
    folder = copy_of(shared, "shared-other", 5, distributed_optimizer=False)
    said = bench.refused(folder, os.EX_CONFIG)
    assert said.startswith("error: parallel.distributed_optimizer = false: ")

"""What benchmarks print."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from benchmarks.figures import Cost, cost, interleaved, show, show_costs


def test_a_figure_is_one_json_object_with_its_peer_and_their_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    show("poll", 0.25, "s", "squeue", 0.1)
    show("memory", 1234.5, "MiB")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"figure": "poll", "value": 0.25, "unit": "s", "peer": "squeue", "peer_value": 0.1, "ratio": 2.5},
        {"figure": "memory", "value": 1234, "unit": "MiB", "peer": None, "peer_value": None, "ratio": None},
    ]


def test_everyone_takes_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def slow_at_first() -> None:
        turns.append("ours")
        if turns.count("ours") == 1:
            time.sleep(0.2)

    costs = interleaved({"ours": slow_at_first, "theirs": lambda: turns.append("theirs")}, rounds=3)
    assert turns == ["ours", "theirs"] * 4
    assert costs["ours"].wall_s < 0.1


def test_the_cpu_of_children_counts_and_waiting_does_not() -> None:
    busy = cost(lambda: subprocess.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"], check=True))
    assert busy.cpu_s > 0.01
    with subprocess.Popen(["sh", "-c", "i=0; while :; do i=$((i+1)); done"]) as runs_on:
        busy = cost(lambda: time.sleep(0.2))
        runs_on.kill()
    assert busy.cpu_s > 0.02
    asleep = cost(lambda: time.sleep(0.1))
    assert asleep.cpu_s < 0.05 < asleep.wall_s


def test_wall_and_cpu_are_compared_with_each_peer(capsys: pytest.CaptureFixture[str]) -> None:
    show_costs("poll", Cost(3, 2), {"squeue": Cost(2, 1), "scontrol": Cost(6, 4)})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["figure"], line["peer"], line["ratio"]) for line in lines] == [
        ("poll, wall", "squeue", 1.5),
        ("poll, CPU", "squeue", 2.0),
        ("poll, wall", "scontrol", 0.5),
        ("poll, CPU", "scontrol", 0.5),
    ]

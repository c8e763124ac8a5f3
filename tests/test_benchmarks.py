"""What benchmarks print, and whether they would notice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import uvloop
from waiting import wait_for

from benchmarks import ledger as bench_ledger
from benchmarks import reports as bench_reports
from benchmarks.figures import Cost, cost, interleaved, show, show_costs
from benchmarks.gateway_parts import ENGINE_KEY, Cores, Done, Programs, Router, Work, compiled, do, engine
from benchmarks.soak import billed_wrongly
from benchmarks.soak_causes import Begun, Incident, Saw, Seen, Trouble, cause, slope
from benchmarks.soak_engine import PROMPT_BASE
from registry.ledger import Attempt, Outcome, UsageEvent
from registry.reports import KINDS, Told


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
        used = psutil.Process(runs_on.pid).cpu_times
        busy = cost(lambda: wait_for(lambda: used().user > 0.1, every=0.02))
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


def test_both_sides_of_the_ledgers_benchmark_leave_an_event_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ledger, "PAIRS", 320)
    monkeypatch.setattr(bench_ledger, "BATCH", 32)
    bench_ledger.in_a_directory(lambda d: uvloop.run(bench_ledger.ours(d)), 320)()
    bench_ledger.in_a_directory(bench_ledger.sqlite, 320)()


def test_the_ledger_that_reports_are_measured_on_adds_up_and_fills_every_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_reports, "JOBS", 50)
    bench_reports.build(tmp_path, 3000)
    told = Told(bench_reports.books(11), bench_reports.books(10))
    for kind in KINDS:
        bench_reports.make(tmp_path, kind, told)  # which looks at the report's checks


def billed_event(tokens: int, outcome: Outcome) -> UsageEvent:
    made = Attempt("event", "physics", "key", "chat", "replica-1", "chat", "2026-01-01T12:00:00.000000Z")
    return UsageEvent(made, PROMPT_BASE + 7, tokens, 1, outcome, made.started_at)


@pytest.mark.parametrize(
    ("saw", "events", "right"),
    [
        (Saw.WHOLE, [(5, Outcome.COMPLETED)], True),
        (Saw.WHOLE, [(5, Outcome.CLIENT_LEFT)], True),
        (Saw.WHOLE, [(4, Outcome.COMPLETED)], False),
        (Saw.WHOLE, [], False),
        (Saw.WHOLE, [(5, Outcome.UPSTREAM_FAILED)], False),
        (Saw.WHOLE, [(2, Outcome.UPSTREAM_FAILED), (5, Outcome.COMPLETED)], False),  # charged twice by a failover
        (Saw.REFUSED, [], True),
        (Saw.REFUSED, [(0, Outcome.UPSTREAM_FAILED)], False),
        (Saw.CUT, [(5, Outcome.UPSTREAM_FAILED)], True),
        (Saw.CUT, [(5, Outcome.COMPLETED)], False),
        (Saw.LEFT, [(5, Outcome.CLIENT_LEFT)], True),
        (Saw.LEFT, [(2, Outcome.UPSTREAM_FAILED), (1, Outcome.CLIENT_LEFT)], False),
    ],
)
def test_a_soak_sees_what_was_billed_wrongly(saw: Saw, events: list[tuple[int, Outcome]], right: bool) -> None:
    seen = Seen(7, "physics", saw, 5, 200, 0.0, 1.0)
    assert (not billed_wrongly([seen], [billed_event(*event) for event in events])) is right


CORE = min(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return compiled(tmp_path_factory.mktemp("programs"))


def loaded(programs: Programs, port: int, work: Work, key: str = ENGINE_KEY) -> Done:
    return do(programs, CORE, Router("direct", port, key, os.getpid(), Path(os.devnull)), work)


def test_the_scripted_engine_answers_whole_and_in_streams_only_to_its_key(programs: Programs, tmp_path: Path) -> None:
    with engine(programs, Cores(CORE, CORE, CORE), tmp_path) as port:
        whole = loaded(programs, port, Work(4, 40))
        streams = loaded(programs, port, Work(4, 12, chunks=30, interval_ms=1))
        burst = loaded(programs, port, Work(2, 8, chunks=300, interval_ms=0, ask_running_usage=True))
        stranger = loaded(programs, port, Work(2, 6), key="another")
    assert (whole.ok, whole.failed) == (40, 0)
    assert (streams.ok, streams.chunks, streams.failed) == (12, 360, 0)
    assert (burst.ok, burst.chunks, burst.failed) == (8, 2400, 0)
    assert (stranger.ok, stranger.refused, stranger.failed) == (0, 6, 6)


CHUNKS = [f'data: {{"content":"#{n:06d}@{1:016d}"}}\n\n' for n in (1, 2, 3)]
DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("events", "ok", "short", "dropped"),
    [
        ([*CHUNKS, DONE], 1, 0, 0),
        ([CHUNKS[0], CHUNKS[2], DONE], 0, 1, 0),
        ([*CHUNKS[:2], DONE], 0, 1, 0),
        ([*CHUNKS[:2], CHUNKS[1], DONE], 0, 1, 0),
        (CHUNKS, 0, 1, 0),
        ([*CHUNKS, None], 0, 0, 1),
    ],
    ids=["whole", "a chunk missing", "too few", "one twice", "no [DONE]", "hung up"],
)
def test_the_load_generator_notices_a_stream_that_is_not_whole(
    programs: Programs, events: list[str | None], ok: int, short: int, dropped: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for event in events:
                    if event is None:
                        return
                    chunk = f"{len(event):x}\r\n{event}\r\n".encode()
                    connection.sendall(chunk[:20])  # cut anywhere, also within a mark
                    connection.sendall(chunk[20:])
                connection.sendall(b"0\r\n\r\n")
                connection.recv(65536)

        serving = threading.Thread(target=answer)
        serving.start()
        done = loaded(programs, listening.getsockname()[1], Work(1, 1, chunks=3, interval_ms=1))
        serving.join()
    assert (done.ok, done.short, done.dropped) == (ok, short, dropped)


def seen(saw: Saw, status: int = 200, tokens: int = 0, tenant: str = "physics") -> Seen:
    return Seen(1, tenant, saw, tokens, status, began=100, ended=110)


KILLED = Incident("replica-1", Trouble.KILLED, 105, 107)
HUNG = Incident("replica-2", Trouble.HUNG, 90, 101)


@pytest.mark.parametrize(
    ("what", "incidents", "explained"),
    [
        (seen(Saw.CUT, tokens=3), [KILLED], True),
        (seen(Saw.CUT, tokens=3), [HUNG], False),  # another replica's
        (seen(Saw.CUT, tokens=3), [Incident("replica-1", Trouble.DRAINED, 90, 120)], False),
        (seen(Saw.CUT, tokens=3), [Incident("replica-1", Trouble.KILLED, 80, 90)], False),  # over by then
        (seen(Saw.REFUSED, 502), [KILLED], False),  # the others were there
        (seen(Saw.REFUSED, 502), [KILLED, HUNG], True),
        (seen(Saw.REFUSED, 504), [HUNG], True),
        (seen(Saw.REFUSED, 500), [KILLED, HUNG], False),
        (seen(Saw.REFUSED, 429), [], False),
        (seen(Saw.REFUSED, 429, tenant="limited"), [], True),
        (seen(Saw.WRONG, tokens=3), [KILLED, HUNG], False),
        (seen(Saw.WAITED, tokens=3), [KILLED, HUNG], False),
    ],
)
def test_a_failure_is_explained_by_trouble_at_its_time_and_place(
    what: Seen, incidents: list[Incident], explained: bool
) -> None:
    attempts = [Begun("replica-3", 99), Begun("replica-1", 100)]
    assert (cause(what, attempts, incidents, "limited") is not None) is explained


def test_a_slope_is_that_of_the_best_line() -> None:
    assert slope([(0, 10), (1, 12), (2, 14)]) == pytest.approx(2)
    assert slope([(0, 10), (1, 11), (2, 10)]) == pytest.approx(0)
    assert slope([(0, 10)]) == 0

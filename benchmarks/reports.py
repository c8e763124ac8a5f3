"""What a report costs over a ledger of ten million events: time, and memory of a fresh process.

    make bench-reports

The ledger is made in bulk, its sums worked out of its events as the migration of an older one would. Each report is
then made as the controller makes it, over read-only connections, with the scheduler's books of both months at hand
(JOBS of them, and those of the replicas). The peer is plain SQL over the ten million events, which says
what `report usage` says in its first table. Events of two months; reports are of the second.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import show
from registry import deployments, ledger, reports, tenants
from registry.attribution import Allocation, Books
from registry.db import open_reader, open_writer, transaction
from registry.migrations import MIGRATIONS
from registry.reports import KINDS, Sources, Told
from registry.site import load_site

EVENTS = 10_000_000
TENANTS, KEYS, MODELS, REPLICAS = 40, 25, 5, 4  # keys of each tenant, replicas of each model; each lives a day
JOBS = 20_000  # other jobs in each month's books
FIRST, MONTH, NOW = "2026-10-01", "2026-11", datetime(2026, 11, 30, 23, tzinfo=UTC)
DAYS = 61
PER_DAY = MODELS * REPLICAS
PEER = """SELECT tenant, model, count(*), sum(outcome != 'completed'), sum(prompt_tokens), sum(cached_tokens),
    sum(completion_tokens), sum(reasoning_tokens), sum(microcredits) FROM usage_events
    WHERE ended_at >= '2026-11-01' AND ended_at < '2026-12-01' GROUP BY tenant, model"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="headgate-reports-", dir=os.environ.get("TMPDIR")) as folder:
        directory = Path(folder)
        build(directory)
        peer = _child(directory, "peer")
        show("plain SQL over every event, wall", peer["wall_s"], "s")
        for kind in KINDS:
            ours = _child(directory, kind)
            show(f"report {kind} over {EVENTS:,} events, wall", ours["wall_s"], "s", "plain SQL", peer["wall_s"])
            show(f"report {kind}, CPU", ours["cpu_s"], "s", "plain SQL", peer["cpu_s"])
            show(f"report {kind}, peak memory", ours["peak_mib"], "MiB", "plain SQL", peer["peak_mib"])


def _child(directory: Path, what: str) -> dict[str, float]:
    """In a process of its own, whose memory is then only that of this."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.reports", str(directory), what],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(said.stdout)
    return found


def measured(directory: Path, what: str) -> None:
    told = Told(books(11), books(10)) if what in KINDS and KINDS[what].books else Told()
    began, cpu = time.perf_counter(), time.process_time()
    if what == "peer":
        with closing(open_reader(directory / "ledger.db")) as db:
            assert db.conn.execute(PEER).fetchall()
    else:
        make(directory, what, told)
    wall_s = time.perf_counter() - began
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_kib = int(status["VmHWM"].split()[0])  # getrusage also counts what the parent had when it forked
    print(json.dumps({"wall_s": wall_s, "cpu_s": time.process_time() - cpu, "peak_mib": peak_kib / 1024}))


def make(directory: Path, kind: str, told: Told) -> None:
    """As the controller does."""
    site = load_site(None, {}, (f"state_dir={directory}",))
    of = reports.asked(kind, NOW, month=MONTH)
    with closing(open_reader(site.registry_db)) as registry, closing(open_reader(site.ledger_db)) as ledger_db:
        made = reports.make(of, Sources(site, registry, ledger_db, told, NOW))
    assert all(check.holds for check in made.checks), made.checks
    assert any(section.rows for section in made.sections)


def books(month: int) -> Books:
    """The replicas' jobs of a day each, and others of an hour."""
    start = int(datetime(2026, month, 1, tzinfo=UTC).timestamp())
    before = 0 if month == 10 else 31
    jobs = [
        allocation(n, start + n // PER_DAY * 86400, 86400, f"replica-{before * PER_DAY + n}")
        for n in range(30 * PER_DAY)
    ]
    jobs += [allocation(30 * PER_DAY + n, start + n * 2_500_000 // JOBS, 3600, None) for n in range(JOBS)]
    return Books(tuple(jobs), sum(j.gpu_s for j in jobs), sum(j.cpu_s for j in jobs), None)


def allocation(n: int, begun: int, length: int, replica: str | None) -> Allocation:
    return Allocation(
        cluster="bench",
        job=str(n),
        submitted_at="2026-10-01T00:00:00.000000Z",
        user=f"user-{n % 500}",
        account=f"account-{n % TENANTS}",
        partition=f"gpu-{n % 3}",
        qos="normal",
        name="job",
        state="COMPLETED",
        reservation=None,
        start=begun,
        end=begun + length,
        began_at=begun,
        waited_s=n % 977,
        gpus_by_type=(("h100", 4),),
        gpu_s=4 * length,
        cpu_s=32 * length,
        purpose="serve" if replica else None,
        subject=replica,
    )


def build(directory: Path, events: int = 0) -> None:
    """The two files. Events are made by SQLite itself; the sums are those of the migration to this schema."""
    with closing(open_writer(directory / "registry.db", MIGRATIONS)) as registry:
        for n in range(TENANTS):
            tenants.create(registry, f"tenant-{n}", "root", account=f"account-{n}")
        for n in range(MODELS):
            deployments.create(
                registry,
                f"model-{n}",
                "root",
                model="m",
                version=1,
                model_path="/m",
                min_replicas=REPLICAS,
                max_replicas=max(REPLICAS, 1),
                request={},
                by="root",
                why="served",
            )
        for n in range(DAYS * PER_DAY):
            deployments.add_replica(registry, f"replica-{n}", f"model-{n % MODELS}", "root", f"/replica-{n}")
        with transaction(registry) as c:
            c.execute(
                f"""UPDATE replicas SET ready_at = strftime('%Y-%m-%dT00:10:00.000000Z', '{FIRST}',
                    (substr(id, 9) / {PER_DAY}) || ' days')"""
            )
    with closing(ledger.open_ledger(directory / "ledger.db")) as db:
        fill(db.conn, events or EVENTS)


def fill(db: sqlite3.Connection, events: int) -> None:
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-500000"):  # nobody needs it after a crash
        db.execute(f"PRAGMA {setting}")
    db.execute("BEGIN")
    db.execute(
        f"""WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {events})
        INSERT INTO usage_events
        SELECT printf('%024x:1', i), 'tenant-' || (i % {TENANTS}),
            printf('key-%08x', i % {TENANTS * KEYS}), 'model-' || (i % {MODELS}),
            'replica-' || (i * {DAYS} / {events} * {PER_DAY} + i / 7 % {REPLICAS} * {MODELS} + i % {MODELS}),
            'chat', at, 'user-' || (i % {TENANTS * KEYS}),
            100 + i % 900, 10 + i % 90, 120 + i % 1080,
            CASE WHEN i % 100 THEN 'completed' ELSE 'client_left' END, at, i % 100, i % 10
        FROM (SELECT i, strftime('%Y-%m-%dT%H:%M:%S.000000Z', julianday('{FIRST}') + {DAYS}.0 * i / {events}) AS at
              FROM n)"""
    )
    db.execute(
        """INSERT INTO daily SELECT substr(ended_at, 1, 10), tenant, user, key_id, model, replica, kind, count(*),
            sum(outcome != 'completed'), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),
            sum(reasoning_tokens), sum(microcredits) FROM usage_events GROUP BY 1, 2, 3, 4, 5, 6, 7"""
    )
    for period in ("'all'", "substr(day, 1, 7)", "day"):
        for subject, column in (("key", "key_id"), ("user", "user"), ("tenant", "tenant"), ("model", "model")):
            db.execute(
                f"""INSERT INTO usage_totals SELECT {period}, '{subject}', {column},
                    sum(prompt_tokens + completion_tokens), sum(microcredits) FROM daily GROUP BY 1, 3"""
            )
    db.execute(
        """INSERT INTO balances SELECT tenant, -sum(microcredits), 0, sum(microcredits) FROM daily GROUP BY tenant"""
    )
    db.execute(
        f"""WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {DAYS * PER_DAY * 24})
            INSERT INTO busy SELECT 'replica-' || (i / 24),
                strftime('%Y-%m-%dT', '{FIRST}', (i / 24 / {PER_DAY}) || ' days') || printf('%02d', i % 24), ?
            FROM n""",
        (b"\x55" * 450,),
    )
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode=WAL")


if __name__ == "__main__":
    if sys.argv[1:]:
        measured(Path(sys.argv[1]), sys.argv[2])
    else:
        main()

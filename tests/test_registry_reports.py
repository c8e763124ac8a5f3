"""Reports made of a real ledger and a real registry, to the token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from report_books import HOUR, allocation

from registry import accounting, capture, clock, deployments, ledger, limits, prices, reports, rollup, tenants
from registry.attribution import Allocation, Books
from registry.db import Database, NotFound, RegistryError, open_reader, open_writer
from registry.ledger import Attempt, Hold, Outcome, Reversal, Step, UsageEvent
from registry.limits import Subject
from registry.migrations import MIGRATIONS
from registry.report import Report, Section, Value, from_json, to_json
from registry.report_quota import AccountLimit
from registry.reports import Sources, Told
from registry.settings import GpuPrice, Price
from registry.site import Site, load_site

NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)
FIRST = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    loaded = load_site(None, {}, (f"state_dir={tmp_path}",))
    return dataclasses.replace(
        loaded,
        name="test",
        prices={"default": Price(prompt=1, completion=2), "chat": Price(prompt=1, completion=2, cached=0.5)},
        gpu_prices={"h100": GpuPrice(hour=2.0)},
    )


@pytest.fixture
def registry(site: Site) -> Iterator[Database]:
    db = open_writer(site.registry_db, MIGRATIONS)
    tenants.create(db, "physics", "root", account="phys")
    tenants.create(db, "biology", "root", account="bio")
    limits.put(db, Subject.TENANT, "physics", {"tokens_per_month": 1000, "spend_ceiling": 0.01}, "root")
    limits.put(db, Subject.USER, "ada", {"tokens_per_day": 500}, "root")
    yield db
    db.close()


@pytest.fixture
def written(site: Site) -> Iterator[Database]:
    """The ledger, which its one writer has open."""
    db = ledger.open_ledger(site.ledger_db)
    ledger.record(
        db,
        [
            *used("1", datetime(2026, 10, 20, tzinfo=UTC), 100, 0),
            *used("2", datetime(2026, 11, 3, 23, 59, 59, tzinfo=UTC), 100, 50),
            *used("3", datetime(2026, 11, 4, tzinfo=UTC), 100, 50, user="bob"),
            *used("4", NOW, 10, 5, model="adapter", outcome=Outcome.CLIENT_LEFT),
            *used("5", NOW, 7, 3, tenant="biology", user="eve", replica="replica-2"),
            Reversal("6", "3", "root", "measured wrongly", "2026-11-05T10:00:00.000000Z"),
        ],
    )
    yield db
    db.close()


def used(
    n: str,
    ended: datetime,
    prompt: int,
    completion: int,
    *,
    tenant: str = "physics",
    user: str = "ada",
    model: str = "chat",
    replica: str = "replica-1",
    outcome: Outcome = Outcome.COMPLETED,
    began: datetime | None = None,
) -> list[Step]:
    at = clock.text(ended)
    attempt = Attempt(n, tenant, f"key-{tenant}", model, replica, "chat", clock.text(began or ended), user)
    paid = prompt + 2 * completion
    return [Hold(attempt, 1000, 1000), UsageEvent(attempt, prompt, completion, paid, outcome, at, prompt // 2, 1)]


@pytest.fixture
def made(site: Site, registry: Database, written: Database) -> Maker:
    return Maker(site)


class Maker:
    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, kind: str, *by: str, of: str | None = None, told: Told | None = None, **window: str) -> Report:
        whose = None if of is None else frozenset({of})
        asked = reports.asked(kind, NOW, by=by, of=whose, **window)  # type: ignore[arg-type]
        registry, ledger_db = open_reader(self.site.registry_db), open_reader(self.site.ledger_db)
        try:
            made = reports.make(asked, Sources(self.site, registry, ledger_db, told or Told(), NOW))
        finally:
            registry.close()
            ledger_db.close()
        assert from_json(to_json(made)) == made
        return made


def section(of: Report, key: str) -> Section:
    return next(s for s in of.sections if s.key == key)


def rows(of: Report, key: str, *columns: str) -> list[tuple[Value, ...]]:
    return [tuple(row[c] for c in columns) for row in section(of, key).rows]


def test_usage_is_by_what_was_asked_beside_the_month_before_and_adds_up(made: Maker) -> None:
    report = made("usage", "tenant", "user")
    assert (report.of, report.title, report.site) == ("all tenants", "Usage", "test")
    assert (report.start, report.end) == ("2026-11-01T00:00:00.000000Z", "2026-12-01T00:00:00.000000Z")
    columns = ("tenant", "user", "requests", "cut", "prompt_tokens", "cached_tokens", "completion_tokens", "before")
    assert rows(report, "usage", *columns) == [
        ("biology", "eve", 1, 0, 7, 3, 3, 0.0),
        ("physics", "ada", 2, 1, 110, 55, 55, 0.0001),
        ("physics", "bob", 0, 0, 0, 0, 0, 0.0),  # corrected
    ]
    assert section(report, "usage").total == {
        "tenant": "total",
        "requests": 3,
        "cut": 1,
        "prompt_tokens": 117,
        "cached_tokens": 58,
        "completion_tokens": 58,
        "reasoning_tokens": 3,
        "credits": 0.000233,
        "before": 0.0001,
        "change": pytest.approx(1.33),
    }
    assert rows(report, "daily", "day", "credits") == [
        ("2026-11-03", 0.0002),
        ("2026-11-04", 0.0002),
        ("2026-11-05", -0.0002),
        ("2026-11-15", 0.000033),
    ]
    assert [len(chart.labels) for chart in section(report, "daily").charts] == [30, 30]
    assert rows(report, "top_users", "user")[0] == ("ada",)
    assert [check.holds for check in report.checks] == [True] * 3


def test_a_chart_of_many_years_has_a_point_for_each_month(made: Maker) -> None:
    tokens, paid = section(made("usage", since="2020-01-01"), "daily").charts
    assert (tokens.title, paid.title) == ("Tokens by month", "Credits by month")
    assert (paid.labels[0], paid.labels[-2:], len(paid.labels)) == ("2020-01", ("2026-10", "2026-11"), 83)
    ((_, credits),) = paid.series
    assert (credits[0], credits[-2:]) == (0.0, (0.0001, 0.000233))


def test_a_check_of_the_usage_report_fails_when_a_sum_was_changed(made: Maker, written: Database) -> None:
    written.conn.execute("UPDATE daily SET microcredits = microcredits + 1 WHERE user = 'eve'")
    broken = [check.text for check in made("usage").checks if not check.holds]
    assert len(broken) == 2 and "334, but what the ledger's postings consumed is 333" in broken[0]


def test_a_month_that_is_not_over_is_said_to_be_set_against_a_whole_one(made: Maker) -> None:
    for kind in ("usage", "efficiency", "mine"):
        said = "November 2026 so far, until 2026-11-15 12:00 UTC, is set against the whole of October 2026."
        assert said in made(kind).notes
        assert not [note for note in made(kind, month="2026-10").notes if "so far" in note]


def test_usage_by_account_is_that_of_its_tenant(made: Maker) -> None:
    assert rows(made("usage", "account"), "usage", "account", "prompt_tokens") == [("bio", 7), ("phys", 110)]


def test_one_tenants_report_has_nothing_of_another(made: Maker) -> None:
    for kind in reports.KINDS:
        said = str(made(kind, of="biology", told=Told(books())))
        assert "physics" not in said and "phys'" not in said and "ada" not in said, kind
        assert "tenant biology" in said


def test_days_instead_of_a_month(made: Maker) -> None:
    report = made("usage", "model", since="2026-11-04", until="2026-11-05")
    assert rows(report, "usage", "model", "prompt_tokens", "before") == [("chat", 100, 0.0002)]
    assert len(report.checks) == 1  # limits count whole months


def test_quota_is_of_every_tenant_with_slurms_limits_of_its_account(made: Maker) -> None:
    told = Told(limits=(AccountLimit("phys", "GPU-hours", 100, 50, 5), AccountLimit("guests", "GPU-hours", 1, 1, 0)))
    report = made("quota", told=told)
    assert rows(report, "tokens", "name", "limit", "used", "left") == [
        ("biology", "none", 10, None),
        ("physics", "tokens_per_month", 165, 835),
    ]
    assert rows(report, "credits", "name", "limit", "used") == [
        ("biology", "none", 0.000013),
        ("physics", "spend_ceiling", 0.00032),
    ]
    assert rows(report, "slurm", "name", "tenant", "left") == [("phys", "physics", 50)]
    by_user = made("quota", "user")
    assert rows(by_user, "tokens", "subject", "name", "limit", "used") == [("user", "ada", "tokens_per_day", 15)]


def test_quota_of_a_month_that_is_past_is_of_monthly_limits(made: Maker) -> None:
    report = made("quota", told=Told(limits=(AccountLimit("phys", "GPU-hours", 100, 50, 5),)), month="2026-10")
    assert [s.key for s in report.sections] == ["tokens", "credits", "rates"]  # Slurm tells of today alone
    assert rows(report, "tokens", "name", "limit", "used", "runs_out")[1] == ("physics", "tokens_per_month", 100, None)
    assert rows(report, "credits", "name", "limit") == [("biology", "none"), ("physics", "none")]


def books(*others: Allocation) -> Books:
    """An hour of the replica's job and one of somebody's own."""
    start = int(FIRST.timestamp())
    jobs = (
        allocation("1", start, start + HOUR, purpose=None, subject=None),
        allocation("2", start, start + HOUR, account="bio", user="eve", purpose=None, subject=None),
        *others,
    )
    return Books(jobs, sum(j.gpu_s for j in jobs), sum(j.cpu_s for j in jobs), None)


def serve(registry: Database) -> None:
    """What the books' first job was: a replica that was ready after ten minutes."""
    deployments.create(
        registry,
        "chat",
        "root",
        model="chat",
        version=1,
        model_path="/",
        min_replicas=1,
        max_replicas=1,
        request={"engine_args": ["--lora-modules", "adapter=/adapter"]},
        by="root",
        why="served",
    )
    deployments.add_replica(registry, "replica-1", "chat", "root", "/replica-1")
    registry.conn.execute("UPDATE replicas SET ready_at = ?", ((FIRST + timedelta(minutes=10)).isoformat(),))
    accounting.record(
        registry,
        cluster="test",
        job_id="1",
        submitted_at="2026-11-01T00:00:00.000000Z",
        key="replica-1",
        subject="replica-1",
        purpose="serve",
        owner="root",
    )


def test_gpu_time_is_told_by_what_and_whom_and_adds_up(made: Maker, registry: Database) -> None:
    serve(registry)
    report = made("gpu", told=Told(books()))
    assert rows(report, "gpu", "tenant", "startup", "idle", "batch", "credits") == [
        ("biology", 0, 0, 1, 2.0),
        ("physics", pytest.approx(1 / 6), pytest.approx(5 / 6), 0, 2.0),
    ]
    assert [check.holds for check in report.checks] == [True, True]
    assert "7,200" in report.checks[0].text


def test_what_a_tenant_was_served_on_anothers_replica_costs_the_same_in_its_own_report(
    made: Maker, registry: Database, written: Database
) -> None:
    serve(registry)
    began = FIRST + timedelta(minutes=20)
    ledger.record(written, used("7", began + timedelta(minutes=30), 100, 0, tenant="biology", user="eve", began=began))
    told = Told(books())
    (all_of_it,) = [r for r in rows(made("gpu", told=told), "gpu", "tenant", "serving", "credits") if r[0] == "biology"]
    assert rows(made("gpu", of="biology", told=told), "gpu", "tenant", "serving", "credits") == [all_of_it]
    assert all_of_it[1] and all_of_it[2] and float(all_of_it[2]) > 2.0


def test_what_the_scheduler_did_not_tell_is_missing_and_the_report_says_why(made: Maker) -> None:
    for kind in ("gpu", "models", "efficiency", "statement", "quota"):
        report = made(kind, told=Told(silence="squeue did not answer"))
        assert report.notes[0] == "The scheduler did not tell everything: squeue did not answer"
        told = [cell for s in report.sections for r in (*s.rows, s.total or {}) for key, cell in r.items() if gpu(key)]
        assert set(told) <= {None}, kind
    assert made("gpu", told=Told(silence="dead")).sections == ()
    assert section(made("statement", of="physics"), "physics/summary").total == {"what": "total", "credits": None}
    assert [s.key for s in made("efficiency").sections] == ["efficiency"]
    partial = dataclasses.replace(books(), partial="jobs of others are hidden")
    assert "jobs of others are hidden" in made("gpu", told=Told(partial)).notes[0]


def gpu(key: str) -> bool:
    """Whether a column is of what the scheduler alone knows."""
    return key in ("gpu_hours", "cpu_hours", "cost", "idle_share")


def test_efficiency_compares_two_months_of_books(made: Maker, registry: Database) -> None:
    serve(registry)
    report = made("efficiency", told=Told(books(), Books((), 0, 0, None)))
    said = {r["what"]: (r["now"], r["before"]) for r in section(report, "efficiency").rows}
    assert said["Tokens"] == (175, 100) and said["GPU-hours of batch jobs"] == (1, 0)
    assert said["Idle replicas, % of their GPU-hours"] == (pytest.approx(83.3, abs=0.1), None)
    assert said["Tokens per GPU-hour as served"] == (165, None)  # without those of replica-2, which has no GPUs here
    assert rows(report, "waits", "partition", "jobs") == [("gpu", 2)]


def test_models_are_told_with_the_cost_of_their_replicas(made: Maker, registry: Database) -> None:
    serve(registry)
    report = made("models", told=Told(books()))
    assert rows(report, "models", "model", "tokens", "gpu_hours", "cost") == [
        ("adapter", 15, 0, 0.0),
        ("chat", 160, 1, 2.0),
    ]


def test_a_tenant_is_not_told_its_tokens_by_the_gpu_time_of_other_work(made: Maker, registry: Database) -> None:
    serve(registry)
    told = Told(books(), books())
    said = {r["what"]: r["now"] for r in section(made("efficiency", of="physics", told=told), "efficiency").rows}
    assert said["GPU-hours of replicas"] == 1 and said["Tokens per GPU-hour as served"] is None
    assert rows(made("models", of="physics", told=told), "models", "tokens_per_gpu_hour") == [(None,), (None,)]


def test_what_the_engines_counted_is_told_beside_the_models_with_what_was_cut_short(
    made: Maker, registry: Database, written: Database
) -> None:
    serve(registry)
    registry.conn.execute("UPDATE replicas SET created_at = '2026-10-01T00:00:00.000000Z'")
    assert [s.key for s in made("models").sections] == ["models"]  # no engine ever said anything
    more = capture.Counters("replica-1", "chat", 310, 110, "2026-11-15T12:00:00.000000Z")
    capture.note_counters(written, [more], {})
    report = made("models")
    assert rows(report, "capture", "deployment", "ledger", "engine", "difference") == [("chat", 415, 420, 5)]
    assert rows(report, "capture_replicas", "replica", "cut", "difference") == [("replica-1", 1, 5)]
    assert rows(report, "capture_cut", "event", "outcome", "completion_tokens") == [("4", "client_left", 5)]
    assert [s.key for s in made("models", of="physics").sections] == ["models"]
    written.conn.execute("DELETE FROM engine_counters")
    capture.note_counters(written, [dataclasses.replace(more, completion_tokens=105)], {})
    agreed = section(made("models"), "capture")
    assert agreed.rows[0]["ratio"] == 1.0 and "1 of 1 replicas agree to the token" in agreed.notes[0]
    assert len(agreed.notes) == 1
    deployments.add_replica(registry, "replica-2", "chat", "root", "/replica-2")
    registry.conn.execute("UPDATE replicas SET created_at = '2026-10-01T00:00:00.000000Z'")
    unread = section(made("models"), "capture").notes
    assert unread[1] == "Of 1 more that were asked something, no engine's counters were read."


def test_a_statement_has_usage_prices_corrections_limits_and_gpu_time(made: Maker, registry: Database) -> None:
    serve(registry)
    prices.put(registry, prices.Kind.MODEL, "chat", "root", prompt=3, completion=4, valid_from="2126-01-01T00:00:00Z")
    registry.conn.execute("UPDATE prices SET valid_from = '2026-11-10T00:00:00.000000Z'")
    report = made("statement", of="physics", told=Told(books()))
    assert rows(report, "physics/summary", "what", "credits") == [
        ("Tokens, before corrections", 0.00042),
        ("Corrections", -0.0002),
        ("GPU time of training and batch jobs", 0.0),
    ]
    assert section(report, "physics/summary").total == {"what": "total", "credits": 0.00022}
    assert rows(report, "physics/limits", "limit", "allowed", "opening", "used", "closing") == [
        ("tokens_per_month", 1000, 1000, 165, 835),
        ("spend_ceiling", 0.01, pytest.approx(0.0099), 0.00022, pytest.approx(0.00968)),
    ]
    assert rows(report, "physics/model", "model", "prompt_tokens") == [("adapter", 10), ("chat", 100)]
    assert rows(report, "physics/user", "user", "requests") == [("ada", 2), ("bob", 0)]
    assert rows(report, "physics/prices", "name", "since", "until", "prompt", "completion", "hour") == [
        ("chat", "site's file", "2026-11-10T00:00:00.000000Z", 1, 2, None),
        ("chat", "2026-11-10T00:00:00.000000Z", None, 3, 4, None),
        ("GPU h100", "site's file", None, None, None, 2.0),
    ]
    assert rows(report, "physics/corrections", "corrects", "tokens", "credits", "by", "reason") == [
        ("3", 150, 0.0002, "root", "measured wrongly")
    ]
    assert rows(report, "physics/gpu", "what", "credits") == [
        ("Start-up", pytest.approx(1 / 3, abs=1e-6)),
        ("Idle", pytest.approx(5 / 3, abs=1e-6)),
    ]
    everyone = made("statement", told=Told(books()))
    assert [s.key for s in everyone.sections if s.key.endswith("summary")] == ["biology/summary", "physics/summary"]


def test_a_statement_has_its_corrections_also_once_the_months_events_were_rolled_up(
    made: Maker, written: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.rollup.FORWARD", timedelta(days=36_500))  # whenever this test runs
    before = made("statement", of="physics")
    old = rollup.RollUp(written, 1, lambda: datetime(2027, 3, 1, tzinfo=UTC))
    while old.turn():
        pass
    assert ledger.usage_events(written) == [] and ledger.check(written) == []
    after = made("statement", of="physics")
    assert after.sections == before.sections
    assert rows(after, "physics/corrections", "corrects", "tokens", "credits") == [("3", 150, 0.0002)]
    assert rows(made("statement", of="biology"), "biology/corrections", "corrects") == []


def test_what_a_report_cannot_be_asked_is_refused_with_what_is_allowed(made: Maker) -> None:
    with pytest.raises(RegistryError, match="no report is called 'money'; there are: quota, usage"):
        made("money")
    with pytest.raises(RegistryError, match="report usage: cannot be by 'qos'; allowed: tenant, user, key"):
        made("usage", "qos")
    with pytest.raises(RegistryError, match="cannot be by 'tenant'; allowed: nothing"):
        made("statement", "tenant")
    with pytest.raises(RegistryError, match="report quota is of a month, not of 2026-11-03"):
        made("quota", since="2026-11-03", until="2026-11-04")
    with pytest.raises(NotFound, match="no tenant is called 'chemistry'; there are: biology, physics"):
        made("usage", of="chemistry")
    with pytest.raises(RegistryError, match="for all tenants together"):
        made("quota", "model", of="physics")

"""GPU time, attributed: whose each part is, under every policy; the parts always add up; what is read of the ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import accounting, clock, deployments, ledger, replica_work, tenants
from registry.accounting import Job
from registry.attribution import (
    Allocation,
    Attributed,
    Books,
    Busy,
    Line,
    Payers,
    ReplicaWork,
    Share,
    attribute,
    split,
)
from registry.db import Database, open_writer
from registry.ledger_migrations import MIGRATIONS
from registry.settings import Attribution, Weights
from registry.steps import PLATFORM, Attempt, Hold, Outcome, Reversal, Step, UsageEvent

HOUR = 1_800_000_000  # an hour's first second, in Unix time
AT = clock.text(datetime.fromtimestamp(HOUR, UTC))
PAYERS = Payers({"research": "physics", "teaching": "school"}, {"ada": "physics"})
EQUAL = Weights(prompt=1, cached=1, completion=1)


def job(start: int = 0, end: int = 100, gpus: int = 2, **others: Any) -> Allocation:
    """A replica's job with two GPUs and four CPUs; instants are seconds after HOUR."""
    values: dict[str, Any] = dict(
        cluster="big", job="12", submitted_at=AT, user="ada", account="research", partition="gpu", qos="normal",
        name="chat", state="COMPLETED", reservation=None, start=HOUR + start, end=HOUR + end, began_at=HOUR + start,
        waited_s=0,
        gpus_by_type=(("h100", gpus),) if gpus else (), gpu_s=gpus * (end - start), cpu_s=4 * (end - start),
        purpose="serve", subject="r1",
    )  # fmt: skip
    return Allocation(**(values | others))


def books(*jobs: Allocation, **others: Any) -> Books:
    return Books(jobs, sum(j.gpu_s for j in jobs), sum(j.cpu_s for j in jobs), None, **others)


def share(tenant: str = "physics", tokens: int = 10, user: str = "eve", model: str = "chat") -> Share:
    return Share(tenant, user, model, 0, 0, tokens)


def work(*shares: Share, ready: int | None = 10, busy: range = range(0)) -> dict[str, ReplicaWork]:
    hour = Busy({HOUR: sum(1 << n for n in busy)})
    return {"r1": ReplicaWork("chat", None if ready is None else HOUR + ready, hour, shares)}


def attributed(jobs: Books, replicas: dict[str, ReplicaWork], **policy: Any) -> Attributed:
    found = attribute(jobs, replicas, PAYERS, Attribution(**({"weights": EQUAL} | policy)))
    assert found.adds_up
    return found


def gpu_s(found: Attributed, *by: str) -> dict[tuple[Any, ...], int]:
    sums: dict[tuple[Any, ...], int] = {}
    for line in found.lines:
        key = tuple(getattr(line, name) for name in by)
        sums[key] = sums.get(key, 0) + line.gpu_s
    return sums


# -- a replica ------------------------------------------------------------------------------------------------------


def test_a_replica_starts_up_then_serves_where_it_was_busy_and_is_idle_otherwise() -> None:
    found = attributed(books(job()), work(share(), ready=10, busy=range(40, 70)))
    assert gpu_s(found, "what", "tenant", "user", "model") == {
        ("startup", "physics", "ada", "chat"): 2 * 10,
        ("idle", "physics", "ada", "chat"): 2 * 60,
        ("serving", "physics", "eve", "chat"): 2 * 30,
    }
    assert {line.what: line.cpu_s for line in found.lines} == {"startup": 40, "idle": 240, "serving": 120}
    assert {(line.subject, line.account, line.partition, line.gpu_type) for line in found.lines} == {
        ("r1", "research", "gpu", "h100")
    }


def test_busy_time_is_split_by_weighted_tokens_and_to_whole_seconds() -> None:
    shares = (share(user="a"), share("school", user="b"), share("school", user="b", model="lora"))
    found = attributed(books(job(gpus=1)), work(*shares, ready=0, busy=range(100)))
    assert sorted(gpu_s(found, "tenant", "user", "model").values()) == [33, 33, 34]
    weighted = Weights(prompt=1, cached=0.1, completion=4)
    mixed = (Share("physics", "a", "m", 100, 80, 0), Share("school", "b", "m", 0, 0, 7))  # 20 + 8, and 28
    found = attributed(books(job(gpus=1)), work(*mixed, ready=0, busy=range(100)), weights=weighted)
    assert gpu_s(found, "tenant") == {("physics",): 50, ("school",): 50}


def test_a_replica_that_never_got_ready_only_started_up() -> None:
    assert gpu_s(attributed(books(job()), work(ready=None, busy=range(50))), "what") == {("startup",): 200}
    assert gpu_s(attributed(books(job()), work(ready=5000)), "what") == {("startup",): 200}
    assert gpu_s(attributed(books(job()), {}), "what") == {("startup",): 200}  # nothing is known of it


def test_a_replica_that_was_ready_before_the_window_does_not_start_up_in_it() -> None:
    found = attributed(books(job()), work(share(), ready=-500, busy=range(20)))
    assert gpu_s(found, "what") == {("idle",): 160, ("serving",): 40}


def test_a_replica_that_was_requeued_starts_up_again_until_it_is_asked_something() -> None:
    first, second = job(0, 100), job(200, 300)
    found = attributed(books(first, second), work(share(), ready=10, busy=range(230, 240)))
    assert gpu_s(found, "what") == {("startup",): 20 + 60, ("idle",): 180 + 120, ("serving",): 20}
    found = attributed(books(first, second), work(share(), ready=10, busy=range(50, 60)))
    assert gpu_s(found, "what") == {("startup",): 20 + 200, ("idle",): 160, ("serving",): 20}
    since = dataclasses.replace(second, began_at=HOUR + 150)  # before the window: who knows when it was ready
    assert gpu_s(attributed(books(since), work(share(), ready=10, busy=range(230, 240))), "what") == {
        ("idle",): 180,
        ("serving",): 20,
    }


def test_what_headgate_asked_itself_is_idle_time_and_so_is_a_request_that_ends_after_the_window() -> None:
    found = attributed(books(job()), work(share(), share(PLATFORM), ready=0, busy=range(50)))
    assert gpu_s(found, "what", "tenant") == {("idle", "physics"): 150, ("serving", "physics"): 50}
    assert gpu_s(attributed(books(job()), work(ready=0, busy=range(50))), "what") == {("idle",): 200}


# -- who pays -------------------------------------------------------------------------------------------------------


def test_start_up_and_idle_time_may_be_charged_pro_rata() -> None:
    shares = (share(tokens=3), share("school", tokens=1, user="b"))
    found = attributed(books(job()), work(*shares, ready=40, busy=range(60, 100)), startup="pro-rata", idle="pro-rata")
    assert gpu_s(found, "what", "tenant") == {
        ("startup", "physics"): 60,
        ("startup", "school"): 20,
        ("idle", "physics"): 30,
        ("idle", "school"): 10,
        ("serving", "physics"): 60,
        ("serving", "school"): 20,
    }


def test_where_nobody_used_a_replica_its_owner_pays_whatever_the_policy() -> None:
    found = attributed(books(job()), work(share(PLATFORM)), startup="pro-rata", idle="pro-rata")
    assert gpu_s(found, "tenant") == {("physics",): 200}


@pytest.mark.parametrize(
    ("reservation", "named", "tenant"),
    [
        (None, {}, "physics"),  # in none: the owner
        ("course", {"course": "guests"}, "guests"),  # as the site says
        ("course", {}, "school"),  # as Slurm says: its first account's
        ("gone", {}, "physics"),  # nobody knows any more
    ],
)
def test_a_reservations_holder_pays(reservation: str | None, named: dict[str, str], tenant: str) -> None:
    jobs = books(job(reservation=reservation), holders=(("course", "teaching"),))
    found = attributed(jobs, work(), startup="reservation", idle="reservation", reservations=named)
    assert gpu_s(found, "tenant") == {(tenant,): 200}


def test_an_account_of_no_tenant_is_charged_to_none_and_a_job_without_account_to_its_users_only_tenant() -> None:
    lines = attributed(
        books(job(account="other"), job(account=""), job(account="", user="bob", purpose=None, subject=None)), work()
    ).lines
    assert {(x.account, x.user, x.tenant) for x in lines} == {
        ("other", "ada", None),
        ("", "ada", "physics"),
        ("", "bob", None),
    }


# -- other jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("purpose", "what"), [("train", "training"), ("convert", "training"), ("script", "batch"), (None, "batch")]
)
def test_any_other_job_is_one_line_of_its_accounts_tenant(purpose: str | None, what: str) -> None:
    subject = "run-1" if purpose else None
    (line,) = attributed(books(job(account="teaching", purpose=purpose, subject=subject)), work()).lines
    assert line == Line(
        what, "school", "ada", "teaching", "gpu", "normal", "", subject or "12", "h100", HOUR, gpu_s=200, cpu_s=400
    )


def test_each_type_of_gpu_has_a_line_and_a_job_without_gpus_too() -> None:
    mixed = job(purpose=None, gpus_by_type=(("a100", 1), ("h100", 3)), gpu_s=400, cpu_s=400)
    lines = attributed(books(mixed, job(gpus=0, purpose=None)), {}).lines
    assert [(x.gpu_type, x.gpu_s, x.cpu_s) for x in lines] == [("a100", 100, 100), ("h100", 300, 300), ("", 0, 400)]


def test_books_whose_total_is_another_do_not_add_up() -> None:
    lacking = dataclasses.replace(books(job()), gpu_s=201)
    assert not attribute(lacking, work(), PAYERS, Attribution()).adds_up


def test_busy_seconds_are_counted_between_two_instants_over_hours() -> None:
    busy = Busy({HOUR: 1 << 3599, HOUR + 3600: 0b1011})
    assert busy.seconds(HOUR, HOUR + 7200) == 4
    assert busy.seconds(HOUR + 3600, HOUR + 3602) == 2
    assert busy.seconds(HOUR + 3599, HOUR + 3601) == 2
    assert [busy.first(HOUR + n, HOUR + 9000) - HOUR for n in (0, 3599, 3600, 3602, 3604)] == [
        3599,
        3599,
        3600,
        3603,
        9000,
    ]
    assert busy.first(HOUR, HOUR + 7) == HOUR + 7
    assert busy.seconds(HOUR + 3602, HOUR + 3603) == busy.seconds(HOUR + 5, HOUR + 5) == 0


# -- always ---------------------------------------------------------------------------------------------------------

_instants = st.integers(-4000, 8000)
_tokens = st.integers(0, 10**9)
_shares = st.builds(
    Share,
    *(st.sampled_from(names) for names in (("physics", "school", PLATFORM), ("a", "b"), ("chat", "lora"))),
    *[_tokens] * 3,
)
_works = st.builds(
    ReplicaWork,
    st.just("chat"),
    st.none() | _instants.map(lambda s: HOUR + s),
    st.builds(Busy, st.dictionaries(st.sampled_from([HOUR - 3600, HOUR, HOUR + 3600]), st.integers(0, 2**3600 - 1))),
    st.lists(_shares, max_size=6, unique_by=lambda s: (s.tenant, s.user, s.model)).map(tuple),
)


@st.composite
def _jobs(draw: st.DrawFn) -> Allocation:
    first, last = sorted((draw(_instants), draw(_instants)))
    types = draw(st.dictionaries(st.sampled_from(["", "a100", "h100"]), st.integers(1, 9)))
    held = last - first
    return job(
        first,
        last,
        job=draw(st.sampled_from(["12", "13_1"])),
        gpus_by_type=tuple(sorted(types.items())),
        gpu_s=held * sum(types.values()),
        cpu_s=draw(st.integers(0, 64)) * draw(st.integers(0, held)),  # less the time it was suspended
        account=draw(st.sampled_from(["research", "other", ""])),
        reservation=draw(st.sampled_from([None, "course"])),
        purpose=draw(st.sampled_from(["serve", "serve", "train", None])),
        subject=draw(st.sampled_from(["r1", "r2"])),
    )


_policies = st.sampled_from(["owner", "pro-rata", "reservation"])


@settings(deadline=None)
@given(
    st.lists(_jobs(), max_size=5),
    st.dictionaries(st.sampled_from(["r1", "r2"]), _works),
    st.builds(Attribution, startup=_policies, idle=_policies),
)
def test_the_parts_add_up_to_the_books_whatever_happened(
    jobs: list[Allocation], replicas: dict[str, ReplicaWork], policy: Attribution
) -> None:
    found = attribute(books(*jobs, holders=(("course", "teaching"),)), replicas, PAYERS, policy)
    assert found.adds_up
    assert all(line.gpu_s >= 0 and line.cpu_s >= 0 and line.gpu_s + line.cpu_s > 0 for line in found.lines)
    for gpu_type in ("", "a100", "h100"):
        whole = sum(dict(j.gpus_by_type).get(gpu_type, 0) * (j.end - j.start) for j in jobs)
        assert sum(line.gpu_s for line in found.lines if line.gpu_type == gpu_type) == whole


@settings(deadline=None)
@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**30), min_size=1, max_size=12))
def test_a_split_is_whole_complete_and_nowhere_off_by_one(total: int, proportions: list[int]) -> None:
    parts = split(total, proportions)
    assert sum(parts) == total
    if whole := sum(proportions):
        assert all(abs(part * whole - total * p) < whole for part, p in zip(parts, proportions, strict=True))


# -- what is read ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger_db(tmp_path: Path) -> Iterator[Database]:
    db = open_writer(tmp_path / "ledger.db", MIGRATIONS)
    yield db
    db.close()


def ended(number: int, tenant: str, started: datetime, ended: datetime, replica: str = "r1") -> list[Step]:
    """A request, from its hold to its end."""
    attempt = Attempt(f"{number:024x}:1", tenant, "k1", "chat", replica, "chat", clock.text(started), "eve")
    return [Hold(attempt, 0, 0), UsageEvent(attempt, 100, 40, 7, Outcome.COMPLETED, clock.text(ended), 60)]


def replica(registry: Database, name: str = "r1") -> None:
    wanted: dict[str, Any] = dict(model="m", version=1, model_path="/m", request={}, by="ada", why="")
    deployments.create(registry, "chat", "ada", min_replicas=1, max_replicas=1, **wanted)
    deployments.add_replica(registry, name, "chat", "ada", f"/runs/{name}")


def test_a_replicas_work_is_that_of_the_days_and_its_busy_seconds_are_to_the_second(
    registry: Database, ledger_db: Database
) -> None:
    replica(registry)
    midnight = datetime(2026, 11, 28, tzinfo=UTC)
    over_midnight = ended(1, "physics", midnight - timedelta(seconds=5), midnight + timedelta(seconds=9))
    day_before = ended(2, "school", midnight - timedelta(hours=3), midnight - timedelta(hours=2))
    elsewhere = ended(3, "physics", midnight, midnight, replica="openai/gpt")
    ledger.record(ledger_db, [*over_midnight, *day_before, *elsewhere])
    found = replica_work.read(registry, ledger_db, midnight, midnight + timedelta(days=1))
    (one,) = found.values()
    assert one.shares == (Share("physics", "eve", "chat", 100, 60, 40),)
    at = int(midnight.timestamp())
    assert (one.busy.seconds(at, at + 86400), one.busy.seconds(at, at + 3)) == (10, 3)
    assert (one.deployment, one.ready_at) == ("chat", None)


def test_a_correction_takes_back_a_charge_and_not_the_work_whenever_it_was_made(
    registry: Database, ledger_db: Database
) -> None:
    replica(registry)
    noon = datetime(2026, 11, 28, 12, tzinfo=UTC)
    at = [clock.text(noon + timedelta(days=days)) for days in (0, 1)]
    events = [step for n, tenant in enumerate(("physics", "school")) for step in ended(n, tenant, noon, noon)]
    later = ended(7, "school", noon + timedelta(days=1), noon + timedelta(days=1))
    back = [Reversal(f"back-{n}", f"{n:024x}:1", "root", "a mistake", at[n]) for n in (0, 1)]
    assert set(ledger.record(ledger_db, [*events, *later, *back])) == {None}
    for day, tenants_ in ((0, ["physics", "school"]), (1, ["school"])):
        start = datetime(2026, 11, 28 + day, tzinfo=UTC)
        (one,) = replica_work.read(registry, ledger_db, start, start + timedelta(days=1)).values()
        worked = [share for share in one.shares if share != Share(share.tenant, "eve", "chat", 0, 0, 0)]
        assert worked == [Share(tenant, "eve", "chat", 100, 60, 40) for tenant in tenants_]


def test_a_window_from_the_registry_and_the_ledger_is_attributed(registry: Database, ledger_db: Database) -> None:
    replica(registry)
    deployments.replica_is_ready(registry, "r1", "g1", 8000, "secret")
    tenants.create(registry, "physics", "root", account="research")
    tenants.create(registry, "school", "root")
    accounting.record(
        registry, cluster="big", job_id="12", submitted_at=AT, key="r1", subject="r1", purpose="serve", owner="ada"
    )
    (known,) = deployments.replicas(registry)
    ready = clock.parse(known.ready_at or "").replace(microsecond=0)
    ledger.record(ledger_db, ended(1, "school", ready, ready + timedelta(seconds=9)))
    began = int(ready.timestamp()) - HOUR - 30
    serving = job(began, began + 100, purpose=None, subject=None, user="headgate")
    window = ready - timedelta(hours=1), ready + timedelta(hours=1)
    found = replica_work.attributed(registry, ledger_db, books(serving), *window, Attribution())
    assert found.adds_up
    assert gpu_s(found, "what", "tenant", "user", "subject") == {
        ("startup", "physics", "ada", "r1"): 60,
        ("idle", "physics", "ada", "r1"): 120,
        ("serving", "school", "eve", "r1"): 20,
    }


def test_a_job_is_named_by_its_attempts_and_not_by_a_recycled_id() -> None:
    minutes = [clock.text(datetime.fromtimestamp(HOUR + 60 * n, UTC)) for n in range(5)]
    mine = Job(
        "big", "12", minutes[0], "run-1", "run-1", "train", "eve", "COMPLETED", None, None, None, None,
        minutes[2], 0, 0, 0, True,
    )  # fmt: skip

    def purpose(submitted: str, **others: Any) -> str | None:
        one = job(submitted_at=submitted, purpose=None, subject=None, **others)
        (named,) = replica_work.named(books(one), [mine]).allocations
        assert (named.subject, named.user) == (("run-1", "eve") if named.purpose else (None, "ada"))
        return named.purpose

    assert purpose(minutes[0]) == purpose(minutes[1]) == "train"  # the second attempt has a later submit time
    assert purpose(minutes[3]) is None  # after its end
    assert purpose(minutes[0], job="12_1") is None
    assert purpose(minutes[0], cluster="small") is None


def test_replicas_that_share_a_job_are_charged_for_it_together(registry: Database, ledger_db: Database) -> None:
    replica(registry)
    deployments.add_replica(registry, "r2", "chat", "ada", "/runs/r2", pack="r1")
    deployments.replica_is_ready(registry, "r1", "g1", 8000, "secret")  # the other one never is
    (first, _) = deployments.replicas(registry)
    ready = clock.parse(first.ready_at or "").replace(microsecond=0)
    # Nine seconds and a tenth one in which they are busy, five of them both.
    at_first = ended(1, "school", ready, ready + timedelta(seconds=9))
    at_second = ended(2, "physics", ready + timedelta(seconds=5), ready + timedelta(seconds=14), replica="r2")
    ledger.record(ledger_db, [*at_first, *at_second])
    tenants.create(registry, "physics", "root", account="research")
    accounting.record(
        registry, cluster="big", job_id="12", submitted_at=AT, key="r1", subject="r1", purpose="serve", owner="ada"
    )
    began = int(ready.timestamp()) - HOUR
    window = ready - timedelta(hours=1), ready + timedelta(hours=1)
    found = replica_work.attributed(registry, ledger_db, books(job(began, began + 100)), *window, Attribution())
    assert found.adds_up
    assert gpu_s(found, "what", "tenant") == {
        ("idle", "physics"): 2 * (100 - 15),
        ("serving", "school"): 15,
        ("serving", "physics"): 15,
    }

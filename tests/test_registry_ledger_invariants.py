"""Whatever happens to journals and their projector, in whatever order: the ledger stays sound, and bills what it must.

Hypothesis makes up the story: gateways that hold, count, settle, release and reverse, repeat themselves and contradict
themselves, die, lose the end of their journal; a projector that is cut off between any two of its operations; clocks
that jump. A model of a few lines says what each tenant must have used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import journal, ledger, ledger_bulk, projection, steps
from registry.db import Database
from registry.journal import Journal
from registry.ledger import Attempt, Hold, Note, Outcome, Release, Reversal, Step, UsageEvent
from registry.ledger_check import verify
from registry.projection import Projection
from registry.rollup import RollUp

TIMES = [
    "2026-01-31T23:59:59.999999Z",
    "2026-02-01T00:00:00.000000Z",
    "2026-02-28T23:59:59.500000Z",
    "2026-02-28T12:00:00.000000Z",  # back again
    "2026-03-01T00:00:00.000001Z",
    "2025-12-31T23:00:00.000000Z",
]
TENANTS = ("physics", "biology", "(platform)")
GATEWAYS = 3

number = st.integers(0, 1000)
gateway = st.integers(0, GATEWAYS - 1)
which = st.integers(0, 50)
happening = st.one_of(
    st.tuples(st.just("hold"), gateway, st.sampled_from(TENANTS), number, st.sampled_from(TIMES)),
    st.tuples(st.just("note"), gateway, which, number, number),
    st.tuples(st.just("settle"), gateway, which, number, number, st.sampled_from(TIMES), st.sampled_from(Outcome)),
    st.tuples(st.just("release"), gateway, which),
    st.tuples(st.just("reverse"), gateway, which, st.sampled_from(TIMES)),
    st.tuples(st.just("again"), gateway, which),
    st.tuples(st.just("contradict"), gateway, which),
    st.tuples(st.just("project"), st.integers(0, 12)),
    st.tuples(st.just("die"), gateway, st.integers(0, 400)),
)


class Gateway:
    """A process with its journal, and what it wrote: (where the line ends, its steps)."""

    def __init__(self, directory: Path, n: int) -> None:
        self.id = n
        self.journal = Journal(directory, pytest.fail, sync_s=0.001)
        self.path = directory / f"{self.journal.name}.000000"
        self.lines: list[tuple[int, list[Step]]] = []
        self.attempts: list[Attempt] = []

    @property
    def said(self) -> list[Step]:
        return [step for _, some in self.lines for step in some]

    def say(self, *some: Step) -> None:
        self.journal.write([journal.line(steps.encode_all([steps.fields(step) for step in some]))])
        self.lines.append((self.path.stat().st_size, list(some)))

    def die(self, torn: int, projected: int) -> None:
        """And lose the last bytes of the journal, but none that is in the ledger, which flushes later."""
        self.journal.close()
        end = max(projected, (self.lines[-1][0] if self.lines else 0) - torn)
        with suppress(FileNotFoundError), self.path.open("r+b") as file:
            file.truncate(end)
        self.lines = [line for line in self.lines if line[0] <= end]


def tell(one: Gateway, event: tuple[object, ...], n: int) -> None:
    """`n`: of the event in the story, which makes ids."""
    match event:
        case ("hold", _, str(tenant), int(amount), str(at)):
            attempt = Attempt(f"{n:06}-{one.id}:1", tenant, "key", "tiny", f"replica-{n % 2}", "chat", at, "ada")
            one.attempts.append(attempt)
            one.say(Hold(attempt, amount, amount))
        case (_, _, int(at), *_) if not one.attempts or (not one.said and at):
            return
        case ("note", _, int(at), int(prompt), int(completion)):
            attempt = one.attempts[at % len(one.attempts)]
            one.say(Note(attempt.event_id, prompt, completion, prompt + completion, prompt // 2, completion // 3))
        case ("settle", _, int(at), int(prompt), int(completion), str(ended), Outcome() as outcome):
            attempt = one.attempts[at % len(one.attempts)]
            how = Outcome.COMPLETED if outcome is Outcome.REVERSED else outcome
            one.say(UsageEvent(attempt, prompt, completion, 3 * prompt, how, ended, prompt // 2, completion // 3))
        case ("release", _, int(at)):
            one.say(Release(one.attempts[at % len(one.attempts)].event_id))
        case ("reverse", _, int(at), str(when)):
            corrected = one.attempts[at % len(one.attempts)].event_id
            one.say(Reversal(f"{n:06}-{one.id}:back", corrected, "root", "a mistake", when))
        case ("again", _, int(at)) if one.said:
            one.say(one.said[at % len(one.said)])
        case ("contradict", _, int(at)) if one.said:
            match one.said[at % len(one.said)]:
                case Hold() as hold:
                    one.say(hold._replace(microcredits=hold.microcredits + 1))
                case UsageEvent() as used:
                    one.say(used._replace(completion_tokens=used.completion_tokens + 1))
                case Reversal() as back:
                    one.say(back._replace(reason="another"))


def expected(told: list[list[Step]]) -> dict[str, list[int]]:
    """What each tenant used, in tokens and micro-credits, once every process is dead. `told`: by process."""
    used = {tenant: [0, 0] for tenant in TENANTS}
    for said in told:
        open_: dict[str, tuple[str, tuple[int, int]]] = {}
        over: dict[str, tuple[str, tuple[int, int]]] = {}  # billed, and not taken back
        known: set[str] = set()
        for step in said:
            match step:
                case Hold(attempt) if attempt.event_id not in known:
                    known.add(attempt.event_id)
                    open_[attempt.event_id] = (attempt.tenant, (0, 0))
                case Note(event_id, prompt, completion, paid) if event_id in open_:
                    open_[event_id] = (open_[event_id][0], (prompt + completion, paid))
                case UsageEvent(attempt, prompt, completion, paid) if attempt.event_id in open_:
                    over[attempt.event_id] = (open_.pop(attempt.event_id)[0], (prompt + completion, paid))
                case Release(event_id):
                    open_.pop(event_id, None)
                case Reversal(event_id, corrects) if corrects in over and event_id not in known:
                    known.add(event_id)
                    del over[corrects]
        for tenant, (tokens, paid) in [*over.values(), *open_.values()]:
            used[tenant][0] += tokens
            used[tenant][1] += paid if tokens else 0
    return used


class Cut(Exception):
    """The projector's process ended here."""


@contextmanager
def cut_off_after(operations: int) -> Iterator[None]:
    """`operations`: writes, notes of what is written, deletions of files; 0: nothing is cut off."""
    left = operations

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **named: object) -> object:
            nonlocal left
            found = real(*args, **named)
            left -= 1
            if left == 0:
                raise Cut
            return found

        return call

    with (
        mock.patch.object(ledger_bulk, "write", counted(ledger_bulk.write)),
        mock.patch.object(ledger, "write", counted(ledger.write)),
        mock.patch.object(projection, "_note_offset", counted(projection._note_offset)),
        mock.patch.object(Path, "unlink", counted(Path.unlink)),
    ):
        yield


def used(db: Database) -> dict[str, list[int]]:
    found = ledger.totals(db, "all")
    return {tenant: list(found.get(("all", "tenant", tenant), (0, 0))) for tenant in TENANTS}


def image(db: Database) -> list[list[tuple[object, ...]]]:
    """All that does not depend on when it was projected."""
    return [
        [tuple(r) for r in db.conn.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3")]
        for table, columns in (
            ("entries", "event_id, step, tenant, available, held, consumed"),
            ("reversals", "*"),
            ("balances", "*"),
            ("busy", "*"),
        )
    ] + [[tuple(r) for r in db.conn.execute("SELECT * FROM usage_events WHERE outcome != 'orphaned'")]]


@given(story=st.lists(happening, max_size=40))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_the_ledger_is_sound_and_bills_what_it_must(story: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "journal")
        running = [Gateway(directory, n) for n in range(GATEWAYS)]
        dead: list[Gateway] = []
        db = ledger.open_ledger(Path(name, "ledger.db"))
        projected = Projection(db, directory)
        for n, event in enumerate(story):
            if event[0] == "project":
                assert isinstance(event[1], int)
                try:
                    with cut_off_after(event[1]):
                        projected.turn()
                except Cut:
                    db.close()
                    db = ledger.open_ledger(Path(name, "ledger.db"))
                    projected = Projection(db, directory)
                assert verify(db).problems == ()
            elif event[0] == "die":
                assert isinstance(event[1], int) and isinstance(event[2], int)
                one = running[event[1]]
                one.die(event[2], projected._offsets.get(one.path.name, 0))
                dead.append(one)
                running[event[1]] = Gateway(directory, n + 10)
            else:
                assert isinstance(event[1], int)
                tell(running[event[1]], event, n)
        copy = Path(name, "copy")
        copy.mkdir()
        told = [one.said for one in (*dead, *running)]
        for place, said in enumerate(told):
            lines = b"".join(journal.line(steps.encode(step)) for step in said)
            (copy / f"{place:04}.000000").write_bytes(lines)
        for one in running:
            one.die(0, 0)
        projected.turn()
        assert verify(db).problems == ()
        assert (ledger.open_holds(db), list(directory.iterdir())) == (0, [])
        assert used(db) == expected(told)

        slow = ledger.open_ledger(Path(name, "slow.db"))
        with mock.patch.object(ledger_bulk, "write", side_effect=ledger_bulk.NotPlain):
            Projection(slow, copy).turn()
        assert image(slow) == image(db)
        slow.close()

        rolling = RollUp(db, 1, lambda: datetime(2026, 3, 15, tzinfo=UTC))
        while rolling.turn(entries=5):
            assert verify(db).problems == ()
        assert used(db) == expected(told)
        assert not db.conn.execute("SELECT 1 FROM usage_events WHERE ended_at < '2026-02'").fetchall()
        db.close()

"""What gateways say of their work, and what the controller makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry import clock, demand, ledger
from registry.db import Database
from registry.demand import GATEWAY_LIVES_S, KEPT_S, NOTICED_S, Demand, DemandReader, Load, Served
from registry.steps import Attempt, Hold


@dataclass
class House:
    """A ledger's file with its writer and its reader; `at` moves the wall clock of those who write, and `now` the
    reader's own."""

    path: Path
    db: Database = field(init=False)
    now: float = 1000.0
    wall: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.db = ledger.open_ledger(self.path)
        self.reader = DemandReader(self.path, lambda: self.now)

    def at(self) -> str:
        return clock.text(self.wall)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += timedelta(seconds=seconds)

    def load(self, gateway: str, *loads: Load) -> None:
        demand.note_load(self.db, gateway, self.at(), loads)

    def served(self, gateway: str, replica: str, outstanding: int, *counts: int, first_s: float = 0.0) -> None:
        demand.note_served(self.db, gateway, [Served(replica, self.at(), outstanding, *counts, first_output_s=first_s)])

    def chat(self, running: int = 0, tokens: int = 0, queued: int = 0, queued_tokens: int = 0, s: float = 0.0) -> Load:
        return Load("chat", self.at(), running, tokens, queued, queued_tokens, s)

    def held(self, replica: str, journal: str, *events: str) -> None:
        for event in events:
            attempt = Attempt(event, "physics", "k", "chat", replica, "chat", self.at())
            ledger.write(self.db.conn, [Hold(attempt, 1, 0)], self.at(), journal)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "ledger.db")
    yield made
    made.reader.close()
    made.db.close()


def test_what_several_gateways_have_to_do_is_added_and_the_longest_wait_counts(house: House) -> None:
    house.load("a", house.chat(2, 300, 1, 40, 0.5))
    house.load("b", house.chat(1, 100, 4, 60, 2.5))
    assert house.reader.loads() == {"chat": Load("chat", house.at(), 3, 400, 5, 100, 2.5)}


def test_a_gateway_that_says_nothing_has_nothing_running_and_its_silence_is_not_idleness(house: House) -> None:
    house.load("a", house.chat(2, 300))
    house.load("b", house.chat())
    house.reader.loads()
    house.passes(GATEWAY_LIVES_S - 1)
    house.load("b")  # nothing new but that it lives
    assert house.reader.loads()["chat"].running == 2
    house.passes(2)
    assert house.reader.loads() == {"chat": Load("chat", house.reader.loads()["chat"].at, 0, 0, 0, 0, 0.0)}
    house.passes(GATEWAY_LIVES_S)
    assert house.reader.loads() == {}
    house.load("a", house.chat(1))
    assert house.reader.loads()["chat"].running == 1


def test_what_a_dead_gateway_left_is_no_load_for_a_controller_that_starts(house: House) -> None:
    house.load("a", house.chat(2, 300))
    house.served("a", "r1", 2, 7, 1)
    house.wall = datetime.now(UTC)
    later = DemandReader(house.path, lambda: house.now)
    assert later.loads()["chat"].running == 2
    later.close()
    house.wall -= timedelta(days=1)
    house.load("a", house.chat(2, 300))
    later = DemandReader(house.path, lambda: house.now)
    assert later.loads() == {} and later.served()["r1"].outstanding is None
    later.close()


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0])
def test_a_host_whose_clock_jumps_has_the_same_gateways(house: House, jump_s: float) -> None:
    house.load("a", house.chat(2, 300))
    house.served("a", "r1", 2)
    assert house.reader.loads()["chat"].running == 2
    house.wall += timedelta(seconds=jump_s)
    house.passes(4)
    house.load("a", house.chat(1))
    assert house.reader.loads()["chat"].running == 1
    house.passes(4)
    house.load("a")
    assert house.reader.loads()["chat"].running == 1 and house.reader.served()["r1"].outstanding == 2


def test_counts_are_of_all_gateways_and_what_is_outstanding_of_those_that_live(house: House) -> None:
    for gateway, outstanding in (("a", 2), ("b", 3)):
        house.load(gateway)
        house.served(gateway, "r1", outstanding, 10, 1, 4, first_s=0.5)
    assert house.reader.served() == {"r1": Served("r1", house.at(), 5, 20, 2, 8, 1.0)}
    house.served("a", "r1", 0, 12, 1, 5, first_s=0.75)  # all that it has counted, not what is new
    house.passes(10)
    house.load("a")
    assert house.reader.served()["r1"].requests == 22
    house.passes(10)
    one = house.reader.served()["r1"]
    assert (one.outstanding, one.requests, one.failures, one.first_output_s) == (0, 22, 2, 1.25)
    house.passes(10)
    assert house.reader.served()["r1"].outstanding is None


def test_what_a_gateway_finishes_that_was_taken_over_from_is_outstanding_while_it_is_held(house: House) -> None:
    house.load("old")
    house.served("old", "r1", 1)
    house.held("r1", "old", "e1", "e2")
    house.held("r1", "new", "e3")  # the new one says itself what it has
    house.reader.served()
    house.passes(GATEWAY_LIVES_S - 1)
    house.load("new")
    house.served("new", "r1", 1)
    house.reader.served()
    house.passes(2)
    assert house.reader.served()["r1"].outstanding == 1 + 2
    house.db.conn.execute("DELETE FROM holds")
    house.load("new")
    assert house.reader.served()["r1"].outstanding == 1


def test_what_was_said_before_a_replica_drained_does_not_say_that_it_is_empty(house: House) -> None:
    house.load("a")
    house.served("a", "r1", 0)
    house.passes(1)
    draining_at = house.at()
    assert house.reader.served()["r1"].left(draining_at) == 1
    house.passes(NOTICED_S)
    house.load("a")
    assert house.reader.served()["r1"].left(draining_at) == 0
    house.load("b")
    house.wall -= timedelta(seconds=2)
    house.load("b")  # it spoke before that
    assert house.reader.served()["r1"].left(draining_at) == 1


def test_a_replica_that_drains_when_the_clock_is_set_back_keeps_its_requests(house: House) -> None:
    house.load("a")
    house.served("a", "r1", 3)
    draining_at = house.at()
    assert house.reader.served()["r1"].outstanding == 3
    house.wall -= timedelta(hours=2)
    for _ in range(60):
        house.passes(1)
        house.load("a")
        assert house.reader.served()["r1"].left(draining_at) == 3
    house.passes(GATEWAY_LIVES_S + 1)
    assert house.reader.served()["r1"].left(draining_at) is None


def test_a_gateways_rows_of_deployments_that_are_gone_go_and_everybodys_when_they_are_old(house: House) -> None:
    house.load("a", house.chat(1), Load("gone", house.at(), 1, 1, 0, 0, 0.0))
    house.load("b", Load("gone", house.at(), 2, 2, 0, 0, 0.0))
    house.served("a", "r1", 0, 5)
    demand.forget(house.db, "a", ["gone"], house.at())
    assert {name: one.running for name, one in house.reader.loads().items()} == {"chat": 1, "gone": 2}
    house.passes(KEPT_S + 1)
    house.load("a")
    demand.forget(house.db, "a", [], house.at())
    assert house.reader.loads() == {} and house.reader.served() == {}


def test_the_file_of_a_gateway_that_knows_of_no_load_still_tells_what_is_called(house: House) -> None:
    house.db.conn.execute("DROP TABLE served")
    house.db.conn.execute("DROP TABLE load")
    demand.note_demand(house.db, [Demand("chat", house.at(), 0)])
    assert house.reader.latest().keys() == {"chat"}
    assert house.reader.loads() == {} and house.reader.served() == {}

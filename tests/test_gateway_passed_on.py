"""A running count is what has left the gateway, not what waits in it for a client that reads slowly."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.metering import Usage
from gateway.passed_on import PassedOn


@dataclass
class Reader:
    written: int = 0
    sent: int = 0


def test_what_was_sent_at_once_counts_at_once() -> None:
    reader = Reader()
    passed = PassedOn(reader)
    assert passed.of(None) is None
    reader.written = reader.sent = 100
    assert passed.of(Usage(7, 1)) == Usage(7, 1)
    assert passed.of(Usage(7, 1)) == Usage(7, 1)


def test_what_waits_counts_once_it_is_gone_and_the_newest_of_it() -> None:
    reader = Reader()
    passed = PassedOn(reader)
    reader.written = reader.sent = 100
    assert passed.of(Usage(7, 1)) == Usage(7, 1)
    reader.written = 200
    assert passed.of(Usage(7, 2)) == Usage(7, 1)
    reader.written = 300
    assert passed.of(Usage(7, 3)) == Usage(7, 1)
    reader.sent = 250
    assert passed.of(Usage(7, 3)) == Usage(7, 2)
    reader.sent = 300
    assert passed.of(Usage(7, 3)) == Usage(7, 3)


def test_a_client_that_was_sent_nothing_is_counted_nothing() -> None:
    passed = PassedOn(Reader(written=100, sent=0))
    assert passed.of(Usage(7, 1)) is None

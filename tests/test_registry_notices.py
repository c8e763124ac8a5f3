"""What a deployment's users are to know: told once, to those that called it lately."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from registry import alerts, clock, deployments, ledger_migrations, notices
from registry.db import Database, open_writer, transaction

CHANNELS = ["webhook", "mail"]


@pytest.fixture
def served(registry: Database) -> Database:
    """With deployments `chat`, which had replicas chat-1 and chat-2, and `other`, which had other-1."""
    for name, replicas in (("chat", 2), ("other", 1)):
        deployments.create(
            registry, name, "ada", model="tiny", version=1, model_path="/m/tiny", min_replicas=1, max_replicas=1,
            request={}, by="ada", why="served",
        )  # fmt: skip
        for n in range(1, replicas + 1):
            deployments.add_replica(registry, f"{name}-{n}", name, "ada", f"/runs/{name}-{n}")
    return registry


def called(root: Path, *calls: tuple[str, str, int]) -> Path:
    """A ledger in which tenants called replicas some days ago."""
    path = root / "ledger.db"
    ledger = open_writer(path, ledger_migrations.MIGRATIONS)
    with transaction(ledger) as c:
        for tenant, replica, days in calls:
            day = clock.text(clock.parse(clock.now()) - timedelta(days=days))[:10]
            words = (day, tenant, "bob", "key", "chat", replica, "chat")
            c.execute("INSERT INTO daily VALUES (?, ?, ?, ?, ?, ?, ?, 1, 0, 5, 0, 7, 0, 0)", words)
    ledger.close()
    return path


def test_a_notice_names_the_tenants_that_called_any_of_its_replicas_lately(served: Database, tmp_path: Path) -> None:
    ledger = called(
        tmp_path,
        ("physics", "chat-1", 0),
        ("biology", "chat-2", 6),
        ("biology", "chat-1", 1),
        ("history", "chat-1", 9),  # too long ago
        ("chemistry", "other-1", 0),
        ("(headgate)", "chat-1", 0),  # our own probes
    )
    assert notices.tell(served, ledger, "chat", "it stops at 15:00", CHANNELS)
    (told,) = alerts.waiting(served)
    assert told.waiting == tuple(CHANNELS)
    assert told.document["tenants"] == ["biology", "physics"]
    assert (told.document["subject"], told.document["name"], told.document["kind"]) == ("deployment", "chat", "notice")
    assert told.document["message"] == "deployment chat: it stops at 15:00"


def test_the_same_words_are_told_once_and_others_again(served: Database, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    assert notices.tell(served, ledger, "chat", "it stops at 15:00", CHANNELS)
    assert not notices.tell(served, ledger, "chat", "it stops at 15:00", CHANNELS)
    (stored,) = alerts.waiting(served)
    alerts.told(served, stored, [])
    assert not notices.tell(served, ledger, "chat", "it stops at 15:00", CHANNELS)  # whoever took it knows
    assert notices.tell(served, ledger, "other", "it stops at 15:00", CHANNELS)
    assert notices.tell(served, ledger, "chat", "it stops at 16:00", CHANNELS)
    messages = [told.document["message"] for told in alerts.waiting(served)]
    assert messages == ["deployment other: it stops at 15:00", "deployment chat: it stops at 16:00"]


def test_without_a_ledger_nobody_called(served: Database, tmp_path: Path) -> None:
    assert notices.tenants_of(served, tmp_path / "ledger.db", "chat") == []


def test_without_channels_it_is_noted_and_waits_for_nobody(served: Database, tmp_path: Path) -> None:
    assert notices.tell(served, tmp_path / "ledger.db", "chat", "it stops", [])
    assert alerts.waiting(served) == []
    assert not notices.tell(served, tmp_path / "ledger.db", "chat", "it stops", CHANNELS)


def test_what_is_to_be_known_is_told_though_the_ledger_cannot_be_read(served: Database, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    assert notices.tell(served, tmp_path / "ledger.db", "chat", "it stops at 15:00", CHANNELS)
    (told,) = alerts.waiting(served)
    assert told.document["tenants"] == []

"""The schema of `ledger.db`, as named functions applied in order. Never edit one that has landed: add another.

`postings` and `usage_events` are append-only, and the file itself says so. `holds` is what is open right now,
`totals` the tokens of each tenant's events.
"""

from __future__ import annotations

from registry.db import Database


def m001_first(db: Database) -> None:
    attempt = """event_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
            replica TEXT NOT NULL, kind TEXT NOT NULL, started_at TEXT NOT NULL"""
    used = "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, microcredits INTEGER NOT NULL"
    for statement in (
        # `held_` is what was set aside, the rest the running count last noted. Ids are in order of time, so that
        # WITHOUT ROWID tables grow at their end.
        f"""CREATE TABLE holds ({attempt}, held_tokens INTEGER NOT NULL, held_microcredits INTEGER NOT NULL,
            {used}) WITHOUT ROWID""",
        f"""CREATE TABLE usage_events ({attempt}, {used}, outcome TEXT NOT NULL,
            ended_at TEXT NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX usage_events_by_tenant ON usage_events (tenant, ended_at)",
        """CREATE TABLE postings (
            event_id TEXT NOT NULL, step TEXT NOT NULL, account TEXT NOT NULL, microcredits INTEGER NOT NULL,
            at TEXT NOT NULL, PRIMARY KEY (event_id, step, account)) WITHOUT ROWID""",
    ):
        db.conn.execute(statement)
    for table in ("usage_events", "postings"):
        for verb in ("UPDATE", "DELETE"):
            db.conn.execute(
                f"""CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}
                    BEGIN SELECT RAISE(ABORT, '{table} is append-only: correct with a reversing entry'); END"""
            )


def m002_journals(db: Database) -> None:
    """Each gateway process has a journal; holds are its own, and so far it is in this file."""
    db.conn.execute("ALTER TABLE holds ADD COLUMN journal TEXT NOT NULL DEFAULT ''")
    db.conn.execute("CREATE TABLE journals (segment TEXT PRIMARY KEY, offset INTEGER NOT NULL) WITHOUT ROWID")


def m003_demand(db: Database) -> None:
    """The controller learns from here which deployments are asked for."""
    db.conn.execute("CREATE TABLE demand (deployment TEXT PRIMARY KEY, at TEXT NOT NULL, waiting INTEGER NOT NULL)")


def m004_totals(db: Database) -> None:
    """A gateway that starts need not add up every event there ever was."""
    db.conn.execute("CREATE TABLE totals (tenant TEXT PRIMARY KEY, tokens INTEGER NOT NULL) WITHOUT ROWID")
    db.conn.execute(
        """INSERT INTO totals SELECT tenant, sum(prompt_tokens + completion_tokens)
           FROM usage_events GROUP BY tenant"""
    )


MIGRATIONS = (m001_first, m002_journals, m003_demand, m004_totals)

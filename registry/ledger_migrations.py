"""The schema of `ledger.db`, as named functions applied in order. Never edit one that has landed: add another.

`entries` and `usage_events` are append-only, and the file itself says so. `holds` is what is open right now. Everything
else can be worked out of these.
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


def m005_users_and_entries(db: Database) -> None:
    """Events know the user and the cached and reasoning tokens; an entry is a whole posting, with its number.

    `entries` has a posting's three amounts in one row, which the file itself holds to a sum of zero, numbered without
    gaps. `balances`, `usage_totals`, `daily` and `busy` are projections of the events, written with them.
    `totals` stays, no longer written: a gateway of before may still be reading it while it finishes its streams.
    """
    more = "cached_tokens INTEGER NOT NULL DEFAULT 0, reasoning_tokens INTEGER NOT NULL DEFAULT 0"
    counts = """requests INTEGER NOT NULL, cut INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
            microcredits INTEGER NOT NULL"""
    attempt = """event_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
            replica TEXT NOT NULL, kind TEXT NOT NULL, started_at TEXT NOT NULL, user TEXT NOT NULL"""
    used = "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, microcredits INTEGER NOT NULL"
    old = "event_id, tenant, key_id, model, replica, kind, started_at, ''"
    for statement in (
        "ALTER TABLE holds RENAME TO old_holds",
        "ALTER TABLE usage_events RENAME TO old_events",
        f"""CREATE TABLE holds ({attempt}, held_tokens INTEGER NOT NULL, held_microcredits INTEGER NOT NULL,
            {used}, {more}, journal TEXT NOT NULL DEFAULT '') WITHOUT ROWID""",
        f"""INSERT INTO holds SELECT {old}, held_tokens, held_microcredits, prompt_tokens, completion_tokens,
            microcredits, 0, 0, journal FROM old_holds""",
        f"""CREATE TABLE usage_events ({attempt}, {used}, outcome TEXT NOT NULL, ended_at TEXT NOT NULL,
            {more}) WITHOUT ROWID""",
        f"""INSERT INTO usage_events SELECT {old}, prompt_tokens, completion_tokens, microcredits, outcome, ended_at,
            0, 0 FROM old_events""",
        "DROP TABLE old_holds",
        "DROP TABLE old_events",
        # step: hold | settle | release | reverse | carried (a month's events, rolled up)
        """CREATE TABLE entries (
            seq INTEGER PRIMARY KEY, event_id TEXT NOT NULL, step TEXT NOT NULL, tenant TEXT NOT NULL,
            available INTEGER NOT NULL, held INTEGER NOT NULL, consumed INTEGER NOT NULL, at TEXT NOT NULL,
            CHECK (available + held + consumed = 0))""",
        """INSERT INTO entries (event_id, step, tenant, available, held, consumed, at)
            SELECT event_id, step, substr(min(account), 1, instr(min(account), '/') - 1),
                sum(CASE WHEN account LIKE '%/available' THEN microcredits ELSE 0 END),
                sum(CASE WHEN account LIKE '%/held' THEN microcredits ELSE 0 END),
                sum(CASE WHEN account LIKE '%/consumed' THEN microcredits ELSE 0 END), min(at)
            FROM postings GROUP BY event_id, step ORDER BY min(at), event_id, step""",
        "CREATE UNIQUE INDEX entries_by_event ON entries (event_id, step)",
        "DROP TABLE postings",
        """CREATE TABLE balances (tenant TEXT PRIMARY KEY, available INTEGER NOT NULL, held INTEGER NOT NULL,
            consumed INTEGER NOT NULL) WITHOUT ROWID""",
        """INSERT INTO balances SELECT tenant, sum(available), sum(held), sum(consumed) FROM entries GROUP BY tenant""",
        # For limits: of a key, a user, a tenant or a model, in a day ("2026-11-28"), a month ("2026-11") and in "all".
        """CREATE TABLE usage_totals (period TEXT NOT NULL, subject TEXT NOT NULL, name TEXT NOT NULL,
            tokens INTEGER NOT NULL, microcredits INTEGER NOT NULL,
            PRIMARY KEY (period, subject, name)) WITHOUT ROWID""",
        *(
            f"""INSERT INTO usage_totals SELECT {period}, '{subject}', {column},
                sum(prompt_tokens + completion_tokens), sum(microcredits) FROM usage_events
                WHERE {column} != '' GROUP BY 1, 3"""
            for period in ("'all'", "substr(ended_at, 1, 7)", "substr(ended_at, 1, 10)")
            for subject, column in (("key", "key_id"), ("user", "user"), ("tenant", "tenant"), ("model", "model"))
        ),
        # For reports: what ended on a day. `cut`: of the requests, those whose outcome is not "completed".
        f"""CREATE TABLE daily (day TEXT NOT NULL, tenant TEXT NOT NULL, user TEXT NOT NULL, key_id TEXT NOT NULL,
            model TEXT NOT NULL, replica TEXT NOT NULL, kind TEXT NOT NULL, {counts},
            PRIMARY KEY (day, tenant, user, key_id, model, replica, kind)) WITHOUT ROWID""",
        """INSERT INTO daily SELECT substr(ended_at, 1, 10), tenant, user, key_id, model, replica, kind, count(*),
            sum(outcome != 'completed'), sum(prompt_tokens), 0, sum(completion_tokens), 0, sum(microcredits)
            FROM usage_events GROUP BY 1, 2, 3, 4, 5, 6, 7""",
        # In which seconds of an hour ("2026-11-28T23") a replica had a request: bit n of the little-endian number.
        """CREATE TABLE busy (replica TEXT NOT NULL, hour TEXT NOT NULL, seconds BLOB NOT NULL,
            PRIMARY KEY (replica, hour)) WITHOUT ROWID""",
        # With all that was taken back: it outlasts the event that took it.
        """CREATE TABLE reversals (event_id TEXT PRIMARY KEY, corrects TEXT NOT NULL UNIQUE, by TEXT NOT NULL,
            reason TEXT NOT NULL, at TEXT NOT NULL, tenant TEXT NOT NULL, user TEXT NOT NULL, key_id TEXT NOT NULL,
            model TEXT NOT NULL, replica TEXT NOT NULL, kind TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
            microcredits INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE TABLE conflicts (id INTEGER PRIMARY KEY, at TEXT NOT NULL, journal TEXT NOT NULL, "
        "record TEXT NOT NULL, why TEXT NOT NULL)",
        # What an engine's own counters said last (registry.capture), since its start; `earlier_` is what they had
        # said before it was started again, `repeated_` what of all that is no tenant's.
        """CREATE TABLE engine_counters (replica TEXT PRIMARY KEY, deployment TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, at TEXT NOT NULL,
            earlier_prompt_tokens INTEGER NOT NULL DEFAULT 0, earlier_completion_tokens INTEGER NOT NULL DEFAULT 0,
            repeated_prompt_tokens INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID""",
        "CREATE INDEX usage_events_uncommon ON usage_events (replica) WHERE outcome != 'completed'",
        # What registry.rollup took away: how many events and entries, what they summed up to, which numbers are gone.
        f"""CREATE TABLE rollups (month TEXT NOT NULL, tenant TEXT NOT NULL, events INTEGER NOT NULL,
            entries INTEGER NOT NULL, {counts}, PRIMARY KEY (month, tenant)) WITHOUT ROWID""",
        "CREATE TABLE rolled (first INTEGER PRIMARY KEY, last INTEGER NOT NULL)",
        # Has a row inside registry.rollup's transactions only, and lets nothing but their deletions through.
        """CREATE TABLE rolling (event_id TEXT PRIMARY KEY, month TEXT NOT NULL, tenant TEXT NOT NULL)
            WITHOUT ROWID""",
    ):
        db.conn.execute(statement)
    for table in ("usage_events", "entries"):
        refused = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: correct with a reversing entry'); END"
        db.conn.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refused}")
        db.conn.execute(
            f"""CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
                WHEN old.event_id NOT IN (SELECT event_id FROM rolling) {refused}"""
        )


def m006_load(db: Database) -> None:
    """What each gateway has to do, for the controller: it scales, drains and judges by it (registry.demand)."""
    for statement in (
        """CREATE TABLE load (deployment TEXT NOT NULL, gateway TEXT NOT NULL, at TEXT NOT NULL,
            running INTEGER NOT NULL, running_tokens INTEGER NOT NULL, queued INTEGER NOT NULL,
            queued_tokens INTEGER NOT NULL, waited_s REAL NOT NULL,
            PRIMARY KEY (deployment, gateway)) WITHOUT ROWID""",
        """CREATE TABLE served (replica TEXT NOT NULL, gateway TEXT NOT NULL, at TEXT NOT NULL,
            outstanding INTEGER NOT NULL, requests INTEGER NOT NULL, failures INTEGER NOT NULL,
            first_outputs INTEGER NOT NULL, first_output_s REAL NOT NULL,
            PRIMARY KEY (replica, gateway)) WITHOUT ROWID""",
    ):
        db.conn.execute(statement)


MIGRATIONS = (m001_first, m002_journals, m003_demand, m004_totals, m005_users_and_entries, m006_load)

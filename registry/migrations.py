"""The schema of `registry.db`, as named functions applied in order. Never edit one that has landed: add another.

Times are ISO 8601 in UTC with microseconds, so that they sort as text. Every object has an owner.
"""

from __future__ import annotations

from registry.db import Database


def m001_first(db: Database) -> None:
    for statement in (
        """CREATE TABLE runs (
            id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL,
            folder TEXT NOT NULL UNIQUE, cause TEXT, created_at TEXT NOT NULL, started_at TEXT, ended_at TEXT)""",
        """CREATE TABLE checkpoints (
            id TEXT PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, owner TEXT NOT NULL, iteration INTEGER NOT NULL,
            path TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, manifest_sha256 TEXT NOT NULL, created_at TEXT NOT NULL,
            UNIQUE (run, iteration))""",
        """CREATE TABLE models (
            name TEXT NOT NULL, version INTEGER NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL,
            path TEXT NOT NULL, checkpoint TEXT, parameters INTEGER, bytes INTEGER,
            max_logit_difference REAL, created_at TEXT NOT NULL, PRIMARY KEY (name, version))""",
        """CREATE TABLE aliases (
            model TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, owner TEXT NOT NULL,
            moved_at TEXT NOT NULL, PRIMARY KEY (model, alias), FOREIGN KEY (model, version) REFERENCES models)""",
        """CREATE TABLE deployments (
            name TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL,
            version INTEGER NOT NULL, model_path TEXT NOT NULL, replicas INTEGER NOT NULL, request TEXT NOT NULL,
            cause TEXT, created_at TEXT NOT NULL, ended_at TEXT)""",
        """CREATE TABLE replicas (
            id TEXT PRIMARY KEY, deployment TEXT NOT NULL REFERENCES deployments, owner TEXT NOT NULL,
            state TEXT NOT NULL, folder TEXT NOT NULL UNIQUE, host TEXT, port INTEGER, upstream_key TEXT,
            context_tokens INTEGER, cause TEXT, created_at TEXT NOT NULL, ready_at TEXT, ended_at TEXT)""",
        """CREATE TABLE jobs (
            cluster TEXT NOT NULL, job_id TEXT NOT NULL, submitted_at TEXT NOT NULL, key TEXT NOT NULL,
            subject TEXT NOT NULL, purpose TEXT NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL, reason TEXT,
            partition TEXT, account TEXT, started_at TEXT, ended_at TEXT, elapsed_s INTEGER NOT NULL DEFAULT 0,
            cpus INTEGER NOT NULL DEFAULT 0, gpus INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (cluster, job_id, submitted_at))""",
        "CREATE INDEX jobs_by_subject ON jobs (subject)",
        """CREATE TABLE announcements (
            subject TEXT NOT NULL, name TEXT NOT NULL, ingested_at TEXT NOT NULL, PRIMARY KEY (subject, name))""",
        """CREATE TABLE tenants (
            name TEXT PRIMARY KEY, owner TEXT NOT NULL, account TEXT, requests_per_minute INTEGER,
            token_budget INTEGER, created_at TEXT NOT NULL)""",
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY, tenant TEXT NOT NULL REFERENCES tenants, owner TEXT NOT NULL,
            sha256 TEXT NOT NULL UNIQUE, hint TEXT NOT NULL, created_at TEXT NOT NULL, revoked_at TEXT)""",
    ):
        db.conn.execute(statement)


def m002_attempts(db: Database) -> None:
    """A run has many attempts; until now it was one."""
    db.conn.execute(
        """CREATE TABLE attempts (
            run TEXT NOT NULL REFERENCES runs, attempt TEXT NOT NULL, number INTEGER NOT NULL, job_id TEXT NOT NULL,
            nodes TEXT NOT NULL, started_at TEXT NOT NULL, ended_at TEXT, cause TEXT, detail TEXT, exit_code INTEGER,
            first_iteration INTEGER, last_iteration INTEGER, saved_iteration INTEGER, verdict TEXT,
            PRIMARY KEY (run, attempt))"""
    )


def m003_pruned_checkpoints(db: Database) -> None:
    """A run may delete checkpoints that nobody wants any more."""
    db.conn.execute("ALTER TABLE checkpoints ADD COLUMN pruned_at TEXT")


def m004_certificates(db: Database) -> None:
    """An engine may speak TLS, with a certificate of its own."""
    db.conn.execute("ALTER TABLE replicas ADD COLUMN certificate TEXT")


def m005_waiting(db: Database) -> None:
    """The gateway says what a replica waits for, and sends nothing long to one that ends soon."""
    for column in ("job_id", "waiting_reason", "expected_start_at", "ends_at"):
        db.conn.execute(f"ALTER TABLE replicas ADD COLUMN {column} TEXT")


def m006_key_scopes(db: Database) -> None:
    """What a key is good for, as words with a space between. Keys of before called models, and go on doing so."""
    db.conn.execute("ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT 'inference'")


def m007_endpoints(db: Database) -> None:
    """Stable names for clients. `targets`, `shadow` and `fallbacks` are JSON lists."""
    db.conn.execute(
        """CREATE TABLE endpoints (
            name TEXT PRIMARY KEY, owner TEXT NOT NULL, targets TEXT NOT NULL, sticky TEXT, shadow TEXT NOT NULL,
            fallbacks TEXT NOT NULL, created_at TEXT NOT NULL, changed_at TEXT NOT NULL)"""
    )


def m008_limits_prices_members(db: Database) -> None:
    """Limits of keys, users, tenants and models; prices in versions; users belong to tenants; keys to users."""
    amounts = """requests_per_minute INTEGER, burst INTEGER, tokens_per_minute INTEGER, concurrent_requests INTEGER,
        tokens_per_day INTEGER, tokens_per_month INTEGER, credits_per_day REAL, credits_per_month REAL,
        token_budget INTEGER, spend_ceiling REAL"""
    for statement in (
        f"""CREATE TABLE limits (
            subject TEXT NOT NULL, name TEXT NOT NULL, {amounts}, changed_at TEXT NOT NULL, changed_by TEXT NOT NULL,
            PRIMARY KEY (subject, name))""",
        """INSERT INTO limits (subject, name, requests_per_minute, token_budget, changed_at, changed_by)
            SELECT 'tenant', name, requests_per_minute, token_budget, created_at, owner FROM tenants""",
        """CREATE TABLE prices (
            kind TEXT NOT NULL, name TEXT NOT NULL, valid_from TEXT NOT NULL, prompt REAL NOT NULL, cached REAL,
            completion REAL NOT NULL, hour REAL NOT NULL, created_at TEXT NOT NULL, created_by TEXT NOT NULL,
            PRIMARY KEY (kind, name, valid_from))""",
        """CREATE TABLE members (
            tenant TEXT NOT NULL REFERENCES tenants, user TEXT NOT NULL, source TEXT NOT NULL, added_at TEXT NOT NULL,
            PRIMARY KEY (tenant, user))""",
        # The two limits' columns stay, unread: a gateway of before may still be finishing its streams.
        "ALTER TABLE keys ADD COLUMN user TEXT NOT NULL DEFAULT ''",
        "UPDATE keys SET user = owner",
        "ALTER TABLE keys RENAME COLUMN sha256 TO hash",
        "ALTER TABLE keys ADD COLUMN keyed INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE keys ADD COLUMN models TEXT",  # a JSON list; NULL: all
        "ALTER TABLE keys ADD COLUMN expires_at TEXT",
        "ALTER TABLE keys ADD COLUMN replaced_by TEXT",
        "ALTER TABLE keys ADD COLUMN first TEXT",  # the key that the first rotation of all began with; NULL: itself
        "CREATE TABLE key_secret (digest TEXT NOT NULL)",  # tells whether the site's secret is the one of the hashes
    ):
        db.conn.execute(statement)


def m009_alerts(db: Database) -> None:
    """Who was told that a limit is nearly used up, and who has still to be. `waiting` is a JSON list of channels."""
    for statement in (
        """CREATE TABLE alert_marks (
            subject TEXT NOT NULL, name TEXT NOT NULL, limited TEXT NOT NULL, period TEXT NOT NULL,
            allowed INTEGER NOT NULL, threshold INTEGER NOT NULL, used INTEGER NOT NULL, runs_out_at TEXT,
            told_at TEXT NOT NULL,
            PRIMARY KEY (subject, name, limited, period, allowed)) WITHOUT ROWID""",
        """CREATE TABLE alerts (
            id INTEGER PRIMARY KEY, at TEXT NOT NULL, document TEXT NOT NULL, waiting TEXT NOT NULL)""",
        "CREATE INDEX alerts_waiting ON alerts (id) WHERE waiting != '[]'",
    ):
        db.conn.execute(statement)


def m010_deployments(db: Database) -> None:
    """A deployment is what is wanted, in revisions; replicas come and go. Moves of aliases are kept."""
    for statement in (
        # `replicas` was how many are wanted; 0: one while it is called.
        "ALTER TABLE deployments RENAME COLUMN replicas TO min_replicas",
        "ALTER TABLE deployments ADD COLUMN max_replicas INTEGER NOT NULL DEFAULT 1",
        "UPDATE deployments SET max_replicas = max(min_replicas, 1)",
        "ALTER TABLE deployments ADD COLUMN follows TEXT",  # NAME@ALIAS, whose moves become revisions; NULL: none
        "ALTER TABLE deployments ADD COLUMN paused INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deployments ADD COLUMN revision INTEGER NOT NULL DEFAULT 1",  # the one that is wanted
        "ALTER TABLE deployments ADD COLUMN stable INTEGER",  # the newest that proved itself; NULL: none yet
        "ALTER TABLE deployments ADD COLUMN canary INTEGER",  # percent of calls that a revision on trial gets
        "ALTER TABLE deployments ADD COLUMN rollout_at TEXT",  # when the wanted revision was asked for
        "ALTER TABLE deployments ADD COLUMN desired INTEGER",  # replicas wanted now, within min and max; NULL: min
        "ALTER TABLE deployments ADD COLUMN scaled_at TEXT",  # when that last changed
        "ALTER TABLE deployments ADD COLUMN low_since TEXT",  # since when the load asks for fewer; NULL: it does not
        """CREATE TABLE revisions (
            deployment TEXT NOT NULL REFERENCES deployments, revision INTEGER NOT NULL, model TEXT NOT NULL,
            version INTEGER NOT NULL, model_path TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL, cause TEXT,
            created_at TEXT NOT NULL, created_by TEXT NOT NULL, why TEXT NOT NULL, decided_at TEXT,
            PRIMARY KEY (deployment, revision))""",
        """INSERT INTO revisions SELECT name, 1, model, version, model_path, request,
            CASE WHEN state = 'ready' THEN 'good' ELSE 'rolling' END, NULL, created_at, owner, 'served', NULL
            FROM deployments""",
        "UPDATE deployments SET stable = 1 WHERE state = 'ready'",
        "ALTER TABLE replicas ADD COLUMN revision INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE replicas ADD COLUMN reason TEXT",  # why it was started, in words
        "ALTER TABLE replicas ADD COLUMN replaces TEXT",  # the replica that it is to succeed
        "ALTER TABLE replicas ADD COLUMN overflow INTEGER NOT NULL DEFAULT 0",  # preemptible, above what is guaranteed
        "ALTER TABLE replicas ADD COLUMN pack TEXT",  # whose job it shares; NULL: it has one of its own
        "ALTER TABLE replicas ADD COLUMN nodes TEXT NOT NULL DEFAULT ''",  # of its job, with commas
        "ALTER TABLE replicas ADD COLUMN started_at TEXT",  # its supervisor's beginning
        "ALTER TABLE replicas ADD COLUMN draining_at TEXT",
        "ALTER TABLE replicas ADD COLUMN drain_why TEXT",
        "ALTER TABLE replicas ADD COLUMN failure TEXT",  # launchers.vllm.failures.Kind, where it failed of itself
        "ALTER TABLE replicas ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0",  # of its engine, in place
        "ALTER TABLE replicas ADD COLUMN adapters TEXT NOT NULL DEFAULT '[]'",  # LoRA adapters that it has loaded, JSON
        "CREATE INDEX replicas_by_deployment ON replicas (deployment, created_at)",
        """CREATE TABLE alias_moves (
            id INTEGER PRIMARY KEY, model TEXT NOT NULL, alias TEXT NOT NULL, from_version INTEGER, to_version INTEGER,
            at TEXT NOT NULL, by TEXT NOT NULL, why TEXT NOT NULL, canary INTEGER)""",
        """INSERT INTO alias_moves (model, alias, from_version, to_version, at, by, why)
            SELECT model, alias, NULL, version, moved_at, owner, 'before moves were kept' FROM aliases""",
    ):
        db.conn.execute(statement)


def m011_promotions(db: Database) -> None:
    """Of checkpoints to aliases, in steps that are runs."""
    for statement in (
        """CREATE TABLE promotions (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, source TEXT NOT NULL, model TEXT NOT NULL, alias TEXT NOT NULL,
            canary INTEGER, steps TEXT NOT NULL, state TEXT NOT NULL, cause TEXT, version INTEGER,
            created_at TEXT NOT NULL, ended_at TEXT)""",  # steps: a JSON list of runs
        """CREATE TABLE promotion_steps (
            run TEXT PRIMARY KEY REFERENCES runs, promotion TEXT NOT NULL REFERENCES promotions, said TEXT)""",
    ):
        db.conn.execute(statement)


MIGRATIONS = (
    m001_first,
    m002_attempts,
    m003_pruned_checkpoints,
    m004_certificates,
    m005_waiting,
    m006_key_scopes,
    m007_endpoints,
    m008_limits_prices_members,
    m009_alerts,
    m010_deployments,
    m011_promotions,
)

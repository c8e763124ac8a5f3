"""Keys: what a user or an application calls with. Each is shown once; the registry keeps a keyed hash of it.

The hash is HMAC-SHA-256 under a secret that stands in a file of its own beside the databases: a copy of `registry.db`
alone does not even tell whether a guessed key is right. (Over the key's SHA-256, which older registries kept.)
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from registry import clock, tenants
from registry.db import Conflict, Database, NotFound, RegistryError, StorageError, row, rows, transaction
from registry.steps import APPLICATION as APPLICATION
from registry.tenants import Tenant

log = logging.getLogger(__name__)

SECRET_BYTES = 32
EXPIRED_KNOWN = timedelta(days=1)  # for so long after its end, a key is told that it expired; later, that it is unknown
LONGEST_MODEL = 256  # characters of a model's name
_WITHOUT = (
    "without it no key is known: put it back, from where registry.db is backed up to. "
    "If it is lost for good, DELETE FROM key_secret in registry.db gives up every key there is"
)
_LIVE = "revoked_at IS NULL AND keyed = 1"
_SHOWN = "id, tenant, user, owner, hint, created_at, revoked_at, scopes, models, expires_at, replaced_by, first"


class Scope(enum.StrEnum):
    """What a key is good for. None implies another."""

    INFERENCE = "inference"  # calling models
    CONTROL = "control"  # the control API, as its user
    ADMIN = "admin"  # what concerns every tenant: the control API as an administrator, the gateway's metrics


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    tenant: str
    user: str  # whose it is: a user's name, or "app:NAME"
    owner: str  # who made it
    hint: str  # the first characters, to recognise it by
    created_at: str
    revoked_at: str | None
    scopes: tuple[Scope, ...] = (Scope.INFERENCE,)  # in the order of Scope
    models: tuple[str, ...] | None = None  # the names it may call; None: all
    expires_at: str | None = None
    replaced_by: str | None = None  # the key that it was rotated to
    first: str | None = None  # the key that its rotations began with; None: itself

    @property
    def counts_as(self) -> str:
        """The id that its limits and its usage stand under: rotating a key sheds neither."""
        return self.first or self.id


@dataclass(frozen=True, slots=True)
class LiveKey:
    """A key that may be used until `expires_at`, as the gateway knows it."""

    id: str
    tenant: Tenant
    scopes: frozenset[Scope]
    user: str = ""
    models: frozenset[str] | None = None
    expires_at: float | None = None  # Unix seconds
    first: str | None = None

    @property
    def counts_as(self) -> str:
        """As Key's."""
        return self.first or self.id


def secret_for(db: Database, path: Path) -> bytes:
    """The site's secret (registry.site.Site.key_secret), for the registry's writer: made at the first start.

    From then on it is the registry's, whose plain hashes, of a Headgate that had no secret, are replaced by keyed ones.
    Raises StorageError, also for one that was lost or is another: with it no key there is would be known.
    """
    with transaction(db) as c:
        if row(db, "SELECT 1 FROM key_secret") is None:
            c.execute("INSERT INTO key_secret VALUES (?)", (digest(secret_of(path), ""),))
        secret = read_secret(path)
        check_secret(db, secret, path)
        for r in rows(db, "SELECT id, hash FROM keys WHERE keyed = 0"):
            c.execute("UPDATE keys SET hash = ?, keyed = 1 WHERE id = ?", (_keyed(secret, r["hash"]), r["id"]))
    return secret


def check_secret(db: Database, secret: bytes, path: Path) -> None:
    """Raises StorageError unless this is the secret that the registry's keys are hashed with."""
    kept = row(db, "SELECT digest FROM key_secret")
    if kept is None:
        raise StorageError("no controller of this release has started yet, so that keys have no hashes to be known by")
    if kept["digest"] != digest(secret, ""):
        raise StorageError(f"{path}: is not the secret that the keys' hashes were made with; {_WITHOUT}")


def secret_of(path: Path) -> bytes:
    """The site's secret, made when there is none. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            hidden = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
            fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(secrets.token_bytes(SECRET_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(hidden, path)
                except FileExistsError:
                    pass  # another process was first, and its secret is the site's
            finally:
                hidden.unlink()
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)  # else a power loss may leave hashes without it
            finally:
                os.close(directory)
    except OSError as e:
        raise StorageError(f"{path}: the secret of the keys' hashes cannot be made: {e.strerror or e}") from e
    return read_secret(path)


def read_secret(path: Path) -> bytes:
    """The site's secret. Raises StorageError."""
    try:
        found = path.read_bytes()
        shared = path.stat().st_mode & 0o077
    except FileNotFoundError as e:
        raise StorageError(f"{path}: the secret that the keys' hashes were made with is gone; {_WITHOUT}") from e
    except OSError as e:
        raise StorageError(f"{path}: the secret of the keys' hashes: {e.strerror or e}") from e
    if len(found) != SECRET_BYTES or shared:
        raise StorageError(f"{path}: must hold {SECRET_BYTES} bytes and be readable by its owner alone")
    return found


def digest(secret: bytes, key: str) -> str:
    return _keyed(secret, hashlib.sha256(key.encode()).hexdigest())


def _keyed(secret: bytes, sha256: str) -> str:
    return hmac.digest(secret, sha256.encode(), "sha256").hex()


def checked_scopes(words: Iterable[object]) -> tuple[Scope, ...]:
    """Each once, in the order of Scope. Raises RegistryError for an unknown one, and for none."""
    asked = list(words)
    for word in asked:
        if word not in list(Scope):
            raise RegistryError(f"scope {word!r} is not known; allowed: {', '.join(Scope)}")
    if not asked:
        raise RegistryError(f"a key needs a scope; allowed: {', '.join(Scope)}")
    return tuple(scope for scope in Scope if scope in asked)


def checked_holder(name: str) -> str:
    """A user's name, or "app:NAME". Raises RegistryError."""
    if name.startswith(APPLICATION):
        return APPLICATION + tenants.checked_name("application", name.removeprefix(APPLICATION))
    return tenants.checked_user(name)


def checked_model(name: str, what: str = "model") -> str:
    """What clients may call a model by, and Slurm a type of GPU. Raises RegistryError for anything else."""
    if not (0 < len(name) <= LONGEST_MODEL and name.isprintable() and " " not in name):
        raise RegistryError(
            f"{what} name {name!r} is not allowed: 1 to {LONGEST_MODEL} printable characters without spaces"
        )
    return name


def create(
    db: Database,
    secret: bytes,
    tenant: str,
    owner: str,
    scopes: Iterable[Scope] = (Scope.INFERENCE,),
    *,
    user: str | None = None,
    models: Iterable[str] | None = None,
    expires_at: str | None = None,
) -> tuple[Key, str]:
    """Returns the key's row and, this once, the key itself. `user`: `owner` unless it is said.

    `models` may be names that nothing has yet. Raises NotFound for the tenant, RegistryError for anything else.
    """
    good_for = checked_scopes(scopes)
    checked_holder(user or owner)
    allowed = None if models is None else tuple(dict.fromkeys(map(checked_model, models)))
    if allowed == ():
        raise RegistryError("a key that may call no model is of no use; name one, or none for all models")
    if expires_at is not None and expires_at <= clock.now():
        raise RegistryError(f"a key cannot expire at {expires_at}, which is past")
    shown = "sk-hg-" + secrets.token_urlsafe(32)
    with transaction(db) as c:
        tenants.get(db, tenant)
        key = Key(
            "key-" + secrets.token_hex(4),
            tenant,
            user or owner,
            owner,
            shown[:10],
            clock.now(),
            None,
            good_for,
            allowed,
            expires_at,
        )
        c.execute(
            "INSERT INTO keys (id, tenant, user, owner, hash, keyed, hint, created_at, scopes, models, expires_at) "
            "VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)",
            (
                key.id,
                tenant,
                key.user,
                owner,
                digest(secret, shown),
                key.hint,
                key.created_at,
                " ".join(good_for),
                None if allowed is None else json.dumps(allowed),
                expires_at,
            ),
        )
    return key, shown


def get(db: Database, key_id: str) -> Key:
    found = row(db, f"SELECT {_SHOWN} FROM keys WHERE id = ?", key_id)
    if found is None:
        raise NotFound(f"no key has the id {key_id!r}")
    return _key(found)


def revoke(db: Database, key_id: str) -> Key:
    with transaction(db) as c:
        get(db, key_id)
        c.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (clock.now(), key_id))
    return get(db, key_id)


def revoke_of(db: Database, tenant: str, user: str) -> list[Key]:
    """Revoke what a user has of a tenant's keys, who is a member no more; those that were not yet."""
    live = "SELECT id FROM keys WHERE tenant = ? AND user = ? AND revoked_at IS NULL ORDER BY created_at"
    with transaction(db):
        return [revoke(db, r["id"]) for r in rows(db, live, tenant, user)]


def rotate(
    db: Database, secret: bytes, key_id: str, owner: str, until: str, *, expires_at: str | None = None
) -> tuple[Key, str]:
    """A new key in the place of an old one, which works `until` then. `expires_at`: the new one's, else as the old one.

    What the old one was limited to and has used holds for the new one.

    Raises Conflict for a key that is over: rotated already, revoked or expired.
    """
    with transaction(db) as c:
        old = get(db, key_id)
        if over := _over(old, clock.now()):
            raise Conflict(f"{key_id} {over}: make a new one instead")
        expires = expires_at or old.expires_at
        key, shown = create(
            db, secret, old.tenant, owner, old.scopes, user=old.user, models=old.models, expires_at=expires
        )
        until = min(until, old.expires_at) if old.expires_at else until
        c.execute("UPDATE keys SET expires_at = ?, replaced_by = ? WHERE id = ?", (until, key.id, key_id))
        c.execute("UPDATE keys SET first = ? WHERE id = ?", (old.counts_as, key.id))
    return replace(key, first=old.counts_as), shown


def _over(key: Key, now: str) -> str | None:
    """Why a key cannot be rotated."""
    if key.revoked_at is not None:
        return f"was revoked at {key.revoked_at}"
    if key.replaced_by is not None:
        return f"was rotated to {key.replaced_by}"
    if key.expires_at is not None and key.expires_at <= now:
        return f"expired at {key.expires_at}"
    return None


def everything(db: Database) -> list[Key]:
    return [_key(r) for r in rows(db, f"SELECT {_SHOWN} FROM keys ORDER BY created_at")]


def live(db: Database) -> dict[str, LiveKey]:
    """By the hash of each key that was not revoked, nor expired long ago. Whether it expired just now, its reader sees.

    A key that cannot be read is nobody's; the others' are not in doubt for it.
    """
    known = {t.name: t for t in tenants.everyone(db)}
    since = clock.text(datetime.now(UTC) - EXPIRED_KNOWN)
    found = {}
    for r in rows(db, f"SELECT * FROM keys WHERE {_LIVE} AND (expires_at IS NULL OR expires_at > ?)", since):
        try:
            found[str(r["hash"])] = _live(r, known[r["tenant"]])
        except ValueError as e:
            log.error("key %s opens nothing, as what the registry has of it cannot be read: %s", r["id"], e)
    return found


def find(db: Database, hashed: str) -> LiveKey | None:
    """One that was not revoked, by its hash. Raises ValueError for one that cannot be read."""
    found = row(db, f"SELECT * FROM keys WHERE hash = ? AND {_LIVE}", hashed)
    return None if found is None else _live(found, tenants.get(db, found["tenant"]))


def _live(found: sqlite3.Row, tenant: Tenant) -> LiveKey:
    return LiveKey(
        found["id"],
        tenant,
        frozenset(_scopes(found["scopes"])),
        found["user"],
        None if found["models"] is None else frozenset(json.loads(found["models"])),
        None if found["expires_at"] is None else clock.parse(found["expires_at"]).timestamp(),
        found["first"],
    )


def _key(found: sqlite3.Row) -> Key:
    values = dict(found)
    models = None if values["models"] is None else tuple(json.loads(values["models"]))
    return Key(**values | {"scopes": _scopes(values["scopes"]), "models": models})


def _scopes(stored: str) -> tuple[Scope, ...]:
    """A scope that a newer Headgate gave and this one does not know opens nothing here."""
    return tuple(scope for scope in Scope if scope in stored.split())

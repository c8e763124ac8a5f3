"""How the control API knows who speaks over the network: by a key, which a cluster user gets for a MUNGE credential.

Only the two handlers of `/v1/login` answer somebody who shows no key.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import os
import pwd
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from aiohttp import web

from launchers.control_http import CONTROLLER, Unauthenticated, answer, body_of
from launchers.controller import Controller
from launchers.schedulers import slurm_environment
from registry import clock, keys, tenants
from registry.access import Forbidden, Principal
from registry.keys import Key, Scope
from slurm import munge

OPEN = frozenset({"/v1/login", "/v1/login/nonce"})
NONCE_LIFETIME_S = 60
LONGEST_CREDENTIAL = 4096  # characters; munge's for a nonce has about 200
DECODERS = 4  # unmunge processes at once
NOBODY = -1  # the uid of a principal who is known by a key


class Nonces:
    """Texts that a credential must hold, each good once and for a minute. `now`: seconds of a clock that never jumps.

    What was given out is recognised by its code, not remembered: nobody fills a memory by asking. What was used is
    remembered until it would be too old anyway.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._secret = secrets.token_bytes(32)
        self._used: dict[str, float] = {}  # until when it must be remembered, oldest first

    def give(self) -> str:
        words = f"headgate-login:{self._now() + NONCE_LIFETIME_S:.3f}:{secrets.token_hex(16)}"
        return f"{words}:{self._code(words)}"

    def take(self, nonce: str) -> None:
        """Raises Unauthenticated for one that is not ours, too old, or was used."""
        words, _, code = nonce.rpartition(":")
        if not hmac.compare_digest(code.encode(), self._code(words).encode()):
            raise Unauthenticated("the credential does not hold a nonce that this controller gave out")
        until, now = float(words.split(":")[1]), self._now()
        for old in [n for n, forget in self._used.items() if forget < now]:
            del self._used[old]
        if until < now:
            raise Unauthenticated(f"the credential's nonce is older than {NONCE_LIFETIME_S} s; log in again")
        if nonce in self._used:
            raise Unauthenticated("the credential's nonce was used before; log in again")
        self._used[nonce] = until

    def _code(self, words: str) -> str:
        return hmac.digest(self._secret, words.encode(), hashlib.sha256).hex()


@dataclass(frozen=True, slots=True)
class Login:
    """What the handlers share."""

    nonces: Nonces
    decoders: asyncio.Semaphore


LOGIN = web.AppKey("login", Login)


def make_login() -> Login:
    return Login(Nonces(), asyncio.Semaphore(DECODERS))


def routes() -> list[web.RouteDef]:
    return [web.post("/v1/login/nonce", give_nonce), web.post("/v1/login", log_in)]


async def give_nonce(request: web.Request) -> web.Response:
    """What to put into a credential, and the uid to which it must be restricted: ours."""
    return answer({"nonce": request.app[LOGIN].nonces.give(), "uid": os.getuid(), "ttl_s": NONCE_LIFETIME_S})


async def log_in(request: web.Request) -> web.Response:
    """A key for whoever made the credential, in a tenant that they are a member of."""
    controller, login = request.app[CONTROLLER], request.app[LOGIN]
    body = await body_of(request, {"credential": str}, {"tenant": str})
    if len(body["credential"]) > LONGEST_CREDENTIAL:
        raise ValueError(f"'credential' is longer than {LONGEST_CREDENTIAL} characters, which none of munge's is")
    environment = slurm_environment(controller.site, os.environ)
    decode = functools.partial(munge.decode, environment=environment, socket=munge.configured_socket(environment))
    async with login.decoders:
        try:
            said = await asyncio.to_thread(decode, body["credential"])
        except munge.CredentialRefused as e:
            raise Unauthenticated(f"munge refuses the credential: {e}") from e
    if said.restricted_uid != os.getuid():
        # Others could decode it as well: whoever it was meant for might be showing it here.
        raise Unauthenticated(f"the credential is not restricted to the controller's uid, {os.getuid()}")
    login.nonces.take(said.payload)
    key, secret = await controller.write(_make_key, controller, _name_of(said.uid), body.get("tenant"))
    return answer({"key": key, "secret": secret}, 201)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise Forbidden(f"uid {uid} has no name on the controller's host, so it is nobody's member") from None


def _make_key(controller: Controller, user: str, tenant: str | None) -> tuple[Key, str]:
    """On the registry's thread, so that nothing comes between the membership and the key."""
    belongs_to = sorted(tenants.of_user(controller.db, user))
    if not belongs_to:
        raise Forbidden(f"{user} is a member of no tenant; an administrator adds one: headgate tenant member add")
    if tenant is None and len(belongs_to) > 1:
        raise ValueError(f"{user} is a member of several tenants; choose one (--tenant): {', '.join(belongs_to)}")
    chosen = tenant or belongs_to[0]
    if chosen not in belongs_to:
        raise Forbidden(f"{user} is no member of tenant {chosen!r}; a member of: {', '.join(belongs_to)}")
    expires = datetime.now(UTC) + timedelta(seconds=controller.site.keys.login_lifetime_s)
    scopes = (Scope.INFERENCE, Scope.CONTROL)
    return keys.create(controller.db, controller.key_secret, chosen, user, scopes, expires_at=clock.text(expires))


async def principal_by_key(request: web.Request) -> Principal:
    """Whoever shows a key. Raises Unauthenticated, or Forbidden for a key that is good for other things only."""
    controller = request.app[CONTROLLER]
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not shown:
        raise Unauthenticated("the control API needs a key over the network (Authorization: Bearer); `headgate login`")
    key = await controller.write(keys.find, controller.db, keys.digest(controller.key_secret, shown.strip()))
    if key is None:
        raise Unauthenticated("the key is unknown or was revoked; `headgate login` gets another")
    if key.expires_at is not None and key.expires_at <= time.time():
        at = datetime.fromtimestamp(key.expires_at, UTC)
        raise Unauthenticated(f"the key {key.id} expired at {at:%Y-%m-%d %H:%M} UTC; `headgate login` gets another")
    admin = Scope.ADMIN in key.scopes
    if not admin and Scope.CONTROL not in key.scopes:
        scopes = ", ".join(sorted(key.scopes))
        raise Forbidden(f"the key {key.id} has scope {scopes}; the control API needs {Scope.CONTROL} or {Scope.ADMIN}")
    return Principal(key.user, NOBODY, admin)

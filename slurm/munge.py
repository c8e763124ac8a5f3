"""Munge's credentials, made and decoded by its own commands: who somebody is on this cluster, by word of munged."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slurm import checkup
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.process import Completed, Runner, clean_environment, run_process

TIMEOUT_S = 10.0
SHAPE = re.compile(r"MUNGE:[A-Za-z0-9+/=]+:")
# unmunge's statuses that are about the credential (munge.h); the others are about munged. It says nothing about some.
REFUSALS = range(8, 19)
SILENT = {15: "Expired credential", 16: "Rewound credential: made in the future", 17: "Replayed credential"}


class CredentialRefused(SlurmError):
    """Munged does not vouch for it; the message is what it said: expired, replayed, of another realm, not for us."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What munged says of a credential that it could decode, once."""

    payload: str
    uid: int  # of whoever made it
    restricted_uid: int | None  # the one uid that may decode it; None: everybody may


def encode(
    payload: str,
    restrict_uid: int,
    ttl_s: int,
    *,
    environment: Mapping[str, str],
    socket: str | None = None,
    run: Runner = run_process,
) -> str:
    """A credential that only `restrict_uid` can decode, within `ttl_s` seconds. `socket`: None for munge's default.

    Raises SlurmUnavailable when munged makes none, or munge is not installed.
    """
    argv = ["munge", *_at(socket), f"--string={payload}", f"--restrict-uid={restrict_uid}", f"--ttl={ttl_s}"]
    done = _run(argv, environment, run)
    if done.returncode != 0:
        raise SlurmUnavailable(_words(done) or f"munge exited with status {done.returncode}")
    return done.stdout.strip()


def decode(
    credential: str, *, environment: Mapping[str, str], socket: str | None = None, run: Runner = run_process
) -> Credential:
    """Raises CredentialRefused, or SlurmUnavailable when nobody could say."""
    if not SHAPE.fullmatch(credential):
        raise CredentialRefused("it does not look like one (MUNGE:...:)")
    with tempfile.TemporaryDirectory(prefix="headgate-login-") as made:
        folder = Path(made)
        (folder / "credential").write_text(credential, encoding="ascii")
        # Metadata and payload apart from each other: a payload cannot pass for metadata.
        files = [f"--{name}={folder / name}" for name in ("metadata", "output")]
        done = _run(
            ["unmunge", *_at(socket), "--numeric", f"--input={folder / 'credential'}", *files], environment, run
        )
        if done.returncode in REFUSALS:
            words = SILENT.get(done.returncode) or _words(done).removeprefix("unmunge: Error: ")
            raise CredentialRefused(words or f"unmunge exited with status {done.returncode}")
        if done.returncode != 0:
            raise SlurmUnavailable(_words(done) or f"unmunge exited with status {done.returncode}")
        metadata = (folder / "metadata").read_text(encoding="utf-8", errors="replace")
        return parsed(metadata, (folder / "output").read_bytes().decode(errors="replace"))


def parsed(metadata: str, payload: str) -> Credential:
    """From what `unmunge --numeric` writes: "NAME:   number" lines. Raises SlurmUnavailable for anything else."""
    known: dict[str, str] = {}
    for line in metadata.splitlines():
        found = re.fullmatch(r"([A-Z_]+):\s*(\S+)", line)
        if found is None and line.strip():
            raise SlurmUnavailable(f"unmunge printed {line!r}, which is no metadata")
        if found is not None:
            if found[1] in known:
                raise SlurmUnavailable(f"unmunge said {found[1]} twice")
            known[found[1]] = found[2]
    numbers = {}
    for name in ("STATUS", "UID", "UID_RESTRICTION"):
        value = known.get(name)
        if value is None and name == "UID_RESTRICTION":
            continue
        if value is None or not re.fullmatch(r"[0-9]{1,10}", value):
            raise SlurmUnavailable(f"unmunge said {name} {value!r}, which is no number")
        numbers[name] = int(value)
    if numbers["STATUS"] != 0:
        raise SlurmUnavailable(f"unmunge succeeded with status {numbers['STATUS']}")
    return Credential(payload, numbers["UID"], numbers.get("UID_RESTRICTION"))


def configured_socket(environment: Mapping[str, str]) -> str | None:
    """Of the munged that this host's slurm.conf names; None: munge's default."""
    return checkup.munge_socket(auth_settings(environment))


def auth_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """AuthInfo as slurm.conf has it: also there when slurmctld does not answer (which may be munge's doing)."""
    path = Path(environment.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}  # a cluster without configuration files, for one: munge's default socket it is
    found = re.search(r"^\s*AuthInfo\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return {"AuthInfo": found[1]} if found else {}


def _at(socket: str | None) -> list[str]:
    return [f"--socket={socket}"] if socket else []


def _run(argv: list[str], environment: Mapping[str, str], run: Runner) -> Completed:
    try:
        return run(argv, clean_environment(environment), TIMEOUT_S)
    except TimeoutError as e:
        raise SlurmUnavailable(f"{argv[0]} did not answer within {TIMEOUT_S:g} s") from e
    except OSError as e:
        raise SlurmUnavailable(f"{argv[0]} cannot be run on this host: {e.strerror}") from e


def _words(done: Completed) -> str:
    return " ".join(done.stderr.split())

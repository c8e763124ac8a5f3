"""Munge's credentials, on a real munged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from munge_fixtures import Munged, munged

from slurm.errors import SlurmUnavailable
from slurm.munge import Credential, CredentialRefused, configured_socket, decode, encode, parsed
from slurm.process import Completed

UID = os.getuid()


@pytest.fixture(scope="module")
def ours() -> Iterator[Munged]:
    with munged() as made:
        yield made


@pytest.fixture(scope="module")
def foreign() -> Iterator[Munged]:
    """Of another cluster: with another key."""
    with munged() as made:
        yield made


def made_by(at: Munged, payload: str = "a nonce", uid: int = UID) -> str:
    return encode(payload, uid, 60, environment=at.environment, socket=at.socket)


def read_by(at: Munged, credential: str) -> Credential:
    return decode(credential, environment=at.environment, socket=at.socket)


def test_a_credential_says_who_made_it_and_for_whom_and_is_good_once(ours: Munged) -> None:
    credential = made_by(ours, "UID: 0\nwords: as they are")
    assert read_by(ours, credential) == Credential("UID: 0\nwords: as they are", UID, UID)
    with pytest.raises(CredentialRefused, match="Replayed"):
        read_by(ours, credential)


def test_who_may_decode_a_credential_is_told(ours: Munged) -> None:
    assert read_by(ours, ours.make("x")).restricted_uid is None
    with pytest.raises(CredentialRefused, match="Unauthorized"):
        read_by(ours, made_by(ours, uid=UID + 1))


def test_what_is_no_credential_of_this_cluster_is_refused(ours: Munged, foreign: Munged) -> None:
    with pytest.raises(CredentialRefused, match="Invalid"):
        read_by(ours, made_by(foreign))
    for rubbish in ("", "MUNGE:", "MUNGE:AwQFAAB:", "\udcff", "-n"):
        with pytest.raises(CredentialRefused):
            read_by(ours, rubbish)


def test_a_munged_that_does_not_answer_is_no_refusal(tmp_path: Path, ours: Munged) -> None:
    nowhere = str(tmp_path / "socket")
    with pytest.raises(SlurmUnavailable, match=nowhere):
        encode("x", UID, 60, environment=ours.environment, socket=nowhere)
    with pytest.raises(SlurmUnavailable, match=nowhere):
        decode(ours.make("x"), environment=ours.environment, socket=nowhere)


def test_a_host_without_munge_is_told_so() -> None:
    def missing(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        raise FileNotFoundError(2, "No such file or directory", argv[0])

    with pytest.raises(SlurmUnavailable, match="munge cannot be run on this host: No such file"):
        encode("x", UID, 60, environment={}, run=missing)


@pytest.mark.parametrize(
    "metadata",
    (
        "",
        "STATUS: 0",
        "STATUS: 0\nUID: root",
        "STATUS: 0\nUID: -1",
        "STATUS: 0\nUID: 1\nUID: 0",
        "STATUS: 15\nUID: 1",
        "STATUS: 0\nUID: 1\nUID_RESTRICTION: slurm",
        "STATUS: 0\nUID: 1\nwords",
    ),
)
def test_metadata_that_is_not_as_munge_writes_it_is_not_guessed_at(metadata: str) -> None:
    with pytest.raises(SlurmUnavailable):
        parsed(metadata, "x")


def test_the_socket_is_the_one_that_slurm_conf_names(tmp_path: Path, ours: Munged) -> None:
    assert configured_socket(ours.environment) == ours.socket
    assert configured_socket({"SLURM_CONF": str(tmp_path / "none")}) is None

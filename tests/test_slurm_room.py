"""Where there is room for new jobs: nodes that are reserved, as a whole or in part."""

from __future__ import annotations

import pytest
from slurm_records import gpus, job, node, picture, reservation

from slurm import parse, room
from slurm.model import Reservation
from slurm.picture import Picture

NODES = [node("g1"), node("g2"), node("g3", "cpu=4")]
NONE: frozenset[str] = frozenset()


def now(name: str, nodes: str, tres: str | None = None, flags: frozenset[str] = NONE) -> Reservation:
    """One that is active; of whole nodes unless `tres` says otherwise."""
    made = reservation(name, parse.nodes(nodes), active=True, flags=flags)
    return made if tres is None else reservation(name, made.nodes, active=True, flags=flags, tres=parse.tres(tres))


def seen(*reservations: Reservation) -> Picture:
    return picture(nodes=NODES, reservations=reservations)


def open_to(seen: Picture, reserved: str | None = None) -> str:
    return ",".join(n.name for n in room.open_to(job(1, gpus(1), reservation=reserved), "gpu", seen))


@pytest.mark.parametrize(
    ("reservations", "out", "partly", "anybody"),
    [
        ([], 0, 0, "g1,g2,g3"),
        ([now("course", "g1")], 1, 0, "g2,g3"),
        ([now("course", "g1", "cpu=2")], 0, 1, "g1,g2,g3"),  # scontrol create reservation nodes=g1 corecnt=2
        ([now("course", "g[1-2]", "cpu=31")], 0, 2, "g1,g2,g3"),
        ([now("course", "g[1-2]", "cpu=32")], 2, 0, "g3"),
        ([now("some", "g[1-2]", "cpu=2"), now("all", "g1")], 1, 1, "g2,g3"),
        ([now("all", "g1"), now("some", "g[1-2]", "cpu=2")], 1, 1, "g2,g3"),
        ([reservation("later", ["g1"]), reservation("later-2", ["g2"], tres=parse.tres("cpu=2"))], 0, 0, "g1,g2,g3"),
    ],
)
def test_a_node_is_closed_only_by_a_reservation_of_all_its_cpus(
    reservations: list[Reservation], out: int, partly: int, anybody: str
) -> None:
    (found,) = room.rooms(seen(*reservations))
    assert (found.nodes_out, found.nodes_partly_reserved) == (out, partly)
    assert (found.nodes_free, found.cpus_free) == (3 - out, 44 - 16 * out)
    assert open_to(seen(*reservations)) == anybody


def test_a_job_of_a_reservation_starts_on_its_nodes_only_also_where_it_has_them_in_part() -> None:
    both = seen(now("course", "g1", "cpu=2"), now("whole", "g2"))
    assert [open_to(both, name) for name in ("course", "whole", "gone")] == ["g1", "g2", ""]
    assert open_to(seen(reservation("later", ["g1"])), "later") == ""


# As on 22.05, where a job of a plain reservation waits ("Reserved for maintenance") and one of the maintenance starts.
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("flags", "other_flags", "may", "other_may"),
    [
        ("", "MAINT,OVERLAP", "", "g1"),
        ("", "OVERLAP", "", "g1"),
        ("OVERLAP", "OVERLAP", "g1", "g1"),
        ("OVERLAP", "MAINT", "", "g1"),
    ],
)
def test_of_reservations_that_overlap_each_counts(
    flags: str, other_flags: str, may: str, other_may: str, order: int
) -> None:
    both = [now("one", "g1", flags=parse.flags(flags)), now("other", "g1", flags=parse.flags(other_flags))]
    overlapping = seen(*both[::order])
    assert (open_to(overlapping, "one"), open_to(overlapping, "other")) == (may, other_may)
    assert open_to(overlapping) == "g2,g3"

"""What PrivateData leaves to whom: a table."""

from __future__ import annotations

import pytest
from slurm_records import NOW, association, job, node, partition, picture, qos, reservation

from slurm.model import Limit
from slurm.sight import Limits, Viewer, sight
from slurm.watch import Unaccounted

PICTURE = picture(
    jobs=[job(1, user="ada"), job(2, user="bob"), job(3, user="service")],
    nodes=[node("g1")],
    partitions=[partition("gpu")],
    reservations=[reservation("maint", ["g1"])],
)
LIMITS = Limits(
    NOW,
    (association("physics", None), association("physics", "ada"), association("physics", "bob")),
    (
        qos(
            "normal",
            Limit("GrpJobs", None, 9, 5),
            Limit("MaxJobsPU", None, 3, 2, "ada"),
            Limit("MaxJobsPU", None, 3, 3, "bob"),
            Limit("MaxJobsPA", None, 7, 5, "physics"),
        ),
    ),
)
ADA = Viewer("ada", privileged=False)
ADMIN = Viewer("root", privileged=True)
ALL = ("1 2 3", 1, 1, 1, "physics: physics:ada physics:bob", "all ada bob physics")
OWN_USE = ("physics:ada", "all ada")


@pytest.mark.parametrize(
    ("private", "viewer", "seen", "hidden"),
    [
        ("", ADA, ALL, ""),
        ("cloud,events", ADA, ALL, ""),
        ("jobs", ADA, ("1 3", *ALL[1:]), "jobs"),  # 3 is a replica of hers
        ("nodes", ADA, (ALL[0], 0, *ALL[2:]), "nodes"),
        ("partitions", ADA, (*ALL[:2], 0, *ALL[3:]), "partitions"),
        ("reservations", ADA, (*ALL[:3], 0, *ALL[4:]), "reservations"),
        ("usage", ADA, (*ALL[:4], *OWN_USE), "usage"),
        ("users", ADA, (*ALL[:4], *OWN_USE), "usage"),
        ("accounts", ADA, (*ALL[:4], *OWN_USE), "usage"),
        ("jobs,nodes,usage", ADA, ("1 3", 0, 1, 1, *OWN_USE), "jobs nodes usage"),
        ("jobs,nodes,usage,users,accounts,partitions,reservations", ADMIN, ALL, ""),
    ],
)
def test_private_data_leaves_to_each_what_is_theirs(private: str, viewer: Viewer, seen: object, hidden: str) -> None:
    flags = frozenset(private.split(",")) - {""}
    found = sight(PICTURE, LIMITS, flags, viewer, theirs=lambda job: job.id == "3")
    shown = found.picture
    assert found.limits is not None
    assert (
        " ".join(j.id for j in shown.jobs),
        len(shown.nodes),
        len(shown.partitions),
        len(shown.reservations),
        " ".join(f"{a.account}:{a.user or ''}" for a in found.limits.associations),
        " ".join(limit.holder or "all" for limit in found.limits.qos[0].limits),
    ) == seen
    assert " ".join(sorted(found.hidden)) == hidden


def test_jobs_that_the_queue_lost_are_hidden_as_others_are() -> None:
    lost = tuple(Unaccounted(j, NOW) for j in PICTURE.jobs)
    found = [sight(PICTURE, None, frozenset({"jobs"}), v, lambda job: job.id == "3", lost) for v in (ADA, ADMIN)]
    assert [[x.job.id for x in seen.lost] for seen in found] == [["1", "3"], ["1", "2", "3"]]
    assert sight(PICTURE, None, frozenset({"nodes"}), ADA, lost=lost).lost == lost


def test_a_user_of_an_accounts_name_does_not_see_what_the_account_holds() -> None:
    found = sight(PICTURE, LIMITS, frozenset({"usage"}), Viewer("physics", privileged=False))
    assert found.limits is not None
    assert [limit.kind for limit in found.limits.qos[0].limits] == ["GrpJobs"]

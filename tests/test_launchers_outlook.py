"""What Slurm has in mind for its nodes: which leave, which are down, and when they belong to their administrators."""

from __future__ import annotations

from slurm_records import after, node, partition, picture, reservation

from launchers.outlook import outlook
from launchers.scheduler import Maintenance
from slurm.model import NodeState


def test_a_node_that_drains_leaves_and_one_that_is_down_is_not_said_to() -> None:
    found = outlook(
        picture(
            nodes=[
                node("g1"),
                node("g2", used="cpu=1", flags=frozenset({"DRAIN"}), reason="bad fan"),
                node("g3", flags=frozenset({"DRAIN"})),
                node("g4", state=NodeState.DOWN, flags=frozenset({"DRAIN"}), reason="no power"),
                node("g5", state=NodeState.ERROR),
                node("g6", flags=frozenset({"NOT_RESPONDING"})),
            ]
        )
    )
    assert found.leaving == {"g2": "bad fan", "g3": "DRAIN"}
    assert found.down == {"g4": "no power", "g5": NodeState.ERROR.value}


def test_only_reservations_for_maintenance_count_by_their_beginning() -> None:
    found = outlook(
        picture(
            reservations=[
                reservation("later", ["g1"], starts_at=after(hours=9), ends_at=after(hours=10)),
                reservation("course", ["g2"], flags=frozenset({"FLEX"})),
                reservation("upgrade", ["g1", "g2"]),
            ]
        )
    )
    assert found.maintenance == (
        Maintenance("upgrade", after(hours=2), after(hours=4), frozenset({"g1", "g2"})),
        Maintenance("later", after(hours=9), after(hours=10), frozenset({"g1"})),
    )


def test_the_default_partitions_nodes_are_known_under_no_name_too() -> None:
    partitions = [partition("gpu", nodes=("g1", "g2")), partition("cpu", default=True, nodes=("c1",))]
    assert outlook(picture(partitions=partitions)).partition_nodes == {
        "gpu": {"g1", "g2"},
        "cpu": {"c1"},
        "": {"c1"},
    }


def test_a_cluster_without_a_default_partition_has_none_under_no_name() -> None:
    assert outlook(picture(partitions=[partition("gpu", nodes=("g1",))])).partition_nodes == {"gpu": {"g1"}}

"""What a cluster's configuration means: recorded ones of each release, one setting changed at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slurm import checkup, scontrol
from slurm.findings import Finding, Level, ok, problem, warning, worst
from slurm.model import QOS, TRES, AccountingConfig, ClusterConfig, Node, NodeState, Partition

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("slurm-*.json"))


def recorded(path: Path, *argv: str) -> str:
    said = json.loads(path.read_text())["said"]
    return next(str(one["stdout"]) for one in said if one["argv"] == list(argv))


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def config(recording: Path) -> ClusterConfig:
    return scontrol.config(recorded(recording, "scontrol", "show", "config"))


def but(config: ClusterConfig, **changes: Any) -> ClusterConfig:
    settings = {**config.settings, **changes.pop("settings", {})}
    return dataclasses.replace(config, settings=settings, **changes)


def qos(name: str, *preempts: str, mode: str = "cluster", grace_s: int = 0) -> QOS:
    return QOS(name, 0, preempts, mode, grace_s, 1.0, frozenset(), ())


def partition(name: str, *, max_time_s: int | None = None, state: str = "UP", **changes: Any) -> Partition:
    made = Partition(
        name, state, False, False, (), TRES(), max_time_s, None, None, None, None, None, None, "REQUEUE", 0, 1
    )
    return dataclasses.replace(made, **changes)


def gpu_node(gpus: int, *types: tuple[str, int]) -> Node:
    tres = TRES(cpus=8, gpus=gpus, gpus_by_type=types)
    return Node("g1", NodeState.IDLE, frozenset(), None, ("gpu",), tres, TRES(), (), None, None, None)


def levels(findings: Sequence[Finding]) -> list[str]:
    return [f.level.name for f in findings]


def test_the_worst_of_several_counts() -> None:
    assert worst([]) is Level.OK
    assert worst([ok("a", ""), problem("b", "", "c"), warning("d", "", "e")]) is Level.PROBLEM


def test_what_is_not_well_always_has_a_remedy(config: ClusterConfig) -> None:
    spoilt = but(
        config,
        version=(20, 11),
        enforce=frozenset(),
        job_requeue=False,
        min_job_age_s=1,
        max_array_size=0,
        private_data=frozenset({"jobs"}),
        preempt_sends_signal=False,
        settings={"AccountingStorageTRES": "cpu"},
    )
    victims = [qos("low"), qos("high", "low")]
    findings = [
        checkup.release(spoilt),
        checkup.arrays(spoilt),
        checkup.requeue(spoilt),
        checkup.memory(spoilt),
        *checkup.time_limits([partition("gpu", state="DOWN")])[1:],
        *checkup.preemption(spoilt, [], victims),
        *checkup.enforcement(spoilt),
        checkup.tracked(spoilt, [gpu_node(1)]),
        checkup.privacy(spoilt, None, privileged=False),
        checkup.clock_skew(5.0, "it", "x"),
    ]
    assert len(findings) == 10
    assert all(f.level > Level.OK and f.remedy and f.says for f in findings)


def test_the_recorded_clusters_are_well(config: ClusterConfig) -> None:
    findings = [
        checkup.release(config),
        checkup.arrays(config),
        checkup.requeue(config),
        checkup.memory(config),
        *checkup.preemption(config, [], [qos("preemptible", grace_s=15), qos("high", "preemptible")]),
        *checkup.enforcement(config),
        checkup.tracked(config, [gpu_node(8, ("h100", 8))]),
        checkup.comments(config),
        checkup.privacy(config, None, privileged=False),
    ]
    assert worst(findings) is Level.OK, findings


@pytest.mark.parametrize(
    ("version", "level"), [((22, 5), "OK"), ((24, 11), "OK"), ((21, 8), "WARNING"), ((27, 5), "WARNING")]
)
def test_a_release_outside_of_what_is_tested_is_a_warning(
    config: ClusterConfig, version: tuple[int, int], level: str
) -> None:
    assert checkup.release(but(config, version=version)).level.name == level


@pytest.mark.parametrize(
    ("enforce", "level", "word"),
    [
        ("", "PROBLEM", "no limit"),
        ("qos", "PROBLEM", "no limit"),
        ("associations", "WARNING", "No limit"),
        ("associations,limits", "WARNING", "GrpTRESMins"),
        ("associations,limits,qos", "WARNING", "GrpTRESMins"),
        ("associations,limits,safe", "WARNING", "QOS that preempts"),
        ("associations,limits,qos,safe", "OK", "finish"),
    ],
)
def test_limits_that_do_not_hold_or_that_kill(config: ClusterConfig, enforce: str, level: str, word: str) -> None:
    (finding,) = checkup.enforcement(but(config, enforce=frozenset(filter(None, enforce.split(",")))))
    assert (finding.level.name, word in finding.says) == (level, True), finding
    assert level == "OK" or finding.remedy == "AccountingStorageEnforce=associations,limits,qos,safe"


@pytest.mark.parametrize(
    ("sends", "grace_s", "level", "remedies"),
    [
        (True, 15, "OK", ()),
        (True, 0, "WARNING", ("GraceTime",)),
        (False, 15, "WARNING", ("send_user_signal",)),
        (False, 0, "WARNING", ("send_user_signal", "GraceTime")),
    ],
)
def test_a_preempted_job_gets_its_signal_only_with_both_settings(
    config: ClusterConfig, sends: bool, grace_s: int, level: str, remedies: tuple[str, ...]
) -> None:
    signalling = but(config, preempt_sends_signal=sends)
    by_qos = checkup.preemption(signalling, [], [qos("low", grace_s=grace_s), qos("high", "low"), qos("other")])
    by_tier = checkup.preemption(
        but(signalling, preempt_type="partition_prio"),
        [partition("low", grace_time_s=grace_s), partition("high", priority_tier=2)],
        [],
    )
    for (finding,) in (by_qos, by_tier):
        assert finding.level.name == level
        assert "low" in finding.says and "high" not in finding.says
        for word in ("send_user_signal", "GraceTime"):
            assert (word in (finding.remedy or "")) == (word in remedies), finding


@pytest.mark.parametrize(
    ("version", "setting"),
    [
        ((22, 5), "SlurmctldParameters=preempt_send_user_signal"),
        ((23, 2), "PreemptParameters=send_user_signal"),
        ((26, 5), "PreemptParameters=send_user_signal"),
    ],
)
def test_the_remedy_is_in_the_words_of_the_clusters_release(
    config: ClusterConfig, version: tuple[int, int], setting: str
) -> None:
    silent = but(config, version=version, preempt_sends_signal=False)
    (finding,) = checkup.preemption(silent, [], [qos("low", grace_s=30), qos("high", "low")])
    assert finding.remedy == setting


def test_jobs_that_are_suspended_keep_their_gpus(config: ClusterConfig) -> None:
    (finding,) = checkup.preemption(config, [], [qos("low", mode="suspend,gang"), qos("high", "low")])
    assert finding.level is Level.WARNING and "suspended" in finding.says


@pytest.mark.parametrize("mode", ["cluster", "requeue", "cancel"])
def test_each_group_of_preempted_jobs_is_judged_by_its_own_grace_time(config: ClusterConfig, mode: str) -> None:
    some = [qos("low", mode=mode, grace_s=60), qos("lower", mode=mode), qos("high", "low", "lower")]
    told, killed = checkup.preemption(but(config, preempt_sends_signal=True), [], some)
    assert told.says.startswith("jobs of QOS low get") and "60 s" in told.says
    assert killed.says.startswith("jobs of QOS lower are stopped without")
    assert killed.remedy == "sacctmgr modify qos lower set GraceTime=120"


def test_a_cluster_without_preemption_is_well(config: ClusterConfig) -> None:
    off = but(config, preempt_type="none", preempt_sends_signal=False)
    assert levels(checkup.preemption(off, [], [qos("low"), qos("high", "low")])) == ["OK"]
    nobody = but(config, preempt_type="partition_prio")
    exempt = [partition("low", preempt_mode="OFF"), partition("high", priority_tier=2)]
    assert levels(checkup.preemption(nobody, exempt, [])) == ["OK"]


@pytest.mark.parametrize(
    ("age_s", "accounting", "level"),
    [(300, True, "OK"), (0, False, "OK"), (2, True, "WARNING"), (300, False, "WARNING")],
)
def test_how_long_the_queue_remembers(config: ClusterConfig, age_s: int, accounting: bool, level: str) -> None:
    assert checkup.memory(but(config, min_job_age_s=age_s, accounting=accounting)).level.name == level


def test_time_limits_stand_by_partition_the_longest_first() -> None:
    limits, closed = checkup.time_limits(
        [
            partition("debug", max_time_s=1800),
            partition("gpu", max_time_s=7 * 86400),
            partition("cpu", max_time_s=7 * 86400, state="DRAIN"),
            partition("long"),
        ]
    )
    assert limits.says == "long: unlimited; gpu, cpu: 7-00:00:00; debug: 00:30:00"
    assert closed.says == "cpu is DRAIN: nothing starts there"


@pytest.mark.parametrize(
    ("tracked", "node", "level"),
    [
        ("cpu,mem", gpu_node(0), "OK"),
        ("cpu,gres/gpu", gpu_node(2), "OK"),
        ("cpu,gres/gpu", gpu_node(8, ("h100", 8)), "OK"),
        ("cpu,gres/gpu", gpu_node(8, ("a100", 4), ("h100", 4)), "WARNING"),
        ("cpu,gres/gpu,gres/gpu:a100,gres/gpu:h100", gpu_node(8, ("a100", 4), ("h100", 4)), "OK"),
        ("cpu,mem", gpu_node(2), "PROBLEM"),
        ("cpu,mem", gpu_node(8, ("h100", 8)), "PROBLEM"),
    ],
)
def test_gpus_that_the_books_do_not_count(config: ClusterConfig, tracked: str, node: Node, level: str) -> None:
    finding = checkup.tracked(but(config, settings={"AccountingStorageTRES": tracked}), [node])
    assert finding.level.name == level, finding


def test_what_is_hidden_is_partial_for_those_it_is_hidden_from(config: ClusterConfig) -> None:
    hiding = but(config, private_data=frozenset({"jobs", "cloud"}))
    books = AccountingConfig("22.05.8", frozenset({"usage"}))
    finding = checkup.privacy(hiding, books, privileged=False)
    assert finding.level is Level.WARNING
    assert "other people's jobs, other people's usage" in finding.says
    assert checkup.privacy(hiding, books, privileged=True).level is Level.OK
    assert checkup.privacy(config, None, privileged=False).says == "nothing is hidden"


def test_the_munge_socket_is_the_clusters_own(config: ClusterConfig) -> None:
    assert (checkup.munge_socket(config.settings) or "").endswith("/run/munge.sock")
    assert checkup.munge_socket({"AuthInfo": "cred_expire=120,socket=/run/m"}) == "/run/m"
    assert checkup.munge_socket({"AuthInfo": "(null)"}) is None


# -- slurmctld's clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ahead_s"),
    [(1000, 0.0), (1001, 0.0), (999, -0.5), (1060, 58.8), (700, -299.5)],
)
def test_slurmctlds_clock_is_compared_as_far_as_whole_seconds_tell(theirs: int, ahead_s: float) -> None:
    assert checkup.ahead_s(theirs, 1000.5, 1001.2) == pytest.approx(ahead_s)


def test_slurmctld_says_when_it_answered_by_its_own_clock(recording: Path) -> None:
    head, _, rest = recorded(recording, "scontrol", "show", "config").partition("\n")
    config = scontrol.config(f"{head.rpartition(' ')[0]} 1060\n{rest}")
    assert config.answered_at.timestamp() == 1060
    with pytest.raises(ValueError, match="a time was expected"):
        scontrol.config(rest)


@pytest.mark.parametrize(("skew_s", "level"), [(0.0, "OK"), (-1.5, "OK"), (30.0, "WARNING"), (-200.0, "PROBLEM")])
def test_clocks_that_differ(skew_s: float, level: str) -> None:
    finding = checkup.clock_skew(skew_s, "slurmctld's clock", "chrony")
    assert finding.level.name == level
    assert level == "OK" or ("ahead of" if skew_s > 0 else "behind") in finding.says

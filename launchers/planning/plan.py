"""From what is wanted and what is, to what to do next: pure, one call for one deployment.

When its actions have been taken, the same situation asks for nothing more.
"""

from __future__ import annotations

from dataclasses import replace

from launchers.planning import crashes, explain, rollout, scale
from launchers.planning.crashes import Losses
from launchers.planning.facts import Action, Cluster, Plan, SetState, Settle, Situation
from launchers.planning.fleet import Fleet, sort
from launchers.planning.turn import Turn, wind_down
from registry.deployments import DeploymentState


def plan(situation: Situation, cluster: Cluster, *, words: bool = True) -> Plan:
    """`words`: whether to say why and what is next as well; the actions' own reasons are always said."""
    if not cluster.known:
        return Plan(why=explain.silence(cluster))
    wanted, fleet = situation.wanted, sort(situation)
    if wanted.state is DeploymentState.STOPPING or wanted.state.ended:
        return _end(situation, fleet, words)
    size = scale.size(situation, fleet)
    course = rollout.course(situation, fleet)
    preemptible = wanted.rules.overflow and wanted.least == 0  # what is started first

    def losses(revision: int, overflow: bool) -> Losses:
        return crashes.losses(situation, fleet, cluster, revision, size.count, overflow)

    newest = losses(wanted.revision, preemptible)
    if course.rolling and not wanted.paused and (cause := course.bad or newest.given_up):
        return _go_back(situation, cluster, cause, words)
    if newest.given_up and not course.rolling and not fleet.ready:
        return _fail(situation, fleet, newest.given_up)
    base = newest if course.base == wanted.revision else losses(course.base, preemptible)
    spare = losses(course.base, True) if wanted.rules.overflow and not preemptible else base

    turn = Turn(situation, cluster, fleet, size, course, newest, base, spare)
    turn.note_size()
    turn.wind_down()
    turn.hand_over()
    turn.let_go()
    turn.fill_up()
    turn.replace_in_time()
    turn.make_way()
    turn.conclude()
    if not words:
        return Plan(tuple(turn.actions))
    return Plan(tuple(turn.actions), explain.why(turn), explain.coming(turn))


def _end(s: Situation, fleet: Fleet, words: bool) -> Plan:
    live = [*fleet.former, *fleet.draining, *fleet.ready, *fleet.coming]
    actions: list[Action] = wind_down(s, live, "the deployment is being stopped")
    if not live and s.wanted.state is DeploymentState.STOPPING:
        actions = [SetState(s.wanted.name, DeploymentState.STOPPED)]
    return Plan(tuple(actions), explain.ending(s, live)) if words else Plan(tuple(actions))


def _fail(s: Situation, fleet: Fleet, cause: str) -> Plan:
    live = [*fleet.former, *fleet.draining, *fleet.coming]
    failed = SetState(s.wanted.name, DeploymentState.FAILED, cause)
    return Plan((failed, *wind_down(s, live, "the deployment failed")), (f"is given up: {cause}",))


def _go_back(s: Situation, cluster: Cluster, cause: str, words: bool) -> Plan:
    """The revision is given up, and the stable one is the one wanted."""
    wanted = s.wanted
    assert wanted.stable is not None
    rest = plan(replace(s, wanted=replace(wanted, revision=wanted.stable)), cluster, words=words)
    back = f"revision {wanted.revision} is given up for revision {wanted.stable}: {cause}"
    return Plan((Settle(wanted.name, wanted.revision, False, cause), *rest.actions), (back, *rest.why), rest.next)

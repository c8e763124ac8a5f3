"""What an evaluation measured, as jobs announce it and as lm_eval has it; and what somebody requires of it. Pure."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_RESULTS = 5000
NAME = re.compile(r"[\w.,/+@:#%-]{1,200}")  # of tasks, metrics (pass@1) and filters: they end up in tables
_RULE = re.compile(r"(?P<name>[^<>=]+?)\s*(?P<comparison>>=|<=|>|<)\s*(?P<bound>[^<>=]+)")


@dataclass(frozen=True, slots=True)
class Result:
    """One metric of one task, over its examples."""

    task: str
    metric: str  # "acc"
    filter: str  # of the answers, before they were compared: "none"
    value: float
    stderr: float | None = None  # of the value; None where lm_eval estimates none
    examples: int | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """TASK.METRIC>=X, with >=, <=, > or <. A metric that a task has under several filters is METRIC,FILTER."""

    task: str
    metric: str
    filter: str | None
    comparison: str
    bound: float

    @property
    def metric_name(self) -> str:
        return self.metric if self.filter is None else f"{self.metric},{self.filter}"


def requirement(text: str) -> Requirement:
    """Raises ValueError for what is no requirement."""
    found = _RULE.fullmatch(text.strip())
    task, dot, metric = (found["name"] if found else "").rpartition(".")
    metric, comma, which = metric.partition(",")
    bound = _finite(found["bound"]) if found else None
    names = [task, metric, *([which] if comma else [])]
    if found is None or not dot or bound is None or not all(NAME.fullmatch(name) for name in names):
        raise ValueError(f"{text!r} is no requirement; allowed: TASK.METRIC>=NUMBER, with >=, <=, > or <")
    return Requirement(task, metric, which if comma else None, found["comparison"], bound)


def unmet(requirements: Iterable[Requirement], results: Sequence[Result]) -> list[str]:
    """Why each requirement that does not hold does not, in words. A metric that was not measured meets none."""
    return [why for required in requirements if (why := _why_not(required, results)) is not None]


def _why_not(required: Requirement, results: Sequence[Result]) -> str | None:
    name = f"{required.task}.{required.metric_name}"
    of_task = [r for r in results if r.task == required.task]
    if not of_task:
        return f"{name} was not measured: no task {required.task!r}; there are: {_listed(r.task for r in results)}"
    found = [r for r in of_task if r.metric == required.metric and required.filter in (None, r.filter)]
    if not found:
        return f"{name} was not measured; of {required.task} there are: {_listed(r.metric for r in of_task)}"
    if len(found) > 1:
        choices = _listed(f"{required.metric},{r.filter}" for r in found)
        return f"{name} is several: say which filter's is meant: {choices}"
    value, bound = found[0].value, required.bound
    holds = {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}
    return (
        None if holds[required.comparison] else f"{name} is {value:.6g}, and {required.comparison}{bound:g} is required"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"


def of_harness(found: Mapping[str, Any]) -> list[Result]:
    """The numbers in what lm_eval's `simple_evaluate` returns: {results: {task: {"acc,none": ...}}, ...}."""
    results: list[Result] = []
    for task, metrics in found["results"].items():
        examples = found.get("n-samples", {}).get(task, {}).get("effective")
        higher = found.get("higher_is_better", {}).get(task, {})
        for key, value in metrics.items():
            metric, comma, which = key.partition(",")
            if not comma or metric.endswith("_stderr") or (number := _finite(value)) is None:
                continue  # its name, its number of examples, or a metric that gave no number
            stderr = _finite(metrics.get(f"{metric}_stderr,{which}"))
            results.append(Result(task, metric, which, number, stderr, examples, higher.get(metric)))
    return results


def believed(told: object) -> list[Result]:
    """What a job says that it measured, checked. Raises ValueError."""
    if not isinstance(told, list) or len(told) > MAX_RESULTS:
        raise ValueError(f"the results are no list of at most {MAX_RESULTS}")
    return [_believed(one) for one in told]


def _believed(told: object) -> Result:
    fields = [f.name for f in dataclasses.fields(Result)]
    if not isinstance(told, dict) or set(told) != set(fields):
        raise ValueError(f"a result has {', '.join(fields)}, and this one is {str(told)[:200]}")
    one = Result(**told)
    names = (one.task, one.metric, one.filter)
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{str(name)[:200]!r} is no name of a task, metric or filter; allowed: {NAME.pattern}")
    if not _is_number(one.value):
        raise ValueError(f"{names}: {one.value!r} is no number")
    optional = ((one.stderr, float), (one.examples, int), (one.higher_is_better, bool))
    for value, kind in optional:
        if value is not None and not (_is_number(value) if kind is float else type(value) is kind):
            raise ValueError(f"{names}: {value!r} is not of type {kind.__name__}")
    return one


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(value: object) -> float | None:
    """lm_eval writes "N/A" for what it does not estimate."""
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number is refused
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

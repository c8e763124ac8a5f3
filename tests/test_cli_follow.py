"""What a run's metrics say, in words, as it is followed."""

from __future__ import annotations

from typing import Any, Self

import pytest

from cli.follow import show


class Screen:
    """A cli.progress.Display that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None: ...

    def stage(self, title: str) -> None: ...

    def note(self, text: str) -> None:
        self.said.append(text)

    def update(self, text: str, done: float | None = None, total: float | None = None) -> None:
        self.said.append(text)


def shown(**fact: Any) -> list[str]:
    screen = Screen()
    show(fact, screen)
    return screen.said


STEP = {"iteration": 3, "iterations": 9, "loss": 2.5, "tokens_per_s": 1200.0, "eta_s": 61.0}
DATA = {"stage": "data", "reused": False, "documents": 2, "tokens": 3000, "vocab": 512}


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (STEP, "iteration 3/9  loss 2.500  1,200 tokens/s  ETA 1:01"),
        (STEP | {"eta_s": float("inf")}, "iteration 3/9  loss 2.500  1,200 tokens/s"),
        (STEP | {"eta_s": None, "tokens_per_s": None}, "iteration 3/9  loss 2.500"),
        (STEP | {"loss": float("nan"), "eta_s": "soon"}, "iteration 3/9  loss nan  1,200 tokens/s"),
        (DATA, "data: 2 documents, 3,000 tokens, vocabulary 512 (tokenised now)"),
        ({"stage": "model", "parameters": 1234, "ranks": 2, "device": "cpu"}, "model: 1,234 parameters, 2 x cpu"),
        ({"stage": "model", "parameters": 1234, "ranks": [], "device": "\x1b"}, "model: 1,234 parameters, 1 x �"),
        ({"stage": "done", "first_loss": 5.0, "last_loss": 1.0, "elapsed_s": "long"}, "loss 5.000 -> 1.000 in 0:00"),
        ({"checkpoint": 20}, "checkpoint at iteration 20: complete, manifest written"),
        ({"validation_loss": 1.5, "iteration": 2}, "validation loss 1.500"),
    ],
)
def test_a_fact_is_said_in_words_as_far_as_it_can_be(fact: dict[str, Any], words: str) -> None:
    assert shown(**fact) == [words]


@pytest.mark.parametrize(
    "fact",
    [
        STEP | {"loss": None},
        STEP | {"loss": "low"},
        STEP | {"iteration": "3"},
        STEP | {"iterations": None},
        DATA | {"tokens": "many"},
        {"stage": "model", "parameters": None},
        {"stage": "done", "first_loss": None, "last_loss": 1.0},
        {"checkpoint": "\x1b[2J"},
        {"validation_loss": None},
    ],
)
def test_a_fact_that_is_not_as_it_should_be_is_passed_over(fact: dict[str, Any]) -> None:
    assert shown(**fact) == []

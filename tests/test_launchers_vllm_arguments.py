"""Arguments that load code or read files are not anybody's to give."""

from __future__ import annotations

import pytest

from launchers.vllm.arguments import OPEN_TO_ALL, refuse_unlisted


@pytest.mark.parametrize(
    "words",
    [
        ("--trust-remote-code",),
        ("--middleware", "evil.Class"),
        ("--middleware=evil.Class",),
        ("-O3",),
        ("--chat-template", "/etc/passwd"),
    ],
)
def test_an_argument_that_is_not_listed_is_refused_by_name(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"engine argument {words[0].partition('=')[0]} is for administrators") as e:
        refuse_unlisted(words)
    assert "--max-model-len" in str(e.value)


def test_sizes_and_layouts_are_open_to_all() -> None:
    refuse_unlisted(("--max-model-len", "4096", "--tensor-parallel-size=2", "--enforce-eager"))
    refuse_unlisted(OPEN_TO_ALL)

"""Arguments that load code or read files are not anybody's to give."""

from __future__ import annotations

import pytest

from launchers.vllm.arguments import FLAGS, VALUED, ranks, refuse_unlisted, runner_args


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
    refuse_unlisted(FLAGS)
    refuse_unlisted([word for name in VALUED for word in (name, "1")])
    refuse_unlisted([f"{name}=auto" for name in VALUED])
    refuse_unlisted(("--max-logprobs", "-1", "--max-model-len", "32k"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("/secret/model",), "'/secret/model' belongs to no option"),  # vLLM's first loose word is its model
        (("--enforce-eager", "/secret/model"), "'/secret/model' belongs to no option"),
        (("--dtype", "half", "/secret/model"), "'/secret/model' belongs to no option"),
        (("--enforce-eager=/secret/model",), "--enforce-eager takes no value"),
        (("--dtype",), "--dtype needs a value"),
        (("--dtype", "--enforce-eager"), "--dtype needs a value"),
        (("--reasoning-parser", "/tmp/parser.py"), "'/tmp/parser.py' is for administrators"),
        (("--quantization=../x",), "'../x' is for administrators"),
        (("--kv-cache-dtype", '{"a": 1}'), "is for administrators"),
        (("--dtype=",), "'' is for administrators"),
        (("--max_model_len", "1"), "--max_model_len is for administrators"),
    ],
)
def test_a_value_names_no_file_and_no_word_is_left_over_for_the_model(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ValueError) as e:
        refuse_unlisted(words)
    assert complaint in str(e.value)


@pytest.mark.parametrize(
    ("words", "workers"),
    [
        ((), 1),
        (("--tensor-parallel-size", "4"), 4),
        (("-tp", "2", "--pipeline-parallel-size=3"), 6),
        (("--tensor_parallel_size=2", "--tensor-parallel-size", "8"), 8),
    ],
)
def test_an_engines_workers_are_counted_as_vllm_counts_them(words: tuple[str, ...], workers: int) -> None:
    assert ranks(words) == workers


def test_a_parallel_size_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="--tensor-parallel-size: 'two' is not a whole number"):
        ranks(("--tensor-parallel-size", "two"))


def test_a_runner_that_there_is_not_is_refused_with_those_there_are() -> None:
    assert runner_args("generate") == ()
    with pytest.raises(ValueError, match="'classify' is none of embed, generate, score"):
        runner_args("classify")

"""Which replica has seen the beginning of a prompt."""

from __future__ import annotations

import os
import random
from collections import OrderedDict

from gateway.prefix import BLOCK_BYTES, MAX_BLOCKS, Prefixes, blocks

TEXT = os.urandom(8 * BLOCK_BYTES)


def test_prompts_share_the_blocks_up_to_where_they_part() -> None:
    other = TEXT[: 3 * BLOCK_BYTES + 5] + b"?" + TEXT[3 * BLOCK_BYTES + 6 :]
    assert len(blocks(TEXT, b"")) == 8
    assert [a == b for a, b in zip(blocks(TEXT, b""), blocks(other, b""), strict=True)] == [True] * 3 + [False] * 5


def test_a_block_is_another_after_another_beginning() -> None:
    assert not set(blocks(TEXT, b"")) & set(blocks(TEXT[BLOCK_BYTES:], b""))
    assert len(set(blocks(bytes(4 * BLOCK_BYTES), b""))) == 4  # four times the same text


def test_nothing_is_shared_between_salts() -> None:
    assert blocks(TEXT, b"llama") == blocks(TEXT, b"llama")
    assert not set(blocks(TEXT, b"llama")) & set(blocks(TEXT, b"llama:adapter"))


def test_only_whole_blocks_count_and_of_a_very_long_prompt_only_so_many() -> None:
    assert blocks(TEXT[: BLOCK_BYTES - 1], b"") == []
    assert blocks(TEXT[: 2 * BLOCK_BYTES - 1], b"") == blocks(TEXT[:BLOCK_BYTES], b"") != []
    assert len(blocks(bytes((MAX_BLOCKS + 9) * BLOCK_BYTES), b"")) == MAX_BLOCKS


def test_one_walk_says_of_every_replica_how_far_it_knows_a_prompt() -> None:
    prefixes = Prefixes()
    prefixes.note("all", [1, 2, 3, 4])
    prefixes.note("half", [1, 2, 30])
    prefixes.note("same half", [1, 2])
    prefixes.note("first", [1])
    prefixes.note("other", [9, 2, 3, 4])
    prefixes.note("nothing", [])
    assert prefixes.matched([1, 2, 3, 4]) == {"all": 4, "half": 2, "same half": 2, "first": 1}
    assert prefixes.matched([1, 2, 3, 4, 5]) == {"all": 4, "half": 2, "same half": 2, "first": 1}
    assert prefixes.matched([7, 1]) == prefixes.matched([]) == {}
    assert len(prefixes) == 5


def test_the_end_of_the_oldest_prompt_is_dropped_first() -> None:
    prefixes = Prefixes(capacity=6)
    prefixes.note("a", [1, 2, 3])
    prefixes.note("a", [4, 5, 6])
    prefixes.note("a", [1, 2, 3])  # now the more recent one
    prefixes.note("a", [7, 8])

    def known() -> list[int]:
        return [prefixes.matched(some).get("a", 0) for some in ([1, 2, 3], [4, 5, 6], [7, 8])]

    assert known() == [3, 1, 2]
    prefixes.note("a", [9])
    assert known() == [3, 0, 2]
    prefixes.note("a", [10])
    assert known() == [2, 0, 2]


def test_a_replica_that_is_gone_knows_nothing_and_costs_nothing() -> None:
    prefixes = Prefixes()
    prefixes.note("a", [1, 2])
    prefixes.note("b", [1])
    prefixes.forget("a")
    prefixes.forget("a")
    assert prefixes.matched([1, 2]) == {"b": 1}
    prefixes.note("c", [1, 2])  # in the place of a
    assert prefixes.matched([1, 2]) == {"b": 1, "c": 2}
    prefixes.forget("b")
    prefixes.forget("c")
    assert not prefixes.matched([1, 2]) and not len(prefixes) and not prefixes._masks


def test_it_is_as_if_each_replica_kept_a_list_of_its_own() -> None:
    """Against a plain model, with a capacity that every note can pass, and replicas that come and go."""
    chance = random.Random(4)
    for _ in range(40):
        capacity = chance.randint(1, 30)
        prefixes, model = Prefixes(capacity), dict[str, OrderedDict[int, None]]()
        for _ in range(120):
            depth, at = chance.randint(1, 12), 1
            prompt = [at := at * 3 + chance.randint(0, 1) for _ in range(depth)]  # a path in a tree
            name = chance.choice("abcde")
            if chance.random() < 0.05:
                prefixes.forget(name)
                model.pop(name, None)
                continue
            prefixes.note(name, prompt)
            seen = model.setdefault(name, OrderedDict())
            for block in reversed(prompt):
                seen[block] = None
                seen.move_to_end(block)
            while len(seen) > capacity:
                seen.popitem(last=False)
            known = {n: next((i for i, b in enumerate(prompt) if b not in s), depth) for n, s in model.items()}
            assert prefixes.matched(prompt) == {n: count for n, count in known.items() if count}

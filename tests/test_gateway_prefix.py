"""Which replica has seen the beginning of a prompt."""

from __future__ import annotations

import os
import random

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


def test_what_is_not_seen_again_while_others_are_is_dropped() -> None:
    prefixes = Prefixes(capacity=8)  # generations of six
    for prompt in ([1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 8, 9]):
        prefixes.note("a", prompt)
    assert [prefixes.matched(prompt).get("a", 0) for prompt in ([1, 2, 3], [4, 5, 6], [7, 8, 9])] == [3, 0, 3]


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


def test_hashes_that_are_the_same_by_accident_break_nothing() -> None:
    prefixes, chance = Prefixes(capacity=20), random.Random(2)
    for _ in range(500):
        prefixes.note("a", [chance.randrange(60) for _ in range(8)])
    prefixes.forget("a")
    assert not prefixes._masks


def test_what_is_recent_is_known_what_never_was_is_not_and_not_much_more_than_the_capacity_is_kept() -> None:
    """With capacities that one prompt can pass, and replicas that come and go."""
    chance = random.Random(4)
    for _ in range(30):
        capacity = chance.randint(1, 60)
        prefixes, noted = Prefixes(capacity), dict[str, list[list[int]]]()
        for _ in range(150):
            at, name = 1, chance.choice("abcde")
            prompt = [at := at * 3 + chance.randint(0, 1) for _ in range(chance.randint(1, 12))]  # a path in a tree
            if chance.random() < 0.02:
                prefixes.forget(name)
                noted.pop(name, None)
            else:
                prefixes.note(name, prompt)
                noted.setdefault(name, []).append(prompt)
            for name, prompts in noted.items():
                ever = {block for other in prompts for block in other}
                most = next((n for n, block in enumerate(prompt) if block not in ever), len(prompt))
                assert prefixes.matched(prompt).get(name, 0) <= most
                recent: set[int] = set()
                for other in reversed(prompts):
                    recent |= set(other)
                    if len(recent) > capacity * 3 // 4 and other is not prompts[-1]:
                        break
                    assert prefixes.matched(other)[name] == len(other)
            assert sum(mask.bit_count() for mask in prefixes._masks.values()) <= len(noted) * (capacity * 1.5 + 12)

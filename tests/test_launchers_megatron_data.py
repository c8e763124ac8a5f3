"""Documents become tokens: given tokenizers, blends by weight. One training process says all of it."""

from __future__ import annotations

from typing import Any

import pytest
from megatron_fixtures import answer_of

# Prepares two JSONL sources with a tokenizer that is given, and counts which of them 400 samples are from.
PROGRAM = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from tokenizers import Tokenizer, processors
from launchers.megatron import cpu, data, samples
from launchers.megatron.corpus import DataError
from launchers.megatron.ranks import Ranks, join
from launchers.megatron.recipe import Data, Model, Parallel, Recipe, Source, Train

root = Path(sys.argv[1])
for name in "ab":
    lines = [json.dumps({"body": f"{name}{name} " * 40}) for _ in range(50)]
    (root / f"{name}.jsonl").write_text("\\n".join(lines))
tokenizer = data.train_tokenizer(["aa bb " * 50], 262)
begin = data.END_OF_TEXT
tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
data.save_tokenizer(tokenizer, root / "given")
saved = Tokenizer.from_file(str(root / "given" / "tokenizer.json"))
saved.enable_truncation(16)
saved.enable_padding(length=100, pad_id=1, pad_token=data.PAD)
saved.save(str(root / "given" / "tokenizer.json"))

sources = [Source(jsonl=(str(root / f"{name}.jsonl"),), field="body", weight=w) for name, w in (("a", 3.0), ("b", 1.0))]
recipe = Recipe(
    model=Model(hidden=64, layers=1, heads=2, kv_heads=1, ffn=64, seq_length=8),
    data=Data(sources=tuple(sources), tokenizer=root / "given", split="80,20,0"),
    train=Train(iterations=100, micro_batch=1, global_batch=4, lr=1.0),
)
made = data.prepare(recipe.data, root / "datasets")
again = data.find(json.loads(json.dumps(made.note())))
alone = data.prepare(Data(jsonl=sources[1].jsonl, field="body", tokenizer=root / "given"), root / "datasets")
cpu.install()
ranks = Ranks(0, 1, torch.device("cpu"), dist.HashStore())
join(ranks, Parallel(), 1, 60)
train, _valid = samples.build(recipe, made, root / "index", ranks)
first, second = (tokenizer.encode(text).ids[1] for text in ("aa", "bb"))
counts = {"a": 0, "b": 0}
for i in range(400):
    tokens = train[i]["tokens"].tolist()
    counts["a" if tokens.count(first) > tokens.count(second) else "b"] += 1
few = data.Dataset(made.tokenizer, made.vocab, (data.Part(made.parts[0].path, 3, 9, 1.0), made.parts[1]), True)
try:
    samples.build(recipe, few, root / "other", ranks)
except DataError as e:
    refused = str(e)
dist.destroy_process_group()
def refusal(prepared):
    try:
        data.prepare(prepared, root / "datasets")
    except DataError as e:
        return str(e)
(root / "given" / "tokenizer_config.json").write_text("{}")
nameless = refusal(recipe.data)
(root / "given" / "tokenizer_config.json").write_text(json.dumps({"eos_token": data.END_OF_TEXT, "pad_token": "<no>"}))
unknown = refusal(recipe.data)
learned = []
def learn(texts, _size):
    learned.extend(texts)
    raise DataError("learned enough")
data.LEARN_FROM_MB, data.train_tokenizer = 400e-6, learn
enough = refusal(Data(sources=tuple(sources), vocab_size=600))
print(json.dumps({
    "counts": counts, "same": again.parts == made.parts, "vocab": made.vocab,
    "reused": [made.reused, again.reused, alone.reused],
    "documents": made.documents, "tokens": made.tokens, "shared": alone.parts[0].path == made.parts[1].path,
    "refused": refused, "nameless": nameless, "unknown": unknown, "learned": learned,
    "left": sorted(p.name.split("-")[0] for p in (root / "datasets").iterdir()),
}))
"""


@pytest.fixture(scope="module")
def said(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answer_of(PROGRAM, training_python, tmp_path_factory.mktemp("data"))


def test_a_blend_gives_samples_in_proportion_to_its_weights(said: dict[str, Any]) -> None:
    assert said["counts"] == {"a": pytest.approx(300, abs=2), "b": pytest.approx(100, abs=2)}


def test_each_source_is_prepared_once_and_found_again_by_whoever_names_it(said: dict[str, Any]) -> None:
    assert said["shared"]
    assert said["reused"] == [False, True, True]
    assert said["left"] == ["text", "text", "tokenizer"]


def test_a_dataset_is_found_by_its_note(said: dict[str, Any]) -> None:
    assert said["same"]
    assert (said["documents"], said["vocab"]) == (100, 262)


def test_a_given_tokenizer_puts_its_own_tokens_around_a_document_and_cuts_and_pads_nothing(
    said: dict[str, Any],
) -> None:
    assert said["tokens"] == 100 * (1 + 40 * 2 + 1)


def test_a_source_too_small_for_the_split_is_named(said: dict[str, Any]) -> None:
    assert "3 documents are too few to be split 80,20,0" in said["refused"]


def test_a_tokenizer_that_names_no_end_of_text_is_refused(said: dict[str, Any]) -> None:
    assert "tokenizer_config.json: eos_token = None; allowed: a token of its vocabulary" in said["nameless"]


def test_a_pad_token_that_is_no_token_is_refused_before_text_is_tokenised(said: dict[str, Any]) -> None:
    told = "tokenizer_config.json: pad_token = '<no>'; allowed: a token of its vocabulary, or none"
    assert told in said["unknown"]
    assert said["left"] == ["text", "text", "tokenizer"]


def test_a_tokenizer_is_learned_from_as_much_of_each_source(said: dict[str, Any]) -> None:
    assert said["learned"] == ["aa " * 40, ("aa " * 40)[:80], "bb " * 40, ("bb " * 40)[:80]]

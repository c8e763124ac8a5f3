"""Text -> byte-level BPE, trained on the spot -> Megatron's .bin and .idx, kept under a name made from the inputs.

A prepared dataset is a directory that appears whole, by renaming, with a manifest inside. Two jobs that prepare the
same text at the same time each build their own; one rename wins, and both then read the same thing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from launchers.megatron import corpus, manifest
from launchers.megatron.corpus import DataError
from launchers.megatron.recipe import Data

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
MARKERS = (END_OF_TEXT, PAD, TURN_START, TURN_END)  # token ids 0..3
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Dataset:
    path: Path
    documents: int
    tokens: int
    vocab: int
    reused: bool

    @property
    def prefix(self) -> str:
        """What Megatron calls the .bin and .idx files without their endings."""
        return str(self.path / "text")

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"


def prepare(data: Data, dataset_dir: Path, prepared: Callable[[int], None] = lambda documents: None) -> Dataset:
    """Find the prepared form of this text under `dataset_dir`, or make it. Raises DataError.

    `prepared` is told how many documents are done, now and then; what it raises ends it.
    """
    files = corpus.resolve(data.text)
    final = dataset_dir / f"text-{corpus.key(files, data)}"
    if found := find(final):
        return found
    dataset_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=dataset_dir))
    try:
        _build(files, data, building, prepared)
        building.chmod(0o755)
        if final.exists() and not find(final):  # a damaged one is in the way
            shutil.rmtree(final)
        try:
            os.rename(building, final)
        except OSError:
            if not find(final):  # not another job that was quicker
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    made = find(final, reused=False)
    assert made, final
    return made


def find(path: Path, *, reused: bool = True) -> Dataset | None:
    """The prepared dataset at `path`, or None when it is absent or incomplete. Sizes are compared, not contents."""
    try:
        facts = manifest.verify(path, hashes=False).facts
        return Dataset(path, int(facts["documents"]), int(facts["tokens"]), int(facts["vocab"]), reused)
    except (manifest.CheckpointError, KeyError):
        return None


def _build(files: list[corpus.TextFile], data: Data, directory: Path, prepared: Callable[[int], None]) -> None:
    texts = list(corpus.documents(files, data.max_mb))
    if not texts:
        raise DataError(
            f"data.text: none of the {len(files)} files is UTF-8 text of at most data.max_mb = {data.max_mb:g}"
        )
    prepared(0)
    tokenizer = train_tokenizer(texts, data.vocab_size)
    size = tokenizer.get_vocab_size()
    if size != data.vocab_size:
        raise DataError(
            f"data.vocab_size = {data.vocab_size}: {sum(map(len, texts)):,} characters only make {size} tokens; "
            "give more text or ask for a smaller vocabulary"
        )
    save_tokenizer(tokenizer, directory / "tokenizer")
    prefix = str(directory / "text")
    builder = IndexedDatasetBuilder(get_bin_path(prefix), dtype=numpy.uint16 if size <= 2**16 else numpy.int32)
    tokens, end = 0, tokenizer.token_to_id(END_OF_TEXT)
    for start in range(0, len(texts), 256):  # in parts, so that the encodings of a large text need not fit in memory
        for encoding in tokenizer.encode_batch(texts[start : start + 256]):
            ids = [*encoding.ids, end]
            builder.add_document(numpy.array(ids), [len(ids)])
            tokens += len(ids)
        prepared(start + 256)
    builder.finalize(get_idx_path(prefix))
    manifest.write(directory, "dataset", documents=len(texts), tokens=tokens, vocab=size)


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(MARKERS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(str(directory))

"""Documents -> tokens -> Megatron's .bin and .idx, kept under names made from the inputs.

A tokenizer and each prepared source is a directory that appears whole, by renaming, with a manifest inside. Two jobs
that prepare the same text at the same time each build their own; one rename wins, and both then read the same thing.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from launchers.megatron import corpus, hugging_face, manifest
from launchers.megatron.corpus import Corpus, DataError
from launchers.megatron.manifest import Manifest
from launchers.megatron.recipe import Data

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
MARKERS = (END_OF_TEXT, PAD, TURN_START, TURN_END)  # token ids 0..3
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LEARN_FROM_MB = 1024  # all sources together: a tokenizer learns no more from more text, but needs memory for it
Prepared = Callable[[int], None]  # is told how many documents are done; what it raises ends the preparation


@dataclass(frozen=True, slots=True)
class Part:
    """One prepared source."""

    path: Path
    documents: int
    tokens: int
    weight: float

    @property
    def prefix(self) -> str:
        """What Megatron calls the .bin and .idx files without their endings."""
        return str(self.path / "text")


@dataclass(frozen=True, slots=True)
class Dataset:
    tokenizer: Path
    vocab: int  # token ids that the model knows
    parts: tuple[Part, ...]
    reused: bool  # nothing had to be prepared

    @property
    def documents(self) -> int:
        return sum(part.documents for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def where(self) -> str:
        return ", ".join(str(part.path) for part in self.parts)

    def note(self) -> dict[str, Any]:
        """Plain data from which `find` gets it back."""
        parts = [{"path": str(part.path), "weight": part.weight} for part in self.parts]
        return {"tokenizer": str(self.tokenizer), "vocab": self.vocab, "parts": parts, "reused": self.reused}


def prepare(data: Data, dataset_dir: Path, prepared: Prepared = lambda documents: None) -> Dataset:
    """Find the prepared form of these documents under `dataset_dir`, or make it. Raises DataError."""
    corpora = [corpus.resolve(source) for source in data.blend]
    tokenizer_key = corpus.tokenizer_key(corpora, data)
    tokenizer = dataset_dir / f"tokenizer-{tokenizer_key}"
    made, reused = _have(tokenizer, partial(_make_tokenizer, corpora, data, prepared))
    parts = []
    for each in corpora:
        final = dataset_dir / f"text-{corpus.key(each, tokenizer_key)}"
        done, had = _have(final, partial(_tokenize, each, tokenizer, prepared))
        parts.append(_part(final, done, each.source.weight))
        reused = reused and had
    return Dataset(tokenizer, max(int(made.facts["vocab"]), data.vocab_size), tuple(parts), reused)


def find(note: dict[str, Any], *, reused: bool = True) -> Dataset | None:
    """A dataset by its note, or None when anything of it is absent. Sizes are compared, not contents."""
    try:
        manifest.verify(Path(note["tokenizer"]), hashes=False)
        parts = [(Path(p["path"]), float(p["weight"])) for p in note["parts"]]
        found = tuple(_part(path, manifest.verify(path, hashes=False), weight) for path, weight in parts)
        return Dataset(Path(note["tokenizer"]), int(note["vocab"]), found, reused)
    except (manifest.CheckpointError, KeyError):
        return None


def _part(path: Path, done: Manifest, weight: float) -> Part:
    return Part(path, int(done.facts["documents"]), int(done.facts["tokens"]), weight)


def _have(final: Path, build: Callable[[Path], None]) -> tuple[Manifest, bool]:
    """The manifest of a directory, which is built when it is absent or damaged; and whether it was there."""
    if found := _whole(final):
        return found, True
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        build(building)
        building.chmod(0o755)
        if final.exists() and not _whole(final):  # a damaged one is in the way
            shutil.rmtree(final)
        try:
            os.rename(building, final)
        except OSError:
            if not _whole(final):  # not another job that was quicker
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    made = _whole(final)
    assert made, final
    return made, False


def _whole(path: Path) -> Manifest | None:
    try:
        return manifest.verify(path, hashes=False)
    except manifest.CheckpointError:
        return None


def _make_tokenizer(corpora: Sequence[Corpus], data: Data, prepared: Prepared, directory: Path) -> None:
    if data.tokenizer is not None:
        for name in hugging_face.TOKENIZER_FILES:
            if (data.tokenizer / name).exists():
                shutil.copyfile(data.tokenizer / name, directory / name)
        end_of_text(directory)
        padding(directory)  # samples ask for it when all text is tokenised, which is late to refuse it
        size = hugging_face.vocabulary(directory)
    else:
        # Alike of each: what stands after a large source is to be known too.
        share = int(LEARN_FROM_MB * 1e6 / len(corpora))
        texts = [text for each in corpora for text in _at_most(_documents(each), share)]
        prepared(0)
        tokenizer = train_tokenizer(texts, data.vocab_size)
        size = tokenizer.get_vocab_size()
        if size != data.vocab_size:
            raise DataError(
                f"data.vocab_size = {data.vocab_size}: {sum(map(len, texts)):,} characters only make {size} tokens; "
                "give more text or ask for a smaller vocabulary"
            )
        save_tokenizer(tokenizer, directory)
    manifest.write(directory, "tokenizer", vocab=size)


def _tokenize(each: Corpus, tokenizer_path: Path, prepared: Prepared, directory: Path) -> None:
    """In parts, so that a large text need not fit in memory; each part on all cores (tokenizers' own threads)."""
    tokenizer = whole_text(tokenizer_path)
    size, end = hugging_face.vocabulary(tokenizer_path), end_of_text(tokenizer_path)
    prefix = str(directory / "text")
    builder = IndexedDatasetBuilder(get_bin_path(prefix), dtype=numpy.uint16 if size <= 2**16 else numpy.int32)
    documents = tokens = 0
    texts = _documents(each)
    while part := list(itertools.islice(texts, 256)):
        for encoding in tokenizer.encode_batch(part):
            ids = encoding.ids if encoding.ids and encoding.ids[-1] == end else [*encoding.ids, end]
            builder.add_document(numpy.array(ids), [len(ids)])
            tokens += len(ids)
        documents += len(part)
        prepared(documents)
    builder.finalize(get_idx_path(prefix))
    manifest.write(directory, "dataset", documents=documents, tokens=tokens, vocab=size)


def _documents(each: Corpus) -> Iterator[str]:
    """A source's documents. Raises DataError when it has none."""
    texts = corpus.documents(each)
    first = next(texts, None)
    if first is None:
        most = f" of at most max_mb = {each.source.max_mb:g}" if each.source.max_mb else ""
        raise DataError(f"data.{each.kind}: none of the {len(each.files)} files has UTF-8 text{most}")
    yield first
    yield from texts


def _at_most(texts: Iterator[str], characters: int) -> Iterator[str]:
    """The first characters of all texts; the last text is cut where they end."""
    while characters > 0 and (text := next(texts, None)) is not None:
        yield text[:characters]
        characters -= len(text)


def whole_text(directory: Path) -> Tokenizer:
    """A directory's tokenizer; it cuts and pads nothing, though it may have been saved to."""
    tokenizer = Tokenizer.from_file(str(directory / hugging_face.TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text(directory: Path) -> int:
    """The token that a tokenizer puts after a document. Raises DataError when it names none."""
    return _special(directory, "eos_token", "a token of its vocabulary")


def padding(directory: Path) -> int:
    """The token that stands for no text, whose loss does not count; -1 where there is none of its own.

    Raises DataError when it names one that is no token.
    """
    own = hugging_face.special_token(directory, "pad_token")
    if own is None or own == hugging_face.special_token(directory, "eos_token"):
        return -1
    return _special(directory, "pad_token", "a token of its vocabulary, or none")


def _special(directory: Path, name: str, allowed: str) -> int:
    text = hugging_face.special_token(directory, name)
    known = Tokenizer.from_file(str(directory / hugging_face.TOKENIZER)).token_to_id(text) if text else None
    if known is None:
        raise DataError(
            f"data.tokenizer: {directory / hugging_face.TOKENIZER_CONFIG}: {name} = {text!r}; allowed: {allowed}"
        )
    return int(known)


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

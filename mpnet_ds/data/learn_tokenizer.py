"""Learns a tokenizer from a corpus and saves it."""

import sys
from collections.abc import Iterator
from pathlib import Path

from mpnet_ds.data.corpus import Corpus, Faults, ReadOptions
from mpnet_ds.data.standard_input import with_standard_input
from mpnet_ds.files import new_folder
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import PretrainingTokenizer, train_tokenizer


def train_tokenizer_on(
    inputs: list[str],
    vocab_size: int,
    output: str | Path,
    options: ReadOptions | None = None,
    lower_case: bool = True,
) -> PretrainingTokenizer:
    """Learns a tokenizer from a corpus and saves it to the new folder ``output``; arguments as ``Corpus`` takes them."""
    options = options or ReadOptions()
    with new_folder(output) as folder, with_standard_input(inputs, folder, options.stdin_format) as files:
        corpus = Corpus(files, options)
        with Progress("Learning the vocabulary", 2 * corpus.num_bytes or None, unit="B") as progress:
            texts = _Texts(corpus, progress)
            tokenizer = train_tokenizer(texts, vocab_size, lower_case)
        if texts.faults.skipped:
            found = f"{texts.faults.skipped:,} documents could not be read. The first: {texts.faults.first}"
            print(found, file=sys.stderr, flush=True)
        tokenizer.save(folder)
    return tokenizer


class _Texts:
    """The documents' texts, as often as one likes."""

    def __init__(self, corpus: Corpus, progress: Progress):
        self.corpus, self.progress = corpus, progress

    def __iter__(self) -> Iterator[str]:
        self.faults = Faults(self.corpus.options.on_error)  # of one pass
        for block in self.corpus.blocks(self.faults):
            yield from map("\n".join, block.documents)
            self.progress.update(block.num_bytes)

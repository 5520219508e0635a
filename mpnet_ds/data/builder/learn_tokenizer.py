"""Training a tokenizer on a corpus."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.data.text.source import Faults, ReadOptions, describe_faults
from mpnet_ds.data.text.standard_input import stored_standard_input
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_training import train_tokenizer

PASSES = ("Counting characters", "Reading words")
"""Over the texts."""


def train_tokenizer_on(
    inputs: list[str],
    vocab_size: int,
    output: str | Path,
    options: ReadOptions | None = None,
    **settings,
) -> PretrainingTokenizer:
    """Train a tokenizer on a corpus and save it to the new folder ``output``; inputs and options as for ``Corpus``.

    ``settings`` are those of ``train_tokenizer``. What of the text is lost is printed.
    """
    told: list[str] = []
    options = options or ReadOptions()
    with new_folder(output) as folder, stored_standard_input(inputs, folder, options.stdin_format) as files:
        corpus = Corpus(files, options)
        if corpus.passed_over.count:
            print(corpus.passed_over, file=sys.stderr, flush=True)
        with closing(_Texts(corpus)) as texts:
            try:
                tokenizer = _interruptible(lambda: train_tokenizer(texts, vocab_size, **settings, tell=told.append), texts)
            except UserError as error:  # of what is left, perhaps
                raise UserError(" ".join([str(error), *texts.losses()])) from error
        told += texts.losses()
        for sentence in told:
            print(sentence, file=sys.stderr, flush=True)
        tokenizer.save(folder)
    return tokenizer


def _interruptible(train: Callable[[], PretrainingTokenizer], texts: "_Texts") -> PretrainingTokenizer:
    """Run ``train`` in a thread: inside the library, the main thread would notice Ctrl-C only at the very end."""
    result: Future[PretrainingTokenizer] = Future()

    def work() -> None:
        try:
            result.set_result(train())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        return result.result()
    except KeyboardInterrupt:
        texts.are_wanted = False
        while thread.is_alive() and not texts.are_read:  # afterwards it only merges pieces, and the program may exit
            thread.join(0.1)
        raise


class _Texts:
    """The texts of a corpus, for two passes while ``are_wanted``, and the progress of what is done with them.

    ``are_read``: the last pass is complete.
    """

    are_wanted, are_read = True, False

    def __init__(self, corpus: Corpus):
        self.corpus, self.faults = corpus, Faults()
        self._progress = self._progress_of(PASSES[0])

    def _progress_of(self, what: str) -> Progress:
        return Progress(what, self.corpus.num_bytes or None, unit="B")

    def close(self) -> None:
        """Show no more progress."""
        self._progress.close()

    def losses(self) -> list[str]:
        """Say what could not be read, if anything."""
        faults = self.faults
        return [describe_faults(faults.skipped, faults.first)] if faults.skipped else []

    def __iter__(self) -> Iterator[str]:
        if self.are_read:
            self._progress.close()
            self._progress = self._progress_of(PASSES[-1])
        self.faults, self.are_read = Faults(self.corpus.options.on_error), False  # of this pass
        for block in self.corpus.blocks(self.faults):
            for document in block.documents:
                if not self.are_wanted:
                    raise KeyboardInterrupt
                yield "\n".join(document)
            self._progress.update(block.num_bytes)
        if self._progress.what == PASSES[-1]:
            self._progress.note("learning pieces")
        self.are_read = True

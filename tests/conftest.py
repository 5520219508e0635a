"""One small corpus, its tokenizer and its dataset for the whole session; an independent reader and writer of token files."""

import itertools
import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from filelock import FileLock
from hypothesis import settings
from tokenizers import models, normalizers, pre_tokenizers

from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on
from mpnet_ds.data.text import builtin_sample
from mpnet_ds.tokenizer import PretrainingTokenizer

pytest_plugins = ["tests.fork_server", "tests.processes", "tests.runs", "tests.cluster.requirements"]

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repeatable")

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]"]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def leave_the_process_as_it_was():
    """Variables and answers to signals, which later tests hand on to their processes: a run in this process sets RANK."""
    variables, handlers = dict(os.environ), [(number, signal.getsignal(number)) for number in SIGNALS]
    yield
    os.environ.clear()
    os.environ.update(variables)
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """``made_once(name, make)``: a folder that ``make(folder)`` creates, once for all processes of a test session.

    Nobody may change what is in it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, complete = shared / name, shared / f"{name}.complete"
        with FileLock(shared / f"{name}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                make(folder)
                complete.touch()
        return folder

    return get


@dataclass(frozen=True)
class CorpusFiles:
    """The same documents twice."""

    txt: str
    jsonl: str
    documents: list[str]


@pytest.fixture(scope="session")
def corpus_files(made_once) -> CorpusFiles:
    sample = map("\n".join, itertools.islice(builtin_sample.iterate(), 600))
    documents = list({text.lower(): text for text in sample}.values())

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "sample.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
        (folder / "sample.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))

    folder = made_once("corpus", write)
    return CorpusFiles(str(folder / "sample.txt"), str(folder / "sample.jsonl"), documents)


@pytest.fixture(scope="session")
def tokenizer_folder(made_once, corpus_files) -> Path:
    # An odd number of pieces, so that ZeRO 3 has to pad.
    return made_once("tokenizer", lambda folder: train_tokenizer_on([corpus_files.txt], 999, folder))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> PretrainingTokenizer:
    return PretrainingTokenizer.load(tokenizer_folder)


@pytest.fixture(scope="session")
def dataset_folder(made_once, corpus_files, tokenizer_folder) -> Path:
    options = BuildOptions(holdout=0.1)
    inputs = [corpus_files.txt]
    return made_once("dataset", lambda folder: build_dataset(inputs, tokenizer_folder, folder, options, show_progress=False))


@pytest.fixture(scope="session")
def save_word_tokenizer():
    """A function (folder, n): saves a tokenizer in which the word ``w7`` of ``w0`` … ``w<n-1>`` has the id 12."""

    def save(folder: Path, num_words: int) -> Path:
        pieces = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(num_words)), "<mask>"]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        PretrainingTokenizer(backend, "words").save(folder)
        return folder

    return save


@dataclass(frozen=True)
class Shard:
    """Content of a shard."""

    code: int
    sequences: list[list[int]]
    offsets: list[int]
    document_index: list[int]

    @property
    def documents(self) -> list[list[list[int]]]:
        return [self.sequences[a:b] for a, b in itertools.pairwise(self.document_index)]

    @property
    def tokens(self) -> list[int]:
        return list(itertools.chain.from_iterable(self.sequences))


@pytest.fixture(scope="session")
def read_shard():
    """A function (path without ending): reads a shard with ``struct``, from the layout that token_file.py documents."""

    def read(prefix: Path) -> Shard:
        index, ids = (Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("idx", "bin"))
        assert index[:9] == b"MMIDIDX\0\0"
        version, code, num_sequences, num_entries = struct.unpack_from("<QBQQ", index, 9)
        assert version == 1
        assert len(index) == 34 + 12 * num_sequences + 8 * num_entries
        letter, width = {4: ("i", 4), 8: ("H", 2)}[code]
        sizes = struct.unpack_from(f"<{num_sequences}i", index, 34)
        offsets = struct.unpack_from(f"<{num_sequences}q", index, 34 + 4 * num_sequences)
        document_index = struct.unpack_from(f"<{num_entries}q", index, 34 + 12 * num_sequences)
        assert len(ids) == width * sum(sizes)
        sequences = [list(struct.unpack_from(f"<{size}{letter}", ids, at)) for size, at in zip(sizes, offsets, strict=True)]
        return Shard(code, sequences, list(offsets), list(document_index))

    return read


@pytest.fixture
def ctrl_c_interrupts():
    """SIGINT raises ``KeyboardInterrupt``, also where the tests are a job in the background, for which it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


FOREIGN_TYPES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 6: "d", 7: "f", 8: "H", 9: "I", 10: "Q"}


@pytest.fixture(scope="session")
def write_foreign():
    """A function (path without ending, documents, code, kind): what Megatron-LM or fairseq would write, with ``struct``.

    ``documents`` are lists of sequences of ids; fairseq's files forget where a document begins.
    """

    def write(prefix: Path, documents: list[list[list[int]]], code: int = 8, kind: str = "megatron") -> Path:
        letter = FOREIGN_TYPES[code]
        sequences = list(itertools.chain.from_iterable(documents))
        offsets = list(itertools.accumulate((struct.calcsize(letter) * len(ids) for ids in sequences), initial=0))
        starts = list(itertools.accumulate(map(len, documents), initial=0))
        index = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, code, len(sequences))
        index += struct.pack("<Q", len(starts)) if kind == "megatron" else b""
        index += struct.pack(f"<{len(sequences)}i", *map(len, sequences)) + struct.pack(f"<{len(sequences)}q", *offsets[:-1])
        index += struct.pack(f"<{len(starts)}q", *starts) if kind == "megatron" else b""
        prefix.with_name(prefix.name + ".idx").write_bytes(index)
        ids = b"".join(struct.pack(f"<{len(ids)}{letter}", *ids) for ids in sequences)
        prefix.with_name(prefix.name + ".bin").write_bytes(ids)
        return prefix

    return write

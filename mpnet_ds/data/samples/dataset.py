"""Samples of a dataset: sequences of tokens, corrupted by an objective, as a pure function of (seed, epoch, index).

    index ──shuffle──► number of a sequence ──block_sequences or document_sequences──► its ids ──objective.draw──► sample

The sample mode decides what the sequences are: full blocks of the concatenated documents (``stream``), or whole documents or
lines (``document``, ``line``). Opening maps the files; a batch reads only its own sequences.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mpnet_ds.command_line import invocation
from mpnet_ds.counter_rng import make_key
from mpnet_ds.data.samples.block_sequences import BlockSequences
from mpnet_ds.data.samples.document_sequences import DocumentSequences
from mpnet_ds.data.samples.shuffle import shuffled
from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, TOKENIZER, DatasetManifest, ShardRecord
from mpnet_ds.data.storage.token_file import TokenFile
from mpnet_ds.errors import UserError, collecting, did_you_mean
from mpnet_ds.objectives.base import Objective, Sequences, Vocabulary
from mpnet_ds.objectives.masking import MAX_SEQ_LENGTH, MaskingConfig
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_layouts import MPNETS_FRAME, Frame

SampleMode = Literal["stream", "document", "line"]
SAMPLE_MODES = get_args(SampleMode)
MIN_SEQ_LENGTH = 8
ORDER_WINDOW = 1024
_ORDER, _START, _MASKING = range(3)  # purposes of random numbers


class PretrainingDataset:
    """Batches of one dataset folder.

    Args:
        folder: written by ``build_dataset``.
        seq_length: n, tokens in a sequence, ``<s>`` included.
        masking: how the objective ``mpnet`` corrupts sequences.
        seed: seed of the order, the block starts, and everything that the objective draws.
        sample_mode: ``stream`` (full blocks across documents), ``document`` or ``line`` (whole ones, with padding); see
            ``block_sequences.py`` and ``document_sequences.py``.
        packing: put several documents or lines into one sequence if they fit.
        isolate_documents: tell the model which document each token belongs to, so that it keeps them apart.
        objective: draws the batches; by default ``mpnet`` with ``masking``.
        number: index of this dataset in a mixture.
    Raises:
        UserError: the folder is missing, unfinished or damaged, holds another tokenizer than it was built with, or has
            not enough tokens for one sequence.
    """

    def __init__(
        self,
        folder: str | Path,
        seq_length: int = 512,
        masking: MaskingConfig | None = None,
        seed: int = 0,
        sample_mode: str = "stream",
        packing: bool = True,
        isolate_documents: bool = False,
        objective: Objective | None = None,
        number: int = 0,
    ):
        if sample_mode not in SAMPLE_MODES:
            raise UserError(f"unknown sample_mode '{sample_mode}'. {did_you_mean(str(sample_mode), SAMPLE_MODES)}")
        self.folder = Path(folder)
        self.manifest, self.tokenizer, shards = open_folder(self.folder)
        if not MIN_SEQ_LENGTH <= seq_length <= MAX_SEQ_LENGTH:
            bounds = f"between {MIN_SEQ_LENGTH} and {MAX_SEQ_LENGTH}"
            raise UserError(f"data.seq_length is {seq_length}; it must be {bounds}.")
        self.seq_length, self.seed = seq_length, seed
        self.objective, self.number = objective or MPNet(masking or MaskingConfig()), number
        self.vocabulary = Vocabulary.of(self.tokenizer, self.manifest.provenance.names)
        length = self.objective.tokens_needed(seq_length, self.vocabulary)
        self.isolate_documents = isolate_documents
        if sample_mode == "stream":
            self.reader = BlockSequences(shards, length, self._seed_for(_START), self.tokenizer.frame)
        else:
            self.reader = DocumentSequences(shards, length, sample_mode, packing, self.tokenizer.frame)
        self.num_samples = len(self.reader)
        if not self.num_samples:
            found = f"{folder} has {self.manifest.tokens} tokens, less than one sequence of {seq_length}"
            raise UserError(f"{found}: build it from more text, or use a smaller data.seq_length.")
        self._order_seed, self._masking_seed = self._seed_for(_ORDER), self._seed_for(_MASKING)
        self._order_window = lru_cache(maxsize=8)(self._compute_order_window)

    def __len__(self) -> int:
        """Number of samples in an epoch, N."""
        return self.num_samples

    def describe(self) -> str:
        """Summarise in one line: folder, tokens, sequences in an epoch; a line more for each remark on the tokens."""
        sequences = f"{len(self):,} sequences of {self.seq_length} in an epoch"
        summary = f"{self.folder}: {self.manifest.tokens:,} tokens, {sequences}"
        return "\n".join([summary, *(f"  Warning: {remark}" for remark in self.manifest.remarks)])

    @property
    def checksum(self) -> str:
        """Identity of the content."""
        return self.manifest.checksum

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the dataset's copy of the tokenizer."""
        return self.folder / TOKENIZER

    @property
    def holdout_folder(self) -> Path | None:
        """Folder of the held-out documents, a dataset of its own; None if there are none."""
        folder = self.folder / HOLDOUT
        return folder if (folder / FILE_NAME).is_file() else None

    @property
    def holdouts(self) -> list[tuple[Path, None]]:
        """Holdout folder with its weight (None), as a list as for a mixture; empty if there is no holdout."""
        return [(self.holdout_folder, None)] if self.holdout_folder else []

    def batch(self, indices, epoch=0, objective: Objective | None = None) -> dict[str, np.ndarray]:
        """Draw the samples at ``indices`` of the shuffled order of an epoch.

        Args:
            indices: int [B], each in 0 … N-1.
            epoch: int, or int [B], one for each sample.
            objective: draws instead of the dataset's own, for values that change during training (``Objective.at``).
        Returns:
            Arrays [B, …]; see the objective's ``draw``.
        Raises:
            UserError: a shard is damaged, so that it holds an id outside the vocabulary.
        """
        return (objective or self.objective).draw(self.sequences(indices, epoch), self.vocabulary)

    def sequences(self, indices, epoch=0) -> Sequences:
        """Read the same samples before corruption; arguments as for ``batch``."""
        indices, epochs = np.broadcast_arrays(np.atleast_1d(np.asarray(indices, dtype=np.int64)), np.asarray(epoch))
        numbers = self._sequence_numbers(indices, epochs)
        ids, real = self.reader.read(numbers, epochs)
        # One comparison finds negative ids too.
        if ids.size and ids.view(np.uint64).max() >= self.vocabulary.size:
            self._report_damage(numbers, epochs)
        return Sequences(
            keys=make_key(self._masking_seed, epochs, indices),
            ids=ids,
            real=real,
            documents=document_ids(ids, self.tokenizer.frame, real) if self.isolate_documents else None,
            dataset=np.full(len(ids), self.number),
        )

    def consecutive(self, first: int, count: int, objective: Objective | None = None) -> dict[str, np.ndarray]:
        """Draw the samples ``first`` … ``first + count - 1`` of an endless run over epochs: the training data."""
        numbers = np.arange(first, first + count)
        return self.batch(numbers % self.num_samples, numbers // self.num_samples, objective)

    @property
    def tokens_per_sequence(self) -> float:
        """Tokens of a sequence that are not padding, on average over an epoch."""
        return self.reader.tokens_per_sequence

    def piece_shares(self) -> np.ndarray | None:
        """How much of an epoch's tokens each piece makes up, ``<s>`` and ``</s>`` included: float64 [V], with the sum 1.

        None for a dataset of an older version, which has no counts: ``inspect_dataset --count`` adds them.
        """
        counts = self.manifest.decoded_piece_counts()
        if counts is None:
            return None
        counts = counts.astype(np.float64)
        for piece, number in self.reader.added_ids.items():
            counts[piece] += number
        return counts / counts.sum()

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens of an epoch that are not padding, ``<s>`` included; with ``stream`` those of the last block too."""
        return self.manifest.tokens + sum(self.reader.added_ids.values())

    def _sequence_numbers(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Look up the sequences at ``indices`` of the shuffled order.

        Consecutive indices, as in training, share a window of the order, which is computed once: NumPy takes about as long
        for 32 numbers as for 1024.
        """
        windows = indices // ORDER_WINDOW
        wanted = set(zip(epochs.tolist(), windows.tolist(), strict=True))
        if len(wanted) not in (1, 2) or indices.min() < 0 or indices.max() >= self.num_samples:
            return shuffled(indices, self.num_samples, self._order_seed, epochs)
        numbers = np.empty(indices.shape, dtype=np.int64)
        for epoch, window in wanted:
            inside = (epochs == epoch) & (windows == window)
            numbers[inside] = self._order_window(epoch, window)[indices[inside] - window * ORDER_WINDOW]
        return numbers

    def _compute_order_window(self, epoch: int, window: int) -> np.ndarray:
        first = window * ORDER_WINDOW
        indices = np.arange(first, min(first + ORDER_WINDOW, self.num_samples))
        return shuffled(indices, self.num_samples, self._order_seed, epoch)

    def _report_damage(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        for number, epoch in zip(numbers.tolist(), epochs.tolist(), strict=True):
            for shard, first, stop in self.reader.token_ranges(number, epoch):
                ids = np.asarray(shard.tokens[first:stop], dtype=np.int64)
                bad = np.flatnonzero((ids < 0) | (ids >= self.vocabulary.size))
                if bad.size:
                    found = f"{shard.bin_path}: token {first + bad[0]:,} has id {ids[bad[0]]:,}"
                    cure = f"find all damage with {invocation('inspect_dataset', self.folder, '--verify')}"
                    raise UserError(f"{found}, but the vocabulary has {self.vocabulary.size:,}: {cure}, and build it again.")

    def _seed_for(self, purpose: int) -> int:
        return int(make_key(self.seed, purpose))


def open_folder(folder: str | Path) -> tuple[DatasetManifest, PretrainingTokenizer, list[TokenFile]]:
    """Open the manifest, the tokenizer and the shards of a dataset; ``UserError`` if they do not fit together."""
    folder = Path(folder)
    manifest, findings = DatasetManifest.load(folder), []
    with collecting(findings):
        manifest.check_sizes(folder)
    with collecting(findings):
        tokenizer = PretrainingTokenizer.load(folder / TOKENIZER)
        _check_tokenizer(folder, manifest, tokenizer)
    if findings:
        raise UserError(*findings)
    return manifest, tokenizer, [_open(folder, manifest, shard) for shard in manifest.shards if shard.tokens]


def _check_tokenizer(folder: Path, manifest: DatasetManifest, tokenizer: PretrainingTokenizer) -> None:
    expected, found = manifest.tokenizer_fingerprint, tokenizer.fingerprint
    if found != expected:
        what = f"{folder / TOKENIZER} (fingerprint {found[:12]}) is not the tokenizer that {folder / FILE_NAME}"
        raise UserError(f"{what} was built with ({expected[:12]}): restore that one, or build the dataset again.")


def _open(folder: Path, manifest: DatasetManifest, shard: ShardRecord) -> TokenFile:
    file = TokenFile(folder / shard.name)
    if (file.dtype.name, len(file.tokens)) != (manifest.dtype, shard.tokens):
        found = f"{len(file.tokens):,} ids of {file.dtype.name}"
        expected = f"{shard.tokens:,} of {manifest.dtype}"
        path = folder / f"{shard.name}.idx"
        raise UserError(f"{path} has {found}, {FILE_NAME} says {expected}: damaged, build the dataset again.")
    return file


def document_ids(input_ids: np.ndarray, frame: Frame = MPNETS_FRAME, real: np.ndarray | bool = True) -> np.ndarray:
    """Number the documents in each sequence 0, 1, 2 …, int64 [B, n]; a document ends with ``</s>`` or before ``<s>``.

    ``real``: bool [B, n], False on padding, which is one document more where it follows an end.
    """
    ids = np.zeros(input_ids.shape, dtype=np.int64)
    ids[:, 1:] = ((input_ids == frame.end) & real)[:, :-1]
    if frame.begin is not None:
        ids[:, 1:] |= input_ids[:, 1:] == frame.begin
    return np.cumsum(ids, axis=1, out=ids)

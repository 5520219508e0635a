"""Samples of a dataset: sequences of tokens, corrupted by an objective, as a pure function of (seed, epoch, index).

    index ──shuffle──► number of a sequence ──block_sequences or document_sequences──► its ids ──objective.draw──► sample

The sample mode says what the sequences are: full blocks of all documents end to end (``stream``), or whole documents or
lines (``document``, ``line``). Opening maps the files; a batch reads its own sequences only.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mpnet_ds.counter_rng import make_key
from mpnet_ds.data.samples.block_sequences import BlockSequences
from mpnet_ds.data.samples.document_sequences import DocumentSequences
from mpnet_ds.data.samples.shuffle import shuffled
from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, TOKENIZER, DatasetManifest, ShardRecord
from mpnet_ds.data.storage.token_file import TokenFile
from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.objectives.base import Objective, Sequences, Vocabulary
from mpnet_ds.objectives.masking import MAX_SEQ_LENGTH, MaskingConfig
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PretrainingTokenizer

SampleMode = Literal["stream", "document", "line"]
SAMPLE_MODES = get_args(SampleMode)
MIN_SEQ_LENGTH = 8
ORDER_WINDOW = 1024
_ORDER, _START, _MASKING = range(3)  # purposes of random numbers


def check_sample_mode(name: str) -> str:
    """The name itself; ``UserError`` with the nearest one if there is no such mode."""
    if name not in SAMPLE_MODES:
        raise UserError(f"unknown sample_mode '{name}'. {did_you_mean(str(name), SAMPLE_MODES)}")
    return name


class PretrainingDataset:
    """Batches of one dataset folder.

    Args:
        folder: written by ``build_dataset``.
        seq_length: n, tokens in a sequence, ``<s>`` included.
        masking: how sequences are corrupted, for the objective ``mpnet``.
        seed: of order, block starts and all that the objective draws.
        sample_mode: ``stream`` (full blocks across documents), ``document`` or ``line`` (whole ones, and padding); see
            ``block_sequences.py`` and ``document_sequences.py``.
        packing: with ``document`` and ``line``, let several share a sequence while they fit.
        isolate_documents: batches tell which document a token belongs to, so that the model keeps them apart.
        objective: draws the batches; by default ``mpnet`` with ``masking``.
        number: of this dataset in a mixture.
    Raises:
        UserError: the folder is missing, unfinished or damaged, holds another tokenizer than it was built with, or has
            not enough tokens for one row.
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
        check_sample_mode(sample_mode)
        self.folder = Path(folder)
        self.manifest = DatasetManifest.load(folder)
        self.manifest.check_sizes(self.folder)
        self.tokenizer = PretrainingTokenizer.load(self.tokenizer_folder)
        self._check_tokenizer()
        if not MIN_SEQ_LENGTH <= seq_length <= MAX_SEQ_LENGTH:
            bounds = f"between {MIN_SEQ_LENGTH} and {MAX_SEQ_LENGTH}"
            raise UserError(f"data.seq_length is {seq_length}; it must lie {bounds}.")
        self.seq_length, self.seed = seq_length, seed
        self.objective, self.number = objective or MPNet(masking or MaskingConfig()), number
        self.vocabulary = Vocabulary.of(self.tokenizer)
        length = self.objective.tokens_needed(seq_length, self.vocabulary)
        self.isolate_documents = isolate_documents
        shards = [self._open(shard) for shard in self.manifest.shards if shard.tokens]
        if sample_mode == "stream":
            self.rows = BlockSequences(shards, length, self._seed_for(_START))
        else:
            self.rows = DocumentSequences(shards, length, sample_mode, packing)
        self.num_samples = len(self.rows)
        if not self.num_samples:
            found = f"{folder} has {self.manifest.tokens} tokens, less than one row of {seq_length}"
            raise UserError(f"{found}: build it from more text, or use a recipe with a smaller data.seq_length.")
        self._order_seed, self._masking_seed = self._seed_for(_ORDER), self._seed_for(_MASKING)
        self._order_window = lru_cache(maxsize=8)(self._compute_order_window)

    def _open(self, shard: ShardRecord) -> TokenFile:
        file = TokenFile(self.folder / shard.name)
        if (file.dtype.name, len(file.tokens)) != (self.manifest.dtype, shard.tokens):
            found = f"{len(file.tokens):,} ids of {file.dtype.name}"
            expected = f"{shard.tokens:,} of {self.manifest.dtype}"
            path = self.folder / f"{shard.name}.idx"
            raise UserError(f"{path} says {found}, {FILE_NAME} {expected}: damaged, build the dataset again.")
        return file

    def _check_tokenizer(self) -> None:
        expected, found = self.manifest.tokenizer_fingerprint, self.tokenizer.fingerprint
        if found != expected:
            what = f"{self.tokenizer_folder} (fingerprint {found[:12]}) is not the tokenizer that {self.folder / FILE_NAME}"
            raise UserError(f"{what} was built with ({expected[:12]}): put that one back, or build the dataset again.")

    def __len__(self) -> int:
        """N, samples in an epoch."""
        return self.num_samples

    def describe(self) -> str:
        """One line for a person: folder, tokens, rows of an epoch."""
        rows = f"{len(self):,} rows of {self.seq_length} an epoch"
        return f"{self.folder}: {self.manifest.tokens:,} tokens, {rows}"

    @property
    def checksum(self) -> str:
        """Identity of the content."""
        return self.manifest.checksum

    @property
    def tokenizer_folder(self) -> Path:
        """The copy of the tokenizer within the dataset."""
        return self.folder / TOKENIZER

    @property
    def holdout_folder(self) -> Path | None:
        """The evaluation dataset that was split off this one, if there is one."""
        folder = self.folder / HOLDOUT
        return folder if (folder / FILE_NAME).is_file() else None

    @property
    def holdouts(self) -> list[tuple[Path, None]]:
        """As of a mixture: the holdout, if there is one, and no weight."""
        return [(self.holdout_folder, None)] if self.holdout_folder else []

    def batch(self, indices, epoch=0) -> dict[str, np.ndarray]:
        """The samples at ``indices`` of an epoch's shuffled order, as the objective draws them.

        Args:
            indices: int [B], each in 0 … N-1.
            epoch: int, or int [B], one for each sample.
        Returns:
            Arrays [B, …]; see the objective's ``draw``.
        Raises:
            UserError: a shard holds what is no id, because it is damaged.
        """
        return self.objective.draw(self.sequences(indices, epoch), self.vocabulary)

    def sequences(self, indices, epoch=0) -> Sequences:
        """The same samples before they are corrupted; arguments as in ``batch``."""
        indices, epochs = np.broadcast_arrays(np.atleast_1d(np.asarray(indices, dtype=np.int64)), np.asarray(epoch))
        numbers = self._row_numbers(indices, epochs)
        ids, real = self.rows.read(numbers, epochs)
        # One comparison finds negative numbers too.
        if ids.size and ids.view(np.uint64).max() >= self.vocabulary.size:
            self._report_damage(numbers, epochs)
        return Sequences(
            keys=make_key(self._masking_seed, epochs, indices),
            ids=ids,
            real=real,
            documents=document_ids(ids) if self.isolate_documents else None,
            dataset=np.full(len(ids), self.number),
        )

    def consecutive(self, first: int, count: int) -> dict[str, np.ndarray]:
        """Samples number ``first`` … ``first + count - 1`` of an endless run over epochs: the training data."""
        numbers = np.arange(first, first + count)
        return self.batch(numbers % self.num_samples, numbers // self.num_samples)

    @property
    def tokens_per_sequence(self) -> float:
        """Real tokens of a row, on average over an epoch: the rest is padding."""
        return self.rows.tokens_per_sequence

    def _row_numbers(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Numbers of the rows that stand at ``indices`` of the epochs' orders.

        Indices that follow each other, as in training, share a window of the order, which is computed once: NumPy takes
        about as long for 32 numbers as for 1024.
        """
        windows = indices // ORDER_WINDOW
        wanted = set(zip(epochs.tolist(), windows.tolist(), strict=True))
        if len(wanted) not in (1, 2) or indices.min() < 0 or indices.max() >= self.num_samples:
            return shuffled(indices, self.num_samples, self._order_seed, epochs)
        numbers = np.empty(indices.shape, dtype=np.int64)
        for epoch, window in wanted:
            rows = (epochs == epoch) & (windows == window)
            numbers[rows] = self._order_window(epoch, window)[indices[rows] - window * ORDER_WINDOW]
        return numbers

    def _compute_order_window(self, epoch: int, window: int) -> np.ndarray:
        first = window * ORDER_WINDOW
        indices = np.arange(first, min(first + ORDER_WINDOW, self.num_samples))
        return shuffled(indices, self.num_samples, self._order_seed, epoch)

    def _report_damage(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        for number, epoch in zip(numbers.tolist(), epochs.tolist(), strict=True):
            for shard, first, stop in self.rows.places(number, epoch):
                ids = np.asarray(shard.tokens[first:stop], dtype=np.int64)
                bad = np.flatnonzero((ids < 0) | (ids >= self.vocabulary.size))
                if bad.size:
                    found = f"{shard.bin_path}: token {first + bad[0]:,} has id {ids[bad[0]]:,}"
                    cure = f"find all damage with: python tools/inspect_dataset.py {self.folder} --verify"
                    raise UserError(
                        f"{found}, the vocabulary {self.vocabulary.size:,}: {cure}, and build the dataset again."
                    )

    def _seed_for(self, purpose: int) -> int:
        return int(make_key(self.seed, purpose))


def document_ids(input_ids: np.ndarray) -> np.ndarray:
    """int64 [B, n]: 0, 1, 2 … in each row; a document ends with ``</s>``, or where the next ``<s>`` begins one."""
    ids = np.zeros(input_ids.shape, dtype=np.int64)
    ids[:, 1:] = (input_ids[:, :-1] == EOS_ID) | (input_ids[:, 1:] == BOS_ID)
    return np.cumsum(ids, axis=1, out=ids)

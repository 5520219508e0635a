"""Samples of a dataset: full blocks of tokens, corrupted, as a pure function of (seed, epoch, index).

The shards' ids, end to end, are one circular stream of T tokens (``</s>`` ends each document). A sample is ``<s>`` and
a slice of ``seq_length - 1`` ids of it; an epoch has N = T // (seq_length - 1) samples that do not overlap. Each epoch
starts the cutting at another place of the circle, so that no token is always at an edge, and none is always left over.

    stream   … t t t </s> t t t t t t t </s> t t t t …            sample k of an epoch with start a:
    blocks      |--- k ---|-- k+1 --|-- k+2 --|                   ids at a + k (n-1) … a + (k+1) (n-1) - 1, modulo T

Opening maps the files and reads nothing of them; a batch reads its slices only.
"""

from pathlib import Path

import numpy as np

from mpnet_ds.data.counter_rng import below, draw, make_key
from mpnet_ds.data.manifest import FILE_NAME, HOLDOUT, TOKENIZER, DatasetManifest, ShardRecord
from mpnet_ds.data.masking import MAX_SEQ_LENGTH, MaskingConfig, MaskingVocabulary, mask_rows
from mpnet_ds.data.order import shuffled
from mpnet_ds.data.token_file import TokenFile
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import BOS_ID, PretrainingTokenizer

_ORDER, _START, _MASKING = range(3)  # purposes of random numbers


class TokenStream:
    """The ids of several shards as one circular array."""

    def __init__(self, shards: list[TokenFile]):
        self.shards = [shard for shard in shards if len(shard.tokens)]
        self.ends = np.cumsum([len(shard.tokens) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def slice(self, start: int, length: int) -> np.ndarray:
        """``length`` ids from ``start`` on, going round at the end."""
        parts = []
        while length:
            start %= len(self)
            number = int(np.searchsorted(self.ends, start, side="right"))
            offset = start - (int(self.ends[number - 1]) if number else 0)
            parts.append(self.shards[number].tokens[offset : offset + length])
            start, length = start + len(parts[-1]), length - len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class PretrainingDataset:
    """Batches of one dataset folder.

    Args:
        folder: written by ``build_dataset``.
        seq_length: n, tokens in a row, ``<s>`` included.
        masking: how rows are corrupted.
        seed: of order, block starts and masking.
    Raises:
        UserError: the folder is missing, unfinished or damaged, holds another tokenizer than it was built with, or is
            shorter than one row.
    """

    def __init__(self, folder: str | Path, seq_length: int = 512, masking: MaskingConfig | None = None, seed: int = 0):
        self.folder = Path(folder)
        self.manifest = DatasetManifest.load(folder)
        self.manifest.check_sizes(self.folder)
        self.tokenizer = PretrainingTokenizer.load(self.tokenizer_folder)
        self._check_tokenizer()
        if not 8 <= seq_length <= MAX_SEQ_LENGTH:
            raise UserError(f"data.seq_length is {seq_length}; it must lie between 8 and {MAX_SEQ_LENGTH}.")
        self.seq_length, self.seed = seq_length, seed
        self.masking = masking or MaskingConfig()
        self.vocabulary = MaskingVocabulary.of(self.tokenizer)
        self.stream = TokenStream([self._open(shard) for shard in self.manifest.shards])
        self.num_samples = len(self.stream) // (seq_length - 1)
        if not self.num_samples:
            found = f"{folder} has {len(self.stream)} tokens, less than one row of {seq_length}"
            raise UserError(f"{found}: build it from more text, or use a recipe with a smaller data.seq_length.")

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

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def holdout_folder(self) -> Path | None:
        """The evaluation dataset that was split off this one, if there is one."""
        folder = self.folder / HOLDOUT
        return folder if (folder / FILE_NAME).is_file() else None

    def batch(self, indices, epoch=0) -> dict[str, np.ndarray]:
        """The samples at ``indices`` of an epoch's shuffled order.

        Args:
            indices: int [B], each in 0 … N-1.
            epoch: int, or int [B], one for each row.
        Returns:
            ``input_ids`` int64 [B, n], ``predicted_positions`` int64 [B, p] (-1 where unused), ``predicted_inputs``
            int64 [B, p], ``attention_mask`` bool [B, n].
        """
        indices, epochs = np.broadcast_arrays(np.atleast_1d(np.asarray(indices, dtype=np.int64)), np.asarray(epoch))
        blocks = shuffled(indices, self.num_samples, self._seed_for(_ORDER), epochs)
        input_ids = self._blocks(blocks, epochs)
        attention_mask = np.ones(input_ids.shape, dtype=bool)
        row_keys = make_key(self._seed_for(_MASKING), epochs, indices)
        positions, inputs = mask_rows(input_ids, attention_mask, row_keys, self.vocabulary, self.masking)
        return {
            "input_ids": input_ids,
            "predicted_positions": positions,
            "predicted_inputs": inputs,
            "attention_mask": attention_mask,
        }

    def consecutive(self, first: int, count: int) -> dict[str, np.ndarray]:
        """Samples number ``first`` … ``first + count - 1`` of an endless run over epochs: the training data."""
        numbers = np.arange(first, first + count)
        return self.batch(numbers % self.num_samples, numbers // self.num_samples)

    def _blocks(self, blocks: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        body = self.seq_length - 1
        starts = below(draw(make_key(self._seed_for(_START), epochs), 0), min(len(self.stream), 2**32 - 1)) + blocks * body
        rows = np.empty((len(blocks), self.seq_length), dtype=np.int64)
        rows[:, 0] = BOS_ID
        for row, start in zip(rows, starts, strict=True):
            row[1:] = self.stream.slice(int(start), body)
        return rows

    def _seed_for(self, purpose: int) -> int:
        return int(make_key(self.seed, purpose))

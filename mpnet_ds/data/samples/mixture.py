"""A mixture of several datasets, in which the dataset of sample i is a function of i alone.

It follows a pattern of M slots, repeated forever. M is the common denominator of the weights, at most 10,000; a dataset of
weight w has w * M slots, spread evenly: w * t of the first t slots, rounded up or down. So any M consecutive samples have
the exact share of each dataset, and fewer are less than two samples away from it. The j-th sample from a dataset of N
samples is its sample j mod N of epoch j div N.

    weights 0.6, 0.2, 0.2, M = 5      slots a b a c a | a b a c a | …      samples of a: 0, 2, 4, 5, 7, …
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from mpnet_ds.counter_rng import make_key
from mpnet_ds.data.samples.dataset import PretrainingDataset, open_folder
from mpnet_ds.errors import UserError, collecting
from mpnet_ds.objectives.base import Objective
from mpnet_ds.tokenizer import PretrainingTokenizer

LONGEST_PATTERN = 10_000


def parse_weighted(text: str) -> tuple[str, Fraction | None]:
    """Parse ``DIR`` or ``DIR:WEIGHT`` as folder and weight, which may be written as 0.7, 7 or 7/10."""
    folder, colon, weight = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return text, None
    try:
        return folder, Fraction(weight)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"{text}: '{weight}' is not a weight. Write --data DIR:0.7 DIR:0.3, or only DIR.") from error


def open_datasets(
    parts: list[tuple[str | Path, Fraction | None]], seed: int, **options
) -> "PretrainingDataset | MixtureDataset":
    """Open one dataset, or a mixture of several.

    Args:
        parts: folder and weight of each; without weights they are mixed in proportion to their samples.
        options: options of ``PretrainingDataset``, the same for all.
    """
    if len(parts) == 1 and (parts[0][1] is None or parts[0][1] > 0):
        return PretrainingDataset(parts[0][0], seed=seed, **options)
    # Each has a seed of its own: otherwise their samples of the same number would be masked at the same positions.
    datasets = [
        PretrainingDataset(folder, seed=int(make_key(seed, i)), number=i, **options) for i, (folder, _) in enumerate(parts)
    ]
    return MixtureDataset(datasets, [weight for _, weight in parts])


def examine_folders(texts: Iterable[str]) -> list[str]:
    """Everything that is wrong with datasets given as ``DIR`` or ``DIR:WEIGHT``, whatever is made of them."""
    findings, parts = [], []
    for text in texts:
        with collecting(findings):
            parts.append(parse_weighted(text))
            open_folder(parts[-1][0])
    if len(parts) > 1:
        with collecting(findings):
            _check_weights(*zip(*parts, strict=True))
    return findings


class MixtureDataset:
    """Several datasets with the interface of ``PretrainingDataset`` that training needs.

    Args:
        datasets: opened with the same sequence length and options.
        weights: one for each, positive, with any sum; or None for each: in proportion to their samples.
    Raises:
        UserError: invalid weights, or datasets of different tokenizers.
    """

    def __init__(self, datasets: list[PretrainingDataset], weights: list[Fraction | None]):
        _check_weights([data.folder for data in datasets], weights)
        _check_tokenizers(datasets)
        self.datasets = datasets
        if weights[0] is None:
            weights = [Fraction(len(data)) for data in datasets]
        self.slots_of_each = slots_for(weights)
        _check_shares(datasets, weights)
        self._pattern = spread(self.slots_of_each)
        self._slots = [np.flatnonzero(self._pattern == number) for number in range(len(datasets))]
        self._numbers = np.empty(len(self._pattern), dtype=np.int64)  # of a slot among those of its dataset
        for slots in self._slots:
            self._numbers[slots] = np.arange(len(slots))

    def __len__(self) -> int:
        """Number of samples until a dataset would start over, which counts as an epoch."""
        return min(self._sample_of(number, len(data)) for number, data in enumerate(self.datasets))

    def _sample_of(self, number: int, j: int) -> int:
        """Index of the j-th sample of a dataset in the mixture."""
        rounds, slot = divmod(j, self.slots_of_each[number])
        return rounds * len(self._pattern) + int(self._slots[number][slot])

    @property
    def tokenizer(self) -> PretrainingTokenizer:
        """Tokenizer of all datasets."""
        return self.datasets[0].tokenizer

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer in the first dataset."""
        return self.datasets[0].tokenizer_folder

    @property
    def seq_length(self) -> int:
        """Number of tokens in a sequence, n."""
        return self.datasets[0].seq_length

    @property
    def shares(self) -> list[Fraction]:
        """Share of each dataset in the samples; they sum to 1."""
        return [Fraction(slots, len(self._pattern)) for slots in self.slots_of_each]

    @property
    def tokens_per_sequence(self) -> float:
        """Tokens of a sequence that are not padding, on average over all datasets by their shares."""
        return float(sum(share * data.tokens_per_sequence for share, data in zip(self.shares, self.datasets, strict=True)))

    def piece_shares(self) -> np.ndarray | None:
        """How much of the tokens each piece is expected to make up: float64 [V], with the sum 1.

        It is the mean over the datasets, each weighted by its tokens, which are its share of the samples times the tokens of
        a sequence. None if one of them has no counts.
        """
        parts = [data.piece_shares() for data in self.datasets]
        if any(part is None for part in parts):
            return None
        tokens = [float(share) * data.tokens_per_sequence for share, data in zip(self.shares, self.datasets, strict=True)]
        return np.average(parts, axis=0, weights=tokens)

    @property
    def holdouts(self) -> list[tuple[Path, Fraction | None]]:
        """Holdout folders with the shares of their datasets; empty unless all have one."""
        folders = [data.holdout_folder for data in self.datasets]
        return [] if None in folders else list(zip(folders, self.shares, strict=True))

    @property
    def checksum(self) -> list[list[str]]:
        """Identity of the content: checksum and share of each dataset, in order."""
        return [[data.checksum, str(share)] for data, share in zip(self.datasets, self.shares, strict=True)]

    def describe(self) -> str:
        """Summarise each dataset in a line, with its share."""
        parts = zip(self.shares, self.datasets, strict=True)
        return "".join(f"\n  {float(share):.2%} of the sequences: {data.describe()}" for share, data in parts).lstrip()

    def batch(self, indices, epoch=0, objective: Objective | None = None) -> dict[str, np.ndarray]:
        """Draw samples as ``PretrainingDataset.batch``; ``index`` of an epoch is sample ``epoch * len + index`` of all."""
        indices, epochs = np.broadcast_arrays(np.atleast_1d(np.asarray(indices, dtype=np.int64)), np.asarray(epoch))
        return self._samples(epochs * len(self) + indices, objective)

    def consecutive(self, first: int, count: int, objective: Objective | None = None) -> dict[str, np.ndarray]:
        """Draw the samples ``first`` … ``first + count - 1`` of an endless run: the training data."""
        return self._samples(np.arange(first, first + count), objective)

    def _samples(self, numbers: np.ndarray, objective: Objective | None) -> dict[str, np.ndarray]:
        which, own_numbers = self.origin(numbers)
        batch = {}
        for number, data in enumerate(self.datasets):
            own = np.flatnonzero(which == number)
            if not own.size and (batch or number + 1 < len(self.datasets)):
                continue
            part = data.batch(own_numbers[own] % len(data), own_numbers[own] // len(data), objective)
            for name, array in part.items():
                batch.setdefault(name, np.empty((len(numbers), *array.shape[1:]), dtype=array.dtype))[own] = array
        return batch

    def origin(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset of each of these samples, and its index among the samples of that dataset."""
        rounds, slots = np.divmod(numbers, len(self._pattern))
        which = self._pattern[slots]
        return which, rounds * np.array(self.slots_of_each)[which] + self._numbers[slots]


def slots_for(weights: list[Fraction]) -> list[int]:
    """Compute the slots of each weight in the pattern, at least one.

    They are exact if the common denominator is at most ``LONGEST_PATTERN``, else rounded by largest remainders.
    """
    shares = [weight / sum(weights) for weight in weights]
    length = math.lcm(*(share.denominator for share in shares))
    if length <= LONGEST_PATTERN:
        return [int(share * length) for share in shares]
    slots = [max(1, int(share * LONGEST_PATTERN)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: slots[i] - shares[i] * LONGEST_PATTERN)
    for i in by_remainder[: max(0, LONGEST_PATTERN - sum(slots))]:
        slots[i] += 1
    return slots


def spread(slots: list[int]) -> np.ndarray:
    """Compute the pattern: the index of the dataset in each slot, int64 [M].

    The k-th of c slots may be anywhere in [k M / c, (k + 1) M / c), widened to integers; of the open intervals, the one that
    ends first is served first. Such a schedule with a deviation below one slot always exists: Baruah, Cohen, Plaxton and
    Varvel, *Proportionate Progress*, Algorithmica 1996.
    """
    length = sum(slots)
    intervals = sorted(
        (k * length // count, -(-(k + 1) * length // count), number)
        for number, count in enumerate(slots)
        for k in range(count)
    )
    pattern, ready, upcoming = np.empty(length, dtype=np.int64), [], iter(intervals)
    begin, end, number = next(upcoming)
    for slot in range(length):
        while begin <= slot:
            heapq.heappush(ready, (end, number))
            begin, end, number = next(upcoming, (length, 0, 0))
        pattern[slot] = heapq.heappop(ready)[1]
    return pattern


def _check_weights(folders: Sequence[str | Path], weights: Sequence[Fraction | None]) -> None:
    findings = []
    for folder, weight in zip(folders, weights, strict=True):
        if weight is None and any(other is not None for other in weights):
            findings.append(f"{folder} has no weight, but others do: give all of them a weight (DIR:0.7), or none.")
        if weight is not None and weight <= 0:
            findings.append(f"{folder} has weight {float(weight)}; it must be greater than 0.")
    if findings:
        raise UserError(*findings)


def _check_shares(datasets: list[PretrainingDataset], weights: list[Fraction]) -> None:
    for data, weight in zip(datasets, weights, strict=True):
        if weight * LONGEST_PATTERN < sum(weights):
            share = f"{data.folder} would get less than one sample in {LONGEST_PATTERN:,}"
            raise UserError(f"{share}: give it a larger weight, merge it into another dataset, or leave it out.")


def _check_tokenizers(datasets: list[PretrainingDataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            found = f"{other.folder} was built with a different tokenizer than {first.folder}"
            raise UserError(f"{found}: build both with the same --tokenizer.")

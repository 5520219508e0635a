"""Which tokens are predicted, in which order, and what stands in their place.

For each row, independently, as a pure function of its key (the paper's section 2.2, for natural order):

1. The row is cut into words: a piece that continues a word (``##ing``) belongs to the piece before it.
2. The words are put in random order and laid end to end; the last ``p = round(fraction * n)`` tokens of that line are
   predicted, n being the row's real tokens. So whole words are predicted, but for the one that the cut may split.
3. The predicted tokens are shuffled once more, token by token: this order is ``z_1 … z_p``.
4. One draw for each slot decides its input: ``<mask>``, the true token, or a random ordinary token.

Example, n = 10, fraction 0.3, words [<s>] [the] [cat ##s] [sat] [on] [a] [mat ##ress ##es]:
order of words  … on | cat ##s | mat ##ress ##es  →  the last three tokens: mat ##ress ##es  →  z = 9, 7, 8.

Everything is vectorised over the batch. A word's random number is drawn from the position of its first token, so a
row's result does not depend on the other rows.
"""

from dataclasses import dataclass

import numpy as np

from mpnet_ds.data.counter_rng import below, draw, unit_interval
from mpnet_ds.errors import UserError

_WORD_ORDER, _SLOT_ORDER, _CORRUPTION, _REPLACEMENT = range(4)  # purposes: each has random numbers of its own
_POSITION_BITS = 16
MAX_SEQ_LENGTH = 1 << _POSITION_BITS


@dataclass(frozen=True)
class MaskingConfig:
    """How a row is corrupted. The three probabilities apply to each predicted slot and must sum to 1."""

    predicted_fraction: float = 0.15
    """Share of a row's tokens that are predicted: 77 of 512."""
    mask_probability: float = 0.8
    """A slot's input is ``<mask>``."""
    keep_probability: float = 0.1
    """A slot's input is the true token."""
    random_probability: float = 0.1
    """A slot's input is a random token that is not special."""
    whole_word: bool = True
    """Choose whole words; False chooses tokens one by one."""
    predict_special_tokens: bool = False
    """True lets ``<s>``, ``</s>`` and [UNK] be predicted too, as the original did."""

    def __post_init__(self):
        if not 0 < self.predicted_fraction < 1:
            raise UserError(f"masking.predicted_fraction is {self.predicted_fraction}; it must lie between 0 and 1.")
        names = ("mask_probability", "keep_probability", "random_probability")
        values = [getattr(self, name) for name in names]
        if not (min(values) >= 0 and abs(sum(values) - 1) <= 1e-6):
            shown = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            raise UserError(f"masking: {shown} must be at least 0 and sum to 1.")

    def num_predicted(self, num_tokens):
        """p of a row (or rows) of ``num_tokens`` real tokens; halves round to even, as the original's ``round`` does."""
        return np.rint(self.predicted_fraction * np.asarray(num_tokens)).astype(np.int64)


@dataclass(frozen=True)
class MaskingVocabulary:
    """What masking knows of a tokenizer."""

    starts_word: np.ndarray
    """bool [V]: False for a piece that continues a word."""
    is_special: np.ndarray
    """bool [V]: ids that are never drawn at random, and not predicted by default."""
    mask_id: int

    @classmethod
    def of(cls, tokenizer) -> "MaskingVocabulary":
        """From a ``PretrainingTokenizer``."""
        is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
        is_special[tokenizer.special_ids] = True
        return cls(tokenizer.starts_word, is_special, tokenizer.mask_id)


def mask_rows(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    row_keys: np.ndarray,
    vocabulary: MaskingVocabulary,
    config: MaskingConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws slots and their inputs for a batch.

    Args:
        input_ids: int [B, n], the true tokens.
        attention_mask: bool [B, n], False on padding.
        row_keys: uint64 [B], from ``make_key``.
    Returns:
        ``predicted_positions`` int64 [B, p] with -1 in unused slots, which come last, and ``predicted_inputs`` int64
        [B, p] with 0 there; p belongs to a row without padding.
    """
    slots = _choose(input_ids, attention_mask, row_keys, vocabulary, config)
    positions = _shuffle(slots, row_keys)
    inputs = _corrupt(input_ids, positions, row_keys, vocabulary, config)
    return positions, inputs


def _choose(input_ids, attention_mask, row_keys, vocabulary, config) -> np.ndarray:
    """Steps 1 and 2: int64 [B, p], the chosen positions in any order, -1 where a row has fewer."""
    num_rows, num_tokens = input_ids.shape
    if num_tokens > MAX_SEQ_LENGTH:
        raise ValueError(f"rows of at most {MAX_SEQ_LENGTH} tokens, got {num_tokens}")
    candidate = attention_mask & ~vocabulary.is_special[input_ids]
    if config.predict_special_tokens:
        candidate = attention_mask
    position = np.arange(num_tokens)
    first = np.broadcast_to(position, input_ids.shape)
    if config.whole_word:
        continues = ~vocabulary.starts_word[input_ids]
        first = np.maximum.accumulate(np.where(continues, 0, position), axis=1)
    word_order = draw(_keys_for(row_keys, _WORD_ORDER)[:, None], first)
    # One sortable number a token: the word's random bits, then the position. The high bit marks candidates, so that
    # the last p of the line are candidates as long as there are any.
    line = (word_order >> np.uint64(1)) | np.uint64(1 << 63)
    line = (line & ~np.uint64(MAX_SEQ_LENGTH - 1)) | position.astype(np.uint64)
    line = np.where(candidate, line, position.astype(np.uint64))
    width = int(config.num_predicted(num_tokens))
    if width == 0:
        return np.empty((num_rows, 0), dtype=np.int64)
    tail = np.sort(line, axis=1)[:, ::-1][:, :width]
    slots = (tail & np.uint64(MAX_SEQ_LENGTH - 1)).astype(np.int64)
    wanted = np.minimum(config.num_predicted(attention_mask.sum(axis=1)), candidate.sum(axis=1))
    return np.where(np.arange(width) < wanted[:, None], slots, -1)


def _shuffle(slots: np.ndarray, row_keys: np.ndarray) -> np.ndarray:
    """Step 3: the order is by random bits of the position; unused slots stay last."""
    bits = draw(_keys_for(row_keys, _SLOT_ORDER)[:, None], slots)
    bits[slots < 0] = np.iinfo(np.uint64).max
    return np.take_along_axis(slots, np.argsort(bits, axis=1, kind="stable"), axis=1)


def _corrupt(input_ids, positions, row_keys, vocabulary, config) -> np.ndarray:
    """Step 4."""
    choice = unit_interval(draw(_keys_for(row_keys, _CORRUPTION)[:, None], positions))
    ordinary = np.flatnonzero(~vocabulary.is_special)
    random_tokens = ordinary[below(draw(_keys_for(row_keys, _REPLACEMENT)[:, None], positions), len(ordinary))]
    true_tokens = np.take_along_axis(input_ids, np.maximum(positions, 0), axis=1)
    inputs = np.where(choice < config.mask_probability + config.keep_probability, true_tokens, random_tokens)
    inputs = np.where(choice < config.mask_probability, vocabulary.mask_id, inputs)
    return np.where(positions >= 0, inputs, 0).astype(np.int64)


def _keys_for(row_keys: np.ndarray, purpose: int) -> np.ndarray:
    """uint64 [B]: the rows' keys for one purpose, so that no two uses share random numbers."""
    return draw(row_keys, purpose)

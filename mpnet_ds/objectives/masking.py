"""Which tokens are predicted, in which order, and what the model reads instead of them.

For each sequence, independently, as a pure function of its key (the paper's section 2.2, for natural order):

1. The sequence is cut into words: a piece that continues a word (``##ing``) belongs to the piece before it. What is longer
   than ``LONGEST_WORD`` tokens is not a word but text that cannot be divided: each of its tokens counts as a word. With
   ``max_ngram`` above 1, words are joined into spans of 1 … max_ngram words, which replace them below: see ``_spans``.
2. The words are put in random order; the last ``p = round(fraction * n)`` tokens in that order are predicted, n being the
   number of real tokens. So whole words are predicted, except for the one that the cut may split. If the last word has more
   than p tokens, p of them are drawn.
3. The predicted tokens are shuffled once more, token by token: this order is ``z_1 … z_p``.
4. One draw for each predicted token decides its input: ``<mask>``, the true token, or a random ordinary token.

Example, n = 10, fraction 0.3, words [<s>] [the] [cat ##s] [sat] [on] [a] [mat ##ress ##es]:
order of words  … on | cat ##s | mat ##ress ##es  →  the last three tokens: mat ##ress ##es  →  z = 9, 7, 8.

Everything is vectorised over the batch. A word's random number is drawn from the position of its first token, so a
sequence's result does not depend on the other sequences. Neither words nor spans cross a special token: what is drawn
together is in one document.
"""

from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mpnet_ds.counter_rng import below, draw, unit_interval
from mpnet_ds.errors import UserError
from mpnet_ds.objectives.base import Vocabulary
from mpnet_ds.validation import SECTION
from mpnet_ds.word_boundaries import LONGEST_WORD, sizes_if_long

# Purposes of random numbers.
_WORD_ORDER, _PREDICTION_ORDER, _CORRUPTION, _REPLACEMENT, _SPAN_LENGTH, _WITHIN_WORD = range(6)
MAX_SEQ_LENGTH = 1 << 16
LONGEST_NGRAM = 16
DEFAULTS = {"mask_probability": 0.8, "keep_probability": 0.1, "random_probability": 0.1}
_POSITION, _CANDIDATE = np.uint64(MAX_SEQ_LENGTH - 1), np.uint64(1 << 63)  # bits of a sortable number
_CONTINUES, _SPECIAL, _ENDS = 1, 2, 4  # kinds of ids, as bits
SEQUENCES_AT_ONCE = 32  # of 512 tokens: intermediate results stay in a core's cache


Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=SECTION)
class MaskingConfig:
    """How sequences are corrupted.

    The three probabilities of a predicted token's input sum to 1. Those that are left out share what the given ones leave,
    in the proportion of their defaults 0.8, 0.1, 0.1: ``mask_probability=1.0`` alone is valid.
    """

    predicted_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a sequence's tokens that are predicted: 77 of 512."""
    mask_probability: Probability | None = None
    """A predicted token's input is ``<mask>``. Default 0.8."""
    keep_probability: Probability | None = None
    """A predicted token's input is the true token. Default 0.1."""
    random_probability: Probability | None = None
    """A predicted token's input is a random token that is not special. Default 0.1."""
    whole_word: bool = True
    """Choose whole words, where there are words; false chooses tokens one by one."""
    predict_special_tokens: bool = False
    """Let ``<s>``, ``</s>`` and [UNK] be predicted too, as the original did."""
    max_ngram: Annotated[int, Field(ge=1, le=LONGEST_NGRAM)] = 1
    """Choose spans of 1 … max_ngram words, one of n words with a probability proportional to 1/n; 1 chooses words."""

    def __post_init__(self):
        given = {name: getattr(self, name) for name in DEFAULTS if getattr(self, name) is not None}
        open_share = sum(default for name, default in DEFAULTS.items() if name not in given)
        rest = max(0.0, 1 - sum(given.values()))
        for name, default in DEFAULTS.items():
            if name not in given:
                object.__setattr__(self, name, default if not given else rest * default / open_share)
        values = {name: getattr(self, name) for name in DEFAULTS}
        if abs(sum(values.values()) - 1) > 1e-6:
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            raise UserError(f"masking: {shown} must sum to 1.")

    def num_predicted(self, num_tokens):
        """p of sequences of ``num_tokens`` real tokens, one number or several; halves round to even, as in the original."""
        return np.rint(self.predicted_fraction * np.asarray(num_tokens)).astype(np.int64)


def mask_sequences(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    keys: np.ndarray,
    vocabulary: Vocabulary,
    config: MaskingConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the predicted tokens of a batch and their inputs.

    Args:
        input_ids: int [B, n], the true tokens.
        attention_mask: bool [B, n], False on padding.
        keys: uint64 [B], from ``make_key``.
    Returns:
        ``predicted_positions`` int64 [B, p], with unused entries -1 at the end, and ``predicted_inputs`` int64 [B, p],
        0 there; p is that of a sequence without padding.
    """
    if input_ids.shape[1] > MAX_SEQ_LENGTH:
        raise ValueError(f"sequences of at most {MAX_SEQ_LENGTH} tokens expected, got {input_ids.shape[1]}")
    parts = [slice(first, first + SEQUENCES_AT_ONCE) for first in range(0, max(len(input_ids), 1), SEQUENCES_AT_ONCE)]
    done = [_mask_some(input_ids[part], attention_mask[part], keys[part], vocabulary, config) for part in parts]
    positions, inputs = zip(*done, strict=True)
    return np.concatenate(positions), np.concatenate(inputs)


def drop_predictions_without_context(
    positions: np.ndarray, inputs: np.ndarray, documents: np.ndarray, attention_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drop the predicted tokens of each isolated document of which all tokens would be predicted.

    Its first token would be predicted from nothing. Such a document is a few tokens long, cut off by a sequence's end.

    Args:
        positions, inputs: int64 [B, p], from ``mask_sequences``.
        documents: int64 [B, n], the document of each token.
    """
    sequences, entries = np.nonzero(positions >= 0)
    offsets = documents.shape[1] * np.arange(len(documents))[:, None]
    document_of = documents + offsets
    sizes = np.bincount(document_of[attention_mask], minlength=documents.size)
    chosen = document_of[sequences, positions[sequences, entries]]
    is_whole = np.bincount(chosen, minlength=documents.size) == sizes
    lost = is_whole[chosen]
    if not lost.any():
        return positions, inputs
    positions, inputs = positions.copy(), inputs.copy()
    dropped = sequences[lost], entries[lost]
    positions[dropped], inputs[dropped] = -1, 0
    order = np.argsort(positions < 0, axis=1, kind="stable")  # unused entries go to the end
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(inputs, order, axis=1)


def _mask_some(input_ids, attention_mask, keys, vocabulary, config) -> tuple[np.ndarray, np.ndarray]:
    chosen, num_used = _choose(input_ids, attention_mask, keys, vocabulary, config)
    positions = _shuffle(chosen, num_used, keys)
    return positions, _corrupt(input_ids, positions, keys, vocabulary, config)


def _choose(input_ids, attention_mask, keys, vocabulary, config) -> tuple[np.ndarray, np.ndarray]:
    """Steps 1 and 2: the chosen positions in any order, int64 [B, p], and how many of them count, int64 [B]."""
    num_sequences, num_tokens = input_ids.shape
    width = int(config.num_predicted(num_tokens))
    kinds = _kinds(vocabulary).take(input_ids)
    is_special = (kinds & _SPECIAL).astype(bool)
    barred = ~attention_mask if config.predict_special_tokens else ~attention_mask | is_special
    words, starts = _starts(kinds, is_special, keys, vocabulary, config)
    # One sortable number per token: the high bit, its word's random bits, its position. Tokens that must not be predicted
    # have their position alone, so that the last p in order are candidates as long as there are any.
    position = np.arange(num_tokens, dtype=np.uint64)
    sortable = draw(_keys_for(keys, _WORD_ORDER)[:, None], position)
    if starts is not None:
        _repeat_from_starts(sortable, starts)
    sortable >>= np.uint64(1)
    sortable &= ~_POSITION
    sortable |= position | _CANDIDATE
    barred = np.flatnonzero(barred)
    sortable.reshape(-1)[barred] = barred % num_tokens
    sortable.partition(max(num_tokens - width, 0) % num_tokens, axis=1)
    tail = sortable[:, num_tokens - width :]
    wanted = np.full(num_sequences, width)
    if barred.size:
        real = attention_mask.sum(axis=1)
        candidates = num_tokens - np.bincount(barred // num_tokens, minlength=num_sequences)
        wanted = np.minimum(config.num_predicted(real), candidates)
        if (wanted < width).any():
            tail = np.sort(tail, axis=1)[:, ::-1]
    if starts is not None and width:
        tail = _choose_within_long_words(tail, sortable, words, wanted, keys)
    return (tail & _POSITION).astype(np.int64), wanted


@lru_cache(maxsize=8)
def _kinds(vocabulary: Vocabulary) -> np.ndarray:
    """uint8 [V]: whether a piece continues a word, ends one, and whether it is special, in one table."""
    kinds = ~vocabulary.starts_word * _CONTINUES | vocabulary.is_special * _SPECIAL
    ends = 0 if vocabulary.ends_word is None else vocabulary.ends_word * _ENDS
    return (kinds | ends).astype(np.uint8)


def _starts(kinds, is_special, keys, vocabulary, config) -> tuple[np.ndarray | None, np.ndarray | None]:
    """bool [B, n]: the first token of each word, and of each word or span; None if every token is one."""
    if not config.whole_word and config.max_ngram == 1:
        return None, None
    words = _word_starts(kinds, vocabulary) if config.whole_word else np.ones(kinds.shape, dtype=bool)
    if config.predict_special_tokens or config.max_ngram > 1:
        words[:, 1:] |= is_special[:, :-1]  # else a special token is barred, and cannot be drawn with what follows it
    return words, _spans(words, is_special, keys, config.max_ngram) if config.max_ngram > 1 else words


def _word_starts(kinds: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """bool [B, n]: the first token of each word. Each token of what is longer than ``LONGEST_WORD`` is a word."""
    starts = (kinds & _CONTINUES) == 0
    if vocabulary.ends_word is not None:
        starts[:, 1:] |= (kinds[:, :-1] & _ENDS) != 0
    starts[:, 0] = True
    sizes = sizes_if_long(starts.reshape(-1))
    if sizes.size:
        starts |= np.repeat(sizes > LONGEST_WORD, sizes).reshape(starts.shape)
    return starts


def _spans(starts: np.ndarray, is_special: np.ndarray, keys: np.ndarray, max_ngram: int) -> np.ndarray:
    """bool [B, n]: the first token of each span, from those of the words.

    Each word draws a length as if a span began there. The first word of a run without special tokens begins a span, the
    word after that span the next, and so on. All runs are walked at once, with doubling strides: after k rounds the first
    ``2^k`` spans of each run are known, and ``following`` leads ``2^k`` spans on.
    """
    num_tokens = starts.shape[1]
    first = np.flatnonzero(starts)  # token of each word, in the flattened batch
    bits = draw(_keys_for(keys, _SPAN_LENGTH)[:, None], np.arange(num_tokens)).reshape(-1)[first]
    alone = is_special.reshape(-1)[first]
    begins_run = alone | (first % num_tokens == 0)
    begins_run[1:] |= alone[:-1]
    known = np.flatnonzero(begins_run)
    end = first.size  # of the words, and of every walk
    run_end = np.append(known[1:], end).repeat(np.diff(np.append(known, end)))
    following = np.arange(end + 1)
    following[:end] += _span_lengths(bits, max_ngram)
    following[:end][following[:end] >= run_end] = end
    found = known
    while found.size:
        found = following.take(known)
        found = found[found < end]
        known = np.concatenate([known, found])
        following = following.take(following)
    spans = np.zeros(starts.size, dtype=bool)
    spans[first[known]] = True
    return spans.reshape(starts.shape)


def _span_lengths(bits: np.ndarray, max_ngram: int) -> np.ndarray:
    """int64: lengths 1 … max_ngram, n with a probability proportional to 1/n."""
    shares = np.cumsum(1 / np.arange(1, max_ngram + 1))
    drawn = unit_interval(bits)
    return sum((drawn >= edge for edge in shares[:-1] / shares[-1]), np.ones(bits.size, dtype=np.int64))


def _repeat_from_starts(sortable: np.ndarray, starts: np.ndarray) -> None:
    """Give every token the number of its word's first token, in place."""
    others = np.flatnonzero(~starts)
    follows = np.empty(others.size, dtype=bool)  # another token that is not a start
    follows[:1], follows[1:] = False, others[1:] == others[:-1] + 1
    firsts = np.maximum.accumulate(np.where(follows, 0, others - 1))
    flat = sortable.reshape(-1)
    flat[others] = flat[firsts]


def _choose_within_long_words(
    tail: np.ndarray, sortable: np.ndarray, words: np.ndarray, wanted: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Where all chosen tokens are of one word, draw them among its tokens.

    Otherwise the last tokens of a word with more than p tokens would be predicted each time, and its others never.
    """
    num_sequences, width = tail.shape
    first, is_full = tail.max(axis=1), (wanted == width).all()
    last = tail.min(axis=1) if is_full else tail[np.arange(num_sequences), np.maximum(wanted, 1) - 1]
    rows = np.flatnonzero((first ^ last <= _POSITION) & (wanted > 0))
    if rows.size:
        inside = sortable[rows] ^ first[rows, None] <= _POSITION
        is_one = (words[rows] & inside).sum(axis=1) <= 1  # a span of several words is cut, as any word is
        rows, inside = rows[is_one], inside[is_one]
        position = sortable[rows] & _POSITION
        bits = draw(_keys_for(keys[rows], _WITHIN_WORD)[:, None], position) | _CANDIDATE
        bits = np.where(inside, bits & ~_POSITION | position, 0)
        tail = tail.copy()
        tail[rows] = np.sort(bits, axis=1)[:, ::-1][:, :width]
    return tail


def _shuffle(chosen: np.ndarray, num_used: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Step 3: order positions by random bits drawn from them; unused entries, -1, come last."""
    unused = np.arange(chosen.shape[1]) >= num_used[:, None]
    order = draw(_keys_for(keys, _PREDICTION_ORDER)[:, None], chosen)
    order &= ~_POSITION
    order |= chosen.astype(np.uint64)
    order[unused] = ~np.uint64(0)
    order.sort(axis=1)
    order &= _POSITION
    return np.where(unused, -1, order.astype(np.int64))


def _mask_id(vocabulary: Vocabulary, config: MaskingConfig) -> int:
    if vocabulary.mask_id is None and config.mask_probability:
        raise UserError(
            f"the tokenizer's layout {vocabulary.layout} has no mask token: masking needs another, such as bert or roberta."
        )
    return vocabulary.mask_id or 0


def _corrupt(input_ids, positions, keys, vocabulary, config) -> np.ndarray:
    """Step 4: the inputs of the predicted tokens, int64 [B, p]."""
    choice = unit_interval(draw(_keys_for(keys, _CORRUPTION)[:, None], positions))
    inputs = np.take_along_axis(input_ids, np.maximum(positions, 0), axis=1).astype(np.int64)
    inputs[choice < config.mask_probability] = _mask_id(vocabulary, config)
    sequence, entry = np.nonzero(choice >= config.mask_probability + config.keep_probability)
    bits = draw(_keys_for(keys, _REPLACEMENT)[sequence], positions[sequence, entry])
    inputs[sequence, entry] = vocabulary.ordinary[below(bits, len(vocabulary.ordinary))]
    inputs[positions < 0] = 0
    return inputs


def _keys_for(keys: np.ndarray, purpose: int) -> np.ndarray:
    """uint64 [B]: the sequences' keys for one purpose, so that no two uses share random numbers."""
    return draw(keys, purpose)

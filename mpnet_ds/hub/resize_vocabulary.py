"""Another WordPiece vocabulary for a model: the rows of its token table and of its head's bias.

Each piece of the new vocabulary gets its row of the table [V, d] and of the bias [V] by the first rule that applies:

1. special tokens by their role: ``<s>``, ``<pad>``, ``</s>``, ``<unk>``, the unknown piece, ``<mask>``: *kept*;
2. a piece that the old vocabulary has too: *kept*;
3. the mean of the rows of the pieces into which the old tokenizer splits it: *composed*. It is normalised as by the old
   tokenizer (lower case, accents) and split from the left into the longest known pieces; a piece that continues a word
   (``##ing``) is split as a continuation throughout, any other as a word of its own;
4. where that yields the unknown piece, the mean of all ordinary rows of the old vocabulary: *mean*.

Example: old pieces ``un``, ``##do``, ``##ing``; new pieces ``undo`` = (un + ##do) / 2, ``##doing`` = (##do + ##ing) / 2,
``doing``: no old piece ``d…`` begins a word, so it gets the mean of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.hub.pretrained_mpnet import Pretrained
from mpnet_ds.models.mpnet.model import VOCABULARY_TABLES
from mpnet_ds.tokenizer import BOS, CONTINUATION, EOS, MASK, PAD, UNUSED_UNKNOWN, PretrainingTokenizer


@dataclass(frozen=True)
class Rows:
    """Sources of the rows of a new vocabulary."""

    sources: list[list[int]]
    """For each new piece the old ids whose rows are averaged; empty for the mean of all ordinary rows."""
    kept: int
    composed: int
    mean: int


def resize_vocabulary(model: Pretrained, tokenizer: PretrainingTokenizer) -> Rows:
    """Give ``model``, in place, the vocabulary of ``tokenizer``; all tensors except the table and the bias stay the same.

    Raises ``UserError`` if the model has no tokenizer of its own, or one of the two is not WordPiece.
    """
    if model.tokenizer is None:
        raise UserError(
            f"{model.origin} has no tokenizer, so the pieces of its rows are unknown: give it with --tokenizer DIR."
        )
    rows = plan_rows(model.tokenizer, tokenizer)
    ordinary = _ordinary_ids(model.tokenizer)
    for name in VOCABULARY_TABLES:
        model.weights[name] = _compose(model.weights[name].float(), rows.sources, ordinary)
    counts = f"{rows.kept:,} rows kept, {rows.composed:,} composed of the old pieces, {rows.mean:,} the mean of all"
    model.notes.append(f"{model.config.vocab_size:,} → {tokenizer.vocab_size:,} pieces: {counts}.")
    model.config.vocab_size, model.tokenizer = tokenizer.vocab_size, tokenizer
    return rows


def plan_rows(old: PretrainingTokenizer, new: PretrainingTokenizer) -> Rows:
    """Decide which old rows make each new one; raise ``UserError`` unless both are WordPiece."""
    for tokenizer in (old, new):
        if tokenizer.kind != "WordPiece":
            raise UserError(f"{tokenizer.origin} is {tokenizer.kind}; --resize_vocabulary goes from WordPiece to WordPiece.")
    ids = {piece: i for i, piece in enumerate(old.pieces)}
    roles_of_old, roles_of_new = _roles(old), _roles(new)
    special = {new_id: roles_of_old[role] for role, new_id in roles_of_new.items() if role in roles_of_old}
    sources, kept = [], 0
    for new_id, piece in enumerate(new.pieces):
        same = special.get(new_id, ids.get(piece))
        kept += same is not None
        sources.append([same] if same is not None else _cut(piece, old, ids))
    mean = sum(not source for source in sources)
    return Rows(sources, kept, len(sources) - kept - mean, mean)


def _roles(tokenizer: PretrainingTokenizer) -> dict[str, int]:
    """Role of a special token → its id."""
    tokens = {token: token for token in (BOS, PAD, EOS, UNUSED_UNKNOWN, MASK)} | {"unknown": tokenizer.unknown}
    ids = {role: tokenizer.backend.token_to_id(token) for role, token in tokens.items()}
    return {role: i for role, i in ids.items() if i is not None}


def _ordinary_ids(tokenizer: PretrainingTokenizer) -> list[int]:
    special = set(tokenizer.special_ids.tolist())
    return [i for i in range(tokenizer.vocab_size) if i not in special]


def _cut(piece: str, old: PretrainingTokenizer, ids: dict[str, int]) -> list[int]:
    """Return the old ids of a new piece; none if part of it is unknown."""
    continues = piece.startswith(CONTINUATION)
    text = piece.removeprefix(CONTINUATION) if continues else piece
    normalizer = old.backend.normalizer
    words = (normalizer.normalize_str(text) if normalizer is not None else text).split()
    found = [i for number, word in enumerate(words) for i in _cut_word(word, continues and number == 0, ids)]
    return [] if None in found else found


def _cut_word(word: str, continues: bool, ids: dict[str, int]) -> Iterator[int | None]:
    """Yield the longest known pieces from the left, and None if the rest begins with no known piece."""
    start = 0
    while start < len(word):
        prefix = CONTINUATION if continues or start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in ids)
        end = next(ends, None)
        if end is None:
            yield None
            return
        yield ids[prefix + word[start:end]]
        start = end


def _compose(old: Tensor, sources: list[list[int]], ordinary: list[int]) -> Tensor:
    """Make new rows [V', …] of old ones [V, …], fp32; single rows are copied, means are taken in fp64."""
    mean = old[ordinary].double().mean(dim=0).float()
    rows = [old[source[0]] if len(source) == 1 else old[source].double().mean(dim=0).float() if source else mean
            for source in sources]  # fmt: skip
    return torch.stack(rows)

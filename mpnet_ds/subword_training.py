"""Training of byte-level BPE and Unigram by the tokenizers library, for the classes that transformers has for them.

Both cut text as the untrained class does: its normalizer and pre-tokenizer are those with which pieces are learned. Two runs
give the same tokenizer. BPE's merges do: ties are broken by the numbers of the pieces, which begin with the 256 bytes in
order. Unigram's scores do not, since the library adds them up in the order of a hash map: equal runs differ by about 1e-11,
and characters that only the alphabet asks for are scored in random order, ``lowest + k × 0.0001``. Here such characters get
the lowest score, scores are rounded to ``SCORE_DECIMALS``, and pieces are numbered by score, then by text.
"""

import json
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from mpnet_ds.tokenizer_layouts import BPE, UNIGRAM, Layout

SCORE_DECIMALS = 3
"""Of a Unigram piece's log probability, nats. The chance that noise of 1e-11 crosses a step is 1e-8 for each piece."""
STEP_OF_MISSING = 1e-4
"""By which the library's scores of characters that no word needs differ, see above."""
LONGEST_LEARNED_WORD = 256
"""Bytes. BPE learns from words cut to this: its time grows with the square of the longest."""


def learn_bpe(texts: Iterable[str], vocab_size: int, layout: Layout) -> dict:
    """Train byte-level BPE; return model, normalizer, pre_tokenizer and added tokens as in tokenizer.json."""
    learner, content = _untrained(models.BPE(), layout, BPE)
    cut = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_LEARNED_WORD}}}"), "isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([learner.pre_tokenizer, cut])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(layout.last),
        special_tokens=list(layout.first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"] | {token: len(learned["vocab"]) + i for i, token in enumerate(layout.last)}
    return content | {"model": {"type": "BPE", "vocab": vocabulary, "merges": learned["merges"]}}


def learn_unigram(texts: Iterable[str], vocab_size: int, layout: Layout, without: set[str]) -> dict:
    """Train Unigram, with no piece for the characters ``without``; return what ``learn_bpe`` does."""
    learner, content = _untrained(models.Unigram(), layout, UNIGRAM)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(layout.first) - len(layout.last) + 1,
        special_tokens=[layout.unknown],
        unk_token=layout.unknown,
        show_progress=False,
    )
    learner.train_from_iterator(_replaced(texts, without), trainer)
    pairs = json.loads(learner.to_str())["model"]["vocab"]
    special = layout.tokens
    learned = _repeatable([(piece, score) for piece, score in pairs if piece not in special])
    first, last = ([(token, 0.0) for token in tokens] for tokens in (layout.first, layout.last))
    return content | {"model": {"type": "Unigram", "vocab": [*first, *learned, *last]}}


def _untrained(model, layout: Layout, algorithm: str) -> tuple[tokenizers.Tokenizer, dict]:
    """Make a learner that cuts text as the family's class does, and describe that class without its vocabulary."""
    import transformers

    made = getattr(transformers, layout.classes[algorithm])().backend_tokenizer
    learner = tokenizers.Tokenizer(model)
    learner.normalizer, learner.pre_tokenizer = made.normalizer, made.pre_tokenizer
    parts = json.loads(made.to_str())
    # A blank before <mask> belongs to it, as before a word: a text has no piece for the blank alone.
    mask = [{"content": layout.mask, "lstrip": True}] if layout.mask else []
    return learner, {name: parts[name] for name in ("normalizer", "pre_tokenizer")} | {"added_tokens": mask}


def _replaced(texts: Iterable[str], characters: set[str]) -> Iterator[str]:
    """Put blanks in place of some characters: the trainer makes a piece of every one that it sees."""
    table = dict.fromkeys(map(ord, characters), " ")
    return (text.translate(table) for text in texts) if table else iter(texts)


def _repeatable(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Take out of scores what depends on the order of a hash map, and sort the pieces by them."""
    lowest = min(score for _, score in pieces)

    def settled(piece: str, score: float) -> float:
        steps = (score - lowest) / STEP_OF_MISSING
        is_missing = len(piece) == 1 and abs(steps - round(steps)) < 1e-5
        return round(lowest if is_missing else score, SCORE_DECIMALS)

    return sorted(((piece, settled(piece, score)) for piece, score in pieces), key=lambda pair: (-pair[1], pair[0]))

"""Training of tokenizers of any layout, and what of the text they lose.

Characters are counted in all of the text (character_counts.py); pieces are learned from a sample by the tokenizers library.
WordPiece is trained here; byte-level BPE and Unigram, in the form that the family's class of transformers has, in
subword_training.py.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from mpnet_ds.character_counts import LONGEST_WORDPIECE_WORD, CharacterCounts, describe_characters
from mpnet_ds.counter_rng import draw, make_key, unit_interval
from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.machine import percent
from mpnet_ds.subword_training import learn_bpe, learn_unigram
from mpnet_ds.tokenizer import CUTTING_PRE_TOKENIZER, WORD_STARTS, PretrainingTokenizer
from mpnet_ds.tokenizer_classes import as_transformers, wordpiece
from mpnet_ds.tokenizer_layouts import ALGORITHMS, BPE, LAYOUTS, MPNET, UNIGRAM, WORDPIECE, Layout
from mpnet_ds.word_boundaries import CONTINUATION

CHARACTER_COVERAGE = 0.9995
ROOM_FOR_CHARACTERS = 0.1
"""Share of the vocabulary: where pieces of single characters take less, all characters have one."""
SMALLER_COVERAGES = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9)
SAMPLED_CHARACTERS, USUAL_WORD = {WORDPIECE: 256_000_000, BPE: 256_000_000, UNIGRAM: 64_000_000}, 6
"""Characters from which a tokenizer is learned; fewer where words are longer than usual. The trainer keeps each different
word, with about 100 bytes for each of its characters: in scripts without blanks that is nearly all of the text. Unigram's
takes several times that, and minutes of a core for each 10 MB of new words."""
SAMPLED_PART = 1 << 16
"""Characters of a long document that are drawn, or not, at once."""
RARE_LONG_WORDS = 1e-4
"""Share of the characters in words of more than ``LONGEST_WORDPIECE_WORD``. If more are, the tokenizer cuts such words."""
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 64, 10_000_000
USUAL_SIZES = {
    "mpnet": 30527,
    "bert": 30522,
    "roberta": 50265,
    "xlm-roberta": 250002,
    "deberta": 128001,
    "gpt2": 50257,
    "t5": 32100,
}
"""Of the families' released tokenizers."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    lower_case: bool = True,
    keep_accents: bool = False,
    character_coverage: float | None = None,
    sample: int | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
    layout: str = MPNET.name,
    algorithm: str | None = None,
) -> PretrainingTokenizer:
    """Train a tokenizer on ``texts``; the same version of the tokenizers library gives the same result.

    Args:
        texts: an iterable of strings, but not an iterator: it is streamed twice, not held in memory.
        vocab_size: number of pieces and special tokens. A small corpus may give fewer: see ``vocab_size`` of the result.
        lower_case: BERT's normalisation, lower case and, unless ``keep_accents``, no accents. WordPiece only: BPE and
            Unigram keep both.
        character_coverage: share of the text's characters that get pieces, the most frequent first. Default: 0.9995, and 1
            where all characters together take less than a tenth of the vocabulary. BPE has pieces for all bytes instead.
        sample: number of characters from which pieces are learned, in texts drawn at random by ``seed``. Default: so many
            that a few GB of memory are enough.
        tell: called with a sentence for whatever of the text is lost.
        layout: name of the special tokens' layout, see tokenizer_layouts.py.
        algorithm: ``wordpiece``, ``bpe`` or ``unigram``; by default the layout's usual one.
    """
    check_settings(vocab_size, character_coverage, layout, algorithm)
    if iter(texts) is texts:
        raise TypeError("texts is an iterator; pass a list, or another object that can be iterated twice")
    family = LAYOUTS[layout]
    algorithm = algorithm or next(iter(family.classes))
    normalizer = {"lowercase": lower_case, "strip_accents": False if keep_accents else None}
    counts = CharacterCounts(texts, normalizer if algorithm == WORDPIECE else None)
    if not counts.total:
        raise UserError("the corpus has no text to train a tokenizer on: check --input.")
    coverage = 1.0 if algorithm == BPE else _settle_coverage(vocab_size, counts, character_coverage, family, algorithm)
    sample = sample or round(SAMPLED_CHARACTERS[algorithm] * min(1, USUAL_WORD / counts.mean_word))
    sampled = _sample(texts, sample / counts.num_read, seed, tell)
    cut = algorithm == WORDPIECE and counts.in_long_words > RARE_LONG_WORDS * counts.total
    if algorithm == WORDPIECE:
        content = wordpiece(_learn_wordpieces(sampled, vocab_size, family, counts, coverage, normalizer), normalizer)
    elif algorithm == BPE:
        content = learn_bpe(sampled, vocab_size, family)
    else:
        content = learn_unigram(sampled, vocab_size, family, set(counts.characters) - set(counts.covering(coverage)))
    backend = as_transformers(family, content, model_max_length=512).backend_tokenizer
    trained = PretrainingTokenizer(_cutting(backend) if cut else backend, "the trained tokenizer")
    if algorithm != BPE:
        told = [*counts.losses(), *_about_characters(trained, vocab_size, counts, coverage)]
        for sentence in (*told, *(_about_long_words(counts, cut, family) if algorithm == WORDPIECE else ())):
            tell(sentence)
    for sentence in _about_sample(counts, sample):
        tell(sentence)
    return trained


def check_settings(
    vocab_size: int, character_coverage: float | None = None, layout: str = MPNET.name, algorithm: str | None = None
) -> None:
    """Raise ``UserError`` with what is wrong with the settings, whatever the texts are."""
    findings = [f"unknown --layout '{layout}'. {did_you_mean(layout, LAYOUTS)}"] if layout not in LAYOUTS else []
    if algorithm not in (None, *ALGORITHMS):
        findings.append(f"unknown --algorithm '{algorithm}'. {did_you_mean(algorithm, ALGORITHMS)}")
    if findings:
        raise UserError(*findings)
    family = LAYOUTS[layout]
    algorithm = algorithm or next(iter(family.classes))
    if algorithm not in family.classes:
        others = ", ".join(name for name, other in LAYOUTS.items() if algorithm in other.classes)
        found = f"--layout {layout} is for {' or '.join(family.classes)}, not for --algorithm {algorithm}"
        raise UserError(f"{found}, which {others} have: transformers has no such tokenizer class.")
    smallest = SMALLEST_VOCABULARY + len(family.last) - 1 + (256 if algorithm == BPE else 0)
    if not smallest <= vocab_size <= LARGEST_VOCABULARY:
        bounds = f"between {smallest} and {LARGEST_VOCABULARY:,}"
        findings.append(f"--vocab_size is {vocab_size}; it must be {bounds}, {USUAL_SIZES[layout]} is usual.")
    if character_coverage is not None and not 0 < character_coverage <= 1:
        findings.append(f"--character_coverage is {character_coverage}; it must be greater than 0 and at most 1.")
    if character_coverage is not None and algorithm == BPE:
        findings.append("--character_coverage is not for BPE, which has pieces for all bytes: leave it out.")
    if findings:
        raise UserError(*findings)


def _as_pieces(characters: list[str], counts: CharacterCounts, algorithm: str) -> list[str]:
    """Pieces of single characters: each at the start of a word and, in WordPiece, inside one if it occurs there."""
    if algorithm == UNIGRAM:
        return [*characters, WORD_STARTS["Metaspace"]]
    return characters + [CONTINUATION + char for char in characters if char in counts.inside_words]


def _settle_coverage(
    vocab_size: int, counts: CharacterCounts, coverage: float | None, layout: Layout, algorithm: str
) -> float:
    """Choose the coverage if none is given; raise ``UserError`` if single characters need more than the vocabulary has."""

    def needed(share: float) -> int:
        return len(layout.first) + len(layout.last) + len(_as_pieces(counts.covering(share), counts, algorithm))

    if coverage is None:
        all_fit = len(_as_pieces(list(counts.characters), counts, algorithm)) < ROOM_FOR_CHARACTERS * vocab_size
        coverage = 1.0 if all_fit else CHARACTER_COVERAGE
    if needed(coverage) > vocab_size:
        smaller = next((share for share in SMALLER_COVERAGES if share < coverage and needed(share) <= vocab_size / 2), None)
        cure = (
            f"use a larger one, or --character_coverage {smaller}: rarer characters become {layout.unknown}"
            if smaller
            else "use a larger one"
        )
        found = f"the characters of this corpus alone need {needed(coverage)} (--character_coverage {coverage})"
        raise UserError(f"--vocab_size {vocab_size} is too small: {found}; {cure}.")
    return coverage


def _about_characters(
    trained: PretrainingTokenizer, vocab_size: int, counts: CharacterCounts, coverage: float
) -> Iterator[str]:
    covered = set(counts.covering(coverage))
    rare = Counter({char: count for char, count in counts.characters.items() if char not in covered})
    if rare:
        yield (
            f"{len(rare):,} of {len(counts.characters):,} characters get no piece and become {trained.unknown}: the rarest, "
            f"{describe_characters(rare, counts.total)}. --character_coverage is {coverage}; 1 keeps all."
        )
    single = sum(len(piece.removeprefix(CONTINUATION)) == 1 for piece in trained.pieces)
    if single > vocab_size / 2:
        yield (
            f"Warning: {single:,} pieces of the {vocab_size:,} are single characters. A larger --vocab_size, or a smaller "
            f"--character_coverage than {coverage}, makes room for words."
        )


def _about_long_words(counts: CharacterCounts, cut: bool, layout: Layout) -> Iterator[str]:
    if counts.in_long_words:
        share = f"{percent(counts.in_long_words, counts.total)} of the characters are in words of more than"
        found = f"{share} {LONGEST_WORDPIECE_WORD} without a blank"
        if not cut:
            yield f"{found}, each of which becomes one {layout.unknown}."
        else:
            name = layout.classes[WORDPIECE]
            yield f"{found}: the tokenizer cuts these, which {name} of transformers cannot, but AutoTokenizer can."


def _about_sample(counts: CharacterCounts, sample: int) -> Iterator[str]:
    if sample < counts.num_read:
        share = percent(sample, counts.num_read)
        drawn = f"{share} of the text, in documents and parts of long ones drawn at random (--sample)"
        yield f"Pieces were learned from {drawn}; characters from all."


def _sample(texts: Iterable[str], share: float, seed: int, tell: Callable[[str], None]) -> Iterator[str]:
    """Draw each text, or part of a long one, with a probability; a function of the seed and its number."""
    if share >= 1:
        yield from texts
        return
    key, number, drawn = make_key(seed), 0, 0
    for text in texts:
        for start in range(0, len(text), SAMPLED_PART):
            if unit_interval(draw(key, number)) < share:
                yield text[start : start + SAMPLED_PART]
                drawn += 1
            number += 1
    if not drawn:
        tell(f"Warning: --sample takes {100 * share:.3g} % of the text, and drew none: the pieces are single characters.")


def _learn_wordpieces(
    texts: Iterator[str], vocab_size: int, layout: Layout, counts: CharacterCounts, coverage: float, normalizer: dict
) -> list[str]:
    """Train WordPiece; return the pieces in order of their ids: special tokens, single characters, and what is learned.

    The library would number pieces of one character at random, and breaks ties between merges by their numbers.
    """
    characters, cut = counts.covering(coverage), counts.in_long_words > 0
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token=layout.unknown))
    learner.normalizer = normalizers.BertNormalizer(**normalizer)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner = _cutting(learner) if cut else learner
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size - len(layout.last),
        special_tokens=[*layout.first, *sorted(_as_pieces(characters, counts, WORDPIECE))],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [*sorted(learner.get_vocab(), key=learner.token_to_id), *layout.last]


def _cutting(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Make a tokenizer that cuts long words."""
    content = json.loads(backend.to_str()) | {"pre_tokenizer": CUTTING_PRE_TOKENIZER}
    return tokenizers.Tokenizer.from_str(json.dumps(content))

"""Layouts of special tokens: a family's tokens, their ids, and the class of transformers that loads its tokenizers.

    layout         ids 0, 1, …                                  last ids                           a text in training
    mpnet          <s> <pad> </s> <unk> [UNK]                   <mask>                             <s> … </s>
    bert           [PAD] [UNK] [CLS] [SEP] [MASK]               –                                  [CLS] … [SEP]
    roberta        <s> <pad> </s> <unk>                         <mask>                             <s> … </s>
    xlm-roberta    the same                                     the same                           the same
    deberta        [PAD] [CLS] [SEP] [UNK]                      [MASK]                             [CLS] … [SEP]
    gpt2           –                                            <|endoftext|>                      … <|endoftext|>
    t5             <pad> </s> <unk>                             <extra_id_99> … <extra_id_0>       … </s>

New vocabularies get these ids. Released ones may have others (BERT's [CLS] is 101): then the tokens count, and ids are asked
of the tokenizer. Sources: the tokenizer classes of transformers 5.23, and the released tokenizers of the families.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

WORDPIECE, BPE, UNIGRAM = "wordpiece", "bpe", "unigram"
ALGORITHMS = (WORDPIECE, BPE, UNIGRAM)
NUM_SENTINELS = 100


class Frame(NamedTuple):
    """Ids that sequences are made with, beside those of text."""

    begin: int | None
    """Begins every sequence; None: sequences begin with text."""
    end: int
    """Ends every stored document."""
    pad: int
    """Fills sequences; where a layout has no padding token, ``end``."""

    @property
    def num_begin(self) -> int:
        """Tokens before the text of a sequence: 1 or 0."""
        return int(self.begin is not None)


MPNETS_FRAME = Frame(0, 2, 1)


@dataclass(frozen=True)
class Layout:
    """Special tokens of a family of tokenizers."""

    name: str
    classes: Mapping[str, str]
    """Algorithm → tokenizer class of transformers; the first algorithm is the usual one."""
    end: str
    """Ends every stored document."""
    begin: str | None = None
    """Begins every sequence."""
    pad: str | None = None
    mask: str | None = None
    unknown: str | None = None
    """Stands for what the vocabulary cannot spell."""
    first: tuple[str, ...] = ()
    """Tokens with the ids 0, 1, … of a new vocabulary."""
    last: tuple[str, ...] = ()
    """Tokens with its last ids."""
    also: tuple[str, ...] = ()
    """Other classes of transformers whose tokenizers have these roles, under any names."""
    ends_texts: bool = True
    """Whether the family's tokenizer adds ``begin`` and ``end`` to a text."""

    @property
    def tokens(self) -> set[str]:
        """All special tokens."""
        roles = (self.begin, self.end, self.pad, self.mask, self.unknown)
        return {*filter(None, roles), *self.first, *self.last}

    def has_its_ids(self, id_of: Callable[[str], int | None], vocab_size: int) -> bool:
        """Whether the tokens that begin, end and fill sequences have the ids of a new vocabulary of this layout."""
        ids = dict(zip(self.first, range(len(self.first)), strict=True))
        tokens = filter(None, (self.begin, self.end, self.pad))
        return all(id_of(token) == ids.get(token, vocab_size - 1) for token in tokens)


def _of_s(name: str, algorithm: str, tokenizer_class: str, **other) -> Layout:
    """Layout with ``<s>`` and ``</s>``, of RoBERTa's kind."""
    tokens = {"begin": "<s>", "end": "</s>", "pad": "<pad>", "mask": "<mask>", "unknown": "<unk>"} | other
    first = ("<s>", "<pad>", "</s>", "<unk>", *(["[UNK]"] if tokens["unknown"] == "[UNK]" else []))
    return Layout(name, {algorithm: tokenizer_class}, first=first, last=("<mask>",), **tokens)


_CLS = {"begin": "[CLS]", "end": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unknown": "[UNK]"}

MPNET = _of_s("mpnet", WORDPIECE, "MPNetTokenizer", unknown="[UNK]")
BERT = Layout(
    "bert",
    {WORDPIECE: "BertTokenizer"},
    first=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    also=("AlbertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "ConvBertTokenizer", "FunnelTokenizer"),
    **_CLS,
)
ROBERTA = _of_s("roberta", BPE, "RobertaTokenizer", also=("BartTokenizer", "LongformerTokenizer"))
XLM_ROBERTA = _of_s("xlm-roberta", UNIGRAM, "XLMRobertaTokenizer", also=("MBartTokenizer", "CamembertTokenizer"))
DEBERTA = Layout(
    "deberta",
    {UNIGRAM: "DebertaV2Tokenizer", BPE: "DebertaTokenizer"},
    first=("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
    last=("[MASK]",),
    **_CLS,
)
GPT2 = Layout("gpt2", {BPE: "GPT2Tokenizer"}, end="<|endoftext|>", last=("<|endoftext|>",), ends_texts=False)
T5 = Layout(
    "t5",
    {UNIGRAM: "T5Tokenizer"},
    end="</s>",
    pad="<pad>",
    unknown="<unk>",
    first=("<pad>", "</s>", "<unk>"),
    last=tuple(f"<extra_id_{number}>" for number in reversed(range(NUM_SENTINELS))),
)
LAYOUTS = {layout.name: layout for layout in (MPNET, BERT, ROBERTA, XLM_ROBERTA, DEBERTA, GPT2, T5)}
ROLES = {"begin": ("cls",), "end": ("sep", "eos"), "pad": ("pad",), "mask": ("mask",)}
"""What a token does here → its roles in transformers, the first that is given."""


def recognise(
    algorithm: str,
    vocab_size: int,
    id_of: Callable[[str], int | None],
    roles: Mapping[str, str],
    tokenizer_class: str = "",
) -> Layout:
    """Tell the layout of a vocabulary: by ids and names of its tokens, else by its class of transformers, else by names.

    Args:
        id_of: maps a token to its id, or None.
        roles: transformers' roles → tokens, as ``{"cls": "[CLS]"}``; empty where nothing but the vocabulary is known.
        tokenizer_class: its class in transformers, if that is known.
    Returns:
        The layout, with the tokens of ``roles`` where those have other names.
    """
    layout = _find(algorithm, vocab_size, id_of, roles, tokenizer_class.removesuffix("Fast"))
    given = {
        name: next((roles[role] for role in of_transformers if id_of(roles.get(role, "")) is not None), None)
        for name, of_transformers in ROLES.items()
    }
    return replace(layout, **{name: token for name, token in given.items() if token is not None})


def _find(
    algorithm: str,
    vocab_size: int,
    id_of: Callable[[str], int | None],
    roles: Mapping[str, str],
    tokenizer_class: str,
) -> Layout:
    of_algorithm = [layout for layout in LAYOUTS.values() if algorithm in layout.classes]
    by_ids = [layout for layout in of_algorithm if layout.has_its_ids(id_of, vocab_size)]
    by_class = [layout for layout in LAYOUTS.values() if tokenizer_class in (*layout.classes.values(), *layout.also)]
    if by_ids or by_class:
        return (by_ids or by_class)[0]
    if id_of(roles.get("cls", BERT.begin)) is not None and roles.get("cls") != MPNET.begin:
        return BERT
    if algorithm == WORDPIECE:
        return MPNET
    has_begin = id_of(MPNET.begin) is not None
    return {BPE: (GPT2, ROBERTA), UNIGRAM: (T5, XLM_ROBERTA)}.get(algorithm, (MPNET, MPNET))[has_begin]

"""Tokenizers of any layout of special tokens: loading, saving, identity; trained in tokenizer_training.py.

Layouts are in tokenizer_layouts.py. MPNet's ids are those of microsoft/mpnet-base, which ``transformers.MPNetTokenizer``
expects:

    0 <s>   1 <pad>   2 </s>   3 <unk> (never produced)   4 … V-2 pieces, including [UNK]   V-1 <mask>

MPNet can also use BPE and Unigram tokenizers with these ids of ``<s>``, ``<pad>`` and ``</s>`` (RoBERTa's, XLM-RoBERTa's).
A tokenizer is saved as the family's own class of transformers if that class cuts text in the same way: when it loads a
folder, it takes the vocabulary and makes the rest anew. Else it is saved as ``PreTrainedTokenizerFast``, which takes all of
tokenizer.json.

A saved folder holds tokenizer.json and tokenizer_config.json (transformers 5), and vocab.txt and special_tokens_map.json
(transformers 4, sentence-transformers). Two tokenizers are the same if their *fingerprints* are: the sha256 of
tokenizer.json in canonical form (sorted keys, no white space, without truncation and padding, which are settings of a call).
"""

import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from mpnet_ds.character_counts import LONGEST_WORDPIECE_WORD
from mpnet_ds.command_line import invocation
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer_classes import as_transformers, wordpiece
from mpnet_ds.tokenizer_layouts import BERT, LAYOUTS, MPNET, MPNETS_FRAME, T5, Frame, Layout, recognise
from mpnet_ds.word_boundaries import CONTINUATION, WordBoundaries

BOS, PAD, EOS, UNUSED_UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
MASK = "<mask>"
BOS_ID, EOS_ID, PAD_ID = MPNETS_FRAME
JSON_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
CONFIG_FILE, ROLES_FILE = "tokenizer_config.json", "special_tokens_map.json"
WORD_STARTS = {"ByteLevel": "Ġ", "Metaspace": "▁"}  # what a BPE or Unigram piece begins with where a word begins
CUTTING_PARTS = ("model", "normalizer", "pre_tokenizer")
"""Parts of tokenizer.json that decide how text is cut."""
NONCHARACTER = "\ufdd0"  # never used in text, by Unicode
CUTTING_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "BertPreTokenizer"},
        {
            "type": "Split",
            "pattern": {"Regex": f".{{1,{LONGEST_WORDPIECE_WORD}}}"},
            "behavior": "Isolated",
            "invert": False,
        },
    ],
}
"""BERT's words, cut where WordPiece would make one unknown token of them; as in tokenizer.json."""


class PretrainingTokenizer:
    """A tokenizer as pre-training needs it: ids as arrays, word starts, special ids, a fingerprint.

    Text never becomes a special token: a corpus that spells ``<mask>`` gets ordinary pieces.

    Args:
        origin: where it is from, for errors.
        roles, tokenizer_class: what else is known of a foreign one; see ``recognise`` in tokenizer_layouts.py.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        origin: str,
        roles: Mapping[str, str] = MappingProxyType({}),
        tokenizer_class: str = "",
    ):
        self.backend, self.origin = backend, origin
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        content = json.loads(backend.to_str())
        self._cuts_long_words = content["pre_tokenizer"] == CUTTING_PRE_TOKENIZER
        self._kinds = {part: (content[part] or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")}
        self._added_are_special = all(token["special"] for token in content["added_tokens"])
        known_as = (self.kind.lower(), self.vocab_size, backend.token_to_id, roles, tokenizer_class)
        self.layout: Layout = recognise(*known_as)
        self.unknown = _unknown_of(content["model"]) or self.layout.unknown
        added = {token["content"] for token in content["added_tokens"] if token["special"]}
        self._special_tokens = {*self.layout.tokens, *added, *filter(None, [self.unknown])}
        self._check_layout(content)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._text_backend = backend if self.is_berts else _without_special_spellings(content, self._special_tokens)

    @classmethod
    def load(cls, path: str | Path) -> "PretrainingTokenizer":
        """Read a folder with tokenizer.json or, in the old form, vocab.txt; or one of these files."""
        path = Path(path)
        for file in (path / JSON_FILE, path / VOCABULARY_FILE) if path.is_dir() else (path,):
            if file.is_file():
                backend = _read_vocabulary(file) if file.suffix == ".txt" else _read_json(file)
                return cls(backend, str(path), *_read_roles(file.parent))
        found = f"no tokenizer at {path}: neither {JSON_FILE} nor {VOCABULARY_FILE} is there"
        raise UserError(f"{found}. Make one with {invocation('train_tokenizer')}.")

    def _check_layout(self, content: dict) -> None:
        prefix = content["model"].get("continuing_subword_prefix") or ""
        if self.kind == "WordPiece" and prefix != CONTINUATION:
            raise UserError(f"{self.origin}: pieces that continue a word start with '{prefix}'; '{CONTINUATION}' is needed.")
        if self.kind != "WordPiece" and self._word_start is None:
            known = " or ".join(WORD_STARTS)
            raise UserError(f"{self.origin}: a {self.kind} model without {known} does not tell where words start.")
        is_mpnets = self.layout.name == MPNET.name
        for expected, token in enumerate(MPNET.first[:3] if is_mpnets else ()):
            found = self.backend.token_to_id(token)
            if found != expected:
                raise UserError(f"{self.origin}: '{token}' has id {found}, MPNet needs {expected}.")
        layout, needed = self.layout, [self.layout.begin, self.layout.end, self.layout.pad]
        for token in filter(None, [*needed, is_mpnets and layout.mask, self.kind == "WordPiece" and self.unknown]):
            if self.backend.token_to_id(token) is None:
                raise UserError(f"{self.origin}: the vocabulary has no '{token}', which the layout {layout.name} needs.")
        if missing := self._missing_bytes(content["model"]):
            why = f"it has no unknown token, and no pieces for {missing} of the 256 bytes"
            raise UserError(f"{self.origin}: text would vanish, since {why}: train it with one or the other.")
        if len(self.pieces) != self.vocab_size:
            raise UserError(f"{self.origin}: the ids are not 0 … {self.vocab_size - 1} without gaps.")

    def _missing_bytes(self, model: dict) -> int:
        """Count the bytes that a model without an unknown token has no piece for: text with them would vanish."""
        if _unknown_of(model) is not None:
            return 0
        falls_back = model.get("byte_fallback")
        wanted = {f"<0x{byte:02X}>" for byte in range(256)} if falls_back else set(pre_tokenizers.ByteLevel.alphabet())
        is_able = falls_back or self._word_start == WORD_STARTS["ByteLevel"]
        return len(wanted - set(self.pieces)) if is_able else len(wanted)

    @property
    def kind(self) -> str:
        """Model type: ``WordPiece``, ``BPE`` or ``Unigram``."""
        return self._kinds["model"]

    @property
    def is_berts(self) -> bool:
        """Whether it is WordPiece with BERT's normalisation and words, which it may cut if they are long."""
        kinds = (self.kind, self._kinds["normalizer"])
        return kinds == ("WordPiece", "BertNormalizer") and (
            self._cuts_long_words or self._kinds["pre_tokenizer"] == "BertPreTokenizer"
        )

    @property
    def is_mpnets(self) -> bool:
        """Whether ``transformers.MPNetTokenizer`` supports it: MPNet's layout, BERT's normalisation, no cut words."""
        return self.is_berts and not self._cuts_long_words and self.layout.name == MPNET.name

    @property
    def longest_word(self) -> int | None:
        """Number of characters after which the tokenizer cuts a word; None if it does not."""
        return LONGEST_WORDPIECE_WORD if self._cuts_long_words else None

    @property
    def is_local(self) -> bool:
        """Whether the ids of a chunk between two blanks depend on that chunk alone."""
        return self.is_berts and self._added_are_special

    @cached_property
    def _word_start(self) -> str | None:
        content = self.backend.to_str()
        return next((start for name, start in WORD_STARTS.items() if f'"type":"{name}"' in content), None)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the tokenizer: sha256 (hex) of the canonical JSON."""
        content = json.loads(self.backend.to_str()) | {"truncation": None, "padding": None}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def pieces(self) -> list[str]:
        """Tokens in order of their ids."""
        tokens = (self.backend.id_to_token(i) for i in range(self.vocab_size))
        return [token for token in tokens if token is not None]

    @cached_property
    def frame(self) -> Frame:
        """Ids of the tokens that begin a sequence, end a document and fill a sequence."""
        layout, id_of = self.layout, self.backend.token_to_id
        end = id_of(layout.end)
        return Frame(id_of(layout.begin) if layout.begin else None, end, id_of(layout.pad) if layout.pad else end)

    @property
    def begin_id(self) -> int | None:
        """Id of the token that begins a sequence; None: sequences begin with text."""
        return self.frame.begin

    @property
    def end_id(self) -> int:
        """Id of the token that ends a document."""
        return self.frame.end

    @property
    def pad_id(self) -> int:
        """Id of padding; ``end_id`` where the layout has no token for it."""
        return self.frame.pad

    @property
    def mask_id(self) -> int | None:
        """Id of ``<mask>``, if there is one."""
        return self.backend.token_to_id(self.layout.mask) if self.layout.mask else None

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown piece, if there is one."""
        return self.backend.token_to_id(self.unknown) if self.unknown else None

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of T5's sentinels, ``<extra_id_0>`` first; empty in other layouts."""
        if self.layout.name != T5.name:
            return ()
        ids = (self.backend.token_to_id(f"<extra_id_{number}>") for number in itertools.count())
        return tuple(itertools.takewhile(lambda found: found is not None, ids))

    @property
    def language_ids(self) -> tuple[int, ...]:
        """Ids of language tokens: no layout has them yet."""
        return ()

    @cached_property
    def special_ids(self) -> np.ndarray:
        """Ids of special tokens and the unknown piece, int64, sorted: never drawn at random, by default not predicted."""
        found = {self.backend.token_to_id(token) for token in self._special_tokens} - {None}
        if self.layout.name == MPNET.name:  # exactly these, whatever else is called special: samples depend on them
            found = {*range(4), self.unknown_id, self.mask_id} - {None}
        return np.array(sorted(found))

    def framed(self, ids: list[int]) -> list[int]:
        """Add what the family's tokenizer adds to a text: the ids that begin and end it."""
        begin, end = ([] if number is None else [number] for number in self.frame[:2])
        return [*begin, *ids, *end] if self.layout.ends_texts else list(ids)

    @property
    def misfit_of_mpnet(self) -> str | None:
        """Why MPNet cannot use the tokenizer, in a clause; None if it can: it needs its own ids and a mask token."""
        if self.frame == MPNETS_FRAME and self.mask_id is not None:
            return None
        needed = ", ".join(f"{token} = {number}" for number, token in enumerate(MPNET.first[:3]))
        return f"the tokenizer in {self.origin} has the layout {self.layout.name}; MPNet needs {needed} and {MPNET.mask}"

    @cached_property
    def words(self) -> WordBoundaries:
        """Where words begin and end, by id."""
        if self.kind == "WordPiece":
            return WordBoundaries.of_wordpiece(self.pieces)
        words = WordBoundaries.of_marked(self.pieces, self._word_start)
        words.starts[self.special_ids], words.ends[self.special_ids] = True, False
        return words

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Encode each text as an int32 array, without ``<s>`` and ``</s>``."""
        if not self.is_berts:
            texts = [text.replace(NONCHARACTER, "\ufffd") for text in texts]
        encodings = self._text_backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def save(self, folder: str | Path, model_max_length: int = 512) -> None:
        """Write the files that ``AutoTokenizer`` of transformers 4 and 5 and sentence-transformers need."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = self._as_family_class(model_max_length) or self._as_any_class(model_max_length)
        with tempfile.TemporaryDirectory() as plain:  # the library opens only paths that are UTF-8
            named.save_pretrained(plain)
            shutil.copytree(plain, folder, dirs_exist_ok=True)
        _name_class_of_version_4(folder / CONFIG_FILE)
        if self.kind == "WordPiece":
            (folder / VOCABULARY_FILE).write_text("\n".join(self.pieces) + "\n", encoding="utf-8")
        special_tokens = {role: getattr(named, role) for role in sorted(named.SPECIAL_TOKENS_ATTRIBUTES)}
        special_tokens = {role: token for role, token in special_tokens.items() if token is not None}
        (folder / ROLES_FILE).write_text(json.dumps(special_tokens, indent=2) + "\n")
        # The backend as it was trained or loaded, so that the fingerprint does not change.
        (folder / JSON_FILE).write_text(self.backend.to_str(pretty=True), encoding="utf-8")

    def _as_family_class(self, model_max_length: int):
        """Make a tokenizer of the family's class of transformers; None if that would cut text in another way."""
        name = self.layout.classes.get(self.kind.lower())
        if name is None or self.layout != LAYOUTS[self.layout.name]:
            return None
        content = json.loads(self.backend.to_str())
        try:
            named = as_transformers(self.layout, content, model_max_length)
        except Exception:  # of several kinds: parts of tokenizer.json that the class does not expect
            return None
        made = json.loads(named.backend_tokenizer.to_str())
        is_same = all(_settings(made[part]) == _settings(content[part]) for part in CUTTING_PARTS)
        return named if is_same and len(named) == self.vocab_size else None

    def _as_any_class(self, model_max_length: int):
        """Make a tokenizer of transformers that only wraps the backend."""
        from transformers import PreTrainedTokenizerFast

        content, layout = self.backend.to_str(), self.layout
        splitting = json.loads(content)["pre_tokenizer"] or {}
        # Version 4 sets this, by default to False, in a tokenizer that it loads.
        prefix = {key: splitting[key] for key in splitting if key == "add_prefix_space"}
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(content),
            **prefix,
            bos_token=layout.begin,
            cls_token=layout.begin,
            eos_token=layout.end,
            sep_token=layout.end if layout.begin else None,
            pad_token=layout.pad,
            unk_token=self.unknown if self.unknown_id is not None else None,
            mask_token=layout.mask if self.mask_id is not None else None,
            model_max_length=model_max_length,
            model_input_names=["input_ids", "attention_mask"],  # MPNet has no token types, which version 4 would add
        )


def _settings(part: dict | None) -> dict:
    """Leave out what is not set: "" and null mean the same."""
    return {key: value for key, value in (part or {}).items() if value not in ("", None)}


def _unknown_of(model: dict) -> str | None:
    """Name of a model's unknown piece; a Unigram model has its id."""
    number = model.get("unk_id")
    return model.get("unk_token") if number is None else model["vocab"][number][0]


def _read_json(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise UserError(f"{file} is not a tokenizer: {error}") from error


def _read_roles(folder: Path) -> tuple[dict[str, str], str]:
    """Read which token has which role in transformers, and the class, from the files beside a tokenizer."""
    roles, tokenizer_class = {}, ""
    for name in (ROLES_FILE, CONFIG_FILE):
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            tokenizer_class = content.get("tokenizer_class") or tokenizer_class
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        for role in (key.removesuffix("_token") for key in content if key.endswith("_token")):
            token = content[f"{role}_token"]
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                roles[role] = token
    return roles, tokenizer_class


def _read_vocabulary(file: Path) -> tokenizers.Tokenizer:
    """Read one WordPiece per line; normalisation is in tokenizer_config.json beside it, or told from the pieces."""
    settings, added = (file.with_name(name) for name in (CONFIG_FILE, "added_tokens.json"))
    try:
        pieces = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        more = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else {}
        is_cased = any(piece != piece.lower() for piece in pieces if piece[:1] not in "[<")
        lower_case, accents = config.get("do_lower_case", not is_cased), config.get("strip_accents")
        chinese = config.get("tokenize_chinese_chars", True)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file.parent}: its tokenizer files cannot be read: {error}") from error
    if set(more) - set(pieces):
        raise UserError(f"{added} adds pieces to {file.name}: save the tokenizer with transformers 5, as a {JSON_FILE}.")
    if len(set(pieces)) < len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise UserError(f"{file} is not a vocabulary of one piece per line: '{twice}' is in it twice.")
    normalizer = {"lowercase": lower_case, "strip_accents": accents, "handle_chinese_chars": chinese}
    layout = BERT if BERT.begin in pieces and tuple(pieces[:3]) != MPNET.first[:3] else MPNET
    return as_transformers(layout, wordpiece(pieces, normalizer), model_max_length=512).backend_tokenizer


def _name_class_of_version_4(config: Path) -> None:
    """Name the class by which both versions of transformers load any tokenizer.json; version 4 does not know 5's name."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content["tokenizer_class"] == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_special_spellings(content: dict, special: set[str]) -> tokenizers.Tokenizer:
    """Make a tokenizer from its JSON that never encodes text as a special token.

    A model may find ``<mask>`` in a text as it finds any other piece, unless BertPreTokenizer has split it before; here the
    special tokens have names that no text contains.
    """
    special = special - {content["model"].get("unk_token")}

    def renamed(piece: str, number: int) -> str:
        return f"{NONCHARACTER}{number}" if piece in special else piece

    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = {renamed(piece, i): i for piece, i in vocabulary.items()}
    else:
        vocabulary = [[renamed(piece, i), score] for i, (piece, score) in enumerate(vocabulary)]
    ordinary = [token for token in content["added_tokens"] if not token["special"]]
    plain = content | {"model": content["model"] | {"vocab": vocabulary}, "added_tokens": ordinary}
    plain |= {"post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(plain))

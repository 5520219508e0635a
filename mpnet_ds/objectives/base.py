"""What an objective is: how sequences are corrupted, what is predicted, and which module computes the losses.

An objective is a frozen dataclass; its fields are the keys of the recipe's section ``objective``. It is the only place that
knows what a batch holds: dataset, trainer, resume, preflight and export ask the objective, or the module that it builds.

    dataset ── Sequences ──► draw() ── batch ──► module.forward(**batch) ── Scores ──► trainer

``draw`` is NumPy only and a pure function of its sequences and their keys. This module imports no torch; ``build`` and
``sizes`` import models inside, since nothing that prepares data needs them.

Shape legend: B sequences, m raw tokens of a sequence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from mpnet_ds.findings import Finding
from mpnet_ds.objectives.model_section import USUAL
from mpnet_ds.tokenizer_layouts import MPNET

if TYPE_CHECKING:
    from mpnet_ds.models.module import ComputeSetting, ModulePlan, PretrainingModule
    from mpnet_ds.objectives.model_section import ModelSection
    from mpnet_ds.tokenizer import PretrainingTokenizer


@dataclass(frozen=True)
class Sequences:
    """B sequences before corruption, as the data provides them."""

    keys: np.ndarray
    """uint64 [B]; all randomness of ``draw`` follows from them."""
    ids: np.ndarray
    """int64 [B, m]."""
    real: np.ndarray
    """bool [B, m], False on padding."""
    documents: np.ndarray | None = None
    """int64 [B, m], from 0 in each sequence, where documents are isolated."""
    sentences: np.ndarray | None = None
    """int64 [B, m], from 0 in each sequence (unit ``document``)."""
    segments: tuple = ()
    """(ids, real) of each segment. Unit ``pair``: first, second, one of another document; ``parallel``: each field."""
    language: np.ndarray | None = None
    """int64 [B], the language code of the manifest."""
    dataset: np.ndarray | None = None
    """int64 [B], index of the dataset in the mixture."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What an objective knows about a tokenizer."""

    starts_word: np.ndarray
    """bool [V]: False for a piece that continues a word."""
    is_special: np.ndarray
    """bool [V]: ids that are never drawn at random, and not predicted by default."""
    mask_id: int | None
    """None where the layout has no mask token."""
    sentinels: tuple[int, ...] = ()
    """Ids of the sentinels, in order of use."""
    languages: tuple[int, ...] = ()
    """Ids of the language tokens."""
    ends_word: np.ndarray | None = None
    """bool [V]: True for a piece after which a word begins, whatever follows; None: no piece is."""
    layout: str = MPNET.name
    """Name of the tokenizer's layout."""
    control_id: int | None = None
    """The dataset's name as a token; None where it has none, or one of several tokens."""

    @property
    def size(self) -> int:
        """V."""
        return len(self.starts_word)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """int64: all ids that are not special."""
        return np.flatnonzero(~self.is_special)

    @classmethod
    def of(cls, tokenizer: "PretrainingTokenizer", names: Sequence[str] = ()) -> "Vocabulary":
        """The vocabulary of a tokenizer, for a dataset of these names."""
        is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
        is_special[tokenizer.special_ids] = True
        words = tokenizer.words
        ends = words.ends if words.ends.any() else None
        sentinels, languages = tokenizer.sentinel_ids, tokenizer.language_ids
        ids = tokenizer.encode([names[0]])[0] if len(names) == 1 else ()
        control_id = int(ids[0]) if len(ids) == 1 and ids[0] != tokenizer.unknown_id else None
        layout = tokenizer.layout.name
        return cls(words.starts, is_special, tokenizer.mask_id, sentinels, languages, ends, layout, control_id)


class Term(NamedTuple):
    """One summand of the loss: ``weight × (sum of its losses / number of its targets in the global batch)``."""

    name: str
    targets: str
    """Array of the batch in which True, or a number >= 0, marks a target. Clearing a target there (False, -1) takes it out
    of loss and metrics and changes nothing else."""
    weight: float = 1.0


@dataclass(frozen=True)
class Objective:
    """Base class of objectives, with defaults for what most do not need. Subclasses are frozen dataclasses too."""

    name: ClassVar[str]
    omitted_if_true: ClassVar[tuple[str, ...]] = ()
    """Boolean arrays of the batch that the module can do without if all True, such as a mask without padding."""

    @property
    def unit(self) -> str:
        """What a sequence is made of: ``block``, ``document``, ``pair``, ``parallel`` or ``recurrent``."""
        return "block"

    @property
    def terms(self) -> tuple[Term, ...]:
        """The summands of the loss; one without targets in a step counts 0."""
        raise NotImplementedError

    def tokens_needed(self, seq_length: int, vocabulary: Vocabulary) -> int:
        """Raw tokens m that ``draw`` takes for one sequence of ``seq_length`` tokens."""
        return seq_length

    def at(self, step: int) -> "Objective":
        """The objective at a step, where its values change during training."""
        return self

    def draw(self, sequences: Sequences, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
        """Draw a batch: arrays [B, …] with fixed shapes, a pure function of the arguments, vectorised."""
        raise NotImplementedError

    def findings(self, model: "ModelSection", tokenizer: "PretrainingTokenizer", data) -> list[Finding]:
        """Report what cannot work, by name, before anything is built; ``data`` is the opened dataset.

        By default initial values are refused that only MPNet's module has.
        """
        if model.start == USUAL:
            return []
        return [Finding(f"model.start is '{model.start}', which objective '{self.name}' does not have: leave it out.")]

    def sizes(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        micro_batch_size: int,
        setting: "ComputeSetting | None" = None,
    ) -> "ModulePlan":
        """Count parameters, FLOPs and activation bytes by running the module once on fake tensors."""
        from mpnet_ds.models.counting import count

        vocabulary = Vocabulary.of(tokenizer)
        shape = (micro_batch_size, self.tokens_needed(seq_length, vocabulary))
        ids = np.full(shape, vocabulary.ordinary[0], dtype=np.int64)
        keys = np.arange(micro_batch_size, dtype=np.uint64)
        batch = self.draw(Sequences(keys=keys, ids=ids, real=np.ones(shape, dtype=bool)), vocabulary)
        batch |= {"sequence_numbers": np.arange(micro_batch_size), "step": np.array(0)}
        return count(lambda: self.build(model, tokenizer, seq_length), batch, setting)

    def build(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        attention: str = "auto",
        parts: dict | None = None,
    ) -> "PretrainingModule":
        """Build the module that computes the losses of ``draw``'s batches; ``parts`` are those of a module to share."""
        raise NotImplementedError

    def metrics(self, counts: dict[str, np.ndarray]) -> dict[str, float]:
        """Compute metrics for the log from the sums of ``Scores.counts``."""
        return {}

    def section(self) -> dict:
        """The complete section ``objective`` of the recipe, as JSON."""
        return {"name": self.name, **asdict(self)}

    def may_be_target(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """Tell which tokens the first term may have as targets, bool [V]; None if its targets are not tokens."""
        return None

    def target_ids(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Return the first term's targets, int64 [targets], if they are tokens."""
        raise NotImplementedError

    def num_targets(self, batch: dict[str, np.ndarray]) -> list[int]:
        """Count the targets of each term in a batch."""
        return [int(is_target(batch[term.targets]).sum()) for term in self.terms]

    def without_targets(self, batch: dict[str, np.ndarray], sequences: np.ndarray) -> dict[str, np.ndarray]:
        """Return the batch with the targets of some sequences cleared; ``sequences`` is bool [B]."""
        cleared = {term.targets: batch[term.targets].copy() for term in self.terms}
        for array in cleared.values():
            array[sequences] = False if array.dtype == bool else -1
        return batch | cleared


def is_target(targets: np.ndarray) -> np.ndarray:
    """Tell which entries of a term's array are targets, as bool."""
    return targets if targets.dtype == bool else targets >= 0

"""What an objective builds, and what the rest of the package may ask of it: losses, parts to export, layers, groups.

A ``PretrainingModule`` turns a batch into ``Scores``: sums of losses over the batch's targets. The trainer divides them by
the number of targets in the global batch, so that the loss is the exact mean at any number of ranks and micro-batches.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput


@dataclass
class Scores(ModelOutput):
    """Result of one forward pass; all but ``sums`` may be missing."""

    sums: Tensor | None = None
    """fp32 [terms], nats, differentiable: sums of losses over targets, never means."""
    correct: Tensor | None = None
    """int64 [terms]: targets that the module's best guess hits."""
    counts: dict[str, Tensor] | None = None
    """Numbers for ``Objective.metrics``; added up over micro-batches and ranks."""
    carried: tuple[Tensor, ...] | None = None
    """[B, …], handed to the same sequences' next step (unit ``recurrent``)."""


class ComputeSetting(NamedTuple):
    """How a module is computed, as far as its memory depends on it."""

    bytes_per_number: int = 4
    """4 in fp32, 2 in bf16 and fp16."""
    checkpointed_layers: int = 0
    """Layers whose activations are recomputed in backward."""
    checkpoints_on_host: bool = False
    """The inputs of those layers are kept in host memory."""
    on_gpu: bool = True
    """Decides how attention is computed, and what a dropout mask takes."""


class ModulePlan(NamedTuple):
    """Sizes of a module before it is built."""

    parameters: int
    """Trainable numbers, shared ones once."""
    hidden_numbers: int
    """Of them those of ``hidden_matrices``."""
    flops_per_sequence: float
    """Floating-point operations of forward and backward for one sequence; a recomputed layer counts once."""
    activation_bytes: int
    """At the worst moment of a micro-batch, on the device."""
    host_bytes: int = 0
    """Activations of a micro-batch that wait in host memory."""


class Group(NamedTuple):
    """Parameters that are optimised alike."""

    parameters: list[nn.Parameter]
    learning_rate_scale: float = 1.0
    """Factor on the schedule's learning rate."""
    clipping_group: str = ""
    """Gradients of one name are clipped by their joint norm."""


@dataclass(frozen=True)
class Part:
    """One folder of an export: a transformers model whose weights come tensor by tensor from the module's."""

    prefix: str
    """Of the part's parameters in the module; empty for all of them."""
    model_class: type
    """The transformers class that loads the folder."""
    config: PreTrainedConfig
    """Its configuration."""
    rename: dict[str, str] = field(default_factory=dict)
    """Name in the module, without the prefix, → name in the folder, where they differ."""
    sums: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name in the folder → two (whole) names in the module, whose sum is stored."""
    extra_files: dict[str, dict[str, str]] = field(default_factory=dict)
    """Safetensors file beside the model, such as ``emd.safetensors`` → (whole) name in the module → name in that file."""


class PretrainingModule(nn.Module):
    """Base class of everything that the engine trains."""

    def forward(self, *, carried: tuple[Tensor, ...] | None = None, **batch: Tensor) -> Scores:
        """Scores of a batch as ``Objective.draw`` makes it.

        Besides its arrays a batch has ``sequence_numbers`` int64 [B], numbers of the sequences in the global batch, and
        ``step``, an int64 scalar. Shapes are static: no boolean indexing, no ``nonzero``, no ``item``.
        """
        raise NotImplementedError

    def parts(self) -> dict[str, Part]:
        """What an export writes, by folder name; ``""`` is the output folder itself."""
        raise NotImplementedError

    def reference_outputs(self, name: str, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """What the part ``name`` must compute after export, by this module's own code.

        An export takes its name when the loaded folder computes the same. By default, None, it is compared with the part's
        own class, filled with this module's weights. A module whose code is not transformers' gives its own results, so that
        the comparison covers that code too. It is called on the CPU, in fp32.

        Args:
            batch: ``input_ids`` and ``attention_mask``, int64 [B, n], padding on the right.
        Returns:
            Name of an output of the part's class → what it should be; of ``hidden_states`` the last.
        """
        return None

    def layers(self) -> list[nn.Module]:
        """The blocks, in order, that activation checkpointing recomputes and ``--compile`` compiles."""
        raise NotImplementedError

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices that Muon updates, each [out, in]: weights of linear maps, without those tied to embeddings."""
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        maps = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        return [weight for weight in maps if weight.requires_grad and id(weight) not in tables]

    def groups(self) -> list[Group]:
        """Trainable parameters by learning rate and clipping; one group by default."""
        return [Group([parameter for parameter in self.parameters() if parameter.requires_grad])]

    def frozen(self) -> list[nn.Module]:
        """Modules that are used and not trained, such as a teacher: outside of state dict, optimizer and counts."""
        return []

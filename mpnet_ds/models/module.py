"""The module that an objective builds, and its interface: losses, parts to export, layers, parameter groups.

A ``PretrainingModule`` turns a batch into ``Scores``: sums of losses over the batch's targets. The trainer divides them by
the number of targets in the global batch, so that the loss is the exact mean at any number of ranks and micro-batches.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass
class Scores(dict):
    """Result of one forward pass; all but ``sums`` may be missing.

    Also a dict of what is not None, as transformers' ``ModelOutput``: DeepSpeed's hooks find the tensors of a dict and may
    replace them. That class itself takes seconds to load.
    """

    sums: Tensor | None = None
    """fp32 [terms], nats, differentiable: sums of losses over targets, never means."""
    correct: Tensor | None = None
    """int64 [terms]: targets that the module predicts correctly."""
    counts: dict[str, Tensor] | None = None
    """Numbers for ``Objective.metrics``; summed over micro-batches and ranks."""
    carried: tuple[Tensor, ...] | None = None
    """[B, …], passed to the same sequences' next step (unit ``recurrent``)."""

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if value is not None:
            super().__setitem__(name, value)

    def __setitem__(self, name: str, value) -> None:
        setattr(self, name, value)


class ComputeSetting(NamedTuple):
    """How a module is computed, as far as its memory depends on it."""

    bytes_per_number: int = 4
    """4 in fp32, 2 in bf16 and fp16."""
    checkpointed_layers: int = 0
    """Layers whose activations are recomputed in backward; a larger number means all."""
    checkpoints_on_host: bool = False
    """The inputs of those layers are kept in host memory."""
    on_gpu: bool = True
    """Decides how attention is computed, and the size of dropout masks."""


class ModulePlan(NamedTuple):
    """Sizes of a module before it is built."""

    parameters: int
    """Trainable numbers, shared ones once."""
    hidden_numbers: int
    """Those of ``hidden_matrices`` among them."""
    flops_per_sequence: float
    """Floating-point operations of forward and backward for one sequence; a recomputed layer counts once."""
    activation_bytes: int
    """Peak during a micro-batch, on the device."""
    host_bytes: int = 0
    """Activations of a micro-batch that are kept in host memory."""


class Group(NamedTuple):
    """Parameters with the same optimizer settings."""

    parameters: list[nn.Parameter]
    learning_rate_scale: float = 1.0
    """Factor on the schedule's learning rate."""
    clipping_group: str = ""
    """Gradients of groups with the same name are clipped by their joint norm."""


@dataclass(frozen=True)
class Part:
    """One folder of an export: a transformers model whose weights come tensor by tensor from the module's."""

    prefix: str
    """Prefix of the part's parameters in the module; empty for all of them."""
    model_class: type
    """transformers class that loads the folder."""
    config: "PreTrainedConfig"
    """Its configuration."""
    rename: dict[str, str] = field(default_factory=dict)
    """Name in the module, without the prefix, → name in the folder, where they differ."""
    sums: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name in the folder → two (whole) names in the module, whose sum is stored."""
    extra_files: dict[str, dict[str, str]] = field(default_factory=dict)
    """Safetensors file beside the model, such as ``emd.safetensors`` → (whole) name in the module → name in that file."""


class PretrainingModule(nn.Module):
    """Base class of all modules that the engine trains.

    Attributes:
        dropout_seed: the run's seed, which the trainer sets. Dropout by ``layers/dropout.py`` follows from it, the step and
            a sequence's number, so that ranks and micro-batches do not matter. PyTorch's own draws from its generator, which
            the trainer seeds for each step and rank.
    """

    dropout_seed: int = 0
    checkpoints_with_torch = False
    """Whether activations are recomputed by torch's function instead of DeepSpeed's, see activation_checkpointing.py."""

    def forward(self, *, carried: tuple[Tensor, ...] | None = None, **batch: Tensor) -> Scores:
        """Compute the scores of a batch from ``Objective.draw``.

        Besides its arrays a batch has ``sequence_numbers`` int64 [B], numbers of the sequences in the global batch, and
        ``step``, an int64 scalar. Shapes are static: no boolean indexing, no ``nonzero``, no ``item``.
        """
        raise NotImplementedError

    def parts(self) -> dict[str, Part]:
        """Return what an export writes, by folder name; ``""`` is the output folder itself."""
        raise NotImplementedError

    def reference_outputs(self, name: str, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Compute, by this module's own code, what the part ``name`` must compute after export.

        An export gets its name once the loaded folder computes the same. By default, None, it is compared with the part's
        own class, filled with this module's weights. A module whose code is not transformers' returns its own results, so
        that the comparison covers that code too. It is called on the CPU, in fp32.

        Args:
            batch: ``input_ids`` and ``attention_mask``, int64 [B, n], padding on the right.
        Returns:
            Name of an output of the part's class → expected value; of ``hidden_states`` the last.
        """
        return None

    def layers(self) -> list[nn.Module]:
        """Return the blocks, in order, that activation checkpointing recomputes and ``--compile`` compiles."""
        raise NotImplementedError

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the matrices that Muon updates, each [out, in]: weights of linear maps, except those tied to embeddings."""
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        maps = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        return [weight for weight in maps if weight.requires_grad and id(weight) not in tables]

    def groups(self) -> list[Group]:
        """Group the trainable parameters by learning rate and clipping; one group by default."""
        return [Group([parameter for parameter in self.parameters() if parameter.requires_grad])]

    def external_parameters(self) -> list[nn.Parameter]:
        """Return parameters that the forward pass uses outside their modules: ZeRO 3 gathers them for all of it."""
        return []

    def frozen(self) -> list[nn.Module]:
        """Return modules that are used but not trained, such as a teacher: not in state dict, optimizer and counts."""
        return []

"""What objectives ask of a family of transformers before it is built."""

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from mpnet_ds.errors import UserError
from mpnet_ds.objectives.base import Objective
from mpnet_ds.objectives.model_section import NEAR

if TYPE_CHECKING:
    from mpnet_ds.models.module import ComputeSetting, ModulePlan, PretrainingModule
    from mpnet_ds.models.transformers_model import TransformersModule
    from mpnet_ds.objectives.model_section import FamilySection
    from mpnet_ds.tokenizer import PretrainingTokenizer

Module = TypeVar("Module", bound="TransformersModule")


def find_family_faults(model: "FamilySection", tokenizer: "PretrainingTokenizer", data, is_causal: bool) -> list[str]:
    """Describe why a family cannot be trained on these data; empty if it can.

    Args:
        data: the opened dataset, or a mixture.
        is_causal: under causal language modelling, not masked.
    """
    family = model.family
    if tokenizer.layout.name not in family.layouts:
        needed = f"{family.model_type} needs those of {' or '.join(family.layouts)}"
        cure = f"train a tokenizer with --layout {family.layouts[0]}, and build the data with it"
        return [f"{tokenizer.origin} has the special tokens of {tokenizer.layout.name}, {needed}: {cure}."]
    try:
        config = model.config(tokenizer, data.seq_length, is_causal)
    except UserError as error:
        return list(error.findings)
    isolates = any(part.isolate_documents for part in getattr(data, "datasets", [data]))
    why_not = family.why_not_isolated(config) if isolates else ""
    return [f"data.isolate_documents is not possible with {family.model_type}: {why_not}."] if why_not else []


def begun(module: "Module", model: "FamilySection") -> "Module":
    """Give a new module the initial values that the section asks for."""
    if model.start == NEAR:
        module.begin_near(model.start_strength)
    return module


FEW, MORE = 3, 6
"""Layers that are counted where a model has more than twice as many; patterns of layers repeat after three at most."""


def family_sizes(
    objective: "Objective",
    model: "FamilySection",
    tokenizer: "PretrainingTokenizer",
    seq_length: int,
    micro_batch_size: int,
    targets: int,
    setting: "ComputeSetting | None",
) -> "ModulePlan":
    """Count the sizes of a family's module, or estimate them where it cannot be counted; ``targets``: of a sequence.

    FLOPs and activations of a deep model follow from those of two shallow ones: each layer takes the same.
    """
    from mpnet_ds.models.counting import count_parameters, estimate
    from mpnet_ds.models.module import ModulePlan

    def build() -> "PretrainingModule":
        return objective.build(model, tokenizer, seq_length)

    def counted(layers: int) -> "ModulePlan":
        shallow = replace(model, **{model.layers_key: layers})
        return Objective.sizes(objective, shallow, tokenizer, seq_length, micro_batch_size, setting)

    if model.family.not_counted:
        return estimate(build, seq_length, micro_batch_size, targets, setting)
    layers, recomputed = model.num_layers, setting.checkpointed_layers if setting else 0
    if layers <= 2 * MORE or 0 < recomputed < layers:
        return Objective.sizes(objective, model, tokenizer, seq_length, micro_batch_size, setting)
    few, more = counted(FEW), counted(MORE)
    deeper = (layers - MORE) / (MORE - FEW)
    parameters, hidden = count_parameters(build)
    return ModulePlan(
        parameters=parameters,
        hidden_numbers=hidden,
        flops_per_sequence=more.flops_per_sequence + deeper * (more.flops_per_sequence - few.flops_per_sequence),
        activation_bytes=round(more.activation_bytes + deeper * (more.activation_bytes - few.activation_bytes)),
    )

"""What objectives ask of a family of transformers before it is built."""

from typing import TYPE_CHECKING

from mpnet_ds.errors import UserError

if TYPE_CHECKING:
    from mpnet_ds.objectives.model_section import FamilySection
    from mpnet_ds.tokenizer import PretrainingTokenizer


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

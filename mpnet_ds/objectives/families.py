"""What objectives ask of a family of transformers before it is built."""

from typing import TYPE_CHECKING

from mpnet_ds.errors import UserError

if TYPE_CHECKING:
    from mpnet_ds.objectives.model_section import FamilySection
    from mpnet_ds.tokenizer import PretrainingTokenizer


def find_family_faults(
    model: "FamilySection", tokenizer: "PretrainingTokenizer", data, objective: str, model_class: str
) -> list[str]:
    """Describe why a family cannot be trained with an objective on these data; empty if it can.

    Args:
        data: the opened dataset, or a mixture.
        model_class: the family's class of transformers for the objective; empty if it has none.
    """
    from mpnet_ds.models.families import longest_sequence

    family, faults = model.family, []
    if not model_class:
        return [f"{family.model_type} cannot be trained with objective {objective}: transformers has no class for it."]
    if tokenizer.layout.name not in family.layouts:
        usual = family.layouts[0]
        faults.append(
            f"{tokenizer.origin} has the special tokens of {tokenizer.layout.name}, {family.model_type} needs those of "
            f"{' or '.join(family.layouts)}: train a tokenizer with --layout {usual}, and build the data with it."
        )
        return faults
    try:
        config = model.config(tokenizer, data.seq_length)
    except UserError as error:
        return list(error.findings)
    longest = longest_sequence(family, config)
    if longest is not None and data.seq_length > longest:
        faults.append(
            f"data.seq_length is {data.seq_length}, but this {family.model_type} has positions for {longest} tokens."
        )
    return faults

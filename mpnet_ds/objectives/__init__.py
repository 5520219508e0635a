"""Pre-training objectives as values: how a sample is corrupted and which rows the model runs.

| objective | content rows | predictions come from | what they see |
|---|---|---|---|
| ``mpnet`` | n tokens + p mask rows | p query rows | earlier predicted tokens, mask rows for the later: all n |
| ``plm``   | n tokens | p query rows starting from ``<mask>`` | earlier predicted tokens, nothing of the later ones |
| ``mlm``   | n tokens with the corrupted ones written over | the same rows | everything |

The three are those of the paper's ablation (Song et al., arXiv 2004.09297, table 5) and take the same batch.
"""

from dataclasses import dataclass, replace

from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.objectives.masking import MaskingConfig


@dataclass(frozen=True)
class Objective:
    """One way to corrupt and predict."""

    name: str
    has_query_stream: bool
    """Predictions come from p rows of their own, so that a row may differ in what it sees from its token's row."""
    has_mask_rows: bool
    """The content stream holds a corrupted token at each predicted position besides the true one."""
    always_mask: bool = False
    """A query row starts from ``<mask>``, never from the true or a random token."""

    def masking(self, config: MaskingConfig) -> MaskingConfig:
        """The recipe's masking as this objective draws it."""
        if self.always_mask:
            return replace(config, mask_probability=1.0, keep_probability=0.0, random_probability=0.0)
        return config


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("mpnet", has_query_stream=True, has_mask_rows=True),
        Objective("plm", has_query_stream=True, has_mask_rows=False, always_mask=True),
        Objective("mlm", has_query_stream=False, has_mask_rows=False),
    )
}


def get_objective(name: str) -> Objective:
    """By name; ``UserError`` with the nearest one if there is none."""
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective '{name}'. {did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]

"""Which streams of rows the two-stream network runs for an objective.

| objective | content rows | predictions come from | what they see |
|---|---|---|---|
| ``mpnet`` | n tokens + p mask rows | p query rows | earlier predicted tokens, mask rows for the later: all n |
| ``plm``   | n tokens | p query rows starting from ``<mask>`` | earlier predicted tokens, nothing of the later ones |
| ``mlm``   | n tokens, the corrupted ones overwritten | the same rows | everything |

The three are those of the paper's ablation (Song et al., arXiv 2004.09297, table 5) and take the same batch.
"""

from typing import NamedTuple

from mpnet_ds.errors import UserError, did_you_mean


class Streams(NamedTuple):
    """Rows that the network computes."""

    has_query_stream: bool
    """Predictions come from p rows of their own, which may see other keys than their tokens' rows do."""
    has_mask_rows: bool
    """The content stream holds a corrupted token at each predicted position besides the true one."""


STREAMS = {
    "mpnet": Streams(has_query_stream=True, has_mask_rows=True),
    "plm": Streams(has_query_stream=True, has_mask_rows=False),
    "mlm": Streams(has_query_stream=False, has_mask_rows=False),
}


def streams_of(objective: str) -> Streams:
    """Look up the streams of an objective; raise ``UserError`` with the nearest name for an unknown one."""
    if objective not in STREAMS:
        raise UserError(f"the two-stream MPNet has no objective '{objective}'. {did_you_mean(objective, STREAMS)}")
    return STREAMS[objective]

"""The two-stream MPNet."""

from mpnet_ds.models.mpnet.model import MPNetForPretraining, PretrainingOutput

__all__ = ["MPNetForPretraining", "PretrainingOutput"]

"""The two-stream MPNet."""

from mpnet_ds.model.two_stream import MPNetForPretraining, PretrainingOutput

__all__ = ["MPNetForPretraining", "PretrainingOutput"]

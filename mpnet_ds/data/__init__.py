"""From text to samples: corpus → token shards → order → masking → batches."""

from mpnet_ds.data.build import build_dataset
from mpnet_ds.data.dataset import PretrainingDataset
from mpnet_ds.data.masking import MaskingConfig

__all__ = ["MaskingConfig", "PretrainingDataset", "build_dataset"]

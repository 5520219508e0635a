"""From text to samples: corpus → token shards → order → masking → batches."""

from mpnet_ds.data.build import build_dataset
from mpnet_ds.data.corpus import ReadOptions
from mpnet_ds.data.dataset import PretrainingDataset
from mpnet_ds.data.masking import MaskingConfig
from mpnet_ds.data.plan import BuildOptions

__all__ = ["BuildOptions", "MaskingConfig", "PretrainingDataset", "ReadOptions", "build_dataset"]

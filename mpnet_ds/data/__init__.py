"""From text to samples: corpus → token shards → order → masking → batches."""

from mpnet_ds.data.builder.dataset_builder import build_dataset
from mpnet_ds.data.builder.plan import BuildOptions
from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.data.text.source import ReadOptions
from mpnet_ds.objectives.masking import MaskingConfig

__all__ = ["BuildOptions", "MaskingConfig", "PretrainingDataset", "ReadOptions", "build_dataset"]

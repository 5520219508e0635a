"""From text to samples: corpus → token shards → shuffled order → masking → batches.

build_dataset, BuildOptions, ReadOptions    text → dataset folder
PretrainingDataset, MaskingConfig           dataset folder → samples
"""

from importlib import import_module

_MODULES = {
    "BuildOptions": "mpnet_ds.data.builder.plan",
    "MaskingConfig": "mpnet_ds.objectives.masking",
    "PretrainingDataset": "mpnet_ds.data.samples.dataset",
    "ReadOptions": "mpnet_ds.data.text.source",
    "build_dataset": "mpnet_ds.data.builder.dataset_builder",
}
__all__ = ["BuildOptions", "MaskingConfig", "PretrainingDataset", "ReadOptions", "build_dataset"]


def __getattr__(name: str):
    """Import a public name at its first use, so that no part of the package waits for the imports of another."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

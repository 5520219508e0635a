"""Checkpoints: saved as transactions, read whatever the ZeRO stage, consolidated, exported to Hugging Face and back.

named_tensors(folder)            (name, tensor) of any checkpoint of DeepSpeed, one after another
load_consolidated(folder)        all of them in memory
consolidate(folder, output)      all of them in safetensors files
export_huggingface(run, output)  a complete Hugging Face folder of a run of this project
make_start(output, folder)       a complete Hugging Face folder of any MPNet, for ``--init_from``
"""

from mpnet_ds.checkpoint.consolidate import consolidate, load_consolidated, named_tensors

__all__ = ["consolidate", "export_huggingface", "load_consolidated", "make_start", "named_tensors"]


def __getattr__(name: str):
    """Import on request what needs a good part of transformers: training needs none of it."""
    if name == "export_huggingface":
        from mpnet_ds.hub.export import export_huggingface

        return export_huggingface
    if name == "make_start":
        from mpnet_ds.hub.import_model import make_start

        return make_start
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

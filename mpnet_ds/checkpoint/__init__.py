"""Checkpoints: saving as transactions, reading ZeRO shards, consolidation, Hugging Face folders."""

from mpnet_ds.checkpoint.consolidate import consolidate, load_consolidated, named_tensors

__all__ = ["consolidate", "load_consolidated", "named_tensors"]

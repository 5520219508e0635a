"""Export to a Hugging Face MPNet folder (the way back is in pretrained.py).

Parameters have transformers' names in training already, so an export is a copy. It is checked before it takes its
name: the folder is loaded with plain ``transformers`` and its hidden states and logits are compared with the training
model's plain forward on real text.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, MPNetConfig, MPNetForMaskedLM
from transformers.utils import logging as transformers_logging

from mpnet_ds.checkpoint.consolidate import load_consolidated
from mpnet_ds.checkpoint.store import CheckpointInfo, find_checkpoint, read_info
from mpnet_ds.checkpoint.weights_file import DTYPES
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder
from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.tokenizer import PretrainingTokenizer

TOLERANCE = 1e-5
"""Largest difference of a hidden state that passes the check. Logits may differ by the same, relative to the largest."""

CHECK_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Return a new list that contains all the items of the iterable in ascending order.",
    "MPNet leverages the dependency among predicted tokens through permuted language modelling.",
)


@dataclass(frozen=True)
class Comparison:
    """Largest absolute differences between the export and the training model."""

    hidden_states: float
    logits: float


def export_huggingface(source: str | Path, output: str | Path, dtype: str = "fp32") -> Comparison:
    """Writes a complete folder: weights, config, tokenizer, vocab.txt, model card.

    Args:
        source: a checkpoint folder or a run's folder (then its newest checkpoint).
        dtype: ``fp32``, ``bf16`` or ``fp16``, of the weights in the file.
    Raises:
        UserError: no whole checkpoint, ``output`` exists, or the export differs from the training model.
    """
    checkpoint = find_checkpoint(source)
    info = read_info(checkpoint)
    transformers_logging.disable_progress_bar()
    with new_folder(output) as folder:
        weights = {name: tensor.to(DTYPES[dtype]) for name, tensor in load_consolidated(checkpoint).items()}
        _write_model(weights, info, DTYPES[dtype], folder)
        PretrainingTokenizer.load(checkpoint / "tokenizer").save(folder, model_max_length=info.seq_length)
        (folder / "README.md").write_text(_model_card(info), encoding="utf-8")
        return compare(weights, info, folder)


def compare(weights: dict[str, Tensor], info: CheckpointInfo, folder: Path) -> Comparison:
    """Loads ``folder`` with transformers and holds it against the training model; raises ``UserError`` if they differ."""
    exported = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = MPNetForPretraining(_config(info), info.objective).eval()
    own.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    batch = tokenizer(list(CHECK_TEXTS), padding=True, truncation=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        theirs = exported(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        hidden = own.encode(batch["input_ids"], batch["attention_mask"])
        logits = own.lm_head(hidden)
    comparison = Comparison(
        (theirs.hidden_states[-1] - hidden)[real].abs().max().item(),
        (theirs.logits - logits)[real].abs().max().item(),
    )
    if comparison.hidden_states > TOLERANCE or comparison.logits > TOLERANCE * max(1.0, logits[real].abs().max().item()):
        raise UserError(f"the export in {folder} differs from the training model: {comparison}. Please report this.")
    return comparison


def _config(info: CheckpointInfo) -> MPNetConfig:
    return MPNetConfig(**{name: value for name, value in info.model_config.items() if name != "model_type"})


def _write_model(weights: dict[str, Tensor], info: CheckpointInfo, dtype: torch.dtype, folder: Path) -> None:
    with torch.device("meta"):
        model = MPNetForMaskedLM(_config(info))
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    model.save_pretrained(folder)


def _model_card(info: CheckpointInfo) -> str:
    config = info.model_config
    held_out = f"\n| held-out loss | {info.eval_loss:.4f} nats |" if info.eval_loss is not None else ""
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [mpnet]
---
# MPNet pre-trained with mpnet_ds

| | |
|---|---|
| objective | {info.objective} |
| layers × width | {config.get("num_hidden_layers", 12)} × {config.get("hidden_size", 768)} |
| vocabulary | {config.get("vocab_size", 30527):,} pieces |
| longest input | {info.seq_length} tokens in pre-training |
| updates | {info.step:,} |
| samples | {info.consumed_samples:,} |{held_out}

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```

`MPNetModel`, `MPNetForSequenceClassification` and the other MPNet classes load the same folder.
"""

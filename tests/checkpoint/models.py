"""Small random models and what every start must be, shared by the tests of imports."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import MPNetConfig, MPNetForMaskedLM

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 34,
    "layer_norm_eps": 1e-5,
}
"""Those of tests/fixtures/recipe.json."""


def random_model(kind=MPNetForMaskedLM, seed: int = 0, **settings):
    """A model of transformers in which no number is zero, one or equal to another but by chance."""
    torch.manual_seed(seed)
    model = kind(MPNetConfig(**({"vocab_size": 999} | SIZES | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    return model


def saved(model, folder: Path, tokenizer=None, **options) -> Path:
    """The folder that ``save_pretrained`` writes, with a tokenizer's files beside the model's."""
    model.save_pretrained(folder, **options)
    if tokenizer is not None:
        tokenizer.save(folder)
    return folder


def loaded(folder: Path) -> dict[str, Tensor]:
    """What plain transformers loads from a folder; nothing may be missing in it, and nothing left over."""
    model, info = MPNetForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.state_dict()


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32, name
        assert torch.equal(found[name].view(torch.int32), tensor.contiguous().view(torch.int32)), name

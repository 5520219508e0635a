"""Files that make a Hugging Face folder a model of the sentence-transformers library, in the format of its version 6.

    modules.json                        an encoder (this very folder), then pooling
    sentence_bert_config.json           how the encoder is loaded and which output is used
    1_Pooling/config.json               the mean over all tokens except padding
    config_sentence_transformers.json   no prompts; embeddings are compared by cosine

They are written without the library, which loads the encoder alone, with transformers' ``AutoModel``.
"""

import json
from pathlib import Path

POOLING = "1_Pooling"
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": POOLING, "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
]
_ENCODER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "model_kwargs": {
        "add_pooling_layer": False,  # pre-training has none; transformers would draw one at random
        # The encoder does not need the head's weights, and transformers would warn about each. It ignores position_ids,
        # which old files of other models have.
        "key_mapping": {r"^lm_head\.(.+)$": r"lm_head.\1.position_ids"},
    },
}
_SETTINGS = {
    "model_type": "SentenceTransformer",
    "prompts": {"query": "", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}


def write_sentence_encoder(folder: Path, width: int) -> None:
    """Add the files to an export; ``width`` is that of the hidden states, and so of an embedding."""
    (folder / POOLING).mkdir()
    _write(folder / "modules.json", _MODULES)
    _write(folder / "sentence_bert_config.json", _ENCODER)
    _write(folder / "config_sentence_transformers.json", _SETTINGS)
    pooling = {"embedding_dimension": width, "pooling_mode": "mean", "include_prompt": True}
    _write(folder / POOLING / "config.json", pooling)


def _write(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

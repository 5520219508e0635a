"""Files that make a Hugging Face folder a model of the sentence-transformers library, for its versions 3 to 6 and for vLLM.

    modules.json                        an encoder (this very folder), then pooling
    sentence_bert_config.json           how the encoder is loaded, and the length of texts
    1_Pooling/config.json               the mean over all tokens except padding
    config_sentence_transformers.json   no prompts; embeddings are compared by cosine

These are the old names and forms, which version 6 reads as well; the new ones end in an error in older versions, and vLLM
would pool by the first token without a word. vLLM takes the first value of the pooling that is true, so their order counts.
The files are written without the library, which loads the encoder alone, with transformers' ``AutoModel``.
"""

import json
from pathlib import Path

POOLING = "1_Pooling"
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": POOLING, "type": "sentence_transformers.models.Pooling"},
]
_MODEL_ARGUMENTS = {
    "add_pooling_layer": False,  # pre-training has none; transformers would draw one at random
    # The encoder does not need the head's weights, and transformers would warn about each. It ignores position_ids, which
    # old files of other models have.
    "key_mapping": {r"^lm_head\.(.+)$": r"lm_head.\1.position_ids"},
}
_POOLING = {
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}
_SETTINGS = {
    "model_type": "SentenceTransformer",
    "prompts": {"query": "", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}


def write_sentence_encoder(folder: Path, width: int, max_length: int) -> None:
    """Add the files to an export.

    Args:
        width: of the hidden states, and so of an embedding.
        max_length: in tokens; longer texts are cut.
    """
    (folder / POOLING).mkdir()
    encoder = {"max_seq_length": max_length, "do_lower_case": False, "model_args": _MODEL_ARGUMENTS}
    _write(folder / "modules.json", _MODULES)
    _write(folder / "sentence_bert_config.json", encoder)
    _write(folder / "config_sentence_transformers.json", _SETTINGS)
    _write(folder / POOLING / "config.json", {"word_embedding_dimension": width, **_POOLING})


def _write(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

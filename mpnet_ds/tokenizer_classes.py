"""A family's own tokenizer class of transformers, made from a tokenizer.json.

When such a class loads a folder it takes vocabulary, merges and a few settings, and makes the rest anew. So does this; the
caller compares whether the result cuts text as the original does.
"""

import base64

import tokenizers

from mpnet_ds.tokenizer_layouts import T5, Layout


def as_transformers(layout: Layout, content: dict, model_max_length: int):
    """Make a tokenizer of the family's own class of transformers.

    ``content`` is that of a tokenizer.json, or its parts ``model``, ``normalizer`` and ``pre_tokenizer``.
    """
    import transformers

    model = content["model"]
    settings = {"WordPiece": _wordpiece_settings, "BPE": _bpe_settings, "Unigram": _unigram_settings}[model["type"]]
    mask = [token for token in content.get("added_tokens", []) if token["content"] == layout.mask and token["lstrip"]]
    more = {"mask_token": tokenizers.AddedToken(layout.mask, lstrip=True, special=True)} if mask else {}
    if layout.name == T5.name:
        more["extra_ids"] = sum(piece.startswith("<extra_id_") for piece, _ in model["vocab"])
    make = getattr(transformers, layout.classes[model["type"].lower()])
    return make(**settings(content), **more, model_max_length=model_max_length)


def wordpiece(pieces: list[str], normalizer: dict) -> dict:
    """Describe WordPiece with BERT's normalisation as in tokenizer.json; ``normalizer``: its BertNormalizer."""
    return {"model": {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(pieces)}}, "normalizer": normalizer}


def _wordpiece_settings(content: dict) -> dict:
    normalizer = content["normalizer"]
    return {
        "vocab": content["model"]["vocab"],
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
    }


def _bpe_settings(content: dict) -> dict:
    model, splitting = content["model"], content["pre_tokenizer"]
    merges = [tuple(merge) for merge in model["merges"]]
    return {"vocab": model["vocab"], "merges": merges, "add_prefix_space": splitting["add_prefix_space"]}


def _unigram_settings(content: dict) -> dict:
    vocabulary = [(piece, score) for piece, score in content["model"]["vocab"]]
    normalizer = content["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])
    charsmap = [part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled"]
    settings = {"_spm_precompiled_charsmap": base64.b64decode(charsmap[0])} if charsmap else {}
    lower_case = {"do_lower_case": True} if any(part.get("type") == "Lowercase" for part in parts) else {}
    return {"vocab": vocabulary, **settings, **lower_case}

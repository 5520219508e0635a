"""Loads an export with whatever versions this interpreter has, and prints what it computes as JSON.

    python tests/hub/other_versions.py FOLDER WORD_FOR_MASK TEXT…

Keys: ``ids`` of the texts and of the first two as a ``pair``, ``inputs`` of the model, ``words`` and ``probabilities`` for a
mask, ``embeddings``, ``max_seq_length``, ``versions``, and ``said``, all output of the libraries.
"""

import contextlib
import importlib.metadata
import io
import json
import logging
import sys
import warnings


def main(folder: str, sentence: str, *texts: str) -> dict:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, pipeline

    warnings.simplefilter("always")
    words = pipeline("fill-mask", folder, device="cpu")(sentence)
    encoder = SentenceTransformer(folder, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "versions": [importlib.metadata.version(name) for name in ("transformers", "sentence-transformers")],
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "pair": tokenizer(*texts[:2])["input_ids"],
        "inputs": sorted(tokenizer(texts[0])),
        "words": [row["token_str"] for row in words],
        "probabilities": [row["score"] for row in words],
        "embeddings": encoder.encode(list(texts)).tolist(),
        "max_seq_length": encoder.max_seq_length,
    }


if __name__ == "__main__":
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        logging.basicConfig(stream=said, level=logging.WARNING)
        found = main(*sys.argv[1:])
    print(json.dumps(found | {"said": said.getvalue()}))

"""The most likely words for a mask, from an exported model in plain ``transformers``."""

from functools import lru_cache
from pathlib import Path

from mpnet_ds.errors import UserError
from mpnet_ds.hub.locate import locate_model
from mpnet_ds.tokenizer import MASK

EXAMPLES = [
    "return <mask> if the object is callable.",
    "the <mask> argument is a list of strings.",
    "open the file and <mask> its contents.",
    "raise an <mask> if the key is not found.",
]


def top_words(folder: str | Path, sentence: str, count: int = 5) -> list[tuple[str, float]]:
    """Return the ``count`` most likely pieces for the one ``<mask>`` of ``sentence``, with their probabilities.

    ``<mask>`` stands for the mask token of any layout, which may also be given itself.

    Raises ``UserError`` if ``folder`` is not a model, ``sentence`` does not have exactly one ``<mask>``, or ``count`` is not
    between 1 and the size of the vocabulary.
    """
    model, tokenizer = _load(str(folder))
    import torch

    if not 1 <= count <= model.config.vocab_size:
        raise UserError(
            f"{count} words requested; the vocabulary of {folder} has {model.config.vocab_size:,}: choose 1 to that many."
        )
    if tokenizer.mask_token is None:
        raise UserError(f"the tokenizer in {folder} has no mask token: its model fills none.")
    sentence = sentence.replace(MASK, tokenizer.mask_token)
    if sentence.count(tokenizer.mask_token) != 1:
        raise UserError(f"'{sentence}' must have exactly one {tokenizer.mask_token}.")
    batch = tokenizer(sentence, return_tensors="pt", truncation=True)
    position = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
    with torch.no_grad():
        probabilities = model(**batch).logits[0, position].softmax(dim=-1)
    top = probabilities.topk(count)
    return [(tokenizer.convert_ids_to_tokens(int(i)), float(p)) for p, i in zip(top.values, top.indices, strict=True)]


@lru_cache(maxsize=1)
def _load(folder: str):
    found = locate_model(folder)
    if not (found / "config.json").is_file():
        raise UserError(f"{folder} is not a Hugging Face folder: config.json is missing. convert_to_hf makes one.")
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    from transformers.utils import logging

    logging.disable_progress_bar()
    family = AutoConfig.from_pretrained(found).model_type
    if family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(f"{folder} is a {family}, which predicts what follows and fills no masks.")
    return AutoModelForMaskedLM.from_pretrained(found).eval(), AutoTokenizer.from_pretrained(found)

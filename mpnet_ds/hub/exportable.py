"""What ``transformers``' MPNet can represent. All else is refused: its ``from_pretrained`` would ignore it in silence.

Fixed in its code, whatever config.json says: relative positions have 32 buckets up to a distance of 128, LayerNorm comes
after each block, the head is erf gelu on the token table, and row 1 of both tables is padding (read in transformers 5.23).
"""

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, device, equal, isfinite
from transformers import MPNetConfig

from mpnet_ds.checkpoint.store import CheckpointInfo
from mpnet_ds.errors import UserError
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.model import MODEL_KEYS, TIED_WEIGHTS, check_config
from mpnet_ds.objectives import objective_of
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PAD_ID
from mpnet_ds.zero.torch_file import StoredTensor

_AFTER = "transformers' MPNet has LayerNorm after each block"
_PADDING = f"transformers' MPNet has padding in row {PAD_ID} of its tables"
FIXED = {
    "model_type": ("mpnet", "only MPNet can be exported"),
    "relative_attention_num_buckets": (32, "transformers computes MPNet with 32 buckets always"),
    "relative_attention_max_distance": (128, "transformers computes MPNet with a distance of 128 always"),
    "hidden_act": ("gelu", "MPNet's head is (erf) gelu always"),
    "tie_word_embeddings": (True, "MPNet's head shares the token table"),
    "pre_layer_norm": (False, _AFTER),
    "normalize_before": (False, _AFTER),
    "norm_first": (False, _AFTER),
    "padding_idx": (PAD_ID, _PADDING),
    "pad_token_id": (PAD_ID, _PADDING),
    "bos_token_id": (BOS_ID, "a text begins with <s>"),
    "eos_token_id": (EOS_ID, "a text ends with </s>"),
}
"""Key of a configuration → the one value that can be exported, and why."""


def exportable_config(info: CheckpointInfo, origin: object) -> MPNetConfig:
    """The configuration of the training model, rows of padding in its vocabulary included.

    Raises ``UserError`` with everything in it that ``transformers``' MPNet cannot represent; ``origin`` names it.
    """
    given = info.model_config
    findings = [
        f"{origin}: {key} is {given[key]!r}; {reason}, so only {value!r} can be exported."
        for key, (value, reason) in FIXED.items()
        if key in given and given[key] != value
    ]
    unknown = sorted(set(given) - set(MPNetConfig().to_dict()) - set(FIXED) - {"torch_dtype"})
    findings += [
        f"{origin}: transformers' MPNet knows no '{key}' ({given[key]!r}) and would ignore it; it cannot be exported."
        for key in unknown
    ]
    if findings:
        raise UserError(*findings)
    try:
        config = MPNetConfig(**{key: given[key] for key in MODEL_KEYS if key in given})
    except StrictDataclassError as error:
        raise UserError(f"{origin}: {' '.join(str(error).split())}. The configuration is damaged.") from error
    check_config(config)
    objective_of(info.objective, str(origin))
    if info.seq_length + 2 > config.max_position_embeddings:
        found = f"max_position_embeddings is {config.max_position_embeddings}, too few for rows of {info.seq_length} tokens"
        raise UserError(f"{origin}: {found}; it should be 2 more than that at least. The configuration is damaged.")
    return config


def check_vocabulary(config: MPNetConfig, num_pieces: int, origin: object) -> None:
    """Raises ``UserError`` if the model has fewer rows than the tokenizer has pieces; more are padding."""
    if config.vocab_size < num_pieces:
        raise UserError(
            f"{origin}: the model has {config.vocab_size:,} rows for the tokenizer's {num_pieces:,} pieces. It is another "
            "tokenizer than the model was trained with: export a checkpoint whose tokenizer/ is its own."
        )


def check_weights(weights: dict[str, StoredTensor], config: MPNetConfig, origin: object) -> None:
    """Raises ``UserError`` unless these are all weights of such a model, and its tied ones, if they are there, equal."""
    with device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in MPNetForPretraining(config).state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if name not in TIED_WEIGHTS}
    findings = [f"{origin}: the weight {name} is missing." for name in shapes if name not in weights]
    extra = set(weights) - set(shapes) - set(TIED_WEIGHTS)
    findings += [f"{origin}: {name} is no weight of MPNet; it cannot be exported." for name in sorted(extra)]
    findings += [
        f"{origin}: {name} is {list(weights[name].shape)}, by its configuration it should be {list(shape)}."
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    for copy, source in TIED_WEIGHTS.items():
        own, table = weights.get(copy), weights.get(source)
        if own is not None and table is not None and not equal(own.read(), table.read()):
            findings.append(f"{origin}: {copy} is not {source}, to which transformers ties it; it cannot be exported.")
    if findings:
        raise UserError(*findings)


def check_finite(name: str, tensor: Tensor, origin: object, cure: str) -> None:
    """Raises ``UserError`` if a number of a weight is NaN or infinite."""
    if not isfinite(tensor).all():
        raise UserError(f"{origin}: {name} has numbers that are NaN or infinite; {cure}.")

"""``.pt`` files of the original implementation (microsoft/MPNet, on fairseq 0.9) and of annotated-mpnet.

Both are ``torch.save`` of a dict; the original's are usually older than PyTorch 1.6, in its older format:

    microsoft/MPNet    args: argparse.Namespace    model: {name: tensor}           names begin with ``decoder.``
                       optimizer_history, extra_state (with fairseq.meters), last_optimizer_state: not used
    annotated-mpnet    args: Namespace or dict     model_states: {name: tensor}    the same names without ``decoder.``
                       steps, epoch, best_loss, rng_state (with NumPy arrays): not used

    sentence_encoder.embed_tokens, embed_positions, emb_layer_norm    mpnet.embeddings.{word_embeddings, …, LayerNorm}
    sentence_encoder.relative_attention_bias                          mpnet.encoder.relative_attention_bias
    sentence_encoder.layers.i.self_attn.in_proj_{weight,bias}         thirds: mpnet.encoder.layer.i.attention.attn.{q, k, v}
    …self_attn.out_proj, self_attn_layer_norm                         …attention.attn.o, attention.LayerNorm
    …fc1, fc2, final_layer_norm                                       …intermediate.dense, output.dense, output.LayerNorm
    lm_head.{dense, layer_norm, bias}; lm_head.weight                 the same; the token table again

No code in a file is run. ``Namespace`` is allowed by its name; the few other types, all in sections that are not used,
become empty shells. Sizes are those of the tensors. Settings in ``args`` are applied or refused: the activation must be erf
gelu, LayerNorm must follow each block, relative positions must have 32 buckets up to distance 128.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from transformers import MPNetConfig

from mpnet_ds.errors import UserError
from mpnet_ds.hub.pretrained_mpnet import Pretrained, assemble
from mpnet_ds.models.mpnet.model import check_config
from mpnet_ds.models.mpnet.relative_position import NUM_BUCKETS
from mpnet_ds.tokenizer import PAD_ID
from mpnet_ds.zero.torch_file import load_torch_file

MAX_DISTANCE = 128
"""Largest relative position, in both programs and here."""
LAYER_NORM_EPS = 1e-5
"""Fixed: neither program has a flag for it."""
EMBEDDINGS = {
    "embed_tokens": "mpnet.embeddings.word_embeddings",
    "embed_positions": "mpnet.embeddings.position_embeddings",
    "emb_layer_norm": "mpnet.embeddings.LayerNorm",
    "relative_attention_bias": "mpnet.encoder.relative_attention_bias",
}
LAYER = {
    "self_attn.out_proj": "attention.attn.o",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}


class _Shell:
    """Replacement for an object that is not used: accepts any state and keeps none."""

    def __new__(cls, *_):
        return super().__new__(cls)

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        pass


_METERS = [f"fairseq.meters.{name}" for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")]
_ARRAYS = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
ALLOWED = [argparse.Namespace, *((_Shell, name) for name in (*_METERS, *_ARRAYS, "numpy.ndarray", "numpy.dtype"))]


def read_fairseq(file: str | Path) -> Pretrained:
    """Read the model of a ``.pt`` file, which has no tokenizer.

    Raises ``UserError`` for another kind of file, a damaged one, one with types other than those above, and for a model that
    computes something else.
    """
    path = Path(file)
    content = load_torch_file(path, ALLOWED, mmap=True)
    weights = _part(content, "model", "model_states")
    if not _are_weights(weights):
        raise UserError(f"{path} does not hold a fairseq model: 'model' (or 'model_states') is missing.")
    arguments = _arguments(content)
    if not isinstance(arguments, dict):
        raise UserError(f"{path}: 'args' is missing, which says what the model computes.")
    tensors = dict(_renamed(weights, path))
    model = assemble(str(path), _config(tensors, arguments, path), tensors, None)
    if arguments.get("original_vocab_size"):  # annotated-mpnet pads the table
        model.cut_table(min(int(arguments["original_vocab_size"]), model.config.vocab_size))
    return model


def _are_weights(found) -> bool:
    pairs = found.items() if isinstance(found, dict) else ()
    return bool(pairs) and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs)


def _part(content, *names: str):
    found = [content[name] for name in names if isinstance(content, dict) and name in content]
    return found[0] if found else None


def _arguments(content: dict):
    """Find the program's arguments; newer versions of fairseq have them in section ``model`` of ``cfg``."""
    arguments = _part(content, "args") or _part(_part(content, "cfg"), "model")
    return vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments


def _renamed(weights: dict[str, Tensor], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (transformers' name, tensor); names of other parts as they are."""
    for name, tensor in weights.items():
        # Prefixes of DistributedDataParallel and torch.compile.
        name = re.sub(r"^(?:(?:module|_orig_mod)\.)*(?:decoder\.)?", "", name)
        layer = re.fullmatch(r"sentence_encoder\.layers\.(\d+)\.(.+?)[._](weight|bias)", name)
        if layer and layer[2] == "self_attn.in_proj":
            for letter, third in zip("qkv", tensor.chunk(3), strict=False):
                yield f"mpnet.encoder.layer.{layer[1]}.attention.attn.{letter}.{layer[3]}", third
        elif layer and layer[2] in LAYER:
            yield f"mpnet.encoder.layer.{layer[1]}.{LAYER[layer[2]]}.{layer[3]}", tensor
        elif name.startswith("sentence_encoder."):
            part, _, kind = name.removeprefix("sentence_encoder.").rpartition(".")
            if kind == "version":  # a buffer
                continue
            if part not in EMBEDDINGS:
                raise UserError(f"{path}: {name} is not a weight of transformers' MPNet; the model cannot be used here.")
            yield f"{EMBEDDINGS[part]}.{kind}", tensor
        elif name != "version":
            yield {"lm_head.weight": "lm_head.decoder.weight"}.get(name, name), tensor


def _config(tensors: dict[str, Tensor], arguments: dict, path: Path) -> MPNetConfig:
    def shape(name: str) -> list[int]:
        if name not in tensors or tensors[name].ndim != 2:
            raise UserError(f"{path}: {name} is missing; this is not an MPNet with learned and relative positions.")
        return list(tensors[name].shape)

    layers = {int(found[1]) for name in tensors if (found := re.match(r"mpnet\.encoder\.layer\.(\d+)\.", name))}
    vocab_size, width = shape("mpnet.embeddings.word_embeddings.weight")
    buckets, heads = shape("mpnet.encoder.relative_attention_bias.weight")
    _check_arguments(arguments, heads, path)
    config = MPNetConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=shape("mpnet.encoder.layer.0.intermediate.dense.weight")[0],
        hidden_dropout_prob=float(arguments.get("dropout", 0.1)),
        attention_probs_dropout_prob=float(arguments.get("attention_dropout", 0.1)),
        max_position_embeddings=shape("mpnet.embeddings.position_embeddings.weight")[0],
        layer_norm_eps=float(arguments.get("layer_norm_eps", LAYER_NORM_EPS)),
        relative_attention_num_buckets=buckets,
    )
    try:
        check_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _check_arguments(arguments: dict, heads: int, path: Path) -> None:
    """Raise ``UserError`` where the model computed something other than MPNet does here."""
    expected = {
        "activation_fn": "gelu",
        "normalize_before": False,
        "encoder_attention_heads": heads,
        "pad_token_id": PAD_ID,
        "relative_attention_num_buckets": NUM_BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
    }
    found = {name: arguments.get(name, value) for name, value in expected.items()}
    if found["relative_attention_num_buckets"] is None:
        found["relative_attention_num_buckets"] = NUM_BUCKETS  # chosen by length; the table's rows tell which
    if found["relative_attention_max_distance"] is None:
        found["relative_attention_max_distance"] = _scaled_distance(int(arguments.get("max_positions") or 512))
    for name, value in expected.items():
        if found[name] != value:
            raise UserError(
                f"{path}: {name} was {found[name]}, MPNet here and in transformers always computes with {value}."
            )


def _scaled_distance(max_positions: int) -> int:
    """Compute annotated-mpnet's default, which grows with the length in multiples of 8."""
    distance = max(MAX_DISTANCE, MAX_DISTANCE * max_positions // 512)
    return (distance + 7) // 8 * 8

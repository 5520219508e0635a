"""Configuration of a measured training step, and its command-line arguments."""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from random_dataset import VOCAB_SIZE, make_dataset

from mpnet_ds.attention_backends import check_backend
from mpnet_ds.config.deepspeed_config import EngineConfig, check_accepted, load_deepspeed_config, resolve
from mpnet_ds.config.deepspeed_keys import ACCUMULATION, GLOBAL, MICRO
from mpnet_ds.config.recipe import Recipe, load_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.models.mpnet.model import check_config
from mpnet_ds.training.activation_checkpointing import SECTION

SHIPPED = Path(__file__).resolve().parent.parent / "ds_configs"
WIDTH_OF_A_HEAD = 64
TOKENS = 1_000_000
"""Size of the random dataset, which is repeated."""


@dataclass(frozen=True)
class Configuration:
    """One configuration; None leaves a value to the recipe or DeepSpeed's file."""

    recipe: str = "mpnet-base"
    deepspeed_config: str = "ds_configs/zero2.json"
    attention: str = "auto"
    attention_dropout: float | None = None
    """Dropout of attention probabilities."""
    precision: str | None = None
    """``fp32``, ``bf16`` or ``fp16``, whatever the file enables."""
    zero_stage: int | None = None
    checkpointing: str | None = None
    """``none``, ``all`` or a number of layers that are recomputed in backward."""
    micro_batch_size: int | None = None
    """Sequences; a step is one micro-batch of each rank."""
    layers: int | None = None
    hidden_size: int | None = None
    """Heads are 64 wide (or a single one is used), and the inner width is four times this."""
    seq_length: int | None = None
    compiled: bool = False
    """Each layer of the encoder goes through ``torch.compile``."""
    ranks: int = 1
    threads: int | None = None
    """Threads of each rank, on CPUs."""

    def sized_recipe(self) -> Recipe:
        """Build the recipe with these sizes."""
        recipe = load_recipe(self.recipe)
        model, seq_length = recipe.model, self.seq_length or recipe.data.seq_length
        if self.hidden_size:
            heads = max(1, self.hidden_size // WIDTH_OF_A_HEAD)
            sizes = {"hidden_size": self.hidden_size, "intermediate_size": 4 * self.hidden_size}
            model = replace(model, num_attention_heads=heads, **sizes)
        if self.attention_dropout is not None:
            model = replace(model, attention_probs_dropout_prob=self.attention_dropout)
        positions = max(model.max_position_embeddings, seq_length + 2)
        layers = self.layers or model.num_hidden_layers
        model = replace(model, num_hidden_layers=layers, max_position_embeddings=positions)
        return replace(recipe, model=model, data=replace(recipe.data, seq_length=seq_length))

    def engine_config(self, recipe: Recipe, supported: set[str]) -> EngineConfig:
        """Resolve DeepSpeed's configuration as training does.

        Args:
            recipe: from ``sized_recipe``.
            supported: precisions of the device.
        """
        raw, precision = load_deepspeed_config(self.deepspeed_config), self.precision or recipe.optimization.precision
        micro_batch = self.micro_batch_size or next(
            size for size in (raw.get(MICRO), recipe.optimization.micro_batch_size) if isinstance(size, int)
        )
        raw |= {MICRO: "auto", ACCUMULATION: "auto", GLOBAL: "auto"}
        if self.precision:
            raw |= {"bf16": {"enabled": precision == "bf16"}, "fp16": {"enabled": False}}
        if precision == "fp16":
            raw["fp16"] = load_deepspeed_config(SHIPPED / "fp16.json")["fp16"]
            precision = "auto"
        if self.zero_stage is not None:
            raw["zero_optimization"] = raw.get("zero_optimization", {}) | {"stage": self.zero_stage}
        if self.checkpointing is not None:
            raw.pop(SECTION, None)
        if self.checkpointing not in (None, "none"):
            raw[SECTION] = {} if self.checkpointing == "all" else {"number_checkpoints": int(self.checkpointing)}
        sizes = {"micro_batch_size": micro_batch, "global_batch_size": micro_batch * self.ranks, "precision": precision}
        optimization = replace(recipe.optimization, **sizes)
        hidden_size = recipe.model.hidden_size
        config = resolve(raw, optimization, self.ranks, supported, self.deepspeed_config, True, hidden_size)
        check_accepted(config, self.deepspeed_config)
        return config

    def check(self) -> None:
        """Raise ``UserError`` for problems that can be found before anything is started."""
        check_backend(self.attention)
        check_config(self.sized_recipe().model.config(VOCAB_SIZE))
        load_deepspeed_config(self.deepspeed_config)


def checkpointing(text: str) -> str:
    """Parse an argument: ``none``, ``all`` or a number of layers."""
    if text not in ("none", "all") and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is neither none nor all nor a number of layers")
    return text


def positive(text: str) -> int:
    """Parse an argument: a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add arguments with several values, which ``configurations_of`` combines."""
    several = {"nargs": "+", "default": [None]}
    parser.add_argument("--recipe", nargs="+", default=["mpnet-base"], metavar="NAME|FILE")
    parser.add_argument("--deepspeed_config", nargs="+", default=["ds_configs/zero2.json"], metavar="FILE")
    parser.add_argument("--attention", nargs="+", default=["auto"], metavar="NAME", help="back-ends (auto)")
    parser.add_argument(
        "--attention_dropout", **several, type=float, metavar="P", help="instead of the recipe's; flex needs 0"
    )
    parser.add_argument("--precision", **several, choices=("fp32", "bf16", "fp16"), help="instead of the file's")
    parser.add_argument("--zero_stage", **several, type=int, choices=range(4), help="instead of the file's")
    help = "layers recomputed in backward, instead of the file's: none, all or how many"
    parser.add_argument("--checkpointing", **several, type=checkpointing, metavar="none|all|N", help=help)
    parser.add_argument("--micro_batch_size", **several, type=positive, metavar="N", help="sequences (the recipe's)")
    parser.add_argument("--layers", **several, type=positive, metavar="N", help="instead of the recipe's")
    parser.add_argument("--hidden_size", **several, type=positive, metavar="N", help="the same; heads of 64")
    parser.add_argument("--seq_length", **several, type=positive, metavar="N", help="tokens of a sequence, the same")
    parser.add_argument("--compile", action="store_true", help="each layer through torch.compile")


def configurations_of(arguments: argparse.Namespace) -> list[Configuration]:
    """Make every combination of the values, in order; raise ``UserError`` if one is invalid."""
    names = [field.name for field in fields(Configuration) if isinstance(getattr(arguments, field.name, None), list)]
    lists = [getattr(arguments, name) for name in names]
    found = [
        Configuration(**dict(zip(names, values, strict=True)), compiled=arguments.compile)
        for values in itertools.product(*lists)
    ]
    for configuration in found:
        configuration.check()
    return found


def add_data_arguments(parser: argparse.ArgumentParser, vocab_size: int = VOCAB_SIZE) -> None:
    """Add ``--data`` and ``--vocab_size``."""
    parser.add_argument("--data", metavar="DIR", help="a dataset (default: random ids in a temporary folder)")
    parser.add_argument("--vocab_size", type=positive, default=vocab_size, metavar="N", help=f"of random ids ({vocab_size})")


@contextmanager
def opened_data(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the dataset's folder; one of random ids is removed when the block ends."""
    if arguments.data:
        yield arguments.data
        return
    if arguments.vocab_size < 100:
        raise UserError(f"--vocab_size is {arguments.vocab_size}; it must be at least 100.")
    with tempfile.TemporaryDirectory(prefix="mpnet-bench-") as folder:
        make_dataset(Path(folder) / "data", TOKENS, 1, arguments.vocab_size)
        yield str(Path(folder) / "data")

"""The estimate against what autograd keeps, what a GPU was measured to need, and the size of real checkpoints."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import MPNetConfig

from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.deepspeed_workarounds import wrap_call
from mpnet_ds.machine import GIB
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.module import ComputeSetting
from mpnet_ds.models.mpnet.activations import Work, saved_bytes
from mpnet_ds.models.mpnet.sizes import parameter_count, plan_of
from mpnet_ds.preflight.memory_estimate import Workload, checkpoint_bytes, estimate
from tests.runs import RECIPE

N = 109_518_527  # parameters of MPNet-base


def sizes(width: int, heads: int, layers: int, pieces: int, length: int, dropout: float) -> MPNetConfig:
    return MPNetConfig(
        vocab_size=pieces, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=length + 2, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, layer_norm_eps=1e-5,
    )  # fmt: skip


def work_of(config, objective="mpnet", length=512, predicted=77, sequences=1, precision="bf16", **setting) -> Work:
    return Work(config, objective, length, predicted, sequences, ComputeSetting(4 if precision == "fp32" else 2, **setting))


def workload(config, sequences=1, precision="bf16", stage=0, ranks=1, setting=None, **options) -> Workload:
    setting = ComputeSetting(4 if precision == "fp32" else 2, **(setting or {}))
    return Workload(plan_of(config, "mpnet", 512, 77, sequences, setting), precision, stage, ranks, **options)


def kept_by_autograd(work: Work) -> int:
    """Bytes of the tensors saved for backward in one forward pass on the CPU."""
    config, sequences, length, predicted = work.config, work.micro_batch_size, work.seq_length, work.num_predicted
    torch.manual_seed(0)
    model = MPNetForPretraining(config, work.objective).to(
        torch.float32 if work.setting.bytes_per_number == 4 else torch.bfloat16
    )
    model.keep_logits = False
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for layer in model.layers()[: work.setting.checkpointed_layers]:
        wrap_call(layer, partial(checkpoint, use_reentrant=False))
    storages = {}

    def remember(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(5, config.vocab_size - 1, (sequences, length))
    positions = torch.stack([torch.randperm(length)[:predicted] for _ in range(sequences)])
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model(ids, positions, torch.full((sequences, predicted), config.vocab_size - 1))
    return sum(storage.nbytes() for place, storage in storages.items() if place not in parameters)


@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(
    "config", [sizes(256, 4, 4, 5000, 128, 0.1), sizes(128, 8, 3, 20000, 256, 0.0)], ids=["wide", "long"]
)
def test_activations_are_what_autograd_keeps(config, is_checkpointed, precision, objective):
    length = config.max_position_embeddings - 2
    checkpointed = config.num_hidden_layers if is_checkpointed else 0
    work = work_of(
        config, objective, length, int(0.15 * length), 2, precision, on_gpu=False, checkpointed_layers=checkpointed
    )
    assert saved_bytes(work) == pytest.approx(kept_by_autograd(work), rel=0.1)


@pytest.mark.parametrize(
    ("zero_stage", "precision", "checkpointed", "rows", "measured"),
    [
        (0, "bf16", 0, 32, 12.1),
        (0, "bf16", 0, 64, 22.6),
        (2, "bf16", 0, 32, 12.6),
        (2, "bf16", 0, 64, 22.6),
        (2, "fp32", 0, 64, 42.5),
        (2, "bf16", 12, 32, 4.7),
        (2, "bf16", 12, 64, 6.7),
    ],
)
def test_the_total_is_near_what_was_measured_on_a_gpu(zero_stage, precision, checkpointed, rows, measured):
    """benchmarks/results/mpnet-base_h200_2026-11-20.md, peak GiB with sdpa, when logits still lay in memory whole."""
    config = load_recipe("mpnet-base").model.config(30_527)
    work = workload(config, rows, precision, zero_stage, setting={"checkpointed_layers": checkpointed})
    assert estimate(work).total / GIB == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("stage", "ranks", "precision", "parameters", "gradients", "states"),
    [
        (0, 4, "fp32", 4, 4, 8),
        (0, 4, "bf16", 2, 2, 12),
        (1, 4, "bf16", 2, 2, 3),
        (2, 4, "fp32", 4, 1, 3),
        (2, 4, "bf16", 2, 0.5, 3),
        (3, 4, "bf16", 0.5, 0.5, 3),
        (3, 1, "fp32", 4, 4, 12),
    ],
)
def test_states_are_divided_as_the_stage_says(stage, ranks, precision, parameters, gradients, states):
    config = load_recipe("mpnet-base").model.config(30_527)
    work = workload(config, 1, precision, stage, ranks, reduce_bucket_size=0, max_live_parameters=0)
    memory = estimate(work)
    found = [memory.parameters / N, memory.gradients / N, memory.optimizer_states / N]
    assert found == pytest.approx([parameters, gradients, states], rel=1e-6)


def test_what_is_offloaded_lies_on_the_host():
    config = load_recipe("mpnet-base").model.config(30_527)
    here, there = (
        estimate(
            workload(
                config, 1, "bf16", 3, 2, max_live_parameters=0, parameters_on_host=on_host, optimizer_on_host=on_host,
                setting={"checkpointed_layers": 12, "checkpoints_on_host": on_host},
            )
        )
        for on_host in (False, True)
    )  # fmt: skip
    assert (there.parameters, there.optimizer_states) == (0, 0)
    assert there.host > here.parameters + here.optimizer_states
    assert there.activations < here.activations
    assert there.joined().total > there.total


@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ("zero2", 2),
        pytest.param("zero3", 2, marks=pytest.mark.long),
        *(pytest.param(config, 1, marks=pytest.mark.long) for config in ("zero0", "zero1", "zero2", "zero3", "bf16")),
    ],
)
def test_a_checkpoint_is_as_large_as_it_was_said_to_be(trained, tokenizer, config, ranks):
    run = trained(config, ranks)
    files = [path for path in run.newest_checkpoint.iterdir() if path.suffix == ".pt"]
    # A file of such a small model is also its names and layout: a model's 100 tensors, 250 bytes each, and zip entries.
    overhead = 40_000 * len(files)
    model_config = load_recipe(str(RECIPE)).model.config(tokenizer.vocab_size)
    stage, precision = (2, "bf16") if config == "bf16" else (int(config[-1]), "fp32")
    said = checkpoint_bytes(workload(model_config, 8, precision, stage, ranks))
    assert said == pytest.approx(sum(path.stat().st_size for path in files), rel=0.1, abs=overhead)
    assert said > 8 * parameter_count(model_config)

"""Muon: the same steps as PyTorch's two optimizers make, in the engine too, and refused where it would be another."""

import shutil

import pytest
import torch

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.config.deepspeed_config import examine, resolve
from mpnet_ds.config.recipe import OptimizationRecipe, load_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.sizes import hidden_matrix_numbers, parameter_count, plan_of
from mpnet_ds.preflight.memory_estimate import Workload, checkpoint_bytes, estimate
from mpnet_ds.training.engine import parameter_groups
from mpnet_ds.training.muon import make_muon
from mpnet_ds.zero.torch_file import load_shard
from tests.runs import RECIPE, pretrain, recipe_with
from tests.training.test_reference_loop import TRAINING, assert_as_in, reference_run

VALUES = {"lr": 4e-3, "momentum": 0.9, "betas": (0.8, 0.95), "eps": 1e-5}
DECAY = 0.3


@pytest.fixture
def models() -> list[MPNetForPretraining]:
    """Two of the same weights."""
    config = load_recipe(str(RECIPE)).model.config(60)
    models = [MPNetForPretraining(config) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models


def separately(model: MPNetForPretraining) -> list[torch.optim.Optimizer]:
    """PyTorch's optimizers, each with what is its own, by name."""
    by_name = dict(model.named_parameters())
    hidden = [name for name in by_name if name.endswith(".weight") and any(
        part in name for part in ("attn.q.", "attn.k.", "attn.v.", "attn.o.", ".dense."))]  # fmt: skip
    tables = [name for name in by_name if name.endswith(("embeddings.weight", "relative_attention_bias.weight"))]
    vectors = [name for name in by_name if name not in hidden and name not in tables]
    assert len(hidden) == 2 * 6 + 1
    assert len(tables) == 3
    groups = [{"params": [by_name[name] for name in tables], "weight_decay": DECAY},
              {"params": [by_name[name] for name in vectors], "weight_decay": 0.0}]  # fmt: skip
    return [
        torch.optim.AdamW(groups, lr=VALUES["lr"], betas=VALUES["betas"], eps=VALUES["eps"], fused=True),
        torch.optim.Muon(
            [by_name[name] for name in hidden], lr=VALUES["lr"], momentum=VALUES["momentum"], weight_decay=DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]  # fmt: skip


def put_gradients(models: list[MPNetForPretraining], seed: int) -> None:
    torch.manual_seed(seed)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def together(model: MPNetForPretraining) -> torch.optim.Optimizer:
    return make_muon(model, VALUES, parameter_groups(model, DECAY))


def test_updates_are_those_of_torchs_two_optimizers(models):
    """Bit for bit, over three steps at other learning rates, and after its state was saved and loaded."""
    optimizer, others = together(models[0]), separately(models[1])
    for update in range(3):
        put_gradients(models, update)
        for each in (optimizer, *others):
            for group in each.param_groups:
                group["lr"] = VALUES["lr"] * (update + 1)
            each.step()
        saved = optimizer.state_dict()
        optimizer = together(models[0])
        optimizer.load_state_dict(saved)
        for name, weight in models[0].named_parameters():
            assert torch.equal(weight, models[1].get_parameter(name)), (update, name)


def test_a_matrix_moves_by_a_fifth_of_the_learning_rate_whatever_its_shape(models):
    """Root mean square of a step, as AdamW's is after its first steps; the iterations leave a third of play."""
    optimizer = together(models[0])
    before = [matrix.detach().clone() for matrix in models[0].hidden_matrices()]
    put_gradients(models, 0)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    steps = [matrix.detach() - old for matrix, old in zip(models[0].hidden_matrices(), before, strict=True)]
    assert {tuple(step.shape) for step in steps} == {(32, 32), (64, 32), (32, 64)}
    for step in steps:
        assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * VALUES["lr"], rel=0.35)


def test_what_it_keeps_is_what_the_estimate_says(models):
    optimizer = together(models[0])
    put_gradients(models, 0)
    optimizer.step()
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    config = models[0].config
    assert sum(matrix.numel() for matrix in models[0].hidden_matrices()) == hidden_matrix_numbers(config)
    work = Workload(plan_of(config, "mpnet", 32, 5, 1), uses_muon=True)
    assert kept == estimate(work).optimizer_states == 8 * parameter_count(config) - 4 * hidden_matrix_numbers(config)
    assert checkpoint_bytes(work) == 4 * parameter_count(config) + kept


def test_training_is_that_of_a_plain_loop(trained, dataset_folder):
    """Iterations in bf16 carry differences of rounding on, hence the tolerance; AdamW's losses are far outside of it."""
    recipe, run = load_recipe(str(RECIPE)), trained("muon")

    def optimizer(model, groups):
        values = {"lr": 1.0, "betas": recipe.optimization.betas, "eps": recipe.optimization.eps, "momentum": 0.95}
        return make_muon(model, values, groups)

    reference = reference_run(recipe, dataset_folder, optimizer=optimizer)
    assert_as_in(reference, run, TRAINING, tolerance=1e-3)
    apart = [abs(a - b) for a, b in zip(run.losses, trained("zero2").losses, strict=True)]
    assert max(apart) > 0.01
    assert "optimizer Muon" in run.out


def test_weights_of_a_checkpoint_in_16_bits_are_its_fp32_ones(dataset_folder, tmp_path):
    recipe = recipe_with(tmp_path, optimization={"precision": "bf16", "max_steps": 2})
    run = pretrain(tmp_path / "run", "--recipe", recipe, "--data", dataset_folder, config="muon")
    assert run.code == 0, run.out + run.err
    module, weights = (
        load_shard(run.newest_checkpoint / "mp_rank_00_model_states.pt")["module"],
        load_consolidated(run.folder),
    )
    assert weights.keys() == module.keys()
    assert all(torch.equal(weights[name].bfloat16(), module[name]) for name in module)
    assert any(not torch.equal(weights[name], module[name].float()) for name in module)


@pytest.mark.parametrize(("before", "now"), [("zero0", "muon"), ("muon", "zero2")])
def test_a_checkpoint_of_the_other_optimizer_is_refused_with_the_cure(trained, dataset_folder, tmp_path, before, now):
    output = shutil.copytree(trained(before).folder, tmp_path / "run")
    run = pretrain(output, "--recipe", RECIPE, "--data", dataset_folder, "--max_steps", 10, config=now)
    assert run.code == 2
    assert "step-00000008 cannot be converted (" in run.err
    assert "optimizer adamw → optimizer muon" in run.err or "optimizer muon → optimizer adamw" in run.err
    assert "--init_from" in run.err
    assert trained(before).repeatable == run.repeatable


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_that_cut_matrices_are_refused(stage):
    with pytest.raises(UserError, match=r"x.json: Muon takes whole matrices, .*ZeRO 1 to 3 cut them.* Take ZeRO 0"):
        resolved({"zero_optimization": {"stage": stage}})


def test_offloading_is_refused():
    with pytest.raises(UserError, match=r"x.json: Muon takes .*offload_optimizer"):
        resolved({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}})


def test_momentum_and_the_recipes_values_are_taken():
    config = resolved({"optimizer": {"type": "Muon", "params": {"lr": "auto"}}})
    assert config.uses_muon
    expected = {"lr": 2e-3, "momentum": 0.95, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}
    assert config.engine["optimizer"]["params"] == expected


@pytest.mark.parametrize("key", ["muon_lr", "adam_lr", "ns_method"])
def test_what_only_deepspeeds_own_takes_is_refused_by_name(key):
    _, findings = examine({"optimizer": {"type": "Muon", "params": {key: 0.02}}}, "x.json")
    assert [finding.partition(".")[0] for finding in findings] == ["x"]
    assert f"unknown key 'optimizer.params.{key}' for Muon" in findings[0]


def resolved(changes: dict):
    raw = {"optimizer": {"type": "Muon"}} | changes
    return resolve(raw, OptimizationRecipe(learning_rate=2e-3), 1, {"fp32"}, "x.json")

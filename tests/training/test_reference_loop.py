"""Training against a plain PyTorch loop, written from the documentation alone: neither DeepSpeed nor the trainer is in it.

The loop is the contract: loss, accuracy, norm of the gradient, learning rate and held-out loss of every step. The masks
of dropout belong to it, since a run that is continued by a later version should go on as it began.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MPNetModel

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.config.recipe import Recipe, load_recipe
from mpnet_ds.data import PretrainingDataset
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.attention import eager_and_sdpa
from mpnet_ds.models.layers import dropout
from mpnet_ds.models.mpnet import model as mpnet
from tests.runs import RECIPE, Run, pretrain, recipe_with

TOLERANCE = 1e-5
TRAINING = ("loss", "accuracy", "learning_rate", "grad_norm")
HELD_OUT = ("eval_loss", "eval_accuracy")


def reference_run(recipe: Recipe, folder: Path, optimizer: Callable | None = None) -> list[dict]:
    """The lines that ``metrics.jsonl`` should have, for log interval 1.

    The global batch goes through whole: ranks and micro-batches matter neither to the loss nor to dropout.
    ``optimizer(model, groups)`` makes another optimizer than AdamW.
    """
    plan, data = recipe.optimization, open_rows(recipe, folder)
    torch.manual_seed(recipe.run.seed)
    model = MPNetForPretraining(recipe.model.config(data.tokenizer.vocab_size))
    model.dropout_seed = recipe.run.seed
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    make = optimizer or (lambda model, groups: torch.optim.AdamW(groups, betas=plan.betas, eps=plan.eps))
    optimizer = make(model, groups)
    lines = [held_out(model, recipe, folder, step=0)]
    for step in range(1, plan.max_steps + 1):
        rows = data.consecutive((step - 1) * plan.global_batch_size, plan.global_batch_size)
        batch = {name: torch.from_numpy(array) for name, array in rows.items()}
        slots = int((batch["predicted_positions"] >= 0).sum())
        optimizer.zero_grad()
        numbers = {"sequence_numbers": torch.arange(plan.global_batch_size), "step": torch.tensor(step)}
        total, hits = score(model, batch | numbers)
        (total / slots).backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        if plan.gradient_clipping and norm > plan.gradient_clipping:
            for parameter in model.parameters():
                parameter.grad *= plan.gradient_clipping / norm
        rate = plan.learning_rate * min(
            step / plan.warmup_steps, (plan.max_steps + 1 - step) / (plan.max_steps + 1 - plan.warmup_steps)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        line = {"loss": total.item() / slots, "accuracy": hits / slots, "learning_rate": rate, "grad_norm": float(norm)}
        lines.append({"step": step} | line)
        if step % recipe.run.eval_interval == 0 or step == plan.max_steps:
            lines.append(held_out(model, recipe, folder, step))
    return lines


def open_rows(recipe: Recipe, folder: Path) -> PretrainingDataset:
    rows = recipe.data
    return PretrainingDataset(
        folder,
        rows.seq_length,
        recipe.objective.masking,
        recipe.run.seed,
        rows.sample_mode,
        rows.packing,
        rows.isolate_documents,
    )


@torch.no_grad()
def held_out(model: MPNetForPretraining, recipe: Recipe, folder: Path, step: int) -> dict:
    """The evaluation line of the first rows of the held-out data, taken through the model at once, without dropout."""
    data = open_rows(recipe, folder / "holdout")
    rows = data.batch(range(min(recipe.run.eval_samples, len(data))))
    batch = {name: torch.from_numpy(array) for name, array in rows.items()}
    total, hits = score(model.eval(), batch)
    model.train()
    slots = int((batch["predicted_positions"] >= 0).sum())
    return {"step": step, "eval_loss": total.item() / slots, "eval_accuracy": hits / slots}


def score(model: MPNetForPretraining, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Sum of the cross-entropies of all predicted slots, and how many of them the highest logit gets right."""
    used = batch["predicted_positions"] >= 0
    logits = model(**batch).logits[used]
    tokens = batch["input_ids"].gather(1, batch["predicted_positions"].clamp(min=0))[used]
    return F.cross_entropy(logits, tokens, reduction="sum"), int((logits.argmax(dim=1) == tokens).sum())


def assert_as_in(reference: list[dict], run: Run, names: tuple[str, ...], tolerance: float = TOLERANCE) -> None:
    for name in names:
        found = {line["step"]: line[name] for line in run.metrics if name in line}
        assert found == pytest.approx({line["step"]: line[name] for line in reference if name in line}, abs=tolerance), name


@pytest.mark.parametrize(
    ("config", "ranks"), [("zero0", 1), ("zero1", 1), ("zero2", 1), ("zero2", 2), ("zero3", 1), ("zero3", 2)]
)
def test_training_is_that_of_a_plain_loop(trained, plain_loop, config, ranks):
    assert_as_in(plain_loop, trained(config, ranks), TRAINING + HELD_OUT)


@pytest.fixture(scope="module")
def plain_loop(dataset_folder) -> list[dict]:
    return reference_run(load_recipe(str(RECIPE)), dataset_folder)


HARD = {
    "model": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2},
    # Each document has its own sequence: sequences and micro-batches differ in their number of predicted tokens.
    "data": {"seq_length": 32, "sample_mode": "document", "packing": False},
    "optimization": {
        "learning_rate": 8e-3,
        "warmup_steps": 3,
        "max_steps": 11,
        "global_batch_size": 12,
        "micro_batch_size": 2,
        "betas": [0.8, 0.95],
        "eps": 1e-5,
        "weight_decay": 2.0,
        "gradient_clipping": 1.5,
        "precision": "fp32",
    },
    # 19 rows are no multiple of two ranks' micro batches; the last evaluation is not at a multiple of the interval.
    "run": {"log_interval": 1, "eval_interval": 4, "eval_samples": 19, "save_interval": 50, "seed": 7},
}


@pytest.fixture(scope="module")
def hard_run(dataset_folder, tmp_path_factory) -> tuple[Recipe, Run]:
    """Two ranks, three accumulation steps, dropout, and values with which no ingredient of a step is idle."""
    folder = tmp_path_factory.mktemp("hard")
    recipe = recipe_with(folder, **HARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # the masks of dropout differ between devices
        run = pretrain(folder / "run", "--recipe", recipe, "--data", dataset_folder, ranks=2)
    assert run.code == 0, run.out + run.err
    assert "2 × 3 accumulated × 2 rank(s)" in run.out
    return load_recipe(str(recipe)), run


def test_training_with_every_ingredient_is_that_of_a_plain_loop(hard_run, dataset_folder):
    recipe, run = hard_run
    reference = reference_run(recipe, dataset_folder)
    norms = [line["grad_norm"] for line in reference if "grad_norm" in line]
    assert min(norms) < 1.5 < max(norms)  # clipping bites in some steps and not in others
    assert_as_in(reference, run, TRAINING + HELD_OUT)


def test_held_out_loss_is_that_of_the_checkpoint_without_dropout(hard_run, dataset_folder):
    recipe, run = hard_run
    model = MPNetForPretraining(recipe.model.config(open_rows(recipe, dataset_folder).tokenizer.vocab_size))
    model.load_state_dict(load_consolidated(run.folder))
    assert run.eval_losses[-1] == pytest.approx(held_out(model, recipe, dataset_folder, 11)["eval_loss"], abs=TOLERANCE)


def test_dropout_falls_where_it_does_in_transformers(monkeypatch):
    """With PyTorch's draws the plain encoder draws the same masks in the same places as ``MPNetModel`` does in training."""
    for module, name in ((dropout, "dropout"), (eager_and_sdpa, "drop")):  # our own draws: models/layers/test_dropout.py
        monkeypatch.setattr(module, name, lambda x, seeds, probability: F.dropout(x, probability))
    monkeypatch.setattr(mpnet, "drawn_seeds", lambda places, batch, device: torch.zeros(places, batch))
    config = load_recipe(str(RECIPE)).model.config(50)
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = 0.3, 0.2
    ours = MPNetForPretraining(config, attention="eager").train()
    theirs = MPNetModel(config, add_pooling_layer=False).train()
    theirs.load_state_dict({k.removeprefix("mpnet."): v for k, v in ours.state_dict().items() if k.startswith("mpnet.")})
    ids = torch.randint(5, 50, (3, 17))
    hidden = []
    for encode in (ours.encode, lambda ids: theirs(ids).last_hidden_state):
        torch.manual_seed(1)
        hidden.append(encode(ids))
    assert torch.allclose(*hidden, atol=1e-6)
    assert not torch.allclose(ours.encode(ids), hidden[0], atol=1e-2)

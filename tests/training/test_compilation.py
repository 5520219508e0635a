"""--compile: the same losses, the same checkpoints, and nothing compiled but at first use."""

import re
import shutil
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.deepspeed_workarounds import wrap_call
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.training.compilation import compile_layers
from tests.runs import RECIPE, pretrain
from tests.training.faulty_runs import FAULTY

TOLERANCE = 1e-5  # nats, fp32, without dropout


def test_a_run_is_compiled_on_the_way_and_goes_on_without(trained, dataset_folder, tmp_path):
    """ZeRO 3, whose hooks are hardest on a compiler: six steps without the flag, one or two with it, one without."""
    plain = trained("zero3")
    output = shutil.copytree(plain.folder, tmp_path / "run")
    shutil.rmtree(output / "checkpoints" / "step-00000008")
    flags = ["--recipe", RECIPE, "--data", dataset_folder, "--eval_interval", 1, "--save_interval", 1]
    compiled = pretrain(output, *flags, "--compile", config="zero3", script=[FAULTY, "graphs"])
    assert compiled.code == 0, compiled.err
    assert "step-00000006 at step 6" in compiled.out
    assert compiled.out.index("The layers are compiled at their first use") < compiled.out.index("graphs: ")
    counts = re.findall(r"graphs: (\d+), breaks: (\d+)", compiled.out)
    # In evaluation all layers but the last, and the last; the same two in training; then nothing any more.
    assert counts == [("2", "0"), *[("4", "0")] * 4]
    assert compiled.losses == pytest.approx(plain.losses, abs=TOLERANCE)
    first, second = [line for line in compiled.metrics if line["step"] > 6 and "loss" in line]
    assert first["first_step_seconds"] > 5 / second["tokens_per_second"] * 8 * 32
    assert first["tokens_per_second"] is None
    assert f"in which layers are compiled, took {first['first_step_seconds']:.1f} s" in compiled.out
    before, after = load_consolidated(plain.folder), load_consolidated(output)
    assert list(before) == list(after)
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in before)
    shutil.rmtree(output / "checkpoints" / "step-00000008")
    again = pretrain(output, *flags, config="zero3")
    assert "step-00000007 at step 7" in again.out, again.err
    assert again.losses == pytest.approx(plain.losses, abs=TOLERANCE)


@pytest.mark.long
def test_layers_that_are_computed_again_draw_the_same_dropout():
    """Otherwise gradients would belong to other masks than the loss, and nobody would notice."""
    config = load_recipe(str(RECIPE)).model.config(50)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.3
    torch.manual_seed(0)
    model = MPNetForPretraining(config, "mlm")
    compile_layers(model, zero_stage=0)
    ids = torch.randint(5, 50, (2, 16))
    gradients = []
    for is_checkpointed in (False, True):
        for layer in model.layers() if is_checkpointed else []:
            wrap_call(layer, partial(checkpoint, use_reentrant=True))
        model.zero_grad()
        torch.manual_seed(1)
        model(ids, torch.tensor([[3, 7], [1, 2]]), ids[:, :2]).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert gradients[0].abs().max() > 1e-2
    assert torch.allclose(*gradients, atol=1e-6)


def test_no_compiler(dataset_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, "--compile")
    assert run.code == 2
    assert "error: --compile needs a compiler (no-such-compiler), not found here: install" in run.err
    assert not (tmp_path / "run").exists()

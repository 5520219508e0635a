import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mpnet_ds.checkpoint import consolidate, load_consolidated
from mpnet_ds.checkpoint.store import find_checkpoint
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.zero.torch_file import TensorFile, load_shard
from tests.runs import RECIPE


@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ("zero2", 2),
        ("zero3", 2),
        *(
            pytest.param(config, 1, marks=pytest.mark.long) for config in ("zero1", "zero2", "bf16")
        ),  # test_foreign.py has them too
    ],
)
def test_weights_are_bit_equal_to_deepspeeds_own_tool(own, config, ranks):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    checkpoint = find_checkpoint(own(config, ranks))
    expected = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    found = load_consolidated(checkpoint)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("config", ["zero0", "zero1", "zero2", "zero3"])
def test_weights_fill_the_model_whatever_the_stage(own, config):
    weights = load_consolidated(own(config))
    model = MPNetForPretraining(load_recipe(str(RECIPE)).model.config(999))
    model.load_state_dict(weights, strict=True)
    reference = load_consolidated(own("zero2"))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, reference[name], atol=2e-4, rtol=0, msg=name)


def test_tied_names_are_one_tensor(own):
    for config in ("zero0", "zero2", "zero3"):
        weights = load_consolidated(own(config))
        assert weights["lm_head.decoder.weight"] is weights["mpnet.embeddings.word_embeddings.weight"]


def test_file_holds_the_weights_once(own, tmp_path):
    weights = load_consolidated(own("zero2"))
    (path,) = consolidate(own("zero2"), tmp_path / "out")
    written = load_file(path)
    assert path.name == "model.safetensors"
    assert set(weights) - set(written) == {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.items())


def test_dtype_and_shard_size_are_obeyed(own, tmp_path):
    paths = consolidate(own("zero2"), tmp_path / "out", dtype="bf16", max_shard_size="50KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = [path for path in paths if path.suffix == ".safetensors"]
    assert len(shards) > 1
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    written = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    weights = load_consolidated(own("zero2"))
    assert all(torch.equal(tensor, weights[name].bfloat16()) for name, tensor in written.items())


def test_existing_output_is_left_alone(own, tmp_path):
    (tmp_path / "precious").write_text("text")
    with pytest.raises(UserError, match="exists and is not empty"):
        consolidate(own("zero2"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def foreign_copy(checkpoint, folder):
    """A copy as another program would have written it: without this project's manifest."""
    copy = shutil.copytree(checkpoint, folder)
    (copy / "manifest.json").unlink()
    return copy


def test_missing_shard_is_named_and_nothing_is_written(own, tmp_path):
    copy = foreign_copy(find_checkpoint(own("zero2", 2)), tmp_path / "checkpoint")
    next(copy.glob("zero_pp_rank_1_*optim_states.pt")).unlink()
    with pytest.raises(UserError, match=r"zero_pp_rank_1_mp_rank_00_optim_states.pt is missing"):
        consolidate(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("victim", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_foreign_code_in_a_shard_is_refused_and_does_not_run(own, tmp_path, victim):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    copy = foreign_copy(find_checkpoint(own("zero2")), tmp_path / "checkpoint")
    content = load_shard(copy / victim)
    content["innocent"] = [{"deep": (Malice(),)}]
    torch.save(content, tmp_path / victim)  # not over the file, which is mapped into memory
    os.replace(tmp_path / victim, copy / victim)
    with pytest.raises(UserError, match=victim):
        load_consolidated(copy)
    assert not (tmp_path / "pwned").exists()


def test_truncated_shard_is_named(own, tmp_path):
    copy = foreign_copy(find_checkpoint(own("zero2")), tmp_path / "checkpoint")
    shard = next(copy.glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=shard.name):
        load_consolidated(copy)


def change_byte(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_flipped_bit_in_the_weights_is_found(own, tmp_path, has_manifest):
    copy = shutil.copytree(find_checkpoint(own("zero2", 2)), tmp_path / "checkpoint")
    if not has_manifest:
        (copy / "manifest.json").unlink()
    shard = next(copy.glob("zero_pp_rank_1_*"))
    weights = TensorFile(shard).content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    change_byte(shard, weights[0].record.begin + weights[0].record.size - 1)
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        load_consolidated(copy)
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        consolidate(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_moments_are_not_touched(own, tmp_path):
    """Their bytes may be anything."""
    checkpoint = find_checkpoint(own("zero2", 2))
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    for shard in copy.glob("*optim_states.pt"):
        states = TensorFile(shard).content["optimizer_state_dict"]["base_optimizer_state"]["state"]
        for state in states.values():
            change_byte(shard, state["exp_avg"].record.begin)
    weights = load_consolidated(checkpoint)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_consolidated(copy).items())


def peak_memory() -> int:
    """Most resident bytes of this process since the kernel was told to begin anew."""
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def test_a_few_mib_of_memory_suffice_for_weights_of_64(tmp_path):
    size = torch.Size([4096, 4096])
    weight = torch.arange(size.numel(), dtype=torch.float32)
    common = {"ds_config": {}, "ds_version": "0.19.8"}
    model = {"module": {"weight": weight.view(size).bfloat16()}, "param_shapes": [{"weight": size}]}
    model |= {"buffer_names": [], "frozen_param_shapes": {}}
    torch.save(model | common, tmp_path / "mp_rank_00_model_states.pt")
    for rank, half in enumerate(weight.split(len(weight) // 2)):
        states = {"zero_stage": 2, "partition_count": 2, "single_partition_of_fp32_groups": [half.clone()]}
        torch.save({"optimizer_state_dict": states} | common, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak_memory()
    (path,) = consolidate(tmp_path, tmp_path / "out")
    assert peak_memory() - before < 24 << 20
    assert torch.equal(load_file(path)["weight"].flatten(), weight)


def test_a_shard_of_another_checkpoint_is_found_by_the_manifest(own, tmp_path):
    """Of the same run, stage and sizes: at ZeRO 3 nothing else would tell."""
    older, newer = (own("zero3", 2) / "checkpoints" / f"step-{step:08d}" for step in (6, 8))
    copy = shutil.copytree(newer, tmp_path / "checkpoint")
    name = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shutil.copy(older / name, copy / name)
    with pytest.raises(UserError, match=f"{name} is not what manifest.json says"):
        load_consolidated(copy)


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load_consolidated(tmp_path)
    with pytest.raises(UserError, match="no checkpoint folder"):
        load_consolidated(tmp_path / "nowhere")

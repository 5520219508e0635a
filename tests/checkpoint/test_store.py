import json
import shutil

import pytest

from mpnet_ds.checkpoint.store import CheckpointStore, find_checkpoint, read_info, verify
from mpnet_ds.errors import UserError


def test_manifest_tells_where_the_run_stood(trained):
    run = trained("zero2", 2)
    info = read_info(run.newest_checkpoint)
    assert (info.step, info.consumed_samples, info.world_size, info.zero_stage) == (8, 64, 2, 2)
    assert info.eval_loss == pytest.approx(run.eval_losses[-1])


def test_a_checkpoint_is_found_from_itself_its_run_and_its_parent(trained):
    run = trained()
    for place in (run.newest_checkpoint, run.folder, run.folder / "checkpoints"):
        assert find_checkpoint(place) == run.newest_checkpoint


def test_every_kind_of_damage_is_named(trained, tmp_path):
    whole = trained().newest_checkpoint
    verify(whole)
    for number, path in enumerate(sorted(whole.glob("*.pt"))):
        copy = shutil.copytree(whole, tmp_path / f"flipped-{number}")
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (copy / path.name).write_bytes(damaged)
        with pytest.raises(UserError, match=path.name):
            verify(copy)
        (copy / path.name).unlink()
        with pytest.raises(UserError, match=f"{path.name} is missing"):
            verify(copy)


def test_no_damage_of_the_manifest_itself_goes_unseen(trained, tmp_path):
    whole = (trained().newest_checkpoint / "manifest.json").read_bytes()
    read_info(trained().newest_checkpoint)
    for place in range(len(whole)):
        (tmp_path / "manifest.json").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            info = read_info(tmp_path)
        except UserError:
            continue
        assert info == read_info(trained().newest_checkpoint), place  # white space


def test_a_manifest_of_another_format_is_refused_with_its_version(trained, tmp_path):
    content = json.loads((trained().newest_checkpoint / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"version": content["version"] - 1}))
    with pytest.raises(UserError, match=f"format version {content['version'] - 1}, this program reads {content['version']}"):
        read_info(tmp_path)


def test_a_folder_without_manifest_is_no_checkpoint(trained, tmp_path):
    run = shutil.copytree(trained().folder, tmp_path / "run")
    (find_checkpoint(run) / "manifest.json").unlink()
    assert CheckpointStore(run).newest().name == "step-00000006"
    with pytest.raises(UserError, match=r"not a complete checkpoint|no checkpoint"):
        find_checkpoint(run / "checkpoints" / "step-00000008")


def test_the_best_checkpoint_is_kept_beside_the_newest_two(dataset_folder, tmp_path):
    """A learning rate that ruins the model: the first evaluation stays the best."""
    from tests.runs import pretrain, recipe_with

    values = {"learning_rate": 30.0, "warmup_steps": 6}
    recipe = recipe_with(tmp_path, optimization=values, run={"eval_interval": 1, "save_interval": 1})
    run = pretrain(tmp_path / "run", "--recipe", recipe, "--data", dataset_folder)
    assert run.code == 0, run.err
    best = min(range(1, 9), key=lambda step: run.eval_losses[step])
    assert best < 7
    kept = [path.name for path in CheckpointStore(run.folder).all()]
    assert kept == [f"step-{step:08d}" for step in (best, 7, 8)]

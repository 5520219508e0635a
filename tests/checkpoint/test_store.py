"""The store: what a manifest promises, what is found, what is kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mpnet_ds.checkpoint.shard_files import ShardFiles
from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore, find_checkpoint, read_info, verify
from mpnet_ds.errors import UserError
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.process_group import Ranks

ALONE = Disks(Ranks(0, 0, 1, torch.device("cpu"), ("here",)))


def test_manifest_tells_how_far_the_run_was(trained):
    run = trained()
    info = read_info(run.newest_checkpoint)
    assert (info.step, info.consumed_samples, info.world_size, info.zero_stage) == (8, 64, 1, 2)
    assert info.eval_loss == pytest.approx(run.eval_losses[-1])


def test_a_checkpoint_is_found_from_itself_its_run_and_its_parent(trained):
    run = trained()
    for place in (run.newest_checkpoint, run.folder, run.folder / "checkpoints"):
        assert find_checkpoint(place) == run.newest_checkpoint


def test_every_kind_of_damage_is_named(own, tmp_path):
    whole = find_checkpoint(own("zero2"))
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


@pytest.fixture
def manifest(tmp_path) -> Path:
    """The manifest of a small checkpoint, which has everything that one can have."""
    save(tmp_path, step=1)
    return find_checkpoint(tmp_path) / "manifest.json"


def test_no_damage_of_the_manifest_itself_goes_unseen(manifest):
    whole, expected = manifest.read_bytes(), read_info(manifest.parent)
    for place in range(len(whole)):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            info = read_info(manifest.parent)
        except UserError:
            continue
        assert info == expected, place  # white space


def test_a_manifest_of_another_format_is_refused_with_its_version(manifest, tmp_path):
    content = json.loads(manifest.read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"version": content["version"] - 1}))
    with pytest.raises(UserError, match=f"format version {content['version'] - 1}, this program reads {content['version']}"):
        read_info(tmp_path)


def test_a_folder_without_manifest_is_no_checkpoint(trained, tmp_path):
    run = shutil.copytree(trained().folder, tmp_path / "run")
    (find_checkpoint(run) / "manifest.json").unlink()
    assert CheckpointStore(run).newest().name == "step-00000006"
    with pytest.raises(UserError, match=r"not a complete checkpoint|no checkpoint"):
        find_checkpoint(run / "checkpoints" / "step-00000008")


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([6.0, 5.0, 5.5, 7.0, 8.0], [2, 4, 5]),  # a run that diverged
        ([6.0, 5.0, 4.0, 3.0, 2.0], [4, 5]),
        ([6.0, None, 7.0, None, None], [1, 4, 5]),
        ([None, None, None], [2, 3]),
    ],
)
def test_the_best_checkpoint_is_kept_beside_the_newest_two(tmp_path, losses, kept):
    for step, loss in enumerate(losses, start=1):
        save(tmp_path, step, loss)
    assert [path.name for path in CheckpointStore(tmp_path).all()] == [f"step-{step:08d}" for step in kept]


class Engine:
    """Saves one small file as DeepSpeed would."""

    checkpoint_engine = ShardFiles()

    def save_checkpoint(self, root: str, tag: str, save_latest: bool) -> None:
        self.checkpoint_engine.create(None)
        self.checkpoint_engine.makedirs(f"{root}/{tag}", exist_ok=True)
        self.checkpoint_engine.save({"module": torch.arange(6.0)}, f"{root}/{tag}/mp_rank_00_model_states.pt")


def save(output: Path, step: int, eval_loss: float | None = 4.5) -> None:
    """A checkpoint of a run of one rank."""
    (output / "tokenizer").mkdir(exist_ok=True)
    identity = {"seed": 3, "data": {"seq_length": 32}}
    info = CheckpointInfo(
        step, 8 * step, {"name": "mlm"}, 2, "fp32", 1, {"hidden_size": 32}, 999, 32, identity, eval_loss, {"a": 1}, {"b": 2}
    )
    CheckpointStore(output).save(Engine(), info, output / "tokenizer", ALONE)

import json
import shutil

import numpy as np
import pytest

from mpnet_ds.data.builder.merge import merge_datasets
from mpnet_ds.data.storage import add_counts
from mpnet_ds.data.storage.add_counts import add_piece_counts
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.errors import UserError

SIDES = ("", "holdout")


def change(folder, **entries):
    """Changes the manifest of a dataset; a key that is None is deleted."""
    content = json.loads((folder / "dataset.json").read_text()) | entries
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n")


def manifests(folder):
    return [(folder / side / "dataset.json").read_bytes() for side in SIDES]


@pytest.fixture
def old(dataset_folder, tmp_path):
    """A dataset of an older build."""
    folder = shutil.copytree(dataset_folder, tmp_path / "old")
    for side in SIDES:
        change(folder / side, piece_counts=None)
    return folder


def test_an_old_dataset_becomes_the_one_that_is_built_today(old, dataset_folder):
    before = manifests(old)
    said = add_piece_counts(old, show_progress=False)
    assert manifests(old) == manifests(dataset_folder) != before
    tokens = [DatasetManifest.load(old / side).tokens for side in SIDES]
    assert said == [
        f"{old / side}: counted the pieces of {count:,} tokens" for side, count in zip(SIDES, tokens, strict=True)
    ]


def test_counts_that_are_there_stay(old, dataset_folder):
    shutil.copy(dataset_folder / "dataset.json", old)
    first, second = add_piece_counts(old, show_progress=False)
    assert first == f"{old} has its counts already"
    assert second.startswith(f"{old / 'holdout'}: counted")
    assert add_piece_counts(old, show_progress=False) == [f"{old / side} has its counts already" for side in SIDES]
    assert manifests(old) == manifests(dataset_folder)


def test_a_dataset_merged_by_reference_is_counted_where_its_shards_are(old, dataset_folder, tmp_path):
    merge_datasets([old, dataset_folder], tmp_path / "merged", show_progress=False)
    add_piece_counts(tmp_path / "merged", show_progress=False)
    for side in SIDES:
        expected = 2 * DatasetManifest.load(dataset_folder / side).decoded_piece_counts()
        np.testing.assert_array_equal(DatasetManifest.load(tmp_path / "merged" / side).decoded_piece_counts(), expected)


def test_other_tokens_than_the_manifest_says_are_damage(old):
    found = DatasetManifest.load(old).tokens
    change(old, tokens=7)
    before = manifests(old)
    message = rf"{old}/dataset\.json says 7 tokens, its shards have {found:,}: damaged, build the dataset again"
    with pytest.raises(UserError, match=message):
        add_piece_counts(old, show_progress=False)
    assert manifests(old) == before


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_read(old, monkeypatch):
    monkeypatch.setattr(add_counts, "obstacle_to_writing", lambda folder: "Read-only file system")
    monkeypatch.setattr(add_counts, "count_pieces", None)
    with pytest.raises(
        UserError, match=f"cannot write to {old}: Read-only file system. Get write permission, or count in a"
    ):
        add_piece_counts(old, show_progress=False)

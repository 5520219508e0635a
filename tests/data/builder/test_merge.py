import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mpnet_ds.command_line import invocation
from mpnet_ds.data import BuildOptions, PretrainingDataset, build_dataset
from mpnet_ds.data.builder import merge as merge_module
from mpnet_ds.data.builder.merge import merge_datasets
from mpnet_ds.data.builder.plan import Part
from mpnet_ds.data.samples.show import describe
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.data.storage.verify import verify
from mpnet_ds.errors import UserError

NUM_PARTS = 3


@pytest.fixture(scope="module")
def build(corpus_files, tokenizer_folder):
    """A function (folder, first, last): builds a dataset of some of the corpus's documents, in several shards."""

    def build_some(folder, first=0, last=None, tokenizer=tokenizer_folder, holdout=0.2, shard_bytes=8_000):
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = folder.with_suffix(".txt")
        text.write_text("\n\n".join(corpus_files.documents[first:last]), encoding="utf-8")
        options = BuildOptions(holdout, shard_bytes=shard_bytes, workers=1)
        build_dataset([str(text)], tokenizer, folder, options, show_progress=False)
        return folder

    return build_some


@pytest.fixture(scope="module")
def halves(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    return [build(folder / "first", 0, 200), build(folder / "second", 200, 400)]


@pytest.fixture(scope="module")
def whole(build, tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole") / "dataset")


@pytest.fixture(scope="module")
def built_parts(whole, tokenizer_folder, tmp_path_factory):
    what = ([str(whole.with_suffix(".txt"))], tokenizer_folder, tmp_path_factory.mktemp("parts") / "out")
    for number in (2, 3, 1):
        options = BuildOptions(0.2, shard_bytes=8_000, workers=1, part=Part(number, NUM_PARTS))
        build_dataset(*what, options, show_progress=False)
    return what[2]


@pytest.fixture
def parts(built_parts, tmp_path):
    """The dataset ``whole`` as the parts of a build that three machines share."""
    shutil.copytree(built_parts, tmp_path / "out")
    return sorted((tmp_path / "out").iterdir())


def merge(folders, output, **options):
    merge_datasets(folders, output, show_progress=False, **options)
    return output


def change(folder, **entries):
    replace(DatasetManifest.load(folder), **entries).save(folder)


@pytest.fixture
def documents_of(read_shard):
    """A function (folder): documents of a dataset as lists of sequences, by the manifest's shards."""

    def read(folder):
        shards = json.loads((folder / "dataset.json").read_text())["shards"]
        return [document for shard in shards for document in read_shard(folder / shard["name"]).documents]

    return read


@pytest.mark.parametrize("copy", [False, True])
def test_a_merged_dataset_has_the_documents_of_all_in_order(halves, tmp_path, documents_of, copy):
    merged = merge(halves, tmp_path / "merged", copy=copy)
    for side in ("", "holdout"):
        expected = [document for folder in halves for document in documents_of(folder / side)]
        assert documents_of(merged / side) == expected
        manifest = DatasetManifest.load(merged / side)
        assert manifest.documents == len(expected)
        assert manifest.sequences == sum(map(len, expected))
        assert manifest.tokens == sum(len(ids) for document in expected for ids in document)
        ids = [id_ for document in expected for ids in document for id_ in ids]
        np.testing.assert_array_equal(manifest.decoded_piece_counts(), np.bincount(ids, minlength=999))
        assert [source["path"] for source in manifest.sources] == [str(folder.with_suffix(".txt")) for folder in halves]
    assert verify(merged, show_progress=False).problems == []
    assert f"merged by {'copy' if copy else 'reference'} from {halves[0]}, {halves[1]}" in describe(merged)


@pytest.mark.parametrize("copy", [False, True])
def test_a_merged_dataset_trains_like_one_that_was_built_whole(build, tmp_path, copy):
    halves = [build(tmp_path / "first", 0, 100, shard_bytes=2_000), build(tmp_path / "second", 100, 200)]
    data = PretrainingDataset(merge(halves, tmp_path / "merged", copy=copy), 64)
    expected = PretrainingDataset(build(tmp_path / "whole", 0, 200), 64)
    assert len(data) == len(expected)
    for name, array in expected.batch(np.arange(len(expected))).items():
        np.testing.assert_array_equal(data.batch(np.arange(len(expected)))[name], array)
    assert data.holdout_folder is not None


@pytest.mark.parametrize("side", ["", "holdout"])
def test_without_the_counts_of_one_there_are_none_which_is_said_with_the_cure(halves, tmp_path, capsys, side):
    old = shutil.copytree(halves[1], tmp_path / "old")
    change(old / side, piece_counts="")
    merge_datasets([halves[0], old], tmp_path / "merged")
    said = f"{old / side} was built without counts of its pieces, so {tmp_path / 'merged'} has none: add them with "
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "counts" in line)
    assert line == f"{said}{invocation('inspect_dataset', tmp_path / 'merged', '--count')}."
    for each in ("", "holdout"):
        assert bool(DatasetManifest.load(tmp_path / "merged" / each).piece_counts) == (each != side)


def test_by_reference_holds_no_token_and_moves_with_its_neighbours(halves, tmp_path):
    for folder in halves:
        shutil.copytree(folder, tmp_path / "here" / folder.name)
    merged = merge([tmp_path / "here" / folder.name for folder in halves], tmp_path / "here" / "deep" / "merged")
    assert not list(merged.rglob("shard-*"))
    os.rename(tmp_path / "here", tmp_path / "there")
    assert verify(tmp_path / "there" / "deep" / "merged", show_progress=False).problems == []


def test_a_copy_stands_alone(halves, tmp_path):
    sources = [shutil.copytree(folder, tmp_path / folder.name) for folder in halves]
    merged = merge(sources, tmp_path / "merged", copy=True)
    for folder in sources:
        shutil.rmtree(folder)
    assert verify(merged, show_progress=False).problems == []
    names = [shard.name for shard in DatasetManifest.load(merged).shards]
    assert names == [f"shard-{number:05d}" for number in range(len(names))]


@pytest.mark.parametrize("copy", [False, True])
def test_a_merged_dataset_can_be_merged_again(halves, build, tmp_path, documents_of, copy):
    third = build(tmp_path / "third", 400, 500)
    once = merge(halves, tmp_path / "a" / "once")
    twice = merge([once, third], tmp_path / "b" / "c" / "twice", copy=copy)
    assert documents_of(twice) == [document for folder in (*halves, third) for document in documents_of(folder)]
    assert documents_of(twice / "holdout") == documents_of(once / "holdout") + documents_of(third / "holdout")


def test_a_folder_reached_through_a_link_is_found_from_the_merged_one(halves, tmp_path, documents_of):
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    shutil.copytree(halves[0], tmp_path / "deep" / "down" / "data")
    merged = merge([tmp_path / "link" / "data"], tmp_path / "link" / "merged")
    assert documents_of(merged) == documents_of(halves[0])


def test_a_moved_dataset_is_missed_by_name_with_the_cure(halves, tmp_path):
    source = shutil.copytree(halves[0], tmp_path / "source")
    merged = merge([source, halves[1]], tmp_path / "merged")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"source/shard-00000\.bin is missing.*merged by reference.*or merge again"):
        PretrainingDataset(merged, 64)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tokenizer_fingerprint": "0" * 64}, r"first has tokenizer_fingerprint \w+, .*second has 0000"),
        ({"vocab_size": 7, "piece_counts": ""}, "first has vocab_size 999, .*second has 7"),
        ({"dtype": "int32"}, "first has dtype uint16, .*second has int32"),
    ],
)
def test_datasets_that_do_not_fit_are_refused_by_name(halves, tmp_path, entries, message):
    second = shutil.copytree(halves[1], tmp_path / "second")
    change(second, **entries)
    with pytest.raises(UserError, match=message):
        merge([halves[0], second], tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_holdouts_are_merged_from_all_or_by_wish_from_some(halves, tmp_path, documents_of):
    second = shutil.copytree(halves[1], tmp_path / "second")
    shutil.rmtree(second / "holdout")
    with pytest.raises(UserError, match=r"first has a holdout, .*second has none"):
        merge([halves[0], second], tmp_path / "merged")
    merged = merge([halves[0], second], tmp_path / "merged", partial_holdout=True)
    assert documents_of(merged / "holdout") == documents_of(halves[0] / "holdout")
    assert not (merge([second], tmp_path / "without") / "holdout").exists()


def test_a_dataset_named_twice_is_refused(halves, tmp_path):
    with pytest.raises(UserError, match=r"second/\.\./first is given twice"):
        merge([halves[0], halves[1] / ".." / "first"], tmp_path / "merged")


def test_a_damaged_shard_is_not_copied(halves, tmp_path):
    source = shutil.copytree(halves[0], tmp_path / "source")
    path = source / "shard-00001.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(UserError, match=r"shard-00001\.bin is damaged.*--verify"):
        merge([source], tmp_path / "merged", copy=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_foreseen(halves, tmp_path, monkeypatch):
    monkeypatch.setattr(merge_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"copying needs [\d,]+ bytes, .* has 10 free"):
        merge(halves, tmp_path / "merged", copy=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copy", [False, True])
def test_merged_parts_are_the_dataset_of_one_machine(parts, whole, tmp_path, copy):
    merged = merge([parts[2], parts[0], parts[1]], tmp_path / "merged", copy=copy)
    for side in ("", "holdout"):
        found, expected = DatasetManifest.load(merged / side), DatasetManifest.load(whole / side)
        assert found.checksum == expected.checksum
        assert (found.documents, found.sequences, found.tokens) == (
            expected.documents,
            expected.sequences,
            expected.tokens,
        )
        assert found.sources == expected.sources
        assert found.piece_counts == expected.piece_counts != ""
        assert "part" not in found.options
    data, expected = PretrainingDataset(merged, 64), PretrainingDataset(whole, 64)
    indices = np.arange(len(expected))
    for name, array in expected.batch(indices).items():
        np.testing.assert_array_equal(data.batch(indices)[name], array)


def test_parts_are_merged_into_the_folder_that_holds_them(parts, whole, tmp_path):
    merged = merge(parts, tmp_path / "out")
    assert DatasetManifest.load(merged).checksum == DatasetManifest.load(whole).checksum
    names = [shard.name for shard in DatasetManifest.load(merged).shards]
    assert names[0] == "part-00001-of-00003/shard-00000"
    assert verify(merged, show_progress=False).problems == []
    with pytest.raises(UserError, match="is already a dataset"):
        merge(parts, tmp_path / "out")
    (merged / "dataset.json").unlink()  # as if the merge had been interrupted before its last step
    merge(parts, tmp_path / "out")
    assert verify(merged, show_progress=False).problems == []


@pytest.mark.parametrize("stranger", ["notes.txt", "tokenizer", "part-00004"])
def test_a_folder_with_other_things_is_no_output(parts, tmp_path, stranger, save_word_tokenizer):
    if stranger == "tokenizer":
        save_word_tokenizer(tmp_path / "out" / "tokenizer", 5)
    else:
        (tmp_path / "out" / stranger).mkdir()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=stranger):
        merge(parts, tmp_path / "out")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_missing_double_and_foreign_parts_are_named(parts, halves, tmp_path):
    with pytest.raises(UserError, match=r"missing part\(s\) of 3: 2. Build with --part 2/3"):
        merge([parts[0], parts[2]], tmp_path / "merged")
    with pytest.raises(UserError, match=r"missing part\(s\) of 3: 1, 3"):
        merge([parts[1]], tmp_path / "merged")
    twin = shutil.copytree(parts[1], tmp_path / "twin")
    with pytest.raises(UserError, match=r"part 2 of 3 is given twice, as .*part-00002-of-00003 and as .*twin"):
        merge([*parts, twin], tmp_path / "merged")
    change(twin, options=DatasetManifest.load(twin).options | {"plan": "other"})
    with pytest.raises(UserError, match=r"part-00001-of-00003 and .*twin are parts of different builds"):
        merge([parts[0], twin, parts[2]], tmp_path / "merged")
    with pytest.raises(UserError, match=r"part-00001-of-00003 is one part of a build, .*first is a whole dataset"):
        merge([*parts, halves[0]], tmp_path / "merged")


def test_a_part_without_held_out_text_is_no_obstacle(parts, whole, tmp_path):
    shutil.rmtree(parts[1] / "holdout")
    merged = merge(parts, tmp_path / "merged")
    remaining = [folder for folder in parts if (folder / "holdout").exists()]
    expected = sum(DatasetManifest.load(folder / "holdout").documents for folder in remaining)
    assert DatasetManifest.load(merged / "holdout").documents == expected


def test_the_only_part_of_a_build_becomes_a_whole_dataset(halves, tmp_path):
    part = shutil.copytree(halves[0], tmp_path / "out" / "part-00001-of-00001")
    change(part, options=DatasetManifest.load(part).options | {"part": [1, 1], "plan": "abc"})
    merged = merge([part], tmp_path / "out")
    assert "part" not in DatasetManifest.load(merged).options
    merge([merged, halves[1]], tmp_path / "merged")


def test_parts_that_were_built_with_other_options_do_not_fit_together(whole, tokenizer_folder, tmp_path):
    what = ([str(whole.with_suffix(".txt"))], tokenizer_folder, tmp_path / "out")
    for number, holdout in ((1, 0.2), (2, 0.3)):
        options = BuildOptions(holdout, shard_bytes=8_000, workers=1, part=Part(number, 2))
        build_dataset(*what, options, show_progress=False)
    with pytest.raises(UserError, match="parts of different builds"):
        merge(sorted((tmp_path / "out").iterdir()), tmp_path / "out")

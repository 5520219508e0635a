import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpnet_ds.data import BuildOptions, MaskingConfig, PretrainingDataset, build_dataset
from mpnet_ds.data.samples.block_sequences import TokenStream
from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter
from mpnet_ds.errors import UserError
from tests.shards import add_document

NUM_WORDS, WORDS_PER_DOCUMENT, LENGTH = 3000, 50, 64
BODY = LENGTH - 1
ARRAYS = ("input_ids", "predicted_positions", "predicted_inputs", "attention_mask")


@pytest.fixture(scope="module")
def counted(tmp_path_factory, save_word_tokenizer):
    """A dataset of several shards in which no ordinary id comes twice, so that a token tells its position."""
    folder = tmp_path_factory.mktemp("counted")
    words = [f"w{i}" for i in range(NUM_WORDS)]
    documents = [" ".join(words[i : i + WORDS_PER_DOCUMENT]) for i in range(0, NUM_WORDS, WORDS_PER_DOCUMENT)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    save_word_tokenizer(folder / "tokenizer", NUM_WORDS)
    what = ([str(folder / "text.txt")], folder / "tokenizer", folder / "dataset", BuildOptions(shard_bytes=2_200, workers=1))
    build_dataset(*what, show_progress=False)
    return folder / "dataset"


@pytest.fixture(scope="module")
def circle(counted, read_shard):
    """All ids of that dataset, end to end."""
    shards = sorted(counted.glob("shard-*.bin"))
    assert len(shards) == 8
    return np.concatenate([read_shard(path.with_suffix("")).tokens for path in shards])


@pytest.fixture
def copied(dataset_folder, tmp_path):
    return shutil.copytree(dataset_folder, tmp_path / "dataset")


def starts_of(rows, circle):
    """Where in the circle each row begins; asserts that it is a slice of it."""
    place = np.full(circle.max() + 1, -1)
    place[circle] = np.arange(len(circle))
    starts = []
    for row in rows:
        assert row[0] == 0
        column = 1 + int(np.argmax(row[1:] != 2))
        start = (place[row[column]] - (column - 1)) % len(circle)
        np.testing.assert_array_equal(row[1:], circle[(start + np.arange(BODY)) % len(circle)])
        starts.append(start)
    return np.array(starts)


def assert_same(one, other):
    for name in ARRAYS:
        np.testing.assert_array_equal(one[name], other[name])


def take(batch, rows):
    return {name: batch[name][rows] for name in ARRAYS}


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_consists_of_disjoint_slices_of_the_circle(counted, circle, epoch):
    data = PretrainingDataset(counted, LENGTH, seed=3)
    assert len(data) == len(circle) // BODY == 48
    starts = starts_of(data.batch(np.arange(len(data)), epoch)["input_ids"], circle)
    covered = (starts[:, None] + np.arange(BODY)) % len(circle)
    assert np.unique(covered).size == len(data) * BODY


def test_blocks_begin_elsewhere_in_each_epoch(counted, circle):
    data = PretrainingDataset(counted, LENGTH)
    edges = []
    for epoch in range(20):
        starts = starts_of(data.batch(np.arange(len(data)), epoch)["input_ids"], circle)
        gap = np.flatnonzero(np.diff(np.sort(starts)) > BODY)
        edges.append(int(np.sort(starts)[gap[0] + 1]) if gap.size else int(starts.min()))
    assert len(set(edges)) == 20
    assert max(edges) - min(edges) > len(circle) / 2


def test_every_token_is_seen_within_a_few_epochs(counted, circle):
    data = PretrainingDataset(counted, LENGTH)
    seen = np.concatenate([data.batch(np.arange(len(data)), epoch)["input_ids"].ravel() for epoch in range(3)])
    assert np.isin(circle, seen).all()


def test_samples_are_shuffled_anew_in_each_epoch(counted, circle):
    data = PretrainingDataset(counted, LENGTH)
    steps = []
    for epoch in range(3):
        starts = starts_of(data.batch(np.arange(len(data)), epoch)["input_ids"], circle)
        steps.append(np.diff(starts) % len(circle))
        assert np.count_nonzero(steps[-1] == BODY) < 6
    assert not np.array_equal(steps[0], steps[1])
    assert not np.array_equal(steps[1], steps[2])


def test_batches_have_the_promised_shapes_and_types(dataset_folder):
    batch = PretrainingDataset(dataset_folder, 512).batch([3, 1])
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "input_ids": ((2, 512), "int64"),
        "predicted_positions": ((2, 77), "int64"),
        "predicted_inputs": ((2, 77), "int64"),
        "attention_mask": ((2, 512), "bool"),
    }
    assert (batch["input_ids"][:, 0] == 0).all()
    assert batch["attention_mask"].all()


def test_inputs_stay_true_and_the_corruption_is_beside_them(dataset_folder, tokenizer):
    batch = PretrainingDataset(dataset_folder, LENGTH).batch(np.arange(200))
    assert tokenizer.mask_id not in batch["input_ids"]
    assert np.mean(batch["predicted_inputs"] == tokenizer.mask_id) == pytest.approx(0.8, abs=0.05)
    predicted = np.take_along_axis(batch["input_ids"], batch["predicted_positions"], axis=1)
    assert not np.isin(predicted, tokenizer.special_ids).any()


def test_an_index_gives_the_same_sample_alone_in_a_batch_and_in_another_order(dataset_folder):
    data, again = (PretrainingDataset(dataset_folder, LENGTH, seed=5) for _ in range(2))
    indices = np.random.default_rng(0).permutation(len(data))[:40]
    together = data.batch(indices, epoch=2)
    assert_same(take(together, slice(None, None, -1)), again.batch(indices[::-1], epoch=2))
    for row in (0, 17, 39):
        assert_same(take(together, [row]), again.batch([indices[row]], epoch=2))
        assert_same(take(together, [row]), again.batch(int(indices[row]), epoch=[2]))


def test_an_index_gives_the_same_sample_in_another_process(dataset_folder):
    program = """
import hashlib, sys
from mpnet_ds.data import PretrainingDataset
batch = PretrainingDataset(sys.argv[1], 64, seed=9).batch([31, 4, 15], epoch=[0, 1, 5])
print(hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", program, dataset_folder], check=True, capture_output=True, text=True)
    batch = PretrainingDataset(dataset_folder, 64, seed=9).batch([31, 4, 15], epoch=[0, 1, 5])
    here = hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()
    assert other.stdout.strip() == here


def test_samples_are_those_of_the_first_release(counted):
    """A run that is resumed with a newer version, and the losses that the README quotes, rest on this."""
    batch = PretrainingDataset(counted, LENGTH, seed=3).consecutive(40, 20)
    assert list(batch) == list(ARRAYS)
    assert hashlib.sha256(b"".join(array.tobytes() for array in batch.values())).hexdigest()[:16] == "d63502c04ae4be1c"


def test_epochs_and_seeds_differ_in_tokens_and_predicted_positions(dataset_folder):
    batches = [PretrainingDataset(dataset_folder, LENGTH, seed=seed).batch(range(8), e) for seed in (0, 1) for e in (0, 1)]
    for name in ("input_ids", "predicted_positions"):
        assert len({batch[name].tobytes() for batch in batches}) == 4


def test_predicted_positions_are_drawn_again_for_each_epoch_seed_and_index(dataset_folder):
    token_by_token = MaskingConfig(whole_word=False)
    first, other_seed = (PretrainingDataset(dataset_folder, LENGTH, token_by_token, seed=seed) for seed in (0, 1))
    slots = first.batch(np.arange(50))["predicted_positions"]
    for other in (first.batch(np.arange(50), epoch=1), other_seed.batch(np.arange(50)), first.batch(np.arange(50, 100))):
        pairs = zip(slots, other["predicted_positions"], strict=True)
        assert np.mean([np.intersect1d(*pair).size for pair in pairs]) < 3  # 10 * 10 / 63 by chance


def test_consecutive_samples_run_across_the_end_of_an_epoch(dataset_folder):
    data = PretrainingDataset(dataset_folder, LENGTH)
    n = len(data)
    across = data.consecutive(3 * n - 2, 5)
    assert_same(take(across, slice(2)), data.batch([n - 2, n - 1], epoch=2))
    assert_same(take(across, slice(2, None)), data.batch([0, 1, 2], epoch=3))


def test_an_epoch_may_be_shorter_than_a_batch(counted):
    data = PretrainingDataset(counted, 1024)
    assert len(data) == 2
    rows = data.consecutive(1, 4)
    assert_same(take(rows, [0]), data.batch([1], epoch=0))
    assert_same(take(rows, [1, 2]), data.batch([0, 1], epoch=1))
    assert_same(take(rows, [3]), data.batch([0], epoch=2))


@given(first=st.integers(0, 2**40), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_training_data_does_not_depend_on_how_it_is_cut_into_batches(dataset_folder, first, cuts):
    data = PretrainingDataset(dataset_folder, LENGTH)
    whole = data.consecutive(first, sum(cuts))
    begins = first + np.cumsum([0, *cuts[:-1]])
    parts = [data.consecutive(int(begin), count) for begin, count in zip(begins, cuts, strict=True)]
    assert_same(whole, {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS})


@pytest.mark.parametrize("sample_mode", ["stream", "document", "line"])
def test_no_index_gives_an_empty_batch(counted, sample_mode):
    batch = PretrainingDataset(counted, LENGTH, sample_mode=sample_mode).batch([])
    assert [batch[name].shape for name in ARRAYS] == [(0, LENGTH), (0, 10), (0, 10), (0, LENGTH)]


@pytest.mark.parametrize("index", [-1, 48])
def test_an_index_outside_the_epoch_is_refused(counted, index):
    with pytest.raises(ValueError, match="0 … 47"):
        PretrainingDataset(counted, LENGTH).batch([index])


def test_the_masking_of_the_caller_is_used(dataset_folder):
    batch = PretrainingDataset(dataset_folder, 100, MaskingConfig(predicted_fraction=0.4)).batch([0])
    assert batch["predicted_positions"].shape == (1, 40)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any), data=st.data())
def test_a_slice_across_shards_is_one_of_their_concatenation(tmp_path_factory, sizes, data):
    folder, tokens = tmp_path_factory.mktemp("shards"), np.arange(sum(sizes))
    for number, ids in enumerate(np.split(tokens, np.cumsum(sizes)[:-1])):
        writer = TokenFileWriter(folder / f"shard-{number}", np.dtype("<u2"))
        if len(ids):
            add_document(writer, [ids])
        writer.close()
    stream = TokenStream([TokenFile(folder / f"shard-{number}") for number in range(len(sizes))])
    assert len(stream) == len(tokens)
    start, length = data.draw(st.integers(0, 3 * len(tokens))), data.draw(st.integers(1, 3 * len(tokens)))
    np.testing.assert_array_equal(stream.slice(start, length), tokens[(start + np.arange(length)) % len(tokens)])


def test_the_holdout_is_a_dataset_of_its_own(dataset_folder):
    data = PretrainingDataset(dataset_folder, LENGTH)
    holdout = PretrainingDataset(data.holdout_folder, LENGTH)
    assert holdout.holdout_folder is None
    assert 0 < len(holdout) < len(data) / 4
    assert holdout.tokenizer.fingerprint == data.tokenizer.fingerprint


def test_a_missing_or_unfinished_folder_is_named(copied, tmp_path):
    with pytest.raises(UserError, match=r"no dataset folder .*nowhere"):
        PretrainingDataset(tmp_path / "nowhere")
    (copied / "dataset.json").unlink()
    with pytest.raises(UserError, match=f"{copied} is not a finished dataset"):
        PretrainingDataset(copied)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_missing_and_a_cut_shard_are_named(copied, suffix):
    path = copied / f"shard-00000.{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"shard-00000\.{suffix} has [\d,]+ bytes, dataset\.json says"):
        PretrainingDataset(copied)
    path.unlink()
    with pytest.raises(UserError, match=rf"shard-00000\.{suffix} is missing"):
        PretrainingDataset(copied)


@pytest.mark.parametrize(("offset", "byte"), [(0, 0), (9, 2), (17, 5), (17, 4), (18, 0)])
def test_a_damaged_index_of_the_right_size_is_named(copied, offset, byte):
    path = copied / "shard-00000.idx"
    content = bytearray(path.read_bytes())
    assert content[offset] != byte
    content[offset] = byte
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00000"):
        PretrainingDataset(copied)


@pytest.mark.parametrize("options", [{}, {"sample_mode": "document"}, {"sample_mode": "line", "packing": False}])
def test_an_id_outside_the_vocabulary_is_reported_with_its_file_and_position(copied, options):
    path = copied / "shard-00000.bin"
    content = bytearray(path.read_bytes())
    content[2 * 1234 + 1] |= 0x80
    path.write_bytes(content)
    data = PretrainingDataset(copied, LENGTH, **options)
    message = rf"{path}: token 1,234 has id 3\d,\d+, but the vocabulary has 999.*inspect_dataset.py .* --verify"
    with pytest.raises(UserError, match=message):
        data.batch(np.arange(len(data)))


def test_another_tokenizer_in_the_folder_is_refused(copied, save_word_tokenizer):
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(UserError, match=f"no tokenizer at {copied}"):
        PretrainingDataset(copied)
    save_word_tokenizer(copied / "tokenizer", 994)
    with pytest.raises(UserError, match=r"tokenizer \(fingerprint .* is not the tokenizer that .*dataset\.json"):
        PretrainingDataset(copied)


def test_a_dataset_shorter_than_a_sequence_is_refused(counted, circle):
    assert len(PretrainingDataset(counted, len(circle) + 1)) == 1
    with pytest.raises(UserError, match=f"{counted} has {len(circle)} tokens, less than one sequence of {len(circle) + 2}"):
        PretrainingDataset(counted, len(circle) + 2)


@pytest.mark.parametrize("seq_length", [0, 7, 65537])
def test_an_impossible_sequence_length_is_refused(dataset_folder, seq_length):
    with pytest.raises(UserError, match=f"seq_length is {seq_length}"):
        PretrainingDataset(dataset_folder, seq_length)


def test_a_shard_that_the_manifest_does_not_name_does_not_exist(copied):
    expected = PretrainingDataset(copied, LENGTH).batch(range(5))
    for suffix in ("bin", "idx"):
        shutil.copy(copied / f"shard-00000.{suffix}", copied / f"shard-00001.{suffix}")
    assert_same(PretrainingDataset(copied, LENGTH).batch(range(5)), expected)


def test_a_dataset_can_be_moved(dataset_folder, copied):
    assert json.loads((Path(copied) / "dataset.json").read_text())["shards"]
    assert_same(PretrainingDataset(copied, LENGTH).batch([1]), PretrainingDataset(dataset_folder, LENGTH).batch([1]))

import base64
import hashlib
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import xxhash

from mpnet_ds.data.storage.manifest import MIB, DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.storage.piece_counts import encode
from mpnet_ds.errors import UserError

ENTRIES = {
    "dtype": "uint16",
    "vocab_size": 100,
    "special_ids": {"bos": 0, "pad": 1, "eos": 2, "mask": 99},
    "tokenizer_fingerprint": "f" * 64,
    "documents": 2,
    "sequences": 3,
    "tokens": 9,
    "sources": [{"path": "text.txt", "num_bytes": 40, "modified": 1.5}],
    "command": "build",
    "tool_version": "0.1.0",
}


@pytest.fixture
def manifest(tmp_path) -> DatasetManifest:
    (tmp_path / "shard-00000.bin").write_bytes(b"ids")
    (tmp_path / "shard-00000.idx").write_bytes(b"index")
    files = {suffix: FileRecord.of(tmp_path / f"shard-00000.{suffix}") for suffix in ("bin", "idx")}
    manifest = DatasetManifest(shards=[ShardRecord("shard-00000", 3, 2, 9, files)], **ENTRIES)
    manifest.save(tmp_path)
    return manifest


def test_a_saved_manifest_comes_back_whole(tmp_path, manifest):
    assert DatasetManifest.load(tmp_path) == manifest
    assert DatasetManifest.load(str(tmp_path)).shards[0].files["bin"].bytes == 3


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_a_file_record_holds_the_checksums_that_other_programs_compute(tmp_path, size):
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    of_each = [xxhash.xxh3_64_hexdigest(content[at : at + MIB]) for at in range(0, size, MIB)]
    record = FileRecord.of(tmp_path / "file")
    assert (record.bytes, record.xxh3_64) == (size, xxhash.xxh3_64_hexdigest(content))
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert record.xxh3_64_of_each_mib == "".join(of_each)
    assert record.mib_checksums() == of_each


def test_a_missing_folder_and_an_unfinished_one_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"no dataset folder .*nowhere"):
        DatasetManifest.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{tmp_path} is not a finished dataset"):
        DatasetManifest.load(tmp_path)


def test_another_format_version_is_refused_with_both_numbers(tmp_path, manifest):
    replace(manifest, version=7).save(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.json has format version 7, this program reads 2"):
        DatasetManifest.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"version": 2, "dtype": "ui', id="cut"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b'{"shards": []}', id="no version"),
        pytest.param(b'{"version": 2, "shards": []}', id="entries missing"),
        pytest.param(b'{"version": 2, "shards": [{"name": "shard-00000"}]}', id="shard without files"),
        pytest.param(b'{"version": 2, "shards": [{"files": []}]}', id="files of another type"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        DatasetManifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda content: content.update(documents="2"), "documents"),
        (lambda content: content.update(sources={}), "sources"),
        (lambda content: content["shards"][0].update(tokens="9"), r"shards\.0\.tokens"),
        (lambda content: content["shards"][0]["files"]["bin"].pop("sha256"), r"shards\.0\.files\.bin\.sha256"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_key(tmp_path, manifest, change, key):
    content = json.loads((tmp_path / "dataset.json").read_text())
    change(content)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"dataset\.json is damaged \({key}: .*: build the dataset again"):
        DatasetManifest.load(tmp_path)


DAMAGED_COUNTS = {
    "not base64": "no base64!",
    "not zlib": "AAAA",
    "of another vocabulary": encode(np.ones(99)),
    "negative": base64.b64encode(zlib.compress(b"\x08" + b"\xff" * 800)).decode(),
    "cut": encode(np.ones(100))[:-8],
}


@pytest.mark.parametrize("text", DAMAGED_COUNTS.values(), ids=DAMAGED_COUNTS)
def test_damaged_counts_of_pieces_are_named(tmp_path, manifest, text):
    replace(manifest, piece_counts=text).save(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.json is damaged \(piece_counts: .*: build the dataset again"):
        DatasetManifest.load(tmp_path)


def test_a_manifest_of_an_older_version_has_no_counts_of_pieces(tmp_path, manifest):
    content = json.loads((tmp_path / "dataset.json").read_text())
    del content["piece_counts"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert DatasetManifest.load(tmp_path).decoded_piece_counts() is None


def test_sizes_are_compared_with_the_files(tmp_path, manifest):
    manifest.check_sizes(tmp_path)
    (tmp_path / "shard-00000.idx").write_bytes(b"index and more")
    with pytest.raises(UserError, match=r"shard-00000\.idx has 14 bytes, dataset\.json says 5"):
        manifest.check_sizes(tmp_path)
    (tmp_path / "shard-00000.bin").unlink()
    with pytest.raises(UserError, match=r"shard-00000\.bin is missing"):
        manifest.check_sizes(tmp_path)


def test_the_checksum_follows_the_content_of_the_shards_only(tmp_path, manifest):
    elsewhere = replace(manifest, command="other", sources=[], tool_version="9")
    assert elsewhere.checksum == manifest.checksum
    (tmp_path / "shard-00000.bin").write_bytes(b"idz")
    files = manifest.shards[0].files | {"bin": FileRecord.of(tmp_path / "shard-00000.bin")}
    changed = replace(manifest, shards=[replace(manifest.shards[0], files=files)])
    assert changed.checksum != manifest.checksum


def test_the_manifest_is_readable_json_and_leaves_no_other_file(tmp_path, manifest):
    assert json.loads((tmp_path / "dataset.json").read_text())["shards"][0]["tokens"] == 9
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json", "shard-00000.bin", "shard-00000.idx"}


def test_a_shard_elsewhere_is_found_and_its_loss_explained(tmp_path, manifest):
    (tmp_path / "merged").mkdir()
    relative = replace(manifest, shards=[replace(manifest.shards[0], name="../shard-00000")])
    relative.check_sizes(tmp_path / "merged")
    absolute = replace(manifest, shards=[replace(manifest.shards[0], name=str(tmp_path / "shard-00000"))])
    absolute.check_sizes(tmp_path / "merged")
    (tmp_path / "shard-00000.bin").unlink()
    with pytest.raises(UserError, match=r"shard-00000\.bin is missing.*merged by reference.*merge again"):
        relative.check_sizes(tmp_path / "merged")


def test_dots_in_the_name_of_a_shard_are_kept(tmp_path, manifest):
    shard = replace(manifest.shards[0], name="news.v1.2/shard.en")
    assert shard.file(tmp_path, "bin") == tmp_path / "news.v1.2" / "shard.en.bin"


def test_the_checksum_depends_on_the_order_of_the_shards(manifest):
    first = manifest.shards[0]
    second = replace(first, files={name: replace(record, sha256="f" * 64) for name, record in first.files.items()})
    one, other = (replace(manifest, shards=shards) for shards in ([first, second], [second, first]))
    assert one.checksum != other.checksum

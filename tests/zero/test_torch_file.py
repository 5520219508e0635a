import struct
import zipfile
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch.serialization import set_crc32_options

from mpnet_ds.errors import UserError
from mpnet_ds.zero import torch_file
from mpnet_ds.zero.torch_archive import contents_checksum
from mpnet_ds.zero.torch_file import TensorFile, load_shard

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def test_tensors_of_every_kind_are_read_to_the_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(7, 11, generator=generator)
    saved = {str(dtype): (wide * 100).to(dtype) for dtype in TYPES}
    saved |= {"transposed": wide.T, "part": wide[2:5, 3:], "every second": wide.flatten()[1::2], "number": torch.tensor(3.5)}
    saved |= {"empty": torch.empty(0, 4), "expanded": torch.ones(1, 3).expand(4, 3), "same": wide}
    torch.save(saved, tmp_path / "x.pt")
    file = TensorFile(tmp_path / "x.pt")
    for name, tensor in saved.items():
        stored = file.tensor(file.content[name])
        assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(stored.read(), tensor), name
    file.check()


def test_chunks_are_the_tensor_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "CHUNK", 40)
    numbers = torch.arange(33.0).view(11, 3)
    torch.save([numbers, numbers.T], tmp_path / "x.pt")
    file = TensorFile(tmp_path / "x.pt")
    chunks = list(file.tensor(file.content[0]).chunks())
    assert [len(chunk) for chunk in chunks] == [10, 10, 10, 3]
    assert torch.equal(torch.cat(chunks), numbers.flatten())
    assert torch.equal(torch.cat(list(file.tensor(file.content[1]).chunks())), numbers.T.flatten())
    assert torch.equal(file.tensor(file.content[0]).rows(4).read(), numbers[:4])
    file.check()


@pytest.mark.parametrize("place", [0, 17, 131])
def test_a_flipped_bit_is_found_wherever_it_is_in_a_tensor_that_was_read(tmp_path, place):
    path = tmp_path / "x.pt"
    torch.save([torch.arange(33.0), torch.zeros(3)], path)
    begin = TensorFile(path).content[0].record.begin
    content = bytearray(path.read_bytes())
    content[begin + place] ^= 1
    path.write_bytes(content)
    file = TensorFile(path)
    file.tensor(file.content[1]).read()
    file.check()
    file.tensor(file.content[0]).spans[0].part(1, 2).read()
    with pytest.raises(UserError, match=r"x\.pt is damaged: data/0"):
        file.check()


def test_files_without_checksums_are_read(tmp_path):
    set_crc32_options(False)
    try:
        torch.save([torch.arange(33.0)], tmp_path / "x.pt")
    finally:
        set_crc32_options(True)
    file = TensorFile(tmp_path / "x.pt")
    assert torch.equal(file.tensor(file.content[0]).read(), torch.arange(33.0))
    file.check()


def test_contents_checksum_tells_files_apart_that_have_one_size(tmp_path):
    for name, number in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        torch.save(torch.full((5,), number), tmp_path / name / "x.pt")
    (tmp_path / "a" / "copy.pt").write_bytes((tmp_path / "a" / "x.pt").read_bytes())
    first, second, copy = (contents_checksum(tmp_path / path) for path in ("a/x.pt", "b/x.pt", "a/copy.pt"))
    assert first == copy != second


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save(torch.zeros(1000), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.namelist():
            new.writestr(item, old.read(item))
    with pytest.raises(UserError, match=r"y\.pt"):
        TensorFile(tmp_path / "y.pt")


def test_the_other_byte_order_is_refused(tmp_path):
    torch.save(torch.zeros(10), tmp_path / "x.pt")
    other = {b"little": b"big", b"big": b"little"}
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for item in old.namelist():
            new.writestr(item, other[old.read(item)] if item.endswith("byteorder") else old.read(item))
    with pytest.raises(UserError, match="other byte order"):
        TensorFile(tmp_path / "y.pt")


def test_files_that_torch_did_not_save_are_refused_by_name(tmp_path):
    for name, content in (("empty.pt", b""), ("text.pt", b"hello" * 100), ("numbers.pt", struct.pack("<100q", *range(100)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            TensorFile(tmp_path / name)


def test_a_tensor_that_a_few_bytes_stand_for_is_refused(tmp_path):
    torch.save(torch.zeros(1).expand(10**11), tmp_path / "x.pt")
    file = TensorFile(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is damaged: a tensor of shape"):
        file.tensor(file.content)


class Written:
    """Is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_stages_as_early_releases_of_python_3_11_write_them_are_read_and_nothing_else_of_that_kind(tmp_path):
    torch.save({"zero_stage": Written(getattr, ZeroStageEnum, "gradients")}, tmp_path / "a.pt")
    assert TensorFile(tmp_path / "a.pt").content == {"zero_stage": 2}
    assert load_shard(tmp_path / "a.pt") == {"zero_stage": ZeroStageEnum.gradients}
    for owner, name in ((ZeroStageEnum, "__class__"), (ZeroStageEnum, "from_bytes"), (str, "format"), (Path, "home")):
        torch.save(Written(getattr, owner, name), tmp_path / "b.pt")
        with pytest.raises(UserError, match=r"b\.pt"):
            load_shard(tmp_path / "b.pt")

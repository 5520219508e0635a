import json
import os
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from mpnet_ds.errors import UserError
from mpnet_ds.zero.safetensors_writer import INDEX, write_weights

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
tensors = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=3)),
    min_size=1,
    max_size=5,
)


@given(tensors, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_the_safetensors_library_reads_what_was_written(tmp_path_factory, kinds, dtype):
    folder = tmp_path_factory.mktemp("out")
    expected = {name: torch.randint(0, 2, shape).to(kind) for name, (kind, shape) in kinds.items()}
    (path,) = write_weights(expected, folder, dtype)
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == (dtype if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def test_shards_and_their_index_hold_each_tensor_once(tmp_path):
    expected = {f"w{number}": torch.full((10, 10), float(number)) for number in range(5)}
    paths = write_weights(expected, tmp_path, torch.float32, max_shard_size=900)
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(paths) == 4
    assert index["metadata"]["total_size"] == 2000
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], expected[name])
    assert sum(len(load_file(path)) for path in paths if path.suffix == ".safetensors") == 5


def test_a_model_with_tied_weights_loads(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.table.weight

    source, target = Tied(), Tied()
    (path,) = write_weights(
        {"table.weight": source.table.weight.detach()}, tmp_path, torch.float32, tied={"out.weight": "table.weight"}
    )
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "out.weight": "table.weight"}
    load_model(target, path)
    assert torch.equal(target.out.weight, source.table.weight)


def test_a_type_that_the_format_does_not_have_is_named(tmp_path):
    with pytest.raises(UserError, match=r"w is torch\.complex64"):
        write_weights({"w": torch.zeros(2, dtype=torch.complex64)}, tmp_path, torch.float32)
    assert not list(tmp_path.iterdir())


def test_file_has_the_rights_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        (path,) = write_weights({"w": torch.ones(2)}, tmp_path, torch.float32)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named_with_the_bytes_that_are_needed(tmp_path):
    os.symlink("/dev/full", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="No space left on device: 104 bytes are needed"):
        write_weights({"w": torch.ones(2)}, tmp_path, torch.float32)

import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from mpnet_ds.model.relative_position import bucket, bucket_table


def test_buckets_are_those_of_transformers():
    relative = torch.arange(-600, 601)
    assert torch.equal(bucket(relative), MPNetEncoder.relative_position_bucket(relative))


def test_edges_lie_where_the_paper_puts_them():
    first = {8: 8, 12: 9, 16: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15}
    for distance, number in first.items():
        assert bucket(torch.tensor([-distance, 1 - distance, distance])).tolist() == [number, number - 1, number + 16]


def test_table_is_indexed_by_shifted_distance():
    table = bucket_table(100, torch.device("cpu"))
    assert table.shape == (201,)
    assert table[100] == 0
    assert table[100 + 9] == bucket(torch.tensor(9))
    assert 16 not in table

import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from mpnet_ds.models.mpnet.relative_position import bucket, bucket_table, relative_bias


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


def test_bias_between_places_is_that_of_their_bucket():
    table = torch.nn.Embedding(32, 2)
    indices = torch.arange(150)
    expected = table(bucket(indices[None, :] - indices[:, None])).permute(2, 0, 1)
    assert torch.equal(relative_bias(table, 150), expected)


def test_gradients_of_many_pairs_add_up_in_bf16():
    table = torch.nn.Embedding(32, 1).bfloat16()
    relative_bias(table, 1024).sum().backward()
    pairs = torch.bincount(bucket(torch.arange(1024)[None, :] - torch.arange(1024)[:, None]).flatten(), minlength=32)
    torch.testing.assert_close(table.weight.grad[:, 0].float(), pairs.float(), rtol=0.01, atol=0)

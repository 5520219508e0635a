import pytest
import torch

from mpnet_ds.progress import show_duration
from mpnet_ds.training.metrics import MetricsWriter, peak_flops


def test_other_ranks_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path, {}, is_main=False, first_step=1)
    writer.write({"step": 1, "loss": 0.5})
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "shown"), [(12.7, "12s"), (200, "3m20s"), (7500, "2h05m")])
def test_durations_read_well(seconds, shown):
    assert show_duration(seconds) == shown


def test_no_peak_is_claimed_for_a_processor():
    assert peak_flops(torch.device("cpu"), "bf16") is None

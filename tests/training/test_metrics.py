import json

import pytest
import torch

from mpnet_ds.training.metrics import MetricsWriter, peak_flops, read_metrics, show_duration


def test_lines_that_will_be_written_again_are_dropped_and_a_torn_line_too(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    writer = MetricsWriter(tmp_path, {"tensorboard": {"enabled": False}}, is_main=True, first_step=3)
    writer.write({"step": 3, "loss": 0.5})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 0.5)]


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

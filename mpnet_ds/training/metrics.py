"""What a run reports: ``metrics.jsonl``, TensorBoard and the other monitors of DeepSpeed's JSON, a line on the terminal.

``metrics.jsonl`` has one object a line. A training line:

    {"step": 100, "consumed_samples": 4800, "loss": 6.12, "accuracy": 0.11, "learning_rate": 0.002, "grad_norm": 1.3,
     "tokens_per_second": 21000.0, "predicted_tokens_per_second": 3280.0, "data_wait": 0.0004, "mfu": 0.31}

``loss`` (nats) and ``accuracy`` are means over all predicted slots since the last line; ``data_wait`` is the share of the
time that rank 0 waited for batches; ``mfu`` is there where the device's peak is known. An evaluation line has ``step``,
``consumed_samples``, ``eval_loss`` and ``eval_accuracy``.
"""

import json
from pathlib import Path

import torch

from mpnet_ds.files import write_atomically

FILE_NAME = "metrics.jsonl"

PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "V100": 125,
    "T4": 65,
}
"""Dense 16-bit matrix rate by part of the device's name, from the vendor's datasheets; the first match counts."""


class MetricsWriter:
    """Writes on rank 0 only; on other ranks every method does nothing."""

    def __init__(self, output: Path, monitors: dict, is_main: bool, first_step: int):
        self._monitor = None
        if not is_main:
            return
        self.path = output / FILE_NAME
        _drop_lines_from(self.path, first_step)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)
        self._monitor = _open_monitors(output, monitors)

    def write(self, line: dict) -> None:
        """Appends a line, and tells the monitors."""
        if self._monitor is None:
            return
        self._file.write(json.dumps(line) + "\n")
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        names = {name: value for name, value in numbers.items() if name not in ("step", "consumed_samples")}
        self._monitor.write_events([(_monitor_name(name), value, line["step"]) for name, value in names.items()])

    def close(self) -> None:
        """Writes out what the monitors hold back."""
        if self._monitor is not None:
            self._file.close()
            board = self._monitor.tb_monitor
            if board.enabled and board.summary_writer is not None:
                board.summary_writer.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a ``metrics.jsonl``, without one that a kill cut short."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second that the device could do at best in 16 bits; None where it is not known, or in fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tera * 1e12 for part, tera in PEAK_TFLOPS.items() if part in name), None)


def _monitor_name(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _open_monitors(output: Path, monitors: dict):
    """DeepSpeed's monitors; TensorBoard is on unless the JSON says otherwise."""
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    board = {"enabled": True, "output_path": str(output), "job_name": "tensorboard"}
    return MonitorMaster(get_monitor_config(monitors | {"tensorboard": board | monitors.get("tensorboard", {})}))


def _drop_lines_from(path: Path, first_step: int) -> None:
    """After a resume, lines of updates that will be done again (and a line that a kill cut short) would stand twice."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] < first_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

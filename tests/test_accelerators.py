"""GPUs by their names."""

import pytest

from mpnet_ds.accelerators import accelerator_of


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835), ("NVIDIA GH200 480GB", 989), ("NVIDIA B200", 2250),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A10", 125), ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121), ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("Tesla T4", 65), ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA T400", None), ("NVIDIA T400 4GB", None), ("NVIDIA T1000", None), ("NVIDIA A1000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 4090 D", None), ("Quadro T4000", None),
    ],
)  # fmt: skip
def test_peaks_go_by_whole_words_of_the_devices_name(name, tera):
    assert getattr(accelerator_of(name), "tflops", None) == tera


@pytest.mark.parametrize(
    ("name", "gib"),
    [("h100", 79), ("A100", 79), ("a100-40gb", 39), ("NVIDIA A100-SXM4-40GB", 39),
     ("v100_32gb", 31), ("Tesla V100-SXM2-16GB", 15)],
)  # fmt: skip
def test_memory_goes_by_the_name_too_in_any_case(name, gib):
    assert accelerator_of(name).gib == gib

"""What vendors' datasheets say of GPUs, for runs on machines of which one has the name only."""

import re
from typing import NamedTuple


class Accelerator(NamedTuple):
    """One kind of GPU."""

    tflops: float
    """Dense 16-bit matrix rate, summed in fp32."""
    gib: int
    """Memory that a process sees: what drivers report, rounded down."""
    has_bf16: bool = True
    """Whether bf16 is computed as fast as fp16."""


ACCELERATORS = {
    "B200": Accelerator(2250, 178),
    "H200 NVL": Accelerator(835, 139),
    "GH200": Accelerator(989, 94),
    "H200": Accelerator(989, 139),
    "H100 NVL": Accelerator(835, 93),
    "H100 PCIe": Accelerator(756, 79),
    "H100": Accelerator(989, 79),
    "A100 40GB": Accelerator(312, 39),
    "A100": Accelerator(312, 79),
    "A30": Accelerator(165, 23),
    "A40": Accelerator(149.7, 44),
    "L40S": Accelerator(362, 44),
    "L40": Accelerator(181, 44),
    "L4": Accelerator(121, 22),
    "A10": Accelerator(125, 22),
    "A10G": Accelerator(70, 22),
    "RTX 4090": Accelerator(165, 23),
    "V100 32GB": Accelerator(125, 31, has_bf16=False),
    "V100": Accelerator(125, 15, has_bf16=False),
    "T4": Accelerator(65, 14, has_bf16=False),
    "MI300X": Accelerator(1307, 191),
}
"""By words of the device's name, in any order; the first whose words are all in it counts."""
_OTHERS = r"\bMIG\b|4090 (Laptop|D\b)"
"""Slices of a device, whose share is unknown, and devices that are named like others."""


def accelerator_of(name: str) -> Accelerator | None:
    """Look up a GPU by a name, such as its driver's, ``NVIDIA H100 80GB HBM3``, or ``a100-40gb``; None if it is unknown."""
    words = {word.upper() for word in re.findall(r"[^\W_]+", name)}
    if re.search(_OTHERS, name):
        return None
    return next((kind for known, kind in ACCELERATORS.items() if words.issuperset(known.upper().split())), None)

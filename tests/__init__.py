"""The tests. Each process has one thread, since several run at once; none asks the Hugging Face hub for anything.

The environment that they run in counts as activated: ``python`` is this one.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's client is loaded
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

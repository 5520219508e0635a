"""The tests. Each process has one thread, since several run at once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded

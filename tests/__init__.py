"""The tests. Each process has one thread, since several run at once; none asks the Hugging Face hub for anything."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's client is loaded

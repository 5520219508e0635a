"""Tests; none asks the Hugging Face hub for anything, also in the processes that it starts."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before its client is imported

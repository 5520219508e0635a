"""Pre-training of MPNet text encoders with DeepSpeed, from raw text to a Hugging Face folder."""

__version__ = "0.1.0"

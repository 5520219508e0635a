"""The checkpoints and exports that tests of this folder read."""

from tests.checkpoint.fixtures import copied, encoder_folder, exported, foreign, own, saved, with_manifest  # noqa: F401

"""Python's garbage collection waits until a run waits."""

import gc

from mpnet_ds.training.garbage import collected_by_hand
from tests.training.faulty_runs import train


class Knot:
    """Only a collection frees it."""

    def __init__(self):
        self.itself = self


def test_nothing_is_collected_but_by_hand_and_all_is_as_before_afterwards():
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with collected_by_hand() as collect:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > frozen + 1000
        Knot()
        assert collect() >= 1
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, frozen)


def test_collection_that_was_off_stays_off():
    gc.disable()
    try:
        with collected_by_hand():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_steps_collect_nothing_and_leave_nothing_to_collect(dataset_folder, tmp_path):
    """Ninety steps, one line of the log at their end."""
    flags = ["--max_steps", 90, "--log_interval", 90, "--eval_interval", 90, "--save_interval", 90]
    run = train(tmp_path / "run", dataset_folder, *flags, fault="garbage@2")
    assert run.code == 0, run.err
    assert "collections: 0\n" in run.out
    assert "with the log: 1, freed: 0\n" in run.out

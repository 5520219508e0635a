import threading
import time

import pytest

from mpnet_ds.training.prefetch import prefetched


def test_items_come_in_order_and_each_once():
    assert [item for item, _ in prefetched(lambda number: number * 10, 3, 9)] == [30, 40, 50, 60, 70, 80, 90]
    assert list(prefetched(lambda number: number, 5, 4)) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_the_depth_are_drawn_ahead(depth):
    drawn = []
    for item, _ in prefetched(lambda number: drawn.append(number) or number, 1, 12, depth):
        time.sleep(0.02)
        assert len(drawn) <= item + depth
        assert drawn[-1] >= min(item + depth, 12)


def test_waiting_is_measured_and_hidden_behind_other_work():
    def draw(number):
        time.sleep(0.05)
        return number

    idle = [waited for _, waited in prefetched(draw, 1, 6)]
    busy = [time.sleep(0.1) or waited for _, waited in prefetched(draw, 1, 6)]
    assert sum(idle) == pytest.approx(0.3, abs=0.1)
    assert sum(busy[2:]) < 0.05


def test_an_exception_is_raised_when_its_item_is_due():
    def draw(number):
        if number == 3:
            raise ValueError("number three")
        return number

    items = prefetched(draw, 1, 6)
    assert [next(items)[0], next(items)[0]] == [1, 2]
    with pytest.raises(ValueError, match="number three"):
        next(items)


def test_the_thread_ends_with_its_reader():
    items = prefetched(lambda number: number, 1, 1000)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]

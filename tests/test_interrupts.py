"""Ctrl-C, pressed while it is to have no effect or a later one."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mpnet_ds.interrupts import defer_interrupts, ignore_interrupts, interrupt_once

BLOCKED = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")


def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)  # in which an interruption would come


@pytest.fixture
def another_thread():
    """One that SIGINT may be delivered to, as those of numpy's library."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_an_interruption_waits_for_the_end_and_is_not_lost(another_thread):
    came_to = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with defer_interrupts():
            press()
            press()
            came_to.append("the end")
        came_to.append("what follows")
    assert came_to == ["the end"]
    with pytest.raises(KeyboardInterrupt):
        press()


def test_processes_that_start_meanwhile_do_not_hear_it():
    def is_blocked_in_a_new_process():
        return subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True).stdout.strip()

    with defer_interrupts():
        assert is_blocked_in_a_new_process() == "True"
    assert is_blocked_in_a_new_process() == "False"


def test_it_has_no_effect_for_a_while():
    with ignore_interrupts():
        press()
    with pytest.raises(KeyboardInterrupt):
        press()


def test_another_thread_than_the_main_one_may_ask_for_it():
    done = []

    def work():
        with ignore_interrupts(), defer_interrupts():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


def test_the_way_out_is_not_interrupted_again():
    on_the_way_out = []
    with pytest.raises(KeyboardInterrupt), interrupt_once():  # noqa: PT012
        try:
            press()
        finally:
            press()
            on_the_way_out.append("all")
    assert on_the_way_out == ["all"]
    with pytest.raises(KeyboardInterrupt):
        press()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *what: None])
def test_one_who_takes_ctrl_c_otherwise_goes_on_to_do_so(handler):
    signal.signal(signal.SIGINT, handler)
    with interrupt_once(), defer_interrupts():
        press()
    with interrupt_once():
        press()
        assert signal.getsignal(signal.SIGINT) is handler

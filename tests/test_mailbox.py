from __future__ import annotations

import threading

import pytest

from lineament.stream.mailbox import Closed, Mailbox


def blocked(call: object) -> tuple[threading.Thread, list[Closed]]:
    """A thread inside `call`, and what it raised once it ended."""
    raised: list[Closed] = []

    def run() -> None:
        try:
            call()  # type: ignore[operator]
        except Closed as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    return thread, raised


def test_patient_keeps_everything_in_order() -> None:
    box: Mailbox[int] = Mailbox(2, newest_wins=False)
    got: list[int] = []

    def drain() -> None:
        try:
            while True:
                got.append(box.take())
        except Closed:
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    for i in range(1000):
        box.put(i)
    box.close()
    thread.join(5)
    assert got == list(range(1000))
    assert box.dropped == 0


def test_fresh_keeps_the_newest_and_counts_the_rest() -> None:
    box: Mailbox[int] = Mailbox(1, newest_wins=True)
    for i in range(10):
        box.put(i)
    assert box.take() == 9
    assert box.dropped == 9


def test_close_wakes_a_blocked_put() -> None:
    box: Mailbox[int] = Mailbox(1, newest_wins=False)
    box.put(0)
    thread, raised = blocked(lambda: box.put(1))
    box.close()
    thread.join(5)
    assert len(raised) == 1


def test_close_wakes_a_blocked_take() -> None:
    box: Mailbox[int] = Mailbox(1, newest_wins=False)
    thread, raised = blocked(box.take)
    box.close()
    thread.join(5)
    assert len(raised) == 1


def test_what_was_put_before_close_can_still_be_taken() -> None:
    box: Mailbox[int] = Mailbox(3, newest_wins=False)
    box.put(1)
    box.put(2)
    box.close()
    assert [box.take(), box.take()] == [1, 2]
    with pytest.raises(Closed):
        box.take()


def test_close_with_discard_ends_takers_at_once() -> None:
    box: Mailbox[int] = Mailbox(3, newest_wins=False)
    box.put(1)
    box.close(discard=True)
    with pytest.raises(Closed):
        box.take()


def test_put_after_close_is_refused() -> None:
    box: Mailbox[int] = Mailbox(3, newest_wins=True)
    box.close()
    box.close()
    with pytest.raises(Closed):
        box.put(1)


def test_take_gives_up_after_its_timeout() -> None:
    box: Mailbox[int] = Mailbox(1, newest_wins=False)
    with pytest.raises(TimeoutError):
        box.take(timeout_s=0.01)


def test_close_may_be_called_by_a_signal_handler_while_its_thread_holds_the_lock() -> None:
    box: Mailbox[int] = Mailbox(1, newest_wins=False)
    with box._changed:
        box.close(discard=True)
    with pytest.raises(Closed):
        box.take()


def test_a_mailbox_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity 0"):
        Mailbox(0, newest_wins=True)

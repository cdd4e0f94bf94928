"""Claims: one owner at a time, takeover after the lease, and the same result as one run after the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from halos_eval.errors import HalosEvalError
from halos_eval.storage import claims, filesystem
from halos_eval.storage.claims import (
    LEASE,
    Busy,
    Claim,
    claimed,
    extend,
    holder,
    holders_below,
    process_alive,
    release,
    take,
    this_process,
)
from halos_eval.storage.records import read_model, write_model

GONE = timedelta(seconds=-1)


def unknown(owner):
    return None


@pytest.fixture
def folder(root):
    return f"{root}/claims"


def test_a_claim_keeps_others_out_until_it_is_released(folder):
    take(folder, "one", unknown)
    with pytest.raises(Busy, match=r"one does this work, until at least \d\d:\d\d UTC\. Run it again later"):
        take(folder, "two", unknown)
    release(folder, "two")  # of another owner: nothing happens
    with pytest.raises(Busy):
        take(folder, "two", unknown)
    release(folder, "one")
    assert take(folder, "two", unknown).endswith("000002.json")


def test_a_process_waits_until_the_one_before_it_has_ended(folder):
    take(folder, "one", unknown)
    with pytest.raises(Busy), claimed(folder, "two"):
        pass
    ending = threading.Timer(0.3, release, (folder, "one"))
    ending.start()
    with claimed(folder, "two", timedelta(minutes=1)) as confirm:
        confirm()
        with pytest.raises(Busy, match="two does this work"):
            take(folder, "three", unknown)
    ending.join()


def test_a_claim_that_ends_while_it_is_read_is_no_predecessor(folder, monkeypatch):
    first = take(folder, "one", unknown)
    read = claims.read_model

    def read_late(url, kind):
        filesystem.delete(first)
        return read(url, kind)

    with monkeypatch.context() as patch:
        patch.setattr(claims, "read_model", lambda *words: (patch.undo(), read_late(*words))[1])
        assert take(folder, "two", unknown) == first  # not number 2 beside another process's number 1


def test_the_same_owner_takes_its_claim_again(folder):
    assert take(folder, "one", unknown) == take(folder, "one", unknown)


@pytest.mark.parametrize(("lease", "alive"), [(GONE, None), (timedelta(hours=1), False)])
def test_a_successor_takes_over_after_the_lease_or_the_owners_end(folder, lease, alive):
    first = take(folder, "one", unknown, lease)
    second = take(folder, "two", lambda owner: alive)
    assert read_model(second, Claim).owner == "two"
    with pytest.raises(Busy, match=r"two took this work over\. Nothing was saved"):
        extend(first, "one")
    extend(second, "two")


@pytest.fixture
def clock(monkeypatch):
    """``clock(hours)`` makes this the process of a machine whose clock is wrong by so much."""

    def clock(hours):
        class Wrong(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(hours=hours)

        monkeypatch.setattr(claims, "datetime", Wrong)

    return clock


def test_a_claim_by_a_late_clock_is_taken_over_and_its_owner_notices(folder, clock):
    """The work is done twice, and the result is written once."""
    clock(-1)
    url = take(folder, "late", unknown)
    clock(0)
    assert holder(folder, unknown) is None
    take(folder, "right", unknown)
    clock(-1)
    with pytest.raises(Busy, match=r"right took this work over\. Nothing was saved"):
        extend(url, "late")
    assert holder(folder, unknown) == "right"


def test_a_claim_by_an_early_clock_delays_its_successor_by_the_difference(folder, clock):
    clock(1)
    take(folder, "early, and then killed", unknown)
    clock(0)
    with pytest.raises(Busy):
        take(folder, "right", unknown)
    clock(1 + LEASE / timedelta(hours=1))
    take(folder, "right", unknown)


def test_an_early_clock_takes_over_from_an_owner_that_notices(folder, clock):
    clock(0)
    url = take(folder, "right", unknown)
    clock(1)
    take(folder, "early", unknown)
    clock(0)
    with pytest.raises(Busy, match="early took this work over"):
        extend(url, "right")


def test_an_owner_that_is_known_to_be_at_work_needs_no_lease(folder):
    take(folder, "one", unknown, GONE)
    with pytest.raises(Busy, match="one does this work"):
        take(folder, "two", lambda owner: True)
    assert holder(folder, lambda owner: True) == "one"
    assert holder(folder, unknown) is None


def test_a_claim_with_the_same_number_is_not_taken_for_ones_own(folder):
    first = take(folder, "one", unknown, GONE)
    filesystem.delete(folder)
    assert take(folder, "two", unknown) == first
    with pytest.raises(Busy, match="two took this work over"):
        extend(first, "one")


def test_the_end_of_an_overtaken_process_leaves_the_claim_of_its_successor(folder):
    with claimed(folder, "one"):
        filesystem.write_bytes(f"{folder}/000002.json", filesystem.read_bytes(f"{folder}/000001.json"))
    assert sorted(filesystem.entries(folder)) == ["000002.json"]


def test_owners_at_work_below_a_folder(folder):
    for number, place in enumerate(["sample/f/outputs.claims", "judge/f/claims", "harness.a/f/claims"]):
        take(f"{folder}/{place}", str(number), unknown, GONE if number == 1 else LEASE)
    filesystem.write_bytes(f"{folder}/judge/f/record.json", b"{}")
    assert holders_below(folder, unknown) == {"0", "2"}


def test_processes_of_this_machine_are_known_to_have_ended():
    assert process_alive(this_process().replace(this_process().split()[1], "4194305")) is False
    assert process_alive(this_process()) is None  # or another process that got its number
    assert process_alive("process 4194305 on another-machine") is None
    assert process_alive("task harness 3 of manual__2026-01-02") is None


def test_a_claim_leaves_nothing_behind(folder):
    with claimed(folder, "one") as confirm:
        confirm()
        assert filesystem.exists(folder)
    assert not filesystem.exists(folder)


def test_a_claim_is_extended_while_the_work_goes_on(folder, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", timedelta(seconds=0.2))
    extended = threading.Event()
    monkeypatch.setattr(claims, "extend", lambda *words: extended.set())
    with claimed(folder, "one"):
        assert extended.wait(10)


@pytest.mark.parametrize("store", ["files", "s3"])
def test_of_two_hundred_pairs_of_writers_one_wins(store, root, request):
    url = root if store == "files" else request.getfixturevalue("strict_bucket")

    def attempt(number, writer):
        return filesystem.create(f"{url}/pairs/{number}.json", writer.encode())

    with ThreadPoolExecutor(2) as pool:
        for number in range(200):
            won = list(pool.map(lambda writer, number=number: attempt(number, writer), ("one", "two")))
            assert sorted(won) == [False, True]
            winner = "one" if won[0] else "two"
            assert filesystem.read_bytes(f"{url}/pairs/{number}.json") == winner.encode()


def test_a_damaged_claim_is_not_taken_for_a_free_one(folder):
    write_model(f"{folder}/000001.json", Claim(owner="one", until=datetime.now(UTC)))
    filesystem.write_bytes(f"{folder}/000001.json", b"{")
    with pytest.raises(HalosEvalError, match="is not a valid claim"):
        take(folder, "two", unknown)

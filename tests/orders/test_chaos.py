"""Short chaos runs, and tests of their checker: it must report each violation that is put before it.

The long form is `make chaos`; `make chaos-teeth` shows that the runs find sabotage.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from chaos import checker, plan
from chaos.checker import Evidence, Expected, Json

NOW = 1_800_000_000.0


@pytest.mark.parametrize(("engine", "profile"), [("talon_one", "ci"), ("voucherify", "short")])
def test_chaos_run_redeems_each_order_once(engine: str, profile: str) -> None:
    command = [sys.executable, "-m", "chaos", "--engine", engine, "--profile", profile]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    # A run in which nothing happened would prove nothing.
    assert told["orders"] > plan.PROFILES[profile].orders / 4
    assert told["kinds_of_fault"] >= 12
    assert told["manners"] >= 3
    for attack in ("kills", "pauses", "disk_full", "not_answered_while_full", "cancelled"):
        assert told[attack] > 0, (attack, told)


# -- The plan ------------------------------------------------------------------------------------------------------


def test_third_of_orders_have_duplicates_half_with_other_content() -> None:
    orders = plan.orders(1, replace(plan.PROFILES["long"], orders=6000))
    twins = [order.twin for order in orders if order.twin]
    assert 0.30 < len(twins) / len(orders) < 0.36
    assert 0.45 < twins.count("other") / len(twins) < 0.55
    assert all(order.amount("a") != order.amount("b") and order.body("a") != order.body("b") for order in orders)


def test_same_seed_makes_same_plan() -> None:
    profile = plan.PROFILES["ci"]
    assert plan.orders(7, profile) == plan.orders(7, profile) != plan.orders(8, profile)
    assert plan.faults(7, "talon_one", 3) == plan.faults(7, "talon_one", 3) != plan.faults(7, "talon_one", 4)


# -- The checker ---------------------------------------------------------------------------------------------------


def at(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


def event(type_: str, seconds: float, **facts: Any) -> Json:
    return {"type": type_, "at": NOW + seconds, **facts}


def start(seconds: float, replica: int, after_failure: str = "wait") -> Json:
    about = {"currency": "USD", "after_failure": after_failure, "is_next_version": False}
    return event("nemesis", seconds, what="start", replica=replica, **about)


def change(old: str | None, new: str, seconds: float, version: int, sent_at: float | None, fence: int = 1) -> Json:
    return {
        "order_key": "o-1", "fingerprint": "f", "old_state": old, "state": new, "old_fence": fence, "fence": fence,
        "old_version": version - 1, "version": version, "sent_at": sent_at, "same_answer": False,
        "updated_at": NOW + seconds,
    }  # fmt: skip


def request(operation: str, seconds: float, *faults: str) -> Json:
    path = "/talon_one/v2/customer_sessions/o-1"
    body = '{"order":{"source_id":"o-1"}}'
    return {"operation": operation, "at": at(seconds), "path": path, "body": body, "faults": list(faults)}


def healthy(engine: str) -> Evidence:
    """One healthy order: claimed, marked, redeemed, recorded, answered; a twin with other content refused."""
    redeeming = checker.REDEEMING[engine]
    sessions = {"o-1": {"closes": 1, "state": "closed", "items_total": 200.0}}
    log = [{"order": "o-1", "what": "redeemed"}]
    books: dict[str, Json] = {
        "talon_one": {"sessions": sessions},
        "voucherify": {"redemptions": log, "orders": {"o-1": {"amount": 20_000}}},
    }
    return Evidence(
        engine=engine,
        history=[
            start(-5.0, 0),
            start(-5.0, 1),
            event("invoke", 0.0, order="o-1", variant="a", send=1, replica=0),
            event("invoke", 0.1, order="o-1", variant="b", send=2, replica=1),
            event("fail", 0.2, order="o-1", variant="b", category="order_mismatch"),
            event("ok", 1.0, order="o-1", variant="a", reply="sha", send=1),
            event("nemesis", 10.0, what="full"),
            event("nemesis", 14.0, what="space"),
            event("calm", 20.0),
        ],
        rows=[{"order_key": "o-1", "state": "DONE", "updated_at": NOW + 0.9}],
        changes=[
            change(None, "INTENT", 0.1, 1, None),
            change("INTENT", "INTENT", 0.3, 2, 55.5),
            change("INTENT", "DONE", 0.9, 3, 55.5),
        ],
        requests=[request("dry", 0.2), request(redeeming, 0.4, "late_answer"), request("read", 0.8)],
        books=books[engine],
        plan={"o-1": Expected("TEN-PERCENT", "granted", {"a": 20_000, "b": 30_000})},
        stale_steps=[],
        asked=[{"order": "o-1", "at": NOW, "replica": 0}, {"order": "o-1", "at": NOW + 0.1, "replica": 1}],
        deadline_s=1.0,
        settle_s=15.0,
    )


def closed(times: int, state: str = "closed", total: float = 200.0) -> Json:
    return {"sessions": {"o-1": {"closes": times, "state": state, "items_total": total}}}


def log(*entries: str) -> Json:
    return {"redemptions": [{"order": "o-1", "what": what} for what in entries], "orders": {"o-1": {"amount": 20_000}}}


@pytest.mark.parametrize("engine", list(checker.REDEEMING))
def test_healthy_evidence_passes(engine: str) -> None:
    assert checker.check(healthy(engine)) == []
    assert checker.verdict([]) == dict.fromkeys(checker.KINDS, 0)


Spoil = Callable[[Evidence], Json]

DOUBLED = [request("redeem", 0.4, "twice")]
_GRANTED_B = event("ok", 3, order="o-1", variant="b", reply="x", send=2)
_TO_BE_CANCELLED = {"o-1": replace(healthy("talon_one").plan["o-1"], is_cancelled=True)}
_CANCELLED = event("cancel", 2, order="o-1", status=200)
_A_AGAIN = event("invoke", 3, order="o-1", variant="a", send=3, replica=0)

VIOLATIONS: list[tuple[str, str, Spoil]] = [
    ("talon_one", "I1 double", lambda _: {"books": closed(2)}),
    ("voucherify", "I1 double", lambda _: {"books": log("redeemed", "redeemed")}),
    ("voucherify", "I1 double", lambda _: {"books": log("redeemed", "redeemed", "rolled back")}),
    ("voucherify", "I1 double", lambda _: {"books": log("redeemed", "redeemed"), "requests": DOUBLED}),
    (
        "voucherify", "I1 double",
        lambda _: {"books": log("redeemed", "redeemed", "redeemed", "rolled back", "rolled back"), "requests": DOUBLED},
    ),
    ("talon_one", "I1 sent again", lambda e: {"requests": [*e.requests, request("close", 9.0)]}),
    ("voucherify", "I1 sent again", lambda e: {"requests": [*e.requests, request("redeem", 9.0, "reset")]}),
    ("talon_one", "I2", lambda _: {"books": {"sessions": {}}}),
    ("talon_one", "I2", lambda _: {"books": closed(1, "open")}),
    ("voucherify", "I2", lambda _: {"books": log("redeemed", "rolled back")}),
    (
        "talon_one", "I3",
        lambda e: {"history": [*e.history, event("ok", 3, order="o-1", variant="a", reply="other", send=1)]},
    ),
    ("talon_one", "I4", lambda _: {"requests": [request("close", 0.2)]}),
    ("talon_one", "I4", lambda _: {"changes": [change(None, "DONE", 0.1, 1, None)]}),
    ("talon_one", "I4", lambda _: {"requests": [request("close", 0.4, "reset"), request("close", 0.6)]}),
    ("talon_one", "I5 mismatch", lambda e: {"history": [*e.history, _GRANTED_B]}),
    ("talon_one", "I5 other content", lambda _: {"books": closed(1, total=300.0)}),
    (
        "talon_one", "I5 taken for another",
        lambda e: {"history": [*e.history, event("fail", 3, order="o-1", variant="a", category="order_mismatch")]},
    ),
    ("talon_one", "I5 taken for another", lambda _: {"books": {"sessions": {}}}),
    ("talon_one", "I5 two contents", lambda e: {"changes": [*e.changes[:-1], {**e.changes[-1], "fingerprint": "g"}]}),
    ("talon_one", "I6 unresolved", lambda e: {"rows": [{**e.rows[0], "state": "UNKNOWN"}]}),
    ("talon_one", "I6 unresolved", lambda e: {"rows": [{**e.rows[0], "state": "MANUAL"}]}),
    ("talon_one", "I6 waits", lambda e: {"history": [*e.history, event("waits", 40, order="o-1")]}),
    ("talon_one", "I6 late", lambda e: {"history": [*e.history, event("info", 36, order="o-1", variant="a")]}),
    ("talon_one", "I7", lambda e: {"changes": [*e.changes, change("DONE", "REJECTED", 2, 4, 55.5)]}),
    ("talon_one", "I7", lambda e: {"changes": [*e.changes, change("DONE", "REPAIRED", 2, 4, 55.5)]}),
    ("talon_one", "I7", lambda e: {"changes": [*e.changes, change("DONE", "DELETED", 2, 4, 55.5)]}),
    ("talon_one", "I8 fence", lambda e: {"changes": [*e.changes[:-1], {**e.changes[-1], "old_fence": 2}]}),
    ("talon_one", "I8 version", lambda e: {"changes": [*e.changes[:-1], {**e.changes[-1], "version": 9}]}),
    ("talon_one", "I8 stale", lambda _: {"stale_steps": [{"order": "o-1", "held": 1, "found": 2}]}),
    ("talon_one", "I9", lambda e: {"rows": [{**e.rows[0], "state": "REJECTED"}]}),
    ("talon_one", "I10", lambda e: {"requests": [*e.requests, request("close", 11.5, "reset")]}),
    ("talon_one", "I10", lambda e: {"requests": [*e.requests, request("dry", 13.0)]}),
    ("talon_one", "I11 not cancelled", lambda _: {"plan": _TO_BE_CANCELLED}),
    ("talon_one", "I11 not cancelled", lambda e: {"plan": _TO_BE_CANCELLED, "history": [*e.history, _CANCELLED]}),
    ("talon_one", "I11 cancelled but", lambda e: {"history": [*e.history, _CANCELLED]}),
    (
        "talon_one", "I11 granted",
        lambda e: {"history": [*e.history, _CANCELLED, _A_AGAIN, {**_A_AGAIN, "type": "ok", "reply": "sha"}]},
    ),
    ("talon_one", "I12", lambda _: {"requests": [request("close", 2.5)]}),
    ("talon_one", "lost", lambda e: {"history": [one for one in e.history if one["type"] != "ok"]}),
    ("talon_one", "lost", lambda e: {"history": [one for one in e.history if one["type"] != "fail"]}),
    ("talon_one", "lost", lambda e: {"plan": {"o-1": replace(e.plan["o-1"], expect="refused")}}),
    ("talon_one", "lost", lambda _: {"books": {"sessions": {}}}),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "expected", "spoil"), VIOLATIONS)
def test_checker_names_each_violation(engine: str, expected: str, spoil: Spoil) -> None:
    evidence = healthy(engine)
    found = checker.check(replace(evidence, **spoil(evidence)))
    assert any(line.startswith(expected) for line in found), found
    assert sum(checker.verdict(found).values()) == len(found), "each line belongs to one kind"


def test_every_invariant_has_a_violation() -> None:
    assert {spoilt.split()[0] for _, spoilt, _ in VIOLATIONS} == {"lost", *(f"I{number}" for number in range(1, 13))}


def test_single_use_code_must_be_redeemed_exactly_once() -> None:
    evidence = healthy("talon_one")
    both = {key: Expected("SINGLE-0001", "either", {"a": 20_000, "b": 30_000}) for key in ("o-1", "o-2")}
    rows = [*evidence.rows, {**evidence.rows[0], "order_key": "o-2"}]
    taken = {"o-1": closed(1)["sessions"]["o-1"], "o-2": closed(1)["sessions"]["o-1"]}
    found = checker.check(replace(evidence, plan=both, rows=rows, books={"sessions": taken}))
    assert any(line.startswith("I1 double: the code SINGLE-0001") for line in found)
    found = checker.check(replace(evidence, plan=both, rows=rows, books={"sessions": {}}))
    assert any("nobody got the code SINGLE-0001" in line for line in found)


def test_rollback_of_proxy_duplicate_passes() -> None:
    books = log("redeemed", "redeemed", "rolled back")
    assert checker.check(replace(healthy("voucherify"), books=books, requests=DOUBLED)) == []


def test_resend_after_unprocessed_request_passes() -> None:
    evidence = healthy("talon_one")
    twice = [request("close", 0.4, "status"), request("close", 2.0)]
    changes = [*evidence.changes[:-1], change("INTENT", "INTENT", 1.9, 3, 57.0), change("INTENT", "DONE", 2.1, 4, 57.0)]
    assert checker.check(replace(evidence, requests=twice, changes=changes)) == []


def test_each_redeeming_request_restarts_time_limit() -> None:
    evidence = healthy("talon_one")
    late = [event("info", 36, order="o-1", variant="a")]
    changes = [change(None, "INTENT", 0.1, 1, None), change("INTENT", "INTENT", 25, 2, 60.0)]
    sent = replace(evidence, history=[*evidence.history, *late], changes=changes)
    assert not any(line.startswith("I6 late") for line in checker.check(sent))


LATER = {
    "asked for": ([], 1.5),
    "process was paused": (
        [event("nemesis", 0.5, what="pause", replica=0), event("nemesis", 4.0, what="resume", replica=0)], 4.5
    ),
    "redeem_later policy": ([start(2.0, 1, "redeem_later")], 2.5),
}  # fmt: skip


@pytest.mark.parametrize(("more", "seconds"), LATER.values(), ids=LATER)
def test_late_redemption_with_known_cause_passes(more: list[Json], seconds: float) -> None:
    evidence = healthy("talon_one")
    later = replace(evidence, history=[*more, *evidence.history], requests=[request("close", seconds)])
    assert checker.check(later) == []


def test_evidence_of_cancelled_order_passes() -> None:
    evidence = healthy("talon_one")
    mismatch = event("fail", 3.5, order="o-1", variant="a", category="order_mismatch", send=3)
    cancelled = replace(
        evidence,
        plan=_TO_BE_CANCELLED,
        history=[*evidence.history, _CANCELLED, _A_AGAIN, mismatch],
        rows=[{**evidence.rows[0], "state": "CANCELLED"}],
        changes=[
            *evidence.changes,
            change("DONE", "CANCELLING", 1.5, 4, 55.5),
            change("CANCELLING", "CANCELLED", 1.9, 5, None),
        ],
        books=closed(1, "cancelled"),
    )  # fmt: skip
    assert checker.check(cancelled) == []

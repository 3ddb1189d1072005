"""Judges a run by the evidence it left. Knows neither how the run was made nor the product.

    history     the clients' requests, their answers, and the attacks: one JSON object per line
    rows        the ledger at the end
    changes     every change of the ledger, in order, by triggers
    requests    the requests to the sandbox, with the faults they met
    books       what the sandbox's engine has redeemed and rolled back
    plan        the expected result of each order

`check` returns the violations; each line begins with its invariant (I1 to I12 of docs/chaos.md).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import msgspec

Json = dict[str, Any]

REDEEMED = ("DONE", "REPAIRED")
FINAL = (*REDEEMED, "REJECTED", "CANCELLED")
NOTHING_STANDS = ("REJECTED", "RETRYABLE")
"""From these states an order may be tried again, with other content."""
REDEEMING = {"talon_one": "close", "voucherify": "redeem"}
DID_NOTHING = {"status", "redirect", "reset", "close"}
"""Faults with which the engine does not act on a request."""
CLOCK_S = 0.005
"""How much the clocks of two processes on one machine may differ."""
LAST_WORD_S = 1.0
"""How long after the disk filled up a request may still arrive if its intent was on disk before."""


@dataclass(frozen=True)
class Expected:
    """The plan of one order: its code, its expected result, the price of each variant in cents."""

    code: str
    expect: str
    amounts: dict[str, int]
    is_cancelled: bool = False


@dataclass(frozen=True)
class Evidence:
    engine: str
    history: list[Json]
    rows: list[Json]
    changes: list[Json]
    requests: list[Json]
    books: Json
    plan: dict[str, Expected]
    stale_steps: list[Json]
    """Decisions about an order by a holder under an old fence."""
    asked: list[Json]
    """When each replica began to work on a call for an order."""
    deadline_s: float
    settle_s: float


@dataclass(frozen=True)
class Truth:
    """What the engine did for one order: how often it redeemed and rolled back, and the amount of the cart."""

    redeemed: int = 0
    taken_back: int = 0
    amount: int = 0

    @property
    def stands(self) -> int:
        return self.redeemed - self.taken_back


def check(evidence: Evidence) -> list[str]:
    truth = _truth(evidence.engine, evidence.books)
    return [
        *_at_most_once(evidence, truth),
        *_answers(evidence, truth),
        *_same_order(evidence, truth),
        *_cancelled(evidence, truth),
        *_asked_for(evidence),
        *_intent_first(evidence),
        *_ledger(evidence),
        *_all_settled(evidence),
        *_refused_means_nothing(evidence, truth),
        *_full_disk(evidence),
        *_nothing_lost(evidence, truth),
    ]


def _truth(engine: str, books: Json) -> dict[str, Truth]:
    if engine == "talon_one":
        return {
            key: Truth(s["closes"], s["closes"] - (s["state"] == "closed"), round(100 * s["items_total"]))
            for key, s in books["sessions"].items()
            if s["closes"]
        }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in books["redemptions"]:
        counts[entry["order"]][entry["what"]] += 1
    return {
        key: Truth(count["redeemed"], count["rolled back"], books["orders"][key]["amount"])
        for key, count in counts.items()
    }


def _at_most_once(evidence: Evidence, truth: dict[str, Truth]) -> Iterator[str]:
    """I1: a double redemption counts even if it was rolled back; so does a request after one that was carried out.

    A proxy's duplicate is redeemed before it can be seen; in the end one redemption must stand.
    """
    redeeming = _redeeming(evidence)
    for key, order in truth.items():
        doubled = sum("twice" in request["faults"] for request in redeeming.get(key, ()))
        if order.redeemed > 1 + doubled or order.stands > 1:
            yield f"I1 double: {key} was redeemed {order.redeemed} times, taken back {order.taken_back} times"
    for key, requests in redeeming.items():
        acted = [index for index, request in enumerate(requests) if not DID_NOTHING & set(request["faults"])]
        if acted and acted[0] < len(requests) - 1:
            yield f"I1 sent again: {key}, {len(requests) - 1 - acted[0]} times after a request that was carried out"
    shared = Counter(
        e.code for key, e in evidence.plan.items() if e.expect == "either" and truth.get(key, _NONE).stands
    )
    for code, count in shared.items():
        if count > 1:
            yield f"I1 double: the code {code}, which works once, was redeemed {count} times"


def _answers(evidence: Evidence, truth: dict[str, Truth]) -> Iterator[str]:
    """I2, I3, I5: the answers to the clients are true, always the same, and for one content only."""
    granted: dict[str, set[tuple[str, str]]] = defaultdict(set)
    cancelled = _cancels(evidence)
    for event in evidence.history:
        if event["type"] == "ok":
            granted[event["order"]].add((event["variant"], event["reply"]))
    for key, answers in granted.items():
        variants = {variant for variant, _ in answers}
        if len(variants) > 1:
            yield f"I5 mismatch accepted: {key} was granted with two contents"
        elif len(answers) > 1:
            yield f"I3 differing: {key} was answered with {len(answers)} different 200s"
        found = truth.get(key, _NONE)
        if found.stands != 1 and key not in cancelled:
            yield f"I2 not redeemed: {key} was answered with 200, but stands {found.stands} times at the engine"
        elif found.amount not in {evidence.plan[key].amounts[variant] for variant in variants}:
            yield f"I5 other content: the engine has redeemed another cart of {key} than was granted"


def _same_order(evidence: Evidence, truth: dict[str, Truth]) -> Iterator[str]:
    """I5: `order_mismatch` is answered only for other content than the redeemed one."""
    for event in evidence.history:
        key = event.get("order", "")
        if event.get("category") != "order_mismatch" or evidence.plan[key].is_cancelled:
            continue
        found = truth.get(key, _NONE)
        if not found.stands or evidence.plan[key].amounts[event["variant"]] == found.amount:
            yield f"I5 taken for another: {key}, variant {event['variant']}, which stands {found.stands} times"


def _cancels(evidence: Evidence) -> dict[str, float]:
    """By order, when the merchant was told that it is cancelled."""
    found = [event for event in evidence.history if event["type"] == "cancel" and event["status"] == 200]
    return {event["order"]: event["at"] for event in reversed(found)}


def _cancelled(evidence: Evidence, truth: dict[str, Truth]) -> Iterator[str]:
    """I11: every cancel succeeds in the end; then no redemption stands, and the order is never granted again."""
    cancelled = _cancels(evidence)
    rows = {row["order_key"]: row["state"] for row in evidence.rows}
    invoked = {event["send"]: event["at"] for event in evidence.history if event["type"] == "invoke"}
    for key, state in rows.items():
        if evidence.plan[key].is_cancelled and (key not in cancelled or state != "CANCELLED"):
            yield f"I11 not cancelled: {key} is {state}"
    for key in cancelled:
        if truth.get(key, _NONE).stands:
            yield f"I11 cancelled but redeemed: {key}"
    for event in evidence.history:
        if event["type"] == "ok" and invoked[event["send"]] > cancelled.get(event["order"], math.inf):
            yield f"I11 granted: {event['order']} was cancelled before"


def _asked_for(evidence: Evidence) -> Iterator[str]:
    """I12: unless a process may redeem without a caller, redeeming requests arrive only while a caller waits.

    A call lasts for its deadline from when it was read (it may lie in the socket of a process that starts); if the
    process was paused, it lasts for its deadline after that.
    """
    unasked = _windows(evidence.history, lambda start: start["after_failure"] == "redeem_later")
    stood_still = {replica: _pauses(evidence.history, replica) for replica in (0, 1)}
    asked: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for call in evidence.asked:
        end = call["at"] + evidence.deadline_s
        for paused, resumed in stood_still[call["replica"]]:
            if paused < end and call["at"] < resumed:
                end = max(end, resumed + evidence.deadline_s)
        asked[call["order"]].append((call["at"], end))
    for key, requests in _redeeming(evidence).items():
        for request in requests:
            moments = [*asked[key], *unasked]
            if not any(
                start <= request["time"] + CLOCK_S and request["time"] < end + LAST_WORD_S for start, end in moments
            ):
                yield f"I12 unasked: {key} was redeemed while nobody asked for it"


def _windows(history: list[Json], chosen: Callable[[Json], bool]) -> list[tuple[float, float]]:
    """The lifetimes of processes whose start is chosen: from, until."""
    starts = _starts(history)
    found = []
    for start in filter(chosen, starts):
        later = [e["at"] for e in starts if e["replica"] == start["replica"] and e["at"] > start["at"]]
        found.append((start["at"], min(later, default=math.inf)))
    return found


def _starts(history: list[Json]) -> list[Json]:
    return [event for event in history if event["type"] == "nemesis" and event["what"] == "start"]


def _pauses(history: list[Json], replica: int) -> list[tuple[float, float]]:
    at = {
        what: [e["at"] for e in history if e["type"] == "nemesis" and e["what"] == what and e["replica"] == replica]
        for what in ("pause", "resume")
    }
    return list(zip(at["pause"], at["resume"], strict=True))


def _intent_first(evidence: Evidence) -> Iterator[str]:
    """I4: each redeeming request has its own intent, on disk before the engine received the request."""
    marks = _marks(evidence)
    for key, requests in _redeeming(evidence).items():
        for number, request in enumerate(requests, 1):
            if sum(mark <= request["time"] + CLOCK_S for mark in marks[key]) < number:
                yield f"I4 no intent: request {number} for {key} came before its intent"
                break


def _marks(evidence: Evidence) -> dict[str, list[float]]:
    """By order, the times when an intent to redeem was written."""
    marks: dict[str, list[float]] = defaultdict(list)
    sent: dict[str, float | None] = {}
    for change in evidence.changes:
        key = change["order_key"]
        if change["state"] == "INTENT" and change["sent_at"] is not None and change["sent_at"] != sent.get(key):
            marks[key].append(change["updated_at"])
        sent[key] = change["sent_at"]
    return marks


def _ledger(evidence: Evidence) -> Iterator[str]:
    """I5, I7, I8: other content only where no redemption stands; redeemed rows stay; only the holder writes."""
    prints: dict[str, Any] = {}
    for change in evidence.changes:
        key, old, new = change["order_key"], change["old_state"], change["state"]
        may_differ = old in (None, *NOTHING_STANDS) or (old == "INTENT" and change["sent_at"] is None)
        if not may_differ and change["fingerprint"] != prints[key]:
            yield f"I5 two contents: {key} got other content as {old}"
        prints[key] = change["fingerprint"]
        stays = new in REDEEMED and change["same_answer"]
        goes = new == "CANCELLING" and evidence.plan[key].is_cancelled
        if (old in REDEEMED and not (stays or goes)) or (old == "CANCELLED" != new):
            yield f"I7 changed: {key} went from {old} to {new}"
        if old is not None and new != "DELETED" and change["fence"] < change["old_fence"]:
            yield f"I8 fence: that of {key} fell from {change['old_fence']} to {change['fence']}"
        if old is not None and new != "DELETED" and change["version"] != change["old_version"] + 1:
            yield f"I8 version: that of {key} went from {change['old_version']} to {change['version']}"
    for step in evidence.stale_steps:
        yield f"I8 stale step: {step['order']} was decided about under fence {step['held']}, not {step['found']}"


def _all_settled(evidence: Evidence) -> Iterator[str]:
    """I6: after the faults every order is finished; soon, if a caller asks.

    An order may wait for its caller unless a caller was told that it is done. Its time starts when its caller is back
    after the faults, and again at each redeeming request: on a busy machine the deadline also cuts off requests without
    a fault, and nothing may be sent again before the quarantine is over.
    """
    done: set[str] = set()
    for event in evidence.history:
        if event["type"] == "ok" or event.get("category") == "order_mismatch":
            done.add(event["order"])
        elif event["type"] == "waits" and event["order"] in done:
            yield f"I6 waits: {event['order']} waits for its caller, who was told that it is done"
    for row in evidence.rows:
        if row["state"] not in FINAL:
            yield f"I6 unresolved: {row['order_key']} is still {row['state']}"
    calm = next(event["at"] for event in evidence.history if event["type"] == "calm")
    asked: dict[str, float] = {}
    marks = _marks(evidence)
    for event in evidence.history:
        if event["type"] == "invoke" and event["at"] > calm:
            asked.setdefault(event["order"], event["at"])
        elif event["type"] == "info" and event["at"] > calm:
            key, at = event["order"], event["at"]
            waited_s = at - max([asked.setdefault(key, calm), *(mark for mark in marks[key] if mark <= at)])
            if waited_s > evidence.settle_s:
                yield f"I6 late: {key} had no answer {waited_s:.1f} s after it was last sent, or asked for again"


def _refused_means_nothing(evidence: Evidence, truth: dict[str, Truth]) -> Iterator[str]:
    for row in evidence.rows:
        if row["state"] == "REJECTED" and truth.get(row["order_key"], _NONE).stands:
            yield f"I9 refused but redeemed: {row['order_key']}"


def _full_disk(evidence: Evidence) -> Iterator[str]:
    """I10: nothing is sent to the engine while the disk is full; calls that began before may end."""
    requests = sorted(_time(request) for request in evidence.requests)
    redeeming = sorted(request["time"] for found in _redeeming(evidence).values() for request in found)
    for start, end in full_windows(evidence.history):
        for what, times, grace in (
            ("redeeming request", redeeming, LAST_WORD_S),
            ("request", requests, LAST_WORD_S + evidence.deadline_s),
        ):
            count = sum(start + grace < moment < end for moment in times)
            if count:
                yield f"I10 sent with the disk full: {count} {what}s"


def _nothing_lost(evidence: Evidence, truth: dict[str, Truth]) -> Iterator[str]:
    """Every order got its expected result, and every caller got a final answer."""
    told: dict[str, dict[str, str]] = defaultdict(dict)
    for event in evidence.history:
        if event["type"] in ("ok", "fail"):
            answer = "granted" if event["type"] == "ok" else event["category"]
            told[event["order"]].setdefault(event["variant"], answer)
    asked = {(event["order"], event["variant"]) for event in evidence.history if event["type"] == "invoke"}
    rows = {row["order_key"]: row for row in evidence.rows}
    for key, variant in sorted(asked):
        if variant not in told[key]:
            yield f"lost: {key}, variant {variant}, never had a final answer"
    for key, expected in evidence.plan.items():
        answers = set(told[key].values()) - {"order_mismatch"}
        right = {"granted": [{"granted"}], "refused": [{"promotion_codes"}]}
        if answers and answers not in right.get(expected.expect, [{"granted"}, {"promotion_codes"}]):
            yield f"lost: {key} was to be {expected.expect}, and was answered {sorted(answers)}"
        row = rows.get(key)
        if row is not None and row["state"] in REDEEMED and truth.get(key, _NONE).stands != 1:
            yield f"lost: {key} is {row['state']} in the ledger, and stands {truth.get(key, _NONE).stands} times"
    codes: dict[str, list[str]] = defaultdict(list)
    for key, expected in evidence.plan.items():
        if expected.expect == "either":
            codes[expected.code].append(key)
    for code, keys in codes.items():
        if all(key in rows for key in keys) and not any(truth.get(key, _NONE).stands for key in keys):
            yield f"lost: nobody got the code {code}, which works once"


_NONE = Truth()


def _redeeming(evidence: Evidence) -> dict[str, list[Json]]:
    """By order, the redeeming requests as the engine received them, with their `time`."""
    found: dict[str, list[Json]] = defaultdict(list)
    for request in evidence.requests:
        if request["operation"] == REDEEMING[evidence.engine]:
            found[_order_of(evidence.engine, request)].append({**request, "time": _time(request)})
    return {key: sorted(requests, key=lambda request: request["time"]) for key, requests in found.items()}


def _order_of(engine: str, request: Json) -> str:
    if engine == "talon_one":
        return unquote(request["path"].rpartition("/")[2])
    order: str = msgspec.json.decode(request["body"])["order"]["source_id"]
    return order


def _time(request: Json) -> float:
    return datetime.fromisoformat(request["at"]).timestamp()


def full_windows(history: list[Json]) -> list[tuple[float, float]]:
    """When the disk was full: from, until."""
    at = {
        what: [e["at"] for e in history if e["type"] == "nemesis" and e["what"] == what] for what in ("full", "space")
    }
    return list(zip(at["full"], at["space"], strict=True))


def count(evidence: Evidence) -> Json:
    """The figures of a run."""
    attacks = Counter(event["what"] for event in evidence.history if event["type"] == "nemesis")
    sent = Counter(event["type"] for event in evidence.history)
    windows = full_windows(evidence.history)
    refused = [
        e for e in evidence.history if e["type"] == "info" and any(start < e["at"] < end for start, end in windows)
    ]
    faults = Counter(fault for request in evidence.requests for fault in request["faults"])
    states = Counter(row["state"] for row in evidence.rows)
    calm = next(event["at"] for event in evidence.history if event["type"] == "calm")
    return {
        "orders": len(evidence.rows),
        "requests": sent["invoke"],
        "engine_requests": len(evidence.requests),
        "faults": sum(faults.values()),
        "kinds_of_fault": len(faults),
        "kills": attacks["kill"],
        "pauses": attacks["pause"],
        "disk_full": attacks["full"],
        "manners": len({(e["currency"], e["after_failure"], e["is_next_version"]) for e in _starts(evidence.history)}),
        "cancelled": len(_cancels(evidence)),
        "not_answered_while_full": len(refused),
        "states": dict(states),
        "settled_after_s": round(max([0.0, *(row["updated_at"] - calm for row in evidence.rows)]), 1),
    }


KINDS = {
    "double": "I1 double",
    "sent_again": "I1 sent again",
    "lost": "lost",
    "not_redeemed": "I2",
    "differing": "I3",
    "no_intent": "I4",
    "other_content": "I5",
    "unresolved": "I6",
    "final_changed": "I7",
    "stale_steps": "I8",
    "refused_but_redeemed": "I9",
    "sent_while_full": "I10",
    "not_cancelled": "I11",
    "unasked": "I12",
}


def verdict(violations: list[str]) -> Json:
    """How often each kind of violation was found."""
    return {
        kind: sum(line.startswith((f"{start} ", f"{start}:")) for line in violations) for kind, start in KINDS.items()
    }

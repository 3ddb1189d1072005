"""Handles the requests of one project: payload in, reply out. Raises `Refused` for an error reply.

The caller makes sure that two requests do not use one order at the same time.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from adapters.voucherify.sandbox.catalog import ALWAYS_STACKABLE, NEVER_STACKABLE, Catalog, Incentive, moment
from adapters.voucherify.sandbox.errors import Refused, not_found, skipped_message
from adapters.voucherify.sandbox.orders import Order, order_json, with_details
from adapters.voucherify.sandbox.qualifications import qualify
from adapters.voucherify.sandbox.stacking import Result, Run, Shopper
from adapters.voucherify.sandbox.state import Books, Customer, Lock, Redemption, tracking_id, ttl

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """The properties of a request besides its body."""

    now: datetime
    request_id: str
    app_id: str


class Project:
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.books = Books(catalog)
        self._qualified: dict[bytes, tuple[datetime, Json | None]] = {}
        """Cached replies to qualifications, and when they expire."""

    # Validation.

    def validate(self, payload: Json, call: Call) -> Json:
        shopper = self._shopper(payload, call)
        run = Run(self.catalog, self.books, shopper, self._order(payload)).execute(payload["redeemables"])
        reply: Json = {"id": self.books.new_id("valid"), "valid": run.valid}
        reply |= self._results(run, payload, shopper, call)
        if run.valid and run.order is not None and run.start is not None:
            reply["order"] = with_details(order_json(run.order, run.start), run.replaced)
        if shopper.source_id:
            reply["tracking_id"] = tracking_id(shopper.source_id)
        if payload.get("session", {}).get("type") == "LOCK":
            reply["session"] = self._lock(run, payload["session"], call.now)
        return reply | {"stacking_rules": self.stacking_rules()}

    def _shopper(self, payload: Json, call: Call) -> Shopper:
        customer = payload.get("customer", {})
        source_id = customer.get("source_id") or payload.get("tracking_id", "")
        if "id" in customer:
            known = self.books.find_customer(customer["id"])
            if known is None:
                raise not_found("customer", customer["id"])
            source_id = known.sent["source_id"]
        return Shopper(source_id, payload.get("session", {}).get("key", ""), call.now)

    def _order(self, payload: Json) -> Order | None:
        """The order of a request. A stored order takes precedence over the one that is sent."""
        sent = payload.get("order")
        if sent is None:
            return None
        stored = self._stored(sent)
        return stored.copy() if stored else Order.of(sent, self.catalog.prices)

    def _stored(self, sent: Json) -> Order | None:
        if "id" in sent:
            found = self.books.find_order(sent["id"])
            if found is None:
                raise not_found("order", sent["id"])
            return found
        return self.books.find_order(sent["source_id"]) if sent.get("source_id") else None

    def _results(self, run: Run, payload: Json, shopper: Shopper, call: Call) -> Json:
        """The lists of redeemables. Unless the reply is valid in mode PARTIAL, `redeemables` has all of them."""
        expand = set(payload.get("options", {}).get("expand", ["order"]))
        entries = [(result.status, result.json(expand, self.books, shopper, call.request_id)) for result in run.results]
        inapplicable = [json for status, json in entries if status == "INAPPLICABLE"]
        skipped = [json for status, json in entries if status == "SKIPPED"]
        is_partial = self.catalog.options.redeemables_application_mode == "PARTIAL"
        listed = [json for status, json in entries if status == "APPLICABLE" or not (is_partial and run.valid)]
        reply: Json = {"redeemables": listed}
        reply |= {"inapplicable_redeemables": inapplicable} if inapplicable else {}
        return reply | ({"skipped_redeemables": skipped} if skipped else {})

    def _lock(self, run: Run, session: Json, now: datetime) -> Json:
        """Locks the validated vouchers. Other locks of the session stay until they are released or expire."""
        key = session.get("key") or self.books.new_id("ssn")
        value, unit = session.get("ttl", 7), session.get("ttl_unit", "DAYS")
        for result in run.applicable if run.valid else []:
            assert result.incentive is not None
            lock = Lock(now + ttl(value, unit), result.credits, result.points)
            self.books.locks[result.incentive.id][key] = lock
        return {"key": key, "type": "LOCK", "ttl": value, "ttl_unit": unit}

    def stacking_rules(self) -> Json:
        options, settings = self.catalog.options, self.catalog.book.settings
        exclusive = options.applicable_exclusive_redeemables_limit
        return {
            "redeemables_limit": options.redeemables_limit,
            "applicable_redeemables_limit": options.applicable_redeemables_limit,
            "applicable_redeemables_per_category_limit": options.applicable_redeemables_per_category_limit,
            "applicable_redeemables_category_limits": self.catalog.category_limits(),
            "applicable_exclusive_redeemables_limit": exclusive,
            "applicable_exclusive_redeemables_per_category_limit": exclusive,
            "exclusive_categories": [NEVER_STACKABLE],
            "joint_categories": [ALWAYS_STACKABLE],
            "redeemables_application_mode": options.redeemables_application_mode,
            "redeemables_sorting_rule": options.redeemables_sorting_rule,
            "redeemables_products_application_mode": "STACK",
            "redeemables_no_effect_rule": options.redeemables_no_effect_rule,
            "no_effect_skip_categories": [],
            "no_effect_redeem_anyway_categories": [],
            "redeemables_rollback_order_mode": options.redeemables_rollback_order_mode,
            "grouped_redeemables_sorting_rule": "REQUESTED_ORDER",
            "discount_calculation_mode": "DISCOUNTED_AMOUNT" if settings.cascading_discounts else "INITIAL_AMOUNT",
        }

    # Redemption.

    def redeem(self, payload: Json, call: Call) -> Json:
        shopper = self._shopper(payload, call)
        run = Run(self.catalog, self.books, shopper, self._order(payload)).execute(payload["redeemables"])
        if not run.valid:
            raise self._failed(run, payload, shopper, call)
        customer = self._store_customer(payload, shopper)
        key = self._store_order(run, payload, customer, call)
        # With one redeemable there is no parent.
        parent = self.books.new_id("r") if len(run.applicable) > 1 else ""
        children = [self._redeemed(result, payload, shopper, key, parent, call) for result in run.applicable]
        self._link(key, parent, children, call)
        reply: Json = {"redemptions": [child.json for child in children]}
        order = self.books.orders.get(key)
        if order is not None and run.start is not None:
            reply["order"] = with_details(order_json(order, run.start), run.replaced)
        if parent:
            reply["parent_redemption"] = self._parent(parent, children, reply.get("order"), payload, shopper, call)
        results = self._results(run, payload, shopper, call)
        return reply | {name: results.get(name, []) for name in ("inapplicable_redeemables", "skipped_redeemables")}

    def _failed(self, run: Run, payload: Json, shopper: Shopper, call: Call) -> Refused:
        """Records a failed redemption. Its error is that of the first redeemable, or that none applies."""
        options = self.catalog.options
        first = next((result for result in run.results if result.refused is not None), run.results[0])
        refused = first.refused or Refused(first.skipped, message=skipped_message(first.skipped))
        if options.nothing_applies != "first_refusal" and options.redeemables_application_mode == "PARTIAL":
            refused = Refused(options.nothing_applies, "None of the redeemables can be applied.")
        id_ = self.books.new_id("rf")
        failure = {"result": "FAILURE", "status": "FAILED", "failure_code": refused.key}
        self.books.others[id_] = (
            self._envelope(id_, payload, shopper, call)
            | {"redemption": None, "order": None, "failure_message": refused.message}
            | failure
            | self._related(first.incentive if len(run.results) == 1 else None, id_)
        )
        more = {name: value for name, value in refused.more.items() if name == "error"}
        more |= {"resource_id": id_, "resource_type": "redemption"}
        return Refused(refused.key, refused.details, refused.status, refused.message, **more)

    def _store_customer(self, payload: Json, shopper: Shopper) -> Customer | None:
        if not shopper.source_id:
            return None
        return self.books.store_customer({"source_id": shopper.source_id} | payload.get("customer", {}))

    def _store_order(self, run: Run, payload: Json, customer: Customer | None, call: Call) -> str:
        """Stores the discounted order and returns its id; "" where the request has no order."""
        if run.order is None:
            return ""
        stored = self._stored(payload["order"])
        order = run.order.copy()
        if stored is None:
            order.head = {
                "id": self.books.new_id("ord"),
                "source_id": payload["order"].get("source_id"),
                "created_at": moment(call.now),
                "updated_at": None,
                "status": payload["order"].get("status", "PAID"),
                "redemptions": {},
            }
        else:
            order.head = stored.head | {"updated_at": moment(call.now)}
            order.head["redemptions"] = dict(stored.head["redemptions"])
        if customer is not None and "customer" not in order.head:
            order.head |= {"customer_id": customer.id, "customer": {"id": customer.id, "object": "customer"}}
        return self.books.store_order(order)

    def _redeemed(
        self, result: Result, payload: Json, shopper: Shopper, key: str, parent: str, call: Call
    ) -> Redemption:
        incentive = result.incentive
        assert incentive is not None
        redemption = Redemption(
            self.books.new_id("r"),
            call.now,
            key,
            shopper.source_id,
            {},
            incentive,
            result.coin,
            parent,
            before=result.before,
            after=result.after,
            amount=result.amount,
            credits=result.credits,
            points=result.points,
        )
        self.books.redemptions[redemption.id] = redemption
        self.books.record(redemption, sign=1)
        self.books.locks[incentive.id].pop(shopper.session, None)
        redemption.json = (
            self._envelope(redemption.id, payload, shopper, call)
            | {"redemption": parent or None, "result": "SUCCESS", "status": "SUCCEEDED"}
            | {"order": self._snapshot(result, payload, key)}
            | self._related(incentive, redemption.id)
            | self._spent(redemption)
        )
        return redemption

    def _snapshot(self, result: Result, payload: Json, key: str) -> Json | None:
        expand = payload.get("options", {}).get("expand", ["order"])
        if result.after is None or result.before is None or "order" not in expand:
            return None
        head = self.books.orders[key].head
        after = result.after.copy()
        after.head = {name: head[name] for name in ("id", "source_id", "status") if name in head}
        return order_json(after, result.before)

    def _envelope(self, id_: str, payload: Json, shopper: Shopper, call: Call) -> Json:
        customer = self.books.customers.get(shopper.source_id)
        envelope: Json = {
            "id": id_,
            "object": "redemption",
            "date": moment(call.now),
            "customer_id": customer.id if customer else None,
            "tracking_id": tracking_id(shopper.source_id) if shopper.source_id else None,
            "metadata": payload.get("metadata"),
            "channel": {"channel_id": call.app_id, "channel_type": "API"},
            "customer": customer.json() if customer else None,
        }
        return envelope | ({"session": {"key": shopper.session}} if shopper.session else {})

    def _related(self, incentive: Incentive | None, id_: str) -> Json:
        if incentive is None:
            return {"related_object_type": "redemption", "related_object_id": id_, "voucher": None}
        related: Json = {"related_object_type": incentive.object, "related_object_id": incentive.related_id}
        if incentive.object == "voucher":
            return related | {"voucher": self.books.voucher(incentive)}
        return related | {"voucher": None, "promotion_tier": self.books.tier(incentive)}

    def _spent(self, redemption: Redemption, sign: int = 1) -> Json:
        """What was taken off a card, or (-1) put back on it."""
        json: Json = {}
        if redemption.credits:
            json = {"amount": sign * redemption.credits, "gift": {"amount": sign * redemption.credits}}
        if redemption.points:
            json = {"amount": sign * redemption.points, "loyalty_card": {"points": sign * redemption.points}}
        if redemption.coin is not None:
            customer = self.books.customers.get(redemption.customer)
            nothing = dict.fromkeys(("assignment_id", "voucher", "product", "sku", "loyalty_tier_id"))
            json["reward"] = {"customer": customer.json() if customer else None, **nothing, **redemption.coin.json()}
        return json

    def _link(self, key: str, parent: str, children: list[Redemption], call: Call) -> None:
        """Tells the order what was redeemed for it: one entry, of the parent where there is one."""
        order = self.books.orders.get(key)
        if order is None:
            return
        entry: Json = {"date": moment(call.now)}
        if parent:
            ids = [child.id for child in children]
            entry |= {"related_object_type": "redemption", "related_object_id": parent, "stacked": ids}
        else:
            incentive = children[0].incentive
            assert incentive is not None
            entry |= {"related_object_type": incentive.object, "related_object_id": incentive.related_id}
            entry["related_object_parent_id"] = incentive.parent[0]
        order.head["redemptions"][parent or children[0].id] = entry

    def _parent(
        self, id_: str, children: list[Redemption], order: Json | None, payload: Json, shopper: Shopper, call: Call
    ) -> Json:
        json = (
            self._envelope(id_, payload, shopper, call)
            | {"redemption": None, "result": "SUCCESS", "status": "SUCCEEDED", "order": order}
            | self._related(None, id_)
        )
        ids = [child.id for child in children]
        first = children[0]
        parent = Redemption(id_, call.now, first.order, first.customer, json, children=ids)
        self.books.redemptions[id_] = parent
        return json

    def redemption(self, id_: str) -> Json:
        found = self.books.redemptions.get(id_)
        json = found.json if found else self.books.others.get(id_)
        if json is None:
            raise not_found("redemption", id_)
        return json

    # Rollback.

    def rollback(self, id_: str, payload: Json, call: Call, *, single: bool) -> Json:
        redemption = self.books.redemptions.get(id_)
        if redemption is None:
            if id_ in self.books.others:
                raise Refused("invalid_redemption", "Only a successful redemption can be rolled back.")
            raise not_found("redemption", id_)
        self._check_rollback(redemption, payload, single=single)
        order = self.books.orders.get(redemption.order)
        children = [self.books.redemptions[child] for child in redemption.children] or [redemption]
        parent = self.books.new_id("rr") if redemption.children else ""
        ids = [self.books.new_id("rr") for _ in children]
        for child in children:
            self.books.record(child, sign=-1)
        if order is not None:
            self._roll_order_back(order, redemption, children, parent or ids[0], ids if parent else [], call)
        rollbacks = [
            self._rolled_back(child, rollback, payload, order, call)
            for child, rollback in zip(children, ids, strict=True)
        ]
        if single:
            return rollbacks[0]
        reply: Json = {"rollbacks": rollbacks}
        if parent:
            reply["parent_rollback"] = self._rolled_back(redemption, parent, payload, order, call)
        return reply | ({"order": order_json(order, order)} if order is not None else {})

    def _check_rollback(self, redemption: Redemption, payload: Json, *, single: bool) -> None:
        if redemption.parent:
            details = "You can rollback only a redemption that does not have parent redemption."
            raise Refused("invalid_redemption_parent", details)
        if single and redemption.children:
            details = "You can rollback only a single redemption. Use different endpoint for stacked redemption."
            raise Refused("invalid_redemption", details)
        if redemption.rollback:
            more: Json = {"resource_id": self.books.new_id("rrf"), "resource_type": "redemption_rollback"}
            raise Refused("already_rolled_back", "Redemption has been already rolled back.", **more)
        order, head = payload.get("order", {}), {}
        if redemption.order:
            head = self.books.orders[redemption.order].head
        for name in ("id", "source_id"):
            if order.get(name) is not None and order[name] != head.get(name):
                raise Refused("invalid_order", "Order is not related with redemption.")
        customer = payload.get("customer", {}).get("source_id") or payload.get("tracking_id")
        if customer and customer != redemption.customer:
            message = "Invalid customer"
            raise Refused("invalid_customer", "Customer is not related with redemption.", message=message)

    def _roll_order_back(
        self,
        order: Order,
        redemption: Redemption,
        children: list[Redemption],
        rollback: str,
        stacked: list[str],
        call: Call,
    ) -> None:
        entry = order.head["redemptions"][redemption.id]
        entry |= {"rollback_id": rollback, "rollback_date": moment(call.now)}
        if stacked:
            entry["rollback_stacked"] = stacked
        if self.catalog.options.redeemables_rollback_order_mode == "WITHOUT_ORDER":
            return
        for child in reversed(children):
            if child.before is not None and child.after is not None:
                order.roll_back(child.before, child.after)
        order.head["updated_at"] = moment(call.now)
        # Assumed: while another redemption is not rolled back, the order is not canceled.
        if all("rollback_id" in other for other in order.head["redemptions"].values()):
            order.head["status"] = "CANCELED"

    def _rolled_back(
        self, redemption: Redemption, rollback: str, payload: Json, order: Order | None, call: Call
    ) -> Json:
        redemption.rollback = rollback
        mode = self.catalog.options.redeemables_rollback_order_mode
        back = {"id": rollback, "date": moment(call.now), "rollback_order_mode": mode}
        redemption.json = redemption.json | {"status": "ROLLED_BACK", "related_redemptions": {"rollbacks": [back]}}
        shopper = Shopper(redemption.customer, "", call.now)
        json = self._envelope(rollback, payload, shopper, call) | {
            "object": "redemption_rollback",
            "redemption": redemption.id,
            "reason": payload.get("reason"),
            "result": "SUCCESS",
            "status": "SUCCEEDED",
            "order": order_json(order, order) if order is not None else None,
            **self._related(redemption.incentive, redemption.id),
            **self._spent(redemption, -1),
        }
        self.books.others[rollback] = json
        return json

    # Orders, vouchers, locks and qualifications.

    def order(self, id_: str) -> Json:
        found = self.books.find_order(id_)
        if found is None:
            raise not_found("order", id_)
        return order_json(found, found)

    def update_order(self, id_: str, payload: Json) -> Json:
        """Sets the fields that are sent: https://docs.voucherify.io/api-reference/orders/update-order."""
        found = self.books.find_order(id_)
        if found is None:
            raise not_found("order", id_)
        if "source_id" in payload:
            self.books.rename_order(found, payload["source_id"] or "")
        if payload.get("status"):
            found.head["status"] = payload["status"]
        found.metadata = {**found.metadata, **(payload.get("metadata") or {})}
        return order_json(found, found)

    def voucher(self, id_: str) -> Json:
        found = self.catalog.voucher(id_)
        if found is None:
            raise not_found("voucher", id_)
        return self.books.voucher(found)

    def release(self, id_: str, key: str, call: Call) -> None:
        """Unlocks one voucher of a session."""
        found = self.catalog.voucher(id_)
        if found is None:
            raise not_found("voucher", id_)
        lock = self.books.locks[found.id].pop(key, None)
        if lock is None or lock.until <= call.now:
            raise not_found("session", key)

    def qualify(self, payload: Json, call: Call) -> Json:
        """Finds candidates. The reply to the same request is cached for some time."""
        key = msgspec.json.encode(payload, order="deterministic")
        until, reply = self._qualified.get(key, (call.now, None))
        if reply is None or until <= call.now:
            shopper, order = self._shopper(payload, call), self._order(payload)
            reply = qualify(self.catalog, self.books, shopper, order, payload) | {
                "stacking_rules": self.stacking_rules()
            }
            until = call.now + timedelta(seconds=self.catalog.options.qualifications_cached_s)
            self._qualified[key] = until, reply
        return reply

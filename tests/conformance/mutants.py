"""The zoo: adapters with one defect each, made from the scaffold's package, and the standard test that must find it.

Each mutant is a line: its defect, the module, the text in it that is replaced, and the new text.
"""

Mutant = tuple[str, str, str, str]

# fmt: off
MUTANTS: dict[str, list[Mutant]] = {
    "test_adapter_is_installed_and_checks_its_options": [
        ("is written for another contract", "__init__", "contract = 1", "contract = 2"),
        ("has a capability it does not declare", "__init__", "undo=True", "undo=False"),
        ("has a key that is not marked secret", "options", "None, secret=True, kind", "None, kind"),
    ],
    "test_unsupported_input_is_refused_and_not_dropped": [
        ("drops a referral code", "replies", "in checkout.promotions.codes:", "in checkout.promotions.coupon_codes:"),
    ],
    "test_declared_capabilities_grant_something": [
        ("declares a capability it lacks", "__init__", "referral=False", "referral=True"),
    ],
    "test_secrets_and_engine_texts_do_not_leak": [
        ("logs its options", "__init__", "        self.accounts: M", "        __import__('logging').getLogger('acme').info('%s', options)\n        self.accounts: M"),
        ("puts the engine's text in a message", "replies", '"Acme refuses the request."', "reply.body.decode()"),
        ("sends its key in a path, in base64", "__init__", "yield request.prices(checkout)", "yield __import__('msgspec').structs.replace(\n            request.prices(checkout), path='/prices?key=' + __import__('base64').b64encode(self.accounts[''].headers[0][1].encode()).decode()\n        )"),
        ("sends its key once more with a redemption", "__init__", "yield request.redemption(order, session)", "yield __import__('msgspec').structs.replace(\n            request.redemption(order, session), headers=(('X-Key', self.accounts[''].headers[0][1]),)\n        )"),
    ],
    "test_conversations_share_no_state": [
        ("shares a cart between conversations", "__init__", "        reply = yield request.prices(checkout)\n        return replies.outcome(replies.read(reply), checkout)", "        self.cart = checkout\n        reply = yield request.prices(checkout)\n        return replies.outcome(replies.read(reply), self.cart)"),
    ],
    "test_requests_and_cpu_time_stay_within_limits": [
        ("sends a request for each line", "__init__", "        reply = yield request.prices(checkout)\n", "        for _ in checkout.cart:\n            reply = yield request.prices(checkout)\n"),
        ("takes a second for a thousand lines", "replies", "    for (kind, row, label)", "    sum(i for line in checkout.cart for i in range(15_000))\n    for (kind, row, label)"),
        ("reads 20 kB of an answer", "request", "body=_question(checkout),", "body=_question(checkout), reply_bytes=20_000,"),
    ],
    "test_accepted_codes_give_discounts": [
        ("names operations after data", "request", '"price cart"', 'f"price {len(checkout.cart)} rows"'),
        ("leaves discounts without a name", "replies", "Discount(name=label,", "Discount(name='',"),
    ],
    "test_refused_codes_have_the_expected_reasons": [
        ("gives a wrong reason", "reasons", "Reason.EXPIRED", "Reason.NOT_FOUND"),
        ("changes the case of codes", "replies", "Rejection(code, reasons", "Rejection(code.lower(), reasons"),
        ("sends at most three codes", "request", "coupon_codes}", "coupon_codes[:3]}"),
        ("refuses a code twice", "replies", "yield Rejection(code, reasons", "yield Rejection(code, reasons.reason(word), word); yield Rejection(code, reasons.reason(word), word)  #"),
        ("raises for refused codes", "replies", "yield Rejection(code, reasons", "raise EngineRejected(word, reason='x')  #"),
    ],
    "test_refused_codes_have_an_engine_reason": [
        ("leaves out the engine's own word", "replies", "yield Rejection(code, reasons.reason(word), word)", 'yield Rejection(code, reasons.reason(word), "")'),
    ],
    "test_cart_values_reach_the_engine_unchanged": [
        ("sends codes in upper case", "request", "checkout.promotions.coupon_codes}", "[code.upper() for code in checkout.promotions.coupon_codes]}"),
        ("escapes codes twice", "request", "checkout.promotions.coupon_codes}", "[quote(code) for code in checkout.promotions.coupon_codes]}"),
        ("cuts long skus", "request", "Row(line.name,", "Row(line.name[:20],"),
        ("folds skus to ASCII", "request", "Row(line.name,", "Row(line.name.encode('ascii', 'replace').decode(),"),
        ("sends a line as one unit", "request", "line.quantity, money.to_major(line.list_price,", "1, money.to_major(line.list_price * line.quantity,"),
        ("sends prices with two decimal places", "request", "money.to_major(line.list_price, checkout.digits))", "round(money.to_major(line.list_price, checkout.digits), 2))"),
    ],
    "test_percentage_is_exact_in_every_currency": [
        ("sends two decimal places in every currency", "request", "checkout.digits)) for", "2)) for"),
        ("reads two decimal places in every currency", "replies", "for off in offs]), checkout.digits)", "for off in offs]), 2)"),
        ("rounds before it sums", "replies", "amount = money.to_minor(money.total([money.from_engine(off) for off in offs]), checkout.digits)", "amount = sum(money.to_minor(money.from_engine(off), checkout.digits) for off in offs)"),
        ("truncates instead of rounding", "replies", "amount = money.to_minor(money.total([money.from_engine(off) for off in offs]), checkout.digits)", "amount = int(sum(offs) * 10**checkout.digits)"),
        ("computes with floats", "replies", "amount = money.to_minor(money.total([money.from_engine(off) for off in offs]), checkout.digits)", "amount = int(float(round(sum(offs), checkout.digits)) * 10**checkout.digits)"),
    ],
    "test_fixed_amount_is_exact_over_many_lines": [
        ("splits an amount over lines and rounds each part", "replies", "discounts.append(Discount(name=label, description=label, amount=amount, effect_type=kind, line=line))", "discounts += [Discount(name=label, description=label, amount=-(-amount // len(on)), effect_type=kind, line=at)\n                for on in [lines.values() if row is None else [line]] for at in on]"),
    ],
    "test_random_carts_get_exact_discounts": [
        ("sends at most three units", "request", "line.quantity,", "min(line.quantity, 3),"),
    ],
    "test_discounts_apply_to_the_right_lines": [
        ("sends lines of quantity 0", "request", "for line in checkout.cart]", "for line in checkout.lines]"),
        ("drops a line with the sku of another", "request", "for line in checkout.cart]", "for line in {one.name: one for one in checkout.cart}.values()]"),
        ("uses positions as line indexes", "replies", "lines[row]", "row"),
        ("puts order discounts on the first line", "replies", "None if row is None else lines[row]", "lines.get(0) if row is None else lines[row]"),
        ("matches only the first line of a sku", "replies", "for row, line in enumerate(checkout.cart)}", "for row, line in enumerate([next(one for one in checkout.cart if one.name == each.name) for each in checkout.cart])}"),
        ("merges two equal lines", "request", "for line in checkout.cart]", "for line in {(one.name, one.quantity, one.list_price): one for one in checkout.cart}.values()]"),
    ],
    "test_discounted_cart_is_priced_at_list_prices": [
        ("sends reduced prices", "request", "line.list_price", "line.price"),
    ],
    "test_unusual_carts_are_answered": [
        ("fails on an empty cart", "request", "    body = {", "    checkout.cart[0]\n    body = {"),
        ("takes an empty cart for an outage", "__init__", "        reply = yield request.prices(checkout)\n", "        if not checkout.cart:\n            raise EngineUnavailable('Empty.', reason='empty')\n        reply = yield request.prices(checkout)\n"),
    ],
    "test_order_of_lists_does_not_change_the_outcome": [
        ("reads only the first effect", "replies", "in answer.reductions:", "in answer.reductions[:1]:"),
    ],
    "test_two_equal_effects_both_count": [
        ("counts two equal effects once", "replies", "in answer.reductions:", "in dict.fromkeys(answer.reductions):"),
    ],
    "test_validate_keeps_the_contract_on_mutated_replies": [
        ("fails on an unknown reason", "reasons", "WORDS.get(word, Reason.OTHER)", "WORDS[word]"),
        ("fails on a body that is no JSON", "replies", "(msgspec.DecodeError, RecursionError)", "ZeroDivisionError"),
        ("applies negative amounts", "replies", "amount > 0:", "amount:"),
    ],
    "test_unusable_reply_does_not_mean_no_discount": [
        ("takes an unreadable answer for an empty one", "replies", "raise EngineUnavailable(\"Acme's answer cannot be read.\", reason=\"bad_reply\") from error\n\n\ndef outcome", "return Answer([], {})\n\n\ndef outcome"),
    ],
    "test_wrong_key_raises_engine_rejected": [
        ("takes a wrong key for an outage", "replies", 'raise EngineRejected("Acme does not accept the API key.", reason="engine_key")', 'raise EngineUnavailable("Acme does not answer.", reason="engine_key")'),
        ("takes a wrong key for an answer", "replies", "if reply.status in (401, 403):", "if reply.status in (401, 403):\n        return\n    if reply.status == 0:"),
    ],
    "test_unreadable_amount_is_refused": [
        ("drops unreadable amounts", "replies", "if not happened:", "if happened:"),
    ],
    "test_unknown_effect_is_not_dropped": [
        ("drops unknown effects", "replies", "notices.append(Notice", "str(Notice"),
        ("passes on unknown effects without payload", "replies", 'takes no money off.", payload)', 'takes no money off.", {})'),
    ],
    "test_redemption_with_any_2xx_is_never_not_redeemed": [
        ("takes any reply for a redemption", "__init__", "        answer = replies.read(reply)\n", "        if not reply.body[:2] == b'{\\x22':\n            return Redeemed(Outcome())\n        answer = replies.read(reply)\n"),
    ],
    "test_redemption_needs_the_engines_confirmation": [
        ("ignores the state of a redemption", "__init__", 'if answer.state != "redeemed":', "if False:"),
    ],
    "test_look_up_does_not_take_errors_for_absence": [
        ("takes a refusal for absence", "__init__", "reply.status == 404:", "reply.status >= 400:"),
    ],
    "test_order_is_validated_redeemed_and_looked_up": [
        ("redeems at check", "__init__", "return self.validate(order, session)", "yield from self.redeem(order, session)"),
        ("ignores an earlier redemption", "__init__", 'raise EngineUnavailable("Acme has redeemed this order before.", reason="redeemed_before")', "return Redeemed(Outcome())"),
        ("looks up without amounts", "__init__", 'LookedUp("redeemed", replies', 'LookedUp("redeemed")  # '),
    ],
    "test_look_up_finds_the_order_among_similar_ones": [
        ("confuses orders with a common id prefix", "request", "quote(session,", "quote(session[:9],"),
    ],
    "test_look_up_finds_unusual_orders": [
        ("sends every cart in dollars", "request", '"currency": checkout.currency', '"currency": "USD"'),
        ("compares lines of quantity 0", "replies", "stored.rows == rows(order)", "len(stored.rows) == len(order.lines)"),
        ("rejects its own order with a refused code", "replies", "same_codes = set(stored.codes)", "same_codes = set(stored.codes) - set(stored.refused)"),
    ],
    "test_another_cart_in_the_session_is_a_mismatch": [
        ("does not compare carts", "replies", "stored.rows == rows(order) and", ""),
        ("takes an order redeemed with another cart for its own", "__init__", 'raise EngineUnavailable("Acme has redeemed this order before.", reason="redeemed_before")', "stored = replies.read((yield request.stored_order(session)))\n            return Redeemed(__import__('msgspec').structs.replace(replies.outcome(stored, order, happened=True), redeemed=True), stored.id)"),
        ("does not compare currencies", "replies", "stored.currency == order.currency and ", ""),
        ("compares carts without counting equal lines", "replies", "stored.rows == rows(order)", "set(stored.rows) == set(rows(order))"),
    ],
    "test_other_codes_in_the_session_are_a_mismatch": [
        ("does not compare codes", "replies", "set(stored.codes) == set(order.promotions.coupon_codes)", "True"),
    ],
    "test_check_and_redeem_refuse_what_validate_refuses": [
        ("gives another engine reason at redeem", "__init__", "return NotRedeemed(replies.outcome(replies.decode(reply), order).rejected)", "return NotRedeemed(tuple(__import__('msgspec').structs.replace(one, engine_reason='') for one in replies.outcome(replies.decode(reply), order).rejected))"),
    ],
    "test_declared_effect_of_each_request_is_true": [
        ("declares redeem a session effect", "request", 'effect="redeems"', 'effect="session"'),
        ("declares undo without effect", "request", 'effect="session"', 'effect="none"'),
    ],
    "test_repeatable_request_can_arrive_twice": [
        ("declares redeem repeatable", "request", "repeatable=False", "repeatable=True"),
    ],
    "test_unusual_order_ids_are_kept_apart": [
        ("does not quote ids", "request", "{quote(session, safe='')}", "{session}"),
        ("does not quote slashes", "request", "safe=''", "safe='/'"),
        ("ignores the case of ids", "request", "quote(session,", "quote(session.lower(),"),
    ],
    "test_sign_of_an_amount_matters": [
        ("takes a surcharge for a discount", "replies", "[money.from_engine(off) for off in offs]", "[abs(money.from_engine(off)) for off in offs]"),
    ],
    "test_refused_redemption_is_not_an_empty_order": [
        ("takes a refused redemption for an order without promotions", "__init__", "        answer = replies.read(reply)\n", "        if reply.status == 412:\n            return NotRedeemed(())\n        answer = replies.read(reply)\n"),
    ],
    "test_used_up_code_leaves_the_other_codes_redeemed": [
        ("does not tell which code was refused at redeem", "__init__", "return Redeemed(replies.outcome(answer, order, happened=True), answer.id)", "return Redeemed(__import__('msgspec').structs.replace(replies.outcome(answer, order, happened=True), rejected=()), answer.id)"),
        ("tells a refused code at redeem and not in a look-up", "__init__", 'LookedUp("redeemed", replies.outcome(stored, order, happened=True))', 'LookedUp("redeemed", __import__("msgspec").structs.replace(replies.outcome(stored, order, happened=True), rejected=()))'),
    ],
    "test_concurrent_validate_does_not_change_the_result": [
        ("redeems the cart of the last validate", "__init__", "        reply = yield request.prices(checkout)\n        return replies.outcome(replies.read(reply), checkout)\n", "        self.cart = checkout\n        reply = yield request.prices(checkout)\n        return replies.outcome(replies.read(reply), checkout)\n\n    def __getattribute__(self, name):\n        found = super().__getattribute__(name)\n        return found if name != 'redeem' else lambda order, session: found(self.cart, session)\n"),
    ],
    "test_order_is_redeemed_once_despite_any_fault": [
        ("never finds an order again", "__init__", 'return LookedUp("redeemed", replies', 'return LookedUp("absent", replies'),
    ],
    "test_service_redeems_once_after_a_crash": [
        ("never knows the fate of an order", "__init__", 'return LookedUp("redeemed", replies', 'return LookedUp("unclear", replies'),
    ],
    "test_redemption_can_be_undone": [
        ("needs the order to undo it", "__init__", "request.undo(session,", "request.undo(session if order.cart else '',"),
        ("does not undo", "request", 'method="DELETE"', 'method="GET"'),
    ],
    "test_undo_without_a_redemption_succeeds": [
        ("fails to undo an unknown order", "__init__", "if reply.status in (204, 404):  #", "if reply.status == 204:  #"),
    ],
    "test_failed_undo_raises": [
        ("ignores a refused undo", "__init__", "        replies.insist(reply)  # another 2xx", "        return"),
        ("takes any 2xx for an undo", "__init__", "if reply.status in (204, 404):", "if 200 <= reply.status <= 299 or reply.status == 404:"),
    ],
    "test_validate_is_repeatable_and_redeems_nothing": [
        ("redeems at validate", "__init__", "reply = yield request.prices(checkout)", "reply = yield request.redemption(checkout, session)"),
    ],
    "test_code_used_up_by_another_order_is_refused": [
        ("does not know that a code is used up", "reasons", '    "GONE": Reason.USED_UP,\n', ""),
    ],
    "test_redemption_can_be_undone_for_good": [
        ("ignores a cancel", "__init__", "        reply = yield request.undo(session, final=final)", "        if final:\n            return\n        reply = yield request.undo(session, final=final)"),
    ],
    "test_redeem_keeps_the_contract_on_mutated_replies": [
        ("fails on an unknown row", "replies", "except (KeyError, money.NotMoney) as error", "except money.NotMoney as error"),
    ],
    "test_look_up_keeps_the_contract_on_mutated_replies": [
        ("fails on an order without rows", "replies", "    rows: list[Row] = []\n", "    rows: list[Row]\n"),
    ],
}
# fmt: on

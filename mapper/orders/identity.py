"""What makes an order the same order when it comes again, whatever its bytes (CONTRACT section 7).

A row stores which version of the rules its identity was made by, so that an order of before an upgrade is still known.
What is not here, such as addresses, payments, notes and identifiers, may differ.
"""

import hashlib
from typing import Any

import msgspec

from mapper.domain.checkout import Checkout
from mapper.orders.rows import Key

VERSION = 2


def identity(
    order: Checkout, key: Key, costs: tuple[str, ...], customer: str = "", version: int = VERSION
) -> bytes | None:
    """The identity by a version of the rules; None where that version is not known.

    `costs`: JSON pointers to the additional costs that the engine is told of. `customer`: where the order names none.
    """
    lines = sorted((line.name, line.quantity, line.list_price, line.discount) for line in order.lines)
    given = order.promotions
    content: list[Any]
    if version == 1:
        content = [
            [1, key.space, key.engine, key.order, order.currency, order.digits],
            [sorted(set(given.coupon_codes)), given.referral_code, given.loyalty_card, sorted(set(given.identifiers))],
            [lines, order.root_discount],
        ]
    elif version == VERSION:
        content = [
            [2, order.currency, order.digits, order.customer or customer],
            [sorted(set(given.coupon_codes)), given.referral_code, given.loyalty_card],
            [lines, order.root_discount, [order.amount_at(pointer) for pointer in costs]],
        ]
    else:
        return None
    return hashlib.sha256(msgspec.json.encode(content)).digest()

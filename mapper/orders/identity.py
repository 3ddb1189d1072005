"""Computes the identity of an order: a hash of the content that makes it the same order.

A row stores the version of the rules with its identity, so that an order from before an upgrade is still recognised.
All other content, such as addresses, payments, notes and identifiers, may differ.
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
    """Returns the SHA-256 identity by a version of the rules, or None for an unknown version.

    `costs`: JSON pointers to the additional costs that the engine receives. `customer`: that of an order without one.
    """
    lines = sorted((line.name, line.quantity, line.list_price, line.discount) for line in order.lines)
    codes = order.promotions
    content: list[Any]
    if version == 1:
        content = [
            [1, key.space, key.engine, key.order, order.currency, order.digits],
            [sorted(set(codes.coupon_codes)), codes.referral_code, codes.loyalty_card, sorted(set(codes.identifiers))],
            [lines, order.root_discount],
        ]
    elif version == VERSION:
        content = [
            [2, order.currency, order.digits, order.customer or customer],
            [sorted(set(codes.coupon_codes)), codes.referral_code, codes.loyalty_card],
            [lines, order.root_discount, [order.amount_at(pointer) for pointer in costs]],
        ]
    else:
        return None
    return hashlib.sha256(msgspec.json.encode(content)).digest()

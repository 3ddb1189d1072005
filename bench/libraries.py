"""The floor of local work: what the libraries need for a validate of this bench's cart, and no logic at all.

Decoded, encoded again, lines typed, prices parsed, a question encoded, effects decoded, grouped, added up, rounded, the
answer encoded: with msgspec and decimal, for carts that are known to be right. No check, no signature, no receipt, no
deadline, no log.
"""

from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import msgspec

from bench import carts

_CENT = Decimal("0.01")


class _Line(msgspec.Struct, gc=False):
    sku: str
    quantity: int
    price: str


class _Item(msgspec.Struct, gc=False):
    sku: str
    quantity: int
    price: Decimal


class _Props(msgspec.Struct, gc=False):
    name: str = ""
    value: msgspec.Raw = msgspec.Raw(b"0")
    position: int = -1


class _Effect(msgspec.Struct, rename="camel", gc=False):
    effect_type: str
    campaign_id: int
    rule_name: str
    props: _Props


class _Reply(msgspec.Struct):
    effects: list[_Effect]


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(decimal_format="number").encode
_reply = msgspec.json.Decoder(_Reply).decode
_number = msgspec.json.Decoder(Decimal).decode


def validate(body: bytes) -> bytes:
    """The bench's checkout, with its discounts."""
    checkout: dict[str, Any] = _decode(body)
    assert _encode(checkout) == body, "this bench's carts come back as they went in"
    lines = msgspec.convert(checkout["items"], list[_Line])
    _encode({"customerSession": {"cartItems": [_Item(one.sku, one.quantity, Decimal(one.price)) for one in lines]}})
    reply = _reply(carts.reply(len(lines)))
    shares: defaultdict[tuple[str, int], list[Decimal]] = defaultdict(list)
    rules: dict[int, str] = {}
    for effect in reply.effects:
        if effect.effect_type.startswith("setDiscount"):
            position = effect.props.position
            shares[effect.effect_type, position].append(_number(effect.props.value))
            rules[position] = effect.rule_name
    off = {place: sum(values, Decimal()).quantize(_CENT, ROUND_HALF_UP) for (_, place), values in shares.items()}
    items = [
        {
            **plain,
            "price": str((Decimal(line.price) - off[place] / line.quantity).quantize(_CENT, ROUND_HALF_UP)),
            "total_discount": str(off[place]),
            "discounts": [{"name": rules[place], "amount": str(off[place]), "effect_type": "setDiscountPerItem"}],
        }
        for place, (plain, line) in enumerate(zip(checkout["items"], lines, strict=True))
    ]
    total = sum(off.values())
    listed = [{"name": rules[-1], "amount": str(off[-1]), "effect_type": "setDiscount"}]
    return _encode({"checkout": {**checkout, "items": items, "total_discount": str(total), "discounts": listed}})

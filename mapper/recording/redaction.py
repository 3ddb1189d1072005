"""Replaces personal data in a record by placeholders. Within a record, a value always gets the same placeholder.

Prices, quantities, ids of carts and products, and the engine's vocabulary stay, since they decide what a cart costs.
Everything else that a shopper or a merchant wrote is replaced:

| in the body | becomes |
|---|---|
| codes, referral codes, loyalty cards | their hash as in the log, or `code-1` |
| texts, unless their key is in `KEPT` or they are below a key of `OURS` | `redacted-1` |
| anything below a key of `PERSONAL`, such as `customer` or `shipping_address` | `redacted-1`, numbers 0 |
| whole numbers of 7 digits or more, such as a phone number without quotes | 0 |
| members whose key says secret, token, password, key, signature or receipt | removed |

In an engine's reply, texts are kept except values that were replaced in the body, values below a personal key, and
whatever looks like an e-mail address, an IP address or an international phone number. A single word of the body, such
as "voucher", may also be the engine's own word: it is replaced in replies only if it was personal or was sent to the
engine.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from mapper.domain.codes import clean

KEPT: Final = frozenset(
    {
        "id", "source_id", "sku", "variant_id", "product_id", "currency", "currency_code", "category", "cost", "scope",
    }
)  # fmt: skip
"""Keys whose texts are kept, unless they are or look personal."""
VOCABULARY: Final = frozenset({"object", "type", "effect_type", "status", "state"})
"""Keys whose texts are a program's own words if they are single words."""
OURS: Final = frozenset({"discounts", "applied_discounts", "mapper"})
"""Keys below which texts are kept likewise: the mapper wrote them, in the engine's words."""
PERSONAL: Final = frozenset(
    {
        "customer", "customers", "customerprofile", "profile", "recipient", "holder", "buyer", "shopper", "user",
        "contact", "address", "addresses", "billingaddress", "shippingaddress", "billing", "payment", "payments",
        "email", "emailaddress", "phone", "phonenumber", "mobile", "firstname", "lastname", "middlename", "fullname",
        "username", "customername", "birthday", "birthdate", "dateofbirth", "gender", "company", "street", "line1",
        "line2", "address1", "address2", "city", "zip", "zipcode", "postalcode", "postcode", "ip", "ipaddress",
        "identifiers", "profileid", "profileintegrationid", "recipientintegrationid", "customerid",
    }
)  # fmt: skip
"""Keys (in lower case, without `_` and `-`) below which everything is replaced."""
CODES: Final = frozenset({"coupon_codes", "referral_code", "loyalty_card"})

_SECRET: Final = re.compile(
    r"secret|token|passw|api[-_]?key|authorization|signature|cookie|receipt|cvv|iban", re.IGNORECASE
)
_LOOKS_PERSONAL: Final = re.compile(
    r"[^\s@\"'<>/:?&=,;()]+(?:@|%40)[\w.-]+\.\w+"  # an e-mail address, also in a path
    r"|\+\d[\d ()/-]{6,}\d"
    r"|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])"
    r"|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F:]*(?!\w)"
)
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z_-]*")
_AMOUNT: Final = re.compile(r"-?\d{1,6}|-?\d{1,15}\.\d{1,6}")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?")
_LONG_NUMBER: Final = 1_000_000
_MIN_LENGTH_WITHIN: Final = 4
"""Shorter values are replaced only if they are the whole text, not within a longer one."""


class Redaction:
    """The placeholders of one record."""

    def __init__(self, codes: Iterable[str], name_of_code: Callable[[str], str]) -> None:
        """`codes`: the shopper's codes, cleaned. `name_of_code`: the hash for the log, "" if codes are not hashed."""
        self._codes: dict[str, str] = {}
        for number, code in enumerate(codes, 1):
            self._codes.setdefault(code.casefold(), name_of_code(code) or f"code-{number}")
        self._placeholders: dict[str, str] = {}
        """By each value of the body, in lower case, since an engine may change the case of codes and addresses."""
        self._replacements: dict[str, str] = {**self._codes}
        """By each value that is replaced in the engine's texts, in lower case."""
        self._pattern: re.Pattern[str] | None = None

    def placeholder(self, value: str, *, personal: bool = True) -> str:
        """Returns the placeholder of a value, which is replaced from now on."""
        key = value.casefold()
        if not value or key in self._codes:
            return self._codes.get(key, value)
        placeholder = self._placeholders.setdefault(key, f"redacted-{len(self._placeholders) + 1}")
        if key not in self._replacements and (personal or not _WORD.fullmatch(value)):
            self.learn(value, placeholder)
        return placeholder

    def learn(self, value: str, placeholder: str) -> None:
        """Replaces a value in the engine's texts from now on, such as one that the adapter derives from another."""
        self._replacements[value.casefold()] = placeholder
        self._pattern = None

    def text(self, text: str) -> str:
        """Redacts a text of the engine or of the mapper, such as a session's id."""
        if (whole := self._replacements.get(text.casefold())) is not None:
            return whole
        if self._pattern is None:
            values = sorted(
                (one for one in self._replacements if len(one) >= _MIN_LENGTH_WITHIN), key=len, reverse=True
            )
            any_of = "|".join(map(re.escape, values)) or "(?!)"
            self._pattern = re.compile(rf"(?<!\w)(?:{any_of})(?!\w)", re.IGNORECASE)
        text = self._pattern.sub(lambda found: self._replacements[found[0].casefold()], text)
        return _LOOKS_PERSONAL.sub(lambda found: self.placeholder(found[0]), text)

    def body(self, body: bytes) -> Any:
        """Redacts a call's body. Raises `ValueError` if Python cannot read it."""
        return self._of_body(json.loads(body, parse_float=Decimal), "", personal=False, kept=False)

    def reply(self, value: Any) -> Any:
        """Redacts the decoded body of an engine's reply."""
        return self._of_reply(value, "", personal=False)

    def _of_body(self, value: Any, key: str, *, personal: bool, kept: bool) -> Any:
        personal = personal or _plain(key) in PERSONAL
        if isinstance(value, dict):
            return {
                self._key(name): self._of_body(each, name, personal=personal, kept=kept or name in OURS)
                for name, each in value.items()
                if not is_secret(name)
            }
        if isinstance(value, list):
            return [self._of_body(each, key, personal=personal, kept=kept) for each in value]
        kept = kept or key in KEPT
        if isinstance(value, str):
            return self._text_of_body(value, key, personal=personal, kept=kept)
        return _number(value, personal=personal or (_is_long(value) and not kept))

    def _text_of_body(self, value: str, key: str, *, personal: bool, kept: bool) -> str:
        cleaned = clean(value)
        if key in CODES and cleaned:
            # An invalid code must stay invalid when it is replayed.
            return self._codes.get(cleaned.casefold()) or f"{self.placeholder(value)}\0"
        if key in VOCABULARY and _WORD.fullmatch(value):
            return value
        if key == "code" and cleaned.casefold() in self._codes:
            return self.placeholder(cleaned)
        if _AMOUNT.fullmatch(value):  # even if a code is a number
            return "0" if personal else value
        if personal or cleaned.casefold() in self._codes:
            return self.placeholder(cleaned)
        if kept:
            return self.text(_unicode(value))
        return value if _DATE.fullmatch(value) else self.placeholder(value, personal=False)

    def _key(self, key: str) -> str:
        """Redacts a key, which may be data: amounts by code, attributes by address."""
        return self._codes.get(key.casefold()) or _LOOKS_PERSONAL.sub(
            lambda found: self.placeholder(found[0]), _unicode(key)
        )

    def _of_reply(self, value: Any, key: str, *, personal: bool) -> Any:
        personal = personal or _plain(key) in PERSONAL or is_secret(key)
        if isinstance(value, Mapping):
            return {self._key(name): self._of_reply(each, name, personal=personal) for name, each in value.items()}
        if isinstance(value, list):
            return [self._of_reply(each, key, personal=personal) for each in value]
        if not isinstance(value, str) or (key in VOCABULARY and _WORD.fullmatch(value)):
            return value
        return self.placeholder(value) if personal else self.text(value)


def is_secret(key: str) -> bool:
    """Whether a key, or the name of a header, says that its value is a secret."""
    return _SECRET.search(key) is not None


def _plain(key: str) -> str:
    return key.casefold().replace("_", "").replace("-", "")


def _unicode(text: str) -> str:
    """Replaces lone surrogates, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _LONG_NUMBER


def _number(value: Any, *, personal: bool) -> Any:
    return 0 if personal and isinstance(value, int | Decimal) and not isinstance(value, bool) else value

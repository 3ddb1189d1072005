"""Finds the redeemable that an entry of a reply refers to.

Voucherify names a voucher by its code, in the stored or the requested case. In errors it may use the voucher's internal
id, which the adapter does not know. Such an id is matched by its place in the reply, or because one redeemable is left.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from adapters.voucherify.reading import mapping, objects, text
from adapters.voucherify.redeemables import Redeemable, find, may_be_internal_id

Entry = Mapping[str, Any]
LISTS = ("redeemables", "inapplicable_redeemables", "skipped_redeemables")


class Matcher(msgspec.Struct, frozen=True):
    redeemables: Sequence[Redeemable]
    """Those of the request."""
    by_internal_id: Mapping[str, Redeemable] = {}

    def match(self, entry: Entry) -> Redeemable | None:
        """The requested redeemable that an entry is about; None where there is none."""
        kind = text(entry.get("object"))
        found = find(self.redeemables, [entry.get("id"), entry.get("redeemable_id"), entry.get("code")], kind)
        if found is None and not applies(entry):
            error = mapping(mapping(entry.get("result")).get("error"))
            found = find(self.redeemables, [error.get("redeemable_id"), error.get("resource_id")], kind)
        return found or self.by_internal_id.get(text(entry.get("id")))


def applies(entry: Entry) -> bool:
    return entry.get("status") == "APPLICABLE"


def matcher_for(body: Entry, redeemables: Sequence[Redeemable]) -> Matcher:
    """The matcher for the reply to a validation or a redemption. It knows the internal ids that can be resolved."""
    plain = Matcher(redeemables)
    entries = list(_entries(body))
    if not any(may_be_internal_id(entry.get("id")) for entry in entries):
        return plain
    matches = [(entry, plain.match(entry)) for entry in entries]
    unmatched = [entry for entry, found in matches if found is None and may_be_internal_id(entry.get("id"))]
    matched = [found for _, found in matches]
    left = [one for one in redeemables if one.code and one not in matched]
    if not unmatched or not left:
        return plain
    in_order = objects(body.get("redeemables"))
    if len(in_order) == len(redeemables) or body.get("valid") is False:
        # In mode ALL the entries have the order of the request, at least up to the first that does not apply.
        pairs = {
            text(entry.get("id")): one for entry, one in zip(in_order, redeemables, strict=False) if entry in unmatched
        }
        if all(text(entry.get("id")) in pairs for entry in unmatched) and all(one in left for one in pairs.values()):
            return Matcher(redeemables, pairs)
    if len(unmatched) == len(left) and len({applies(entry) for entry in unmatched}) == 1:
        # All are in one list, and each list has the order of the request.
        return Matcher(redeemables, dict(zip((text(entry.get("id")) for entry in unmatched), left, strict=True)))
    return plain


def _entries(body: Entry) -> Iterator[Entry]:
    """The entries of all lists, without duplicates."""
    seen = set()
    for name in LISTS:
        for entry in objects(body.get(name)):
            key = (text(entry.get("object")), text(entry.get("id")))
            if key not in seen:
                seen.add(key)
                yield entry

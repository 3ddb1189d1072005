"""Which redeemable an answer means: by its id, in another case, or by the internal id of a voucher.

Voucherify names a voucher by the code as it is stored, or as it was asked for; an internal id is
documented for errors alone. Such an id says nothing by itself: its place in the answer does, or that it is the only
one left.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.voucherify.reading import mapping, objects, text
from adapters.voucherify.redeemables import Redeemable, looks_internal, named

Entry = Mapping[str, Any]
LISTS = ("redeemables", "inapplicable_redeemables", "skipped_redeemables")


@dataclass(frozen=True, slots=True)
class Naming:
    asked: Sequence[Redeemable]
    by_id: Mapping[str, Redeemable] = field(default_factory=dict)
    """Internal ids that this answer has, where it is certain whose they are."""

    def one(self, entry: Entry) -> Redeemable | None:
        """The redeemable that an entry is about; None for nothing that was asked for."""
        kind, error = text(entry.get("object")), mapping(mapping(entry.get("result")).get("error"))
        found = named(self.asked, [entry.get("id"), entry.get("redeemable_id"), entry.get("code")], kind)
        if found is None and not applies(entry):
            found = named(self.asked, [error.get("redeemable_id"), error.get("resource_id")], kind)
        return found or self.by_id.get(text(entry.get("id")))


def applies(entry: Entry) -> bool:
    return entry.get("status") == "APPLICABLE"


def read_names(body: Entry, asked: Sequence[Redeemable]) -> Naming:
    """How the entries of an answer to a validation or a redemption are called."""
    plain = Naming(asked)
    entries = [*_entries(body)]
    strange = [one for one in entries if plain.one(one) is None and looks_internal(one.get("id"))]
    known = [plain.one(one) for one in entries]
    left = [one for one in asked if one.code and one not in known]
    if not strange or not left:
        return plain
    places = objects(body.get("redeemables"))
    if len(places) == len(asked) or body.get("valid") is False:
        # In mode ALL they stand as they were asked for, at least up to the first that does not apply.
        pairs = {text(entry.get("id")): one for entry, one in zip(places, asked, strict=False) if entry in strange}
        if all(text(entry.get("id")) in pairs for entry in strange) and all(one in left for one in pairs.values()):
            return Naming(asked, pairs)
    if len(strange) == len(left) and len({applies(one) for one in strange}) == 1:
        # All from one list, which has the order of the request.
        return Naming(asked, dict(zip((text(one.get("id")) for one in strange), left, strict=True)))
    return plain


def _entries(body: Entry) -> Iterator[Entry]:
    """Each entry once: the lists repeat each other."""
    seen = set()
    for place in LISTS:
        for entry in objects(body.get(place)):
            key = (text(entry.get("object")), text(entry.get("id")))
            if key not in seen:
                seen.add(key)
                yield entry

"""What a rule book says of Talon.One alone: settings of the Application, and what the documents leave open."""

from typing import Literal

from mapper.sandbox import rulebook


class Options(rulebook.Table, frozen=True, kw_only=True):
    """`[engines.talon_one]` of the rule book."""

    application_id: int = 1
    idempotency_keys: bool = True
    testing_key: bool = False
    """The key is one for testing: every request is dry."""
    flatten: bool = True
    case_sensitive_codes: bool = False
    discounts_beyond_price: bool = False
    """An amount that is more than what it comes off is granted as it stands; else it is cut."""
    attributes: Literal["merge", "replace"] = "merge"
    """Session attributes that are sent: kept one by one, or instead of all that were there."""
    additional_costs: Literal["merge", "replace"] = "replace"
    """Likewise."""
    nulls: Literal["refuse", "clear", "ignore"] = "refuse"
    """A null where a value may stand."""
    unknown_fields: Literal["refuse", "ignore"] = "refuse"

"""The settings of the emulated Application, and variants where the documentation is silent."""

from typing import Literal

from mapper.sandbox import rulebook


class Options(rulebook.Table, frozen=True, kw_only=True):
    """`[engines.talon_one]` of the rule book."""

    application_id: int = 1
    idempotency_keys: bool = True
    testing_key: bool = False
    """Whether the API key is for testing, so that every request is dry."""
    flatten: bool = True
    case_sensitive_codes: bool = False
    discounts_beyond_price: bool = False
    """Whether a fixed discount may exceed the price that it is taken off."""
    attributes: Literal["merge", "replace"] = "merge"
    """Whether the attributes that are sent replace one another, or all stored ones."""
    additional_costs: Literal["merge", "replace"] = "replace"
    """The same for additional costs."""
    nulls: Literal["refuse", "clear", "ignore"] = "refuse"
    """What a null does to a field."""
    unknown_fields: Literal["refuse", "ignore"] = "refuse"

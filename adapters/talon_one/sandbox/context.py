"""What the rules read while they run over a session, and what they have granted so far."""

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from adapters.talon_one.sandbox.cart import Cart, Remaining
from adapters.talon_one.sandbox.options import Options
from adapters.talon_one.sandbox.state import Books, Grants, Session
from mapper.sandbox.rulebook import Giveaway, LoyaltyCard, RuleBook


@dataclass
class Context:
    book: RuleBook
    books: Books
    options: Options
    session: Session
    now: datetime
    evaluable: list[int] | None = None
    """The ids of the only campaigns to evaluate, disabled ones included; for dry requests."""
    grants: Grants = field(default_factory=Grants)

    @cached_property
    def cart(self) -> Cart:
        return Cart(self.session.data)

    @cached_property
    def at_list_price(self) -> Remaining:
        return Remaining.of(self.cart)

    @property
    def is_closing(self) -> bool:
        return self.session.state == "closed"

    def cost_id(self, name: str) -> int:
        return list(self.book.settings.costs).index(name) + 1

    def pool_id(self, pool: str) -> int:
        effects = (effect for campaign in self.book.campaigns for effect in campaign.effects)
        pools = [effect.pool for effect in effects if isinstance(effect, Giveaway)]
        return pools.index(pool) + 1

    def program_of(self, card: str) -> int:
        found = self.book.find(card)
        return found[1].program if found and isinstance(found[1], LoyaltyCard) else 0

    def uuid(self, *parts: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join((self.session.integration_id, *parts))))

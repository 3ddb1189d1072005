"""Handles the requests on customer sessions: payload in, reply out. Raises `ApiError` for an error reply.

The caller serialises the requests on one session.
"""

from copy import deepcopy
from datetime import datetime
from typing import Any

from adapters.talon_one.sandbox import returns
from adapters.talon_one.sandbox.context import Context
from adapters.talon_one.sandbox.errors import ApiError, cannot_move, check_move, check_return
from adapters.talon_one.sandbox.options import Options
from adapters.talon_one.sandbox.replies import Replies
from adapters.talon_one.sandbox.rules import Run
from adapters.talon_one.sandbox.state import Books, Profile, Session, rollbacks
from mapper.sandbox.emulator import Now
from mapper.sandbox.rulebook import RuleBook

Json = dict[str, Any]
FieldPath = tuple[str, ...]
"""A field of the session: ("storeIntegrationId",), or ("attributes", "b2b")."""


class Sessions:
    def __init__(self, book: RuleBook, options: Options, now: Now) -> None:
        self._book = book
        self._options = options
        self._now = now
        self.books = Books(book)
        self._replies = Replies(book, self.books, options)
        self._ids = 0

    def profile_of(self, id_: str, payload: Json) -> str:
        """The profile that an update is for: that of the payload, else that of the session."""
        stored = self.books.sessions.get(id_)
        return str(payload.get("profileId", stored.data["profileId"] if stored else ""))

    def read(self, id_: str) -> Json:
        session = self._find(id_)
        return {"customerSession": self._replies.session(session), "effects": session.effects}

    def reopen(self, id_: str) -> Json:
        session = self._find(id_)
        if session.state != "closed":
            raise cannot_move("open", session.state)
        rolled_back = self._roll_back(session)
        session.state = "open"
        return {"effects": rolled_back}

    def return_items(self, id_: str, payload: Json, *, dry: bool) -> Json:
        session, books = self._find(id_), self.books
        check_return(session.state)
        items = payload["return"]["returnedCartItems"]
        units = returns.requested_units(session, items)
        if dry:
            session, books = deepcopy(session), deepcopy(books)
        session.updated, session.updates = self._now(), session.updates + 1
        run = self._run(session, self._now())
        run.effects = returns.roll_back_units(session, books, units)
        new_return = self._replies.returned(session, items)
        reply = self._replies.reply(session, run, set(payload.get("responseContent", []))) | {"return": new_return}
        session.returns.append(new_return)
        return reply

    def _find(self, id_: str) -> Session:
        session = self.books.sessions.get(id_)
        if session is None:
            # The specification lists no 404 for this operation; its prose says "Check the resource path or ID".
            raise ApiError(404, "Customer session not found")
        return session

    def _run(self, session: Session, now: datetime, evaluable: list[int] | None = None) -> Run:
        return Run(Context(self._book, self.books, self._options, session, now, evaluable))

    def update(self, id_: str, payload: Json, cleared: list[FieldPath], at: datetime | None, *, dry: bool) -> Json:
        """Opens, updates, closes or cancels a session. A dry request reads its own payload alone, at the time `at`."""
        sent = payload["customerSession"]
        target, now = sent.get("state", "open"), self._now()
        stored = None if dry else self.books.sessions.get(id_)
        check_move(stored.state if stored else None, target)
        session = stored or self._new_session(id_, sent.get("profileId", ""), now)
        session.updated, session.updates = now, session.updates + 1
        if target == "cancelled":
            run = self._cancel(session, now)
        else:
            session.merge(sent, self._options)
            for path in cleared:
                session.clear(path)
            session.state = target
            run = self._run(session, at or now, sent.get("evaluableCampaignIds") if dry else None).execute()
            session.effects = run.effects
            if not dry:
                self._store(session, run, now)
        return self._replies.reply(session, run, set(payload.get("responseContent", [])))

    def _cancel(self, session: Session, now: datetime) -> Run:
        run = self._run(session, now)
        if session.grants is None:
            session.effects = []
        else:
            run.effects = self._roll_back(session)
        session.state = "cancelled"
        return run

    def _store(self, session: Session, run: Run, now: datetime) -> None:
        self.books.sessions[session.integration_id] = session
        self._touch_profile(session, now)
        if session.state == "closed":
            self._close(session, run, now)

    def _new_session(self, id_: str, profile: str, now: datetime) -> Session:
        self._ids += 1
        first = not profile or profile not in self.books.profiles
        return Session(self._ids, id_, created=now, updated=now, first=first)

    def _touch_profile(self, session: Session, now: datetime) -> None:
        """Creates an unknown profile."""
        id_ = session.data["profileId"]
        if id_:
            profile = self.books.profiles.setdefault(id_, Profile(len(self.books.profiles) + 1, now, now))
            profile.active = now

    def _close(self, session: Session, run: Run, now: datetime) -> None:
        """Redeems. Nothing is counted before. A session also closes where a code is rejected."""
        session.closes += 1
        session.grants = run.context.grants
        self.books.record(session, run.context.grants, now, sign=1)
        self._count_sale(session, 1)

    def _count_sale(self, session: Session, sign: int) -> None:
        profile = self.books.profiles.get(session.data["profileId"])
        if profile is not None:
            profile.closed += sign
            profile.sales += sign * returns.remaining_value(session)

    def _roll_back(self, session: Session) -> list[Json]:
        """Rolls back the redemption. Returns the rollback effects."""
        rolled_back, session.effects = rollbacks(session.effects)
        if session.grants is not None:
            self.books.record(session, session.grants, self._now(), sign=-1)
            self._count_sale(session, -1)
            session.grants = None
        return rolled_back

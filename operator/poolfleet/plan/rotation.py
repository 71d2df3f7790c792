"""Rotating a role's password on the server: which one thing to do next. Pure (design section 5, facts/pgbouncer.md 4).

Two Secrets hold the state, so that a crash between any two effects loses nothing: the **main** one, which pools name,
and beside it, while a rotation is under way, the **next** one. What is going to be set stands in the next one first.
Which of the two passwords is valid is never remembered, only tried: so an unknown outcome is no special case.

Password, one role:

    CREATE next -> pools stage it (x-config holds it, nobody loads it) -> hold -> ALTER -> load, resume
    -> STORE -> REMOVE next

AlternatingRoles, two roles with the same rights; the pods are replaced because x-config names another role:

    CREATE next -> ALTER the idle role -> STORE -> pods replaced -> no session of the former role -> DISABLE it
    -> REMOVE next

`decide` looks at everything and says one step; whoever carries it out (controller/rotations.py) asks again afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from poolfleet.api.conditions import Reason
from poolfleet.plan.model import RotationLine
from poolfleet.plan.secrets import Login

STAGE_SECONDS: Final = 75.0  # for all pods to have the next configuration; the kubelet may take a minute for a Secret
HOLD_SECONDS: Final = 7.0  # for all pods to hold; after that none of them has enough of its 10 s left
MOST_HOLD: Final = 10.0  # seconds after which an agent ends a hold by itself
LEAST_HOLD: Final = 4.0  # seconds of hold that every pod has left when the password is set
CHECK_SECONDS: Final = 2.0  # between two tries which password is valid, while it cannot be known
ANEW_SECONDS: Final = 60.0  # after which what forbids a rotation is looked at again
FRESH_SECONDS: Final = 10.0  # that a look at the role is good for
FIRST_BACKOFF: Final = 15.0  # after a rotation that went back, doubled each time
LONGEST_BACKOFF: Final = 3600.0
SESSIONS_SECONDS: Final = 5.0  # between two looks whether a former role still has sessions

PASSWORD: Final = "Password"
ALTERNATING: Final = "AlternatingRoles"


class Effect(Enum):
    """One thing to do. Each may be done twice, and a process may end before and after each."""

    CHECK = "check"  # which password is valid, and what the role is; goes on beside everything else
    CREATE = "create"  # the Secret with the next login
    ALTER = "alter"  # set the next password on the server
    STORE = "store"  # write the next login into the main Secret
    DISABLE = "disable"  # the former role of AlternatingRoles
    REMOVE = "remove"  # the next Secret: the rotation is over, or goes back


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the PgPools ask for, about one Secret."""

    strategy: str = PASSWORD
    interval: float | None = None  # seconds
    roles: tuple[str, ...] = ()  # the two of AlternatingRoles
    tokens: Mapping[str, str] = field(default_factory=dict)  # PgPool -> its annotation names.ROTATE


@dataclass(frozen=True, slots=True)
class Main:
    """The Secret that pools name."""

    login: Login
    refusal: str  # why it must not be written, "" if it may
    created: float
    rotated: float | None  # when it was written last by a rotation
    obeyed: Mapping[str, str]  # PgPool -> value of names.ROTATE that was obeyed


@dataclass(frozen=True, slots=True)
class Next:
    """The Secret with the next login."""

    login: Login
    created: float
    strategy: str
    former: str  # the role that the main Secret named when this one was made


@dataclass(frozen=True, slots=True)
class Holder:
    """A pod that may log in as the role. `known` is False for one that cannot be asked."""

    name: str
    known: bool = True
    holds: bool = True  # its agent knows of holds
    staged: bool = False  # it has the newest x-config at hand, and that one has the next login
    loaded: bool = False  # it has loaded the newest x-config, made for the role that the main Secret names
    told: bool = False  # its newest directive says that it shall hold; also of one that cannot be asked
    left: float | None = None  # seconds until its hold ends by itself; None: it does not hold (all of) its databases


@dataclass(frozen=True, slots=True)
class Check:
    """What was tried on the server."""

    at: float
    works: str = ""  # "main" | "next" | "neither" | "" (cannot be known: `error`)
    refusal: str = ""  # why the role must not be altered
    error: str = ""
    idle: str = ""  # with AlternatingRoles: the role whose sessions were counted
    sessions: int = 0
    disabled: bool = False  # that role may not log in


@dataclass(frozen=True, slots=True)
class Known:
    """What this process remembers of one rotation; a new leader knows nothing."""

    check: Check | None = None
    failure: str = ""  # why it went, or goes, back
    failed: float = 0.0  # when
    failures: int = 0  # in a row
    back: bool = False  # the next Secret is to be removed: what it holds was not set
    holding: float | None = None  # since when pods are told to hold
    released: bool = False  # that was for as long as an agent holds, and it is not known yet which password is valid


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a decision depends on."""

    now: float
    secret: str
    wanted: Wanted | None  # None: no PgPool asks for it any more
    main: Main | None
    following: Next | None
    staged: bool  # every pool's x-config has the next login
    holders: tuple[Holder, ...]
    refusal: str  # what the objects forbid, "" if nothing
    known: Known


@dataclass(frozen=True, slots=True)
class Step:
    """What to do and to say. `hold`: the databases' queries shall wait; `load`: what is staged may be loaded."""

    effect: Effect | None
    line: RotationLine
    hold: bool = False
    load: bool = False
    known: Known = Known()
    again: float | None = None  # seconds until the next look, if nothing happens


def decide(seen: Seen) -> Step:
    """The next step of the rotation of one Secret."""
    if seen.following is None:
        return _Idle(seen).step()
    if seen.following.strategy == ALTERNATING:
        return _Alternating(seen).step()
    return _Password(seen).step()


def failed(known: Known, words: str, now: float) -> Known:
    """`known` after the password was surely not set: the rotation goes back, and is tried again later."""
    return replace(known, failure=words, failed=now, failures=known.failures + 1, back=True, holding=None)


def altered(known: Known, now: float) -> Known:
    """`known` after the server has taken the next password."""
    return replace(known, check=Check(now, "next"), failure="", failures=0, back=False, holding=None)


def unknown(known: Known) -> Known:
    """`known` after nobody can say whether the server has taken it: it is to be tried."""
    return replace(known, check=None, holding=None, released=False)


def backoff(known: Known) -> float:
    """Seconds from a failure to the next try."""
    return 0.0 if not known.failures else min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** (known.failures - 1))


def due_at(wanted: Wanted, main: Main) -> float | None:
    """When the interval is over, in seconds since the epoch; None without one."""
    since = main.created if main.rotated is None else main.rotated
    return None if wanted.interval is None else since + wanted.interval


def asked_for(wanted: Wanted, main: Main) -> bool:
    """Whether a PgPool has a value of names.ROTATE that was not obeyed yet."""
    return any(main.obeyed.get(pool) != value for pool, value in wanted.tokens.items())


class _Rotation:
    """What the three states have in common."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.known = seen.known

    def say(
        self,
        phase: str,
        message: str = "",
        *,
        reason: str = "",
        effect: Effect | None = None,
        hold: bool = False,
        load: bool = False,
        again: float | None = None,
    ) -> Step:
        """A step with its line for the status."""
        seen = self.seen
        main = seen.main
        line = RotationLine(
            secret=seen.secret,
            login=main.login.username if main else "",
            phase=phase,
            message=message,
            reason=reason,
            last=main.rotated if main else None,
            next=due_at(seen.wanted, main) if main and seen.wanted else None,
        )
        known = self.known
        if hold != (known.holding is not None):
            known = replace(known, holding=seen.now if hold else None)
        return Step(effect, line, hold, load, known, again)

    def look(
        self, phase: str, message: str, *, reason: str = "", hold: bool = False, every: float = CHECK_SECONDS
    ) -> Step:
        """Try which password is valid, or wait until that may be tried again."""
        check = self.known.check
        wait = 0.0 if check is None else check.at + every - self.seen.now
        if wait > 0:
            return self.say(phase, message, reason=reason, hold=hold, again=wait)
        return self.say(phase, message, reason=reason, hold=hold, effect=Effect.CHECK)

    def back(self, words: str) -> Step:
        """Go back: what was staged is dropped, nothing was set."""
        self.known = failed(self.known, words, self.seen.now) if not self.known.back else self.known
        return self.say("Failed", words, reason=Reason.ROTATION_FAILED, effect=Effect.REMOVE)


class _Idle(_Rotation):
    """No rotation is under way."""

    def step(self) -> Step:
        seen, known = self.seen, self.known
        if known.back:
            self.known = known = replace(known, back=False)
        if seen.wanted is None:
            return self.say("Idle")
        if seen.refusal or seen.main is None:
            return self.blocked(seen.refusal)
        due = due_at(seen.wanted, seen.main)
        wait = None if due is None else due - seen.now
        wants = asked_for(seen.wanted, seen.main) or (wait is not None and wait <= 0)
        if known.failures and wants:
            again = known.failed + backoff(known) - seen.now
            if again > 0:
                words = f"{known.failure} It is tried again in {round(backoff(known))} s."
                return self.say("Failed", words, reason=Reason.ROTATION_FAILED, again=again)
        check = known.check
        if check is None or (wants and seen.now - check.at > FRESH_SECONDS and not self.forbidden(check)):
            return self.look("Checking", "The role and its password are being looked at.")
        if forbidden := self.forbidden(check):
            if seen.now - check.at >= ANEW_SECONDS:
                return self.look("Checking", forbidden)
            return self.blocked(forbidden, again=check.at + ANEW_SECONDS - seen.now)
        if not check.works:
            words = f"It cannot begin: {check.error}."
            return self.look("Failed", words, reason=Reason.ROTATION_FAILED) if wants else self.rest(wait)
        return self.say("Checking", effect=Effect.CREATE) if wants else self.rest(wait)

    def rest(self, wait: float | None) -> Step:
        return self.say("Idle", again=wait)

    def forbidden(self, check: Check) -> str:
        """What the server says against it, "" for nothing."""
        if check.refusal:
            return check.refusal
        if check.works == "neither":
            assert self.seen.main is not None
            return (
                f'The password in Secret "{self.seen.secret}" does not log in as "{self.seen.main.login.username}". '
                "Only a role whose password the Secret holds is altered."
            )
        if check.sessions:
            return f'"{check.idle}", the role that is next, still has {check.sessions} sessions. End them, or wait.'
        return ""

    def blocked(self, words: str, again: float | None = ANEW_SECONDS) -> Step:
        return self.say("Blocked", words, reason=Reason.ROTATION_BLOCKED, again=again)


class _Password(_Rotation):
    """One role: the password changes while every pod holds."""

    def step(self) -> Step:
        seen, known = self.seen, self.known
        assert seen.following is not None
        check = known.check
        if check is None or not check.works:
            why = f": {check.error or check.refusal}" if check is not None else "."
            # By a leader before, or for an unknown outcome: nobody logs in until it is known which password to load.
            held = not known.released and any(h.told or h.left is not None for h in seen.holders)
            if held and known.holding is not None and seen.now - known.holding >= MOST_HOLD:
                self.known, held = replace(known, released=True), False
            return self.look("Checking", f"Whether the next password is set already is being tried{why}", hold=held)
        if check.works == "next":
            if seen.main is None or seen.main.login != seen.following.login:
                if seen.main is None:
                    words = f'Secret "{seen.secret}" has vanished; the valid login is in "{seen.secret}-next".'
                    return self.say("Blocked", words, reason=Reason.ROTATION_BLOCKED, load=True)
                return self.say("Storing", effect=Effect.STORE, load=True)
            return self.say("Storing", effect=Effect.REMOVE, load=True)
        if check.works == "neither":
            words = (
                f'Neither the password in Secret "{seen.secret}" nor the next one logs in. Put the valid one into '
                f'Secret "{seen.secret}".'
            )
            if seen.now - check.at < ANEW_SECONDS / 2:
                again = check.at + ANEW_SECONDS / 2 - seen.now
                return self.say("Blocked", words, reason=Reason.ROTATION_BLOCKED, again=again)
            return self.look("Blocked", words)
        if known.back:
            return self.back(known.failure)
        if seen.refusal or check.refusal:
            return self.back(seen.refusal or check.refusal)
        if seen.main is not None and seen.main.login.username != seen.following.login.username:
            return self.back(f'Secret "{seen.secret}" names another role by now.')
        return self.staging() or self.holding()

    def staging(self) -> Step | None:
        """Wait until every pod has the next configuration at hand; None once all have."""
        seen = self.seen
        assert seen.following is not None
        late = [h for h in seen.holders if not (h.known and h.holds and h.staged)]
        if seen.staged and not late:
            return None
        left = seen.following.created + STAGE_SECONDS - seen.now
        if left <= 0:
            return self.back(self.who(late) if seen.staged else "The pools' configuration could not be written.")
        ready = len(seen.holders) - len(late) if seen.staged else 0
        return self.say("Staging", f"{ready} of {len(seen.holders)} pods have the next configuration.", again=left)

    def who(self, late: list[Holder]) -> str:
        names = ", ".join(sorted(holder.name for holder in late))
        if any(not holder.known for holder in late):
            return f"These pods cannot be asked, so their clients could not be kept waiting: {names}."
        if any(not holder.holds for holder in late):
            return f"The agents of these pods are too old to hold clients: {names}. Replace them: rollout restart."
        return f"These pods have not got the next configuration in {STAGE_SECONDS:.0f} s: {names}."

    def holding(self) -> Step:
        """Hold every pod, and set the password once all do and have time enough left."""
        seen = self.seen
        since = self.known.holding
        if seen.holders and all(holder.left is not None and holder.left >= LEAST_HOLD for holder in seen.holders):
            return self.say("Setting", effect=Effect.ALTER, hold=True, again=1.0)
        if not seen.holders:
            return self.say("Setting", effect=Effect.ALTER, hold=True, again=1.0)
        if since is not None and seen.now - since >= HOLD_SECONDS:
            late = [h.name for h in seen.holders if h.left is None]
            words = f"These pods did not hold in {HOLD_SECONDS:.0f} s: {', '.join(sorted(late))}."
            return self.back(words if late else "The pods' hold was over before the password could be set.")
        ready = sum(holder.left is not None for holder in seen.holders)
        return self.say("Holding", f"{ready} of {len(seen.holders)} pods hold.", hold=True, again=0.5)


class _Alternating(_Rotation):
    """Two roles: the idle one gets a password and the pods, the former one is disabled."""

    def step(self) -> Step:
        seen, known = self.seen, self.known
        following, main, check = seen.following, seen.main, known.check
        assert following is not None
        if main is None:
            words = f'Secret "{seen.secret}" has vanished; create it anew, "{seen.secret}-next" has a login.'
            return self.say("Blocked", words, reason=Reason.ROTATION_BLOCKED)
        if main.login == following.login:
            return self.retiring(following.former)
        if known.back or seen.refusal:
            return self.back(known.failure if known.back else seen.refusal)
        if main.login.username not in (following.former, following.login.username):
            return self.back(f'Secret "{seen.secret}" names another role by now.')
        if check is None or (not check.works and check.error):
            why = f": {check.error}" if check is not None else "."
            return self.look("Checking", f"Whether the next role can log in already is being tried{why}")
        if check.works == "next":
            return self.say("Storing", effect=Effect.STORE)
        if check.refusal:
            return self.back(check.refusal)
        if check.works != "main":  # nothing shows that the pool may use the role, or one that stands in for it
            return self.back(f'The password in Secret "{seen.secret}" does not log in.')
        return self.say("Setting", effect=Effect.ALTER)

    def retiring(self, former: str) -> Step:
        seen, known = self.seen, self.known
        check = known.check
        old = sum(not holder.loaded for holder in seen.holders)
        if old:
            return self.say("Rolling", f"{old} of {len(seen.holders)} pods are still to be replaced.")
        if known.failure and known.failed + backoff(known) > seen.now:
            again = known.failed + backoff(known) - seen.now
            return self.say("Retiring", known.failure, reason=Reason.ROTATION_FAILED, again=again)
        if seen.refusal:
            words = f'Role "{former}" is not disabled: {seen.refusal}'
            if seen.wanted is None:
                return self.back(words)
            return self.say("Blocked", words, reason=Reason.ROTATION_BLOCKED, again=ANEW_SECONDS)
        if check is None or check.error or check.idle != former:
            why = f": {check.error}" if check is not None and check.error else "."
            return self.look("Retiring", f'Sessions of "{former}" are being looked for{why}')
        if check.disabled:
            return self.say("Retiring", effect=Effect.REMOVE)
        if check.refusal:
            words = f'Role "{former}" is not disabled: {check.refusal}'
            if seen.wanted is None:
                return self.back(words)
            return self.look("Blocked", words, reason=Reason.ROTATION_BLOCKED, every=ANEW_SECONDS)
        if check.sessions:
            words = f'"{former}" still has {check.sessions} sessions; it is disabled when there are none.'
            return self.look("Retiring", words, every=SESSIONS_SECONDS)
        return self.say("Retiring", effect=Effect.DISABLE)


def about(secret: str, server: str, seen: Seen) -> dict[str, Any]:
    """What the annotation of the next Secret says (plan/managed.py): whose it is, and what it obeys."""
    assert seen.wanted is not None and seen.main is not None
    return {
        "kind": "role",
        "secret": secret,
        "server": server,
        "strategy": seen.wanted.strategy,
        "former": seen.main.login.username,
        "for": {**seen.main.obeyed, **seen.wanted.tokens},
    }


def next_username(seen: Seen) -> str:
    """The role that the next login is for."""
    assert seen.wanted is not None and seen.main is not None
    current = seen.main.login.username
    if seen.wanted.strategy != ALTERNATING:
        return current
    return next(role for role in seen.wanted.roles if role != current)

"""The world of test_rotation.py: the two Secrets, x-config, PostgreSQL, pods, and the operator that carries out what
`rotation.decide` says, with a crash between any two effects and in the middle of each.

The real `rotation.decide` decides; what carries it out here does what controller/rotations.py does, upon a world as
small as can be: one Secret, the next one while there is a rotation, x-config, PostgreSQL's roles, and pods that mount,
load and hold as agents do. What the pods are told is what the real `World` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from poolfleet.plan import model, rotation
from poolfleet.plan.rotation import ALTERNATING, PASSWORD, Check, Effect, Holder, Known, Main, Next, Seen, Step, Wanted
from poolfleet.plan.secrets import Login
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Ledger, World

ROLE, OTHER, STRANGER = "app", "app_2", "somebody_else"
POOL, DATABASE = "demo/main", "shop"
HOLD: Final = 10.0  # after which an agent ends a hold by itself
NOW: Final = 1_800_000_000.0


class Crash(Exception):
    """The operator's process ends here."""


@dataclass(frozen=True)
class Config:
    """x-config: its hash says the login (and the turn), the next Secret that is staged in it does not matter to it."""

    login: Login
    turn: int = 0
    staged: int = 0  # UID of the next Secret whose login it has, as long as nobody may load that

    @property
    def hash(self) -> str:
        return f"{self.login.username}/{self.login.password}/{self.turn}"


@dataclass
class Role:
    password: str | None
    can_login: bool = True


@dataclass
class NextSecret:
    uid: int
    login: Login
    created: float
    strategy: str
    former: Login
    obeys: Mapping[str, str]

    def seen(self) -> Next:
        return Next(self.login, self.created, self.strategy, self.former.username)


@dataclass
class Pod:
    """A pod with its agent and PgBouncer."""

    name: str
    mounted: Config
    turn: int
    loaded: Config | None = None  # None: it waits at the gate, PgBouncer is not started
    directive: dict[str, object] = field(default_factory=dict)  # as annotated
    hold_until: float | None = None
    hold_ended: object = None  # revision of a hold that ended by itself
    reachable: bool = True
    seen: Holder | None = None  # what the operator saw last

    def left(self, now: float) -> float | None:
        """Seconds until its hold ends by itself; None: it does not hold."""
        return self.hold_until - now if self.hold_until is not None and self.hold_until > now else None

    def obey(self, now: float) -> None:
        """What an agent does with its newest directive."""
        if not self.reachable or not self.directive:
            return
        revision, config = self.directive["rev"], self.directive["config"]
        if self.hold_until is not None and self.hold_until <= now:
            self.hold_until, self.hold_ended = None, revision
        if self.directive["hold"] and self.hold_until is None and self.hold_ended != revision:
            self.hold_until = now + HOLD
        if config == self.mounted.hash:
            self.loaded = replace(self.mounted, staged=0)
        if not self.directive["hold"] and (self.loaded is None or not config or self.loaded.hash == config):
            self.hold_until = None


class Operated(RuleBasedStateMachine):
    """The operator's side."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.count = 0
        self.fuse = -1  # points until the operator crashes; negative: it does not
        # controller/rotation_state.py Memory: what `known` was found out about
        self.known, self.about = Known(), (0, Login("", ""))
        self.checking: tuple[tuple[int, Login], Check] | None = None  # a CHECK that is under way
        self.following: NextSecret | None = None
        self.main = Main(Login(ROLE, "first"), "", NOW, None, {})
        self.config = Config(self.main.login)
        self.pods: list[Pod] = []
        self.leaving: dict[str, int] = {}  # role -> sessions of pods that are gone
        self.pending: Login | None = None  # an ALTER whose COMMIT waits; it has the advisory lock
        self.down = False
        self.refusal = self.role_refusal = ""
        self.elsewhere: set[str] = set()  # valid passwords that somebody has overwritten in the main Secret by hand
        self.line: model.RotationLine | None = None
        self.again: float | None = None

    def number(self) -> int:
        self.count += 1
        return self.count

    @initialize(
        alternating=st.booleans(),
        interval=st.booleans(),
        pods=st.integers(0, 3),
        hands=st.sampled_from([False, False, True]),
    )
    def begin(self, alternating: bool, interval: bool, pods: int, hands: bool) -> None:
        self.hands = hands
        self.strategy = ALTERNATING if alternating else PASSWORD
        roles = (ROLE, OTHER) if alternating else ()
        self.wanted: Wanted | None = Wanted(self.strategy, 600.0 if interval else None, roles, {"main": "1"})
        self.spec = self.wanted
        self.roles = {ROLE: Role("first"), OTHER: Role(None, False), STRANGER: Role("secret")}
        for _ in range(pods):
            self.a_pod_is_born()
        self.turn_of_the_operator(stale=False, outcome="done")

    # -- the operator ------------------------------------------------------------------------------------------------

    def reach(self) -> None:
        """A point where the process may end."""
        self.fuse -= 1
        if self.fuse == -1:
            raise Crash

    def valid(self, login: Login) -> bool:
        role = self.roles.get(login.username)
        return role is not None and role.can_login and role.password == login.password

    def world(self, staged: bool, hold: bool) -> World:
        wish = PoolWish(
            pool=POOL,
            uid="uid",
            created=NOW,
            databases={DATABASE: 1},
            config=self.config.hash,
            replicas=2,
            turn=self.config.turn,
            staged=staged,
            hold=frozenset({DATABASE} if hold else ()),
        )
        return World("server", 100, Ledger(), (), (wish,), self.now)

    def holder(self, pod: Pod) -> Holder:
        """What a pod says of itself now (controller/units.py)."""
        told = bool(pod.directive.get("hold"))
        if pod.loaded is None:
            return Holder(pod.name, known=False, told=told)
        newest = pod.loaded.hash == self.config.hash and pod.turn == self.config.turn
        return Holder(
            pod.name,
            staged=pod.mounted.hash == self.config.hash,
            loaded=newest and self.config.login.username == self.main.login.username,
            told=told,
            left=pod.left(self.now),
        )

    def see(self, stale: bool) -> Seen:
        for pod in self.pods:
            if not pod.reachable:
                pod.seen = pod.seen if stale else None
            elif not stale or pod.seen is None:
                pod.seen = self.holder(pod)
        following = self.following
        return Seen(
            now=self.now,
            secret="app",
            wanted=self.wanted,
            main=self.main,
            following=following.seen() if following else None,
            staged=following is not None and self.config.staged == following.uid,
            holders=tuple(
                replace(pod.seen or Holder(pod.name, known=False), told=bool(pod.directive.get("hold")))
                for pod in self.pods
            ),
            refusal=self.refusal
            or (self.strategy == ALTERNATING and self.main.login.username == STRANGER and "no")
            or "",
            known=self.known,
        )

    @rule(
        stale=st.booleans(), outcome=st.sampled_from(["done"] * 5 + ["refused", "unknown", "unknown, done", "pending"])
    )
    def turn_of_the_operator(self, stale: bool, outcome: str) -> None:
        """One reconciliation; a crash ends it, and another process begins."""
        try:
            self.reconcile(stale, outcome)
        except Crash:
            self.another_leader()

    @rule(fuse=st.integers(0, 12))
    def the_next_one_crashes(self, fuse: int) -> None:
        self.fuse = fuse

    @rule()
    def another_leader(self) -> None:
        self.known, self.checking, self.fuse = Known(), None, -1
        for pod in self.pods:
            pod.seen = None

    def reconcile(self, stale: bool, outcome: str) -> None:
        about = (self.following.uid if self.following else 0, self.main.login)
        if self.about != about:
            holding = self.known.holding if self.about[0] == about[0] else None
            self.known, self.about = replace(self.known, check=None, holding=holding), about
        while True:
            seen = self.see(stale)
            step = rotation.decide(seen)
            self.known, self.line, self.again = step.known, step.line, step.again
            assert not (step.load and step.hold)
            assert (step.known.holding is not None) == step.hold
            if step.effect is Effect.CHECK:
                self.checking = self.checking or (about, self.look())
            if step.effect not in (Effect.CREATE, Effect.ALTER):
                break
            self.reach()
            if step.effect is Effect.CREATE:
                self.create(seen)
                break
            done = self.alter(seen, outcome)
            self.reach()
            if not done:
                break
        self.tell(step)
        self.finish(seen, step, outcome)

    def create(self, seen: Seen) -> None:
        about = rotation.about("app", "demo/db", seen)
        login = Login(rotation.next_username(seen), f"password {self.number()}")
        assert seen.known.check is not None and seen.known.check.works == "main" and not seen.refusal
        assert self.following is None
        obeys = about["for"]
        assert about["former"] == self.main.login.username
        self.following = NextSecret(self.number(), login, self.now, about["strategy"], self.main.login, obeys)
        self.reach()
        self.about = (self.following.uid, self.main.login)
        check = None if about["strategy"] == ALTERNATING else replace(seen.known.check, works="main")
        self.known = replace(self.known, check=check)

    def alter(self, seen: Seen, outcome: str) -> bool:
        following = seen.following
        assert following is not None and self.known.check is not None
        assert not seen.refusal and not self.known.check.refusal
        assert self.known.check.works == "main", "nothing shows that the role is theirs"
        assert seen.main is not None
        assert (following.login.username == seen.main.login.username) == (following.strategy == PASSWORD)
        if following.strategy == PASSWORD:
            assert all(h.left is not None and h.left >= 4.0 for h in seen.holders), "not all hold"
            assert all(h.staged for h in seen.holders) and seen.staged, "who waits could not go on at once"
            lefts = [pod.left(self.now) if pod.reachable and pod.loaded else None for pod in self.pods]
            if any(left is None or left < 4.0 for left in lefts):  # asked once more
                return False
        else:
            assert all(pod.loaded is None or pod.loaded.login != following.login for pod in self.pods)
        assert self.pending is None
        if self.down or outcome == "refused":
            self.known = rotation.failed(self.known, "The server cannot be reached.", self.now)
            return True
        if outcome in ("done", "unknown, done"):
            self.now += 3.9  # the longest that a hold is needed
            if following.strategy == PASSWORD:
                assert all(pod.left(self.now) for pod in self.pods), "set while a pod logs in"
            self.set_password(following.login)
            self.reach()
        elif outcome == "pending":
            self.pending = following.login
            self.reach()
        self.known = rotation.altered(self.known, self.now) if outcome == "done" else rotation.unknown(self.known)
        return True

    def set_password(self, login: Login) -> None:
        assert login.username in (ROLE, OTHER)
        self.roles[login.username] = Role(login.password, True)

    def look(self) -> Check:
        """What postgres/checks.py finds out now."""
        if self.down or self.pending is not None:
            return Check(self.now, error="no answer")
        main, following = self.main.login, self.following
        works = "next" if following and self.valid(following.login) else "main" if self.valid(main) else "neither"
        idle, refusal, sessions, retire = "", self.role_refusal, 0, False
        if (following.strategy if following else self.strategy) == ALTERNATING:
            idle = next((role for role in (ROLE, OTHER) if role != main.username), "")
            if following:
                retire = main.username == following.login.username
                idle = following.former.username if retire else following.login.username
            sessions = self.sessions(idle)
            if works != "next" and self.roles[idle].can_login:
                refusal = refusal or "it can log in"
            if retire and following and self.roles[idle].can_login and not self.valid(following.former):
                refusal = refusal or "its password is not known"
        disabled = bool(idle) and not self.roles[idle].can_login
        return Check(self.now, works, refusal, idle=idle, sessions=sessions, disabled=disabled)

    def sessions(self, role: str) -> int:
        return self.leaving.get(role, 0) + sum(pod.loaded.login.username == role for pod in self.pods if pod.loaded)

    @rule()
    def the_check_is_done(self) -> None:
        """In its own time: what was seen may be old by now."""
        if self.checking is not None:
            about, check = self.checking
            self.checking = None
            if about == self.about:
                self.known = replace(self.known, check=check)

    def tell(self, step: Step) -> None:
        loads = step.load and self.following is not None and self.config.staged == self.following.uid
        world = self.world(bool(self.config.staged) and not loads, step.hold)
        for pod in self.pods:
            seen = model.Pod(
                uid=pod.name,
                name=pod.name,
                namespace="demo",
                created=NOW,
                terminating=False,
                scheduled=True,
                ended=False,
                ready=True,
                ip="",
                server="server",
                directive=pod.directive,
                pool=POOL,
                turn=pod.turn,
            )
            wish = {
                "config": world.config_of(seen),
                "stage": world.stage_of(seen),
                "hold": world.hold_of(seen, [DATABASE]),
            }
            if wish != {key: pod.directive.get(key) for key in wish}:
                self.reach()
                if wish["config"] == self.config.hash != pod.directive.get("config") and self.following is not None:
                    login = self.config.login
                    assert login != self.following.login or self.valid(login), "told to load what is not valid"
                if pod.directive.get("hold") and not wish["hold"] and wish["config"] and not self.hands:
                    role, password, _ = str(wish["config"]).split("/")
                    assert self.pending is None, "let go before it is known which password is valid"
                    assert self.valid(Login(role, password)), "let go with a password that is not valid"
                pod.directive = {**wish, "rev": self.number()}
        self.reach()

    def finish(self, seen: Seen, step: Step, outcome: str) -> None:
        following = self.following
        if step.effect not in (Effect.STORE, Effect.DISABLE, Effect.REMOVE):
            return
        assert following is not None
        if step.effect is Effect.STORE:
            assert self.valid(following.login), "what is stored must log in"
            self.main = replace(self.main, login=following.login, rotated=self.now, obeyed=following.obeys)
        elif step.effect is Effect.DISABLE:
            self.disable(seen, following, outcome)
            if not self.known.failure:
                self.reach()
                self.following = None
        else:
            if following.strategy == PASSWORD:
                password = self.roles[following.login.username].password
                assert self.pending is None, "it may be set in a moment"
                assert password == self.main.login.password or password in self.elsewhere, "the only copy"
            self.following = None
        self.reach()

    def disable(self, seen: Seen, following: NextSecret, outcome: str) -> None:
        former, check = following.former.username, self.known.check
        assert check is not None and not check.refusal
        self.known = replace(self.known, failure="", check=None)
        assert former in (ROLE, OTHER) and former != self.main.login.username
        assert not seen.refusal, "it may not be altered any more"
        assert all(pod.loaded is None or pod.loaded.login.username != former for pod in self.pods), "in use"
        assert self.leaving.get(former, 0) == 0, "it has sessions"
        assert self.valid(self.main.login) or self.elsewhere
        if self.down or outcome == "refused":
            failures = self.known.failures + 1
            self.known = replace(self.known, failure="not disabled", failed=self.now, failures=failures)
            return
        self.roles[former] = Role(None, False)
        self.known = replace(self.known, failures=0)
        self.reach()

    @rule()
    def a_pod_is_born(self) -> None:
        if len(self.pods) < 3:
            pod = Pod(f"pod-{self.number()}", self.config, self.config.turn)
            self.pods.append(pod)

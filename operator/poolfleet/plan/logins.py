"""Rotation of client users: for a while two logins work; the former one is refused at the end.

The user's Secret holds today's login. While it is rotated, a Secret beside it (names.next_secret) holds the new login
and the former one; its annotation names.NEXT says {"kind": "user", "secret", "pool": who drives, "rotate": the value of
names.ROTATE that it obeys, "overlap": seconds}. Step by step, each from what there is, so that a crash between any two
changes nothing:

1. due: the second Secret is made; from then on the userlist holds both logins (plan/secrets.py),
2. every pod of every pool that uses the Secret has loaded that: the new login goes into the user's Secret, whose
   annotation names.ROTATED says when, and by which second Secret; the binding follows by itself,
3. the overlap is over: the second Secret is deleted, and the former user's password is one that nobody knows.

The two user names alternate, `app` and `app_alt`, so that a userlist never grows. Pure; controller/logins.py does it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poolfleet.api import names
from poolfleet.api.base import duration_seconds
from poolfleet.api.conditions import Reason
from poolfleet.api.pgpool import User
from poolfleet.pgbouncer import quoting
from poolfleet.plan import config
from poolfleet.plan.managed import encoded, next_login, read_about, refusal, rotated
from poolfleet.plan.model import Pod, RotationLine
from poolfleet.plan.objects.meta import Manifest, annotation, owner_references
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.poolview import Body, PoolView
from poolfleet.plan.secrets import Login, alternate, current_login, listable, next_user_logins
from poolfleet.plan.times import seconds, timestamp


@dataclass(frozen=True, slots=True)
class Create:
    """Make this Secret."""

    about: str  # name of the user's Secret
    manifest: Manifest = field(repr=False)


@dataclass(frozen=True, slots=True)
class Write:
    """Set these keys of the user's Secret, if it still is what was seen."""

    about: str
    secret: Body = field(repr=False)
    values: Mapping[str, str] = field(repr=False)
    rotated: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the Secret of the next login, if it still is the one that was seen."""

    about: str
    secret: Body = field(repr=False)


Effect = Create | Write | Remove


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another PgPool of the namespace that names the Secret."""

    body: Body
    config: Body | None  # its Secret x-config
    pods: tuple[Pod, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["metadata"]["name"])

    def user(self, secret: str) -> Mapping[str, Any] | None:
        """The item of its spec.users with that Secret; None if there is none."""
        return _user_of(self.body["spec"], secret)


@dataclass(frozen=True, slots=True)
class Around:
    """Who else names a user's Secret."""

    pools: tuple[Neighbour, ...] = ()
    servers: tuple[str, ...] = ()  # names of PgServers


@dataclass(frozen=True, slots=True)
class LoginPlan:
    """What to write, and how the rotations stand until that is done."""

    effects: tuple[Effect, ...] = ()
    lines: tuple[RotationLine, ...] = ()
    again: float | None = None  # seconds until something is due; None: events are enough


def plan(view: PoolView, around: Mapping[str, Around]) -> LoginPlan:
    """Plan the rotations of `view`'s client users. `around` is by name of the Secret. At most one Secret is made at a
    time: `view` has one fresh password. A paused pool's stand still."""
    if view.spec is None:
        return LoginPlan()
    users: dict[str, User] = {}
    for user in view.spec.users:
        users.setdefault(user.secret_ref.name, user)
    effects: list[Effect] = []
    lines: list[RotationLine] = []
    for name, user in users.items():
        effect, line = _Turn(view, user, around.get(name, Around())).plan()
        if line is not None:
            lines.append(line)
        if effect is not None and not (isinstance(effect, Create) and any(isinstance(e, Create) for e in effects)):
            effects.append(effect)
    if view.spec.paused:
        return LoginPlan((), tuple(lines))
    times = [when - view.now for line in lines for when in (line.until, line.next) if when is not None]
    if any(line.phase == "Loading" and around.get(line.secret, Around()).pools for line in lines):
        times.append(1.0)  # other pools' pods tell those, not us
    again = min((time for time in times if time > 0), default=None)
    return LoginPlan(tuple(effects), tuple(lines), again)


def on_server(spec: Mapping[str, Any], secret: str) -> bool:
    """Whether a PgPool's raw spec logs in on the server with this Secret: another user name in it would be another
    role."""
    databases = [item for item in spec.get("databases") or () if isinstance(item, Mapping)]
    references = [item.get("credentialsSecretRef") for item in databases]
    admin = (spec.get("server") or {}).get("adminSecretRef")
    if any(isinstance(each, Mapping) and each.get("name") == secret for each in (*references, admin)):
        return True
    return _user_of(spec, secret) is not None and not all(references)


def lagging(config_secret: Body | None, pods: Sequence[Pod], login: Login) -> str:
    """What a pool's pods still have to do until every one of them lets `login` in; "" if they all do."""
    files = decode(config_secret)
    try:
        listed = dict(quoting.read_userlist(files.get(names.USERLIST_FILE, b"").decode()))
    except UnicodeDecodeError:
        listed = {}
    if listed.get(login.username) != login.password:
        return "the configuration does not hold the new login yet"
    wanted = config.live_hash(files)
    late = [pod for pod in pods if not pod.terminating and not pod.ended and _late(pod, wanted)]
    return f"{len(late)} pods have not loaded the new login yet" if late else ""


def _late(pod: Pod, wanted: str) -> bool:
    """Whether a pod may let clients in by another configuration. One without a directive gets the newest with it."""
    if pod.state is None:
        return pod.ready
    return pod.state.config != wanted and (bool(pod.state.config) or pod.raw_directive is not None)


def _user_of(spec: Mapping[str, Any], secret: str) -> Mapping[str, Any] | None:
    """The item of a raw spec.users with that Secret."""
    items = [item for item in spec.get("users") or () if isinstance(item, Mapping)]
    return next((item for item in items if (item.get("secretRef") or {}).get("name") == secret), None)


def clients_of(pods: Sequence[Pod], username: str) -> int | None:
    """Clients that are connected as that user; None if no agent tells."""
    told = [pod.state for pod in pods if pod.state is not None and not pod.ended]
    counts = [state.users.get(username, 0) for state in told if state.mounted or state.users]
    return sum(counts) if counts else None


def _time(text: object) -> float | None:
    """A time that an annotation holds; None if it is none."""
    try:
        return seconds(text) or None if isinstance(text, str) else None
    except ValueError:
        return None


class _Turn:
    """One user's Secret."""

    def __init__(self, view: PoolView, user: User, around: Around) -> None:
        self.view = view
        self.user = user
        self.around = around
        self.name = user.secret_ref.name
        self.me = view.owner.name
        self.main = view.secret_bodies.get((view.owner.namespace, self.name))
        self.record = rotated(self.main) if self.main is not None else {}
        self.at = _time(self.record.get("at"))
        self.login = current_login(view, user)
        self.following = view.next_secrets.get(self.name)
        self.asked = annotation(view.body, names.ROTATE) or ""

    def plan(self) -> tuple[Effect | None, RotationLine | None]:
        """What to do now, and how it stands."""
        about = read_about(self.following) if self.following is not None else {}
        ours = about.get("kind") == "user" and about.get("secret") == self.name
        if self.following is None or not ours or refusal(self.following):
            return (None, None) if self.user.rotation is None else self._idle()
        drives = self._driver(about)
        if drives != self.me:
            return None, (None if self.user.rotation is None else self._blocked(self._driven_by(drives)))
        return self._under_way(self.following, about)

    def _idle(self) -> tuple[Effect | None, RotationLine]:
        """No rotation is under way."""
        for obstacle in self._obstacles():
            return None, self._blocked(obstacle)
        if self.main is None:
            return Create(self.name, self._first_login()), self._line("Storing", "The first login is being made.")
        due = self._due()
        if not self._asked() and (due is None or due > self.view.now):
            return None, self._line("Idle")
        if annotation(self.view.config, names.STAGED):  # another x-config would have to be staged anew
            return None, self._line("Checking", "It waits for the rotation of the role on the server.")
        assert self.login is not None and self.user.rotation is not None  # or there is an obstacle
        new = alternate(self.login.username, self.user.username)
        login = {
            "username": new,
            "password": self.view.fresh_password,
            "formerUsername": self.login.username,
            "formerPassword": self.login.password,
        }
        about = {
            "kind": "user",
            "secret": self.name,
            "pool": self.me,
            "rotate": self.asked,
            "overlap": duration_seconds(self.user.rotation.overlap),
        }
        manifest = next_login(self.name, self.view.owner.namespace, login, about, self.me)
        # Unlike a role's next password it may go with the pool: nothing but pools knows these logins.
        manifest["metadata"]["ownerReferences"] = owner_references(self.view.owner)
        return Create(self.name, manifest), self._line(
            "Loading", f'The next login, "{new}", is on its way to the pods.'
        )

    def _under_way(self, following: Body, about: Mapping[str, Any]) -> tuple[Effect | None, RotationLine]:
        """A rotation that this pool drives, to its end even if spec does not ask for it any more."""
        logins = next_user_logins(following, self.name)
        if logins is None:
            return Remove(self.name, following), self._line("Loading", "The next login was spoilt; it is made anew.")
        new, former = logins
        if self.at is not None and self.record.get("next") == following["metadata"]["uid"]:
            until = self.at + self._overlap(about)
            over = self.view.now >= until
            return Remove(self.name, following) if over else None, self._line("Retiring", retiring=former, until=until)
        if self.main is None:
            made = self.user.rotation is not None and self.user.username is not None
            line = self._blocked(f'Secret "{self.name}" was deleted. Create it.')
            return (Remove(self.name, following) if made else None), line
        for obstacle in self._refusals():
            return None, self._blocked(obstacle)
        if self.login is None:
            return None, self._blocked(self._no_login())
        if self.login not in logins:
            return Remove(self.name, following), self._line(
                "Loading", "The Secret was changed by hand; it starts over."
            )
        for pool, files, pods in self._users():
            if waits_for := lagging(files, pods, new):
                return None, self._line("Loading", f'PgPool "{pool}": {waits_for}.')
        reference = self.user.secret_ref
        obeyed = self.record.get("for")
        record = {
            "at": timestamp(self.view.now),
            "for": {**(obeyed if isinstance(obeyed, dict) else {}), self.me: str(about.get("rotate", ""))},
            "next": following["metadata"]["uid"],
        }
        values = {reference.username_key: new.username, reference.password_key: new.password}
        return Write(self.name, self.main, values, record), self._line("Storing")

    def _users(self) -> Iterator[tuple[str, Body | None, Sequence[Pod]]]:
        """The pools whose clients log in with the Secret: name, x-config, pods."""
        yield self.me, self.view.config, self.view.pods
        for other in self.around.pools:
            if other.user(self.name) is not None:
                yield other.name, other.config, other.pods

    def _first_login(self) -> Manifest:
        reference = self.user.secret_ref
        plain = (reference.username_key, reference.password_key) == ("username", "password")
        record = {"at": timestamp(self.view.now), "for": {self.me: self.asked} if self.asked else {}}
        values = {reference.username_key: self.user.username or "", reference.password_key: self.view.fresh_password}
        labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_MANAGED: "true", names.LABEL_WATCH: "true"}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self.name,
                "namespace": self.view.owner.namespace,
                "labels": labels,
                "annotations": {names.ROTATED: json.dumps(record, sort_keys=True, separators=(",", ":"))},
            },
            "type": "kubernetes.io/basic-auth" if plain else "Opaque",
            "data": encoded(values),
        }

    def _obstacles(self) -> Iterator[str]:
        """Why nothing may be begun."""
        yield from self._refusals()
        rotating = [other.name for other in self.around.pools if "rotation" in (other.user(self.name) or ())]
        if rotating and min(rotating) < self.me:
            yield self._driven_by(min(rotating))
        if self.following is not None:
            there = names.next_secret(self.name)
            yield f'Secret "{there}" is in the way: the next login would be kept there. Delete it.'
        if self.main is None:
            if self.user.username is None:
                yield f'Secret "{self.name}" does not exist. Create it, or set users[].username and it will be made.'
            elif not listable(self.user.username):
                yield f'users[].username of Secret "{self.name}" is no name that PgBouncer can carry. Change it.'
        elif self.login is None:
            yield self._no_login()
        elif (new := alternate(self.login.username, self.user.username)) in self._other_names():
            yield f'The next user name of Secret "{self.name}" would be "{new}", which another user has. Rename one.'

    def _refusals(self) -> Iterator[str]:
        """Why the user's Secret may not be written."""
        others = [f'PgPool "{other.name}"' for other in self.around.pools if on_server(other.body["spec"], self.name)]
        others += [f'PgServer "{name}"' for name in self.around.servers]
        if on_server(self.view.body["spec"], self.name):
            yield (
                f'Secret "{self.name}" is a login on the server as well, where its next user name does not exist. Give '
                "every database a credentialsSecretRef with a Secret of its own, or remove users[].rotation."
            )
        elif others:
            yield (
                f'{others[0]} logs in on the server with Secret "{self.name}", and its next user name does not exist '
                "there. Give it a Secret of its own."
            )
        if self.main is not None and (why := refusal(self.main)):
            yield why

    def _driver(self, about: Mapping[str, Any]) -> str:
        """The pool that goes on: the one that began, or the first if that is no user of the Secret any more."""
        using = [pool for pool, _, _ in self._users()]
        return str(about["pool"]) if about.get("pool") in using else min(using)

    def _driven_by(self, pool: str) -> str:
        return f'PgPool "{pool}" rotates Secret "{self.name}" already. Remove users[].rotation from one of the two.'

    def _no_login(self) -> str:
        return f'Secret "{self.name}" holds no valid login. Write it anew.'

    def _other_names(self) -> frozenset[str]:
        """User names of the pool's other users, with those that they are about to have."""
        assert self.view.spec is not None
        found: set[str] = set()
        for user in self.view.spec.users:
            name = user.secret_ref.name
            if name != self.name:
                login = current_login(self.view, user)
                pair = next_user_logins(self.view.next_secrets.get(name), name)
                found |= {each.username for each in (*(pair or ()), login) if each is not None}
        return frozenset(found)

    def _overlap(self, about: Mapping[str, Any]) -> float:
        if self.user.rotation is not None:
            return duration_seconds(self.user.rotation.overlap)
        told = about.get("overlap")
        return float(told) if isinstance(told, int | float) else 0.0

    def _asked(self) -> bool:
        """Whether somebody wants it at once."""
        obeyed = self.record.get("for")
        return bool(self.asked) and not (isinstance(obeyed, dict) and obeyed.get(self.me) == self.asked)

    def _due(self) -> float | None:
        """When the interval is over, in seconds since the epoch; None if there is none."""
        interval = self.user.rotation.interval if self.user.rotation is not None else None
        if interval is None or self.main is None:
            return None
        since = self.at if self.at is not None else seconds(self.main["metadata"].get("creationTimestamp"))
        return since + duration_seconds(interval)

    def _blocked(self, why: str) -> RotationLine:
        return self._line("Blocked", why, reason=Reason.ROTATION_BLOCKED)

    def _line(
        self,
        phase: str,
        message: str = "",
        *,
        reason: str = "",
        retiring: Login | None = None,
        until: float | None = None,
    ) -> RotationLine:
        gone = retiring.username if retiring is not None else ""
        return RotationLine(
            secret=self.name,
            login=self.login.username if self.login is not None else "",
            phase=phase,
            message=message,
            reason=reason,
            last=self.at,
            next=self._due(),
            retiring=gone,
            until=until,
            clients=clients_of(self.view.pods, gone) if gone else None,
        )

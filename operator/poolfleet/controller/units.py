"""Which Secrets of a PgServer's pools are rotated, and all that deciding about one depends on. No writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from poolfleet.api import names
from poolfleet.api.base import duration_seconds
from poolfleet.api.pgserver import PgServerSpec
from poolfleet.api.wire import AgentState
from poolfleet.controller.context import Context, Key
from poolfleet.controller.observe import namespace_labels, pools_of
from poolfleet.controller.store import Body
from poolfleet.kube.errors import ApiError
from poolfleet.kube.kinds import SECRET, SERVER
from poolfleet.plan import managed
from poolfleet.plan.model import Pod
from poolfleet.plan.objects.meta import annotation
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.rotation import ALTERNATING, PASSWORD, Holder, Known, Main, Next, Seen, Wanted
from poolfleet.plan.secrets import Login, former_login, next_role_login
from poolfleet.plan.server import ServerView
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.tenancy import Standing, standing
from poolfleet.plan.times import seconds
from poolfleet.postgres.checks import Questions


@dataclass(slots=True)
class Unit:
    """One Secret with a login of the server, and everything that names it."""

    namespace: str
    secret: str
    places: dict[str, list[str]] = field(default_factory=dict)  # PgPool -> its databases that log in by it
    dbname: str = ""  # one of them, as the server calls it
    username_key: str = "username"
    password_key: str = "password"
    asking: list[str] = field(default_factory=list)  # the PgPools that want it to be rotated
    wanted: Wanted | None = None
    main: Body | None = None
    following: Body | None = None
    staged: dict[str, list[str]] = field(default_factory=dict)  # PgPool -> what its x-config's annotation STAGED lists
    pods: list[tuple[str, str]] = field(default_factory=list)  # UID and PgPool of the pods that may log in by it
    refusal: str = ""  # what the objects forbid
    unreadable: str = ""  # why the API server did not show the Secrets

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name of the Secret."""
        return self.namespace, self.secret

    @property
    def about(self) -> dict[str, str]:
        """For the log."""
        return {"namespace": self.namespace, "secret": self.secret}

    @property
    def login(self) -> Login | None:
        """The login in the main Secret; None if there is none."""
        data = decode(self.main)
        try:
            return Login(data[self.username_key].decode(), data[self.password_key].decode())
        except (KeyError, UnicodeDecodeError):
            return None

    def questions(self) -> Questions:
        """What to try on the server."""
        login, following = self.login, next_role_login(self.following)
        alternating = self.strategy == ALTERNATING
        if following is not None:
            former = str(managed.read_about(self.following or {}).get("former", ""))
            stored = login is not None and login.username == following.username
            if not alternating:
                return Questions(login, following, self.dbname, roles=(following.username,))
            return Questions(
                login,
                following,
                self.dbname,
                idle=former if stored else following.username,
                retire=stored,
                former=former_login(self.following),
                roles=(former, following.username),
            )
        roles = self.wanted.roles if alternating and self.wanted is not None else ()
        idle = next((role for role in roles if login is not None and role != login.username), "")
        roles = roles or ((login.username,) if login is not None else ())
        return Questions(login, None, self.dbname, idle, roles=roles)

    def is_staged(self, pool: str) -> bool:
        """Whether the pool's x-config holds the next login of this very rotation."""
        uid = self.following["metadata"]["uid"] if self.following is not None else ""
        return f"{self.secret}={uid}" in self.staged.get(pool, ())

    @property
    def strategy(self) -> str:
        """Of the rotation that is under way, else of the one that is wanted."""
        if self.following is not None:
            return str(managed.read_about(self.following).get("strategy", PASSWORD))
        return self.wanted.strategy if self.wanted is not None else PASSWORD


async def units_of(context: Context, key: Key, view: ServerView) -> list[Unit]:
    """The rotations of the PgServer `key` that are wanted or under way."""
    pools = pools_of(context.store, key.namespace, key.name)
    units: dict[tuple[str, str], Unit] = {}
    following = {}
    for body in context.store.next_logins(f"{key.namespace}/{key.name}"):
        about = managed.read_about(body)
        if about.get("kind") == "role" and names.next_secret(str(about.get("secret"))) == body["metadata"]["name"]:
            following[body["metadata"]["namespace"], str(about["secret"])] = body
    if not following and not any(_rotates(pool) for pool in pools):
        return []
    for pool in pools:
        _add(units, pool)
    server = context.store.get(SERVER.plural, key.namespace, key.name)
    for unit_key in following:  # its pool may be gone
        if unit_key not in units and _may_use(context, key, server, unit_key[0]):
            units[unit_key] = Unit(*unit_key, dbname="postgres")
    found = [unit for unit in units.values() if unit.wanted is not None or unit.key in following]
    for unit in found:
        unit.following = following.get(unit.key)
        _look(context, view, unit)
        try:
            unit.main = await context.secrets.get(unit.namespace, unit.secret)
            if unit.following is None and not context.store.synced(SECRET.plural):
                unit.following = await context.secrets.get(unit.namespace, names.next_secret(unit.secret))
        except ApiError as error:
            unit.unreadable = f'Secret "{unit.secret}" cannot be read: {error}.'
        else:
            unit.refusal = _refusal(context, view, unit, server, pools)
    return found


def _may_use(context: Context, key: Key, server: Body | None, namespace: str) -> bool:
    """Whether PgPools of that namespace may use the PgServer: nobody else's Secrets are tried on it."""
    reference = {"name": key.name, "namespace": key.namespace}
    pool = {"metadata": {"namespace": namespace, "name": "", "uid": ""}, "spec": {"serverRef": reference}}
    return standing(pool, server, namespace_labels(context.store, namespace)) is Standing.ALLOWED


def see(context: Context, view: ServerView, unit: Unit, known: Known) -> Seen:
    """All that `rotation.decide` wants."""
    login, following = unit.login, next_role_login(unit.following)
    main: Main | None = None
    if unit.main is not None and login is not None:
        rotated = managed.rotated(unit.main)
        obeyed = rotated.get("for")
        main = Main(
            login=login,
            refusal=managed.refusal(unit.main),
            created=seconds(unit.main["metadata"].get("creationTimestamp")),
            rotated=_when(rotated.get("at")),
            obeyed={str(k): str(v) for k, v in obeyed.items()} if isinstance(obeyed, dict) else {},
        )
    upcoming: Next | None = None
    if unit.following is not None and following is not None:
        upcoming = Next(
            login=following,
            created=seconds(unit.following["metadata"].get("creationTimestamp")),
            strategy=unit.strategy,
            former=str(managed.read_about(unit.following).get("former", "")),
        )
    return Seen(
        now=context.clock(),
        secret=unit.secret,
        wanted=unit.wanted,
        main=main,
        following=upcoming,
        staged=all(unit.is_staged(pool) for pool in unit.places),
        holders=tuple(holders(view, unit, {})),
        refusal=unit.refusal,
        known=known,
    )


def _when(text: object) -> float | None:
    """A time that may have been written by hand, in seconds since the epoch."""
    try:
        return seconds(text) if isinstance(text, str) else None
    except ValueError:
        return None


def holders(view: ServerView, unit: Unit, fresh: Mapping[str, AgentState]) -> Iterator[Holder]:
    """The pods that may log in by the Secret; `fresh` are newer words of their agents, by the pods' UIDs."""
    world = view.world
    pods = {pod.uid: pod for pod in world.pods}
    ledger = {entry.pod: entry.pod_name for entry in world.ledger.entries}
    for uid, pool in unit.pods:
        pod = pods.get(uid)
        state = fresh.get(uid) or (pod.state if pod is not None else None)
        told = pod is not None and not set(unit.places[pool]).isdisjoint(pod.directive.get("hold", ()))
        if pod is None or state is None or not state.started or pod.server != world.server:
            yield Holder(ledger.get(uid, uid), known=False, told=told)
            continue
        wish = world.wish_of(pool)
        left = [state.databases[name].hold for name in unit.places[pool] if name in state.databases]
        ends = [seconds_left for seconds_left in left if seconds_left is not None]
        newest = wish is not None and bool(wish.config)
        yield Holder(
            pod.name,
            holds=bool(state.mounted),
            staged=newest and wish is not None and state.mounted == wish.config,
            told=told,
            loaded=newest and wish is not None and state.config == wish.config and _logs_in_as(pod, wish, unit),
            left=min(ends, default=10.0) if len(ends) == len(left) else None,
        )


def _logs_in_as(pod: Pod, wish: PoolWish, unit: Unit) -> bool:
    """Whether the pod was made for the role that the main Secret names, and the pool's x-config names it already."""
    login = unit.login
    named = (
        all(wish.roles.get(name) == frozenset({login.username}) for name in unit.places[wish.pool]) if login else False
    )
    return named and pod.turn == wish.turn and not pod.terminating


def _rotates(pool: Body) -> bool:
    return any(isinstance(item, dict) and item.get("rotation") for item in pool["spec"].get("databases") or ())


def _add(units: dict[tuple[str, str], Unit], pool: Body) -> None:
    """Add the databases of a PgPool to the units of their Secrets. Older pools come first: what they say counts."""
    metadata = pool["metadata"]
    key = f"{metadata['namespace']}/{metadata['name']}"
    for database in pool["spec"].get("databases") or ():
        reference = database.get("credentialsSecretRef")
        if not reference:
            continue
        unit = units.setdefault(
            (metadata["namespace"], reference["name"]), Unit(metadata["namespace"], reference["name"])
        )
        if not unit.places:
            unit.dbname = database.get("serverDatabase") or database["name"]
            unit.username_key = reference.get("usernameKey", "username")
            unit.password_key = reference.get("passwordKey", "password")
        unit.places.setdefault(key, []).append(database["name"])
        wish = database.get("rotation")
        if not wish:
            continue
        if key not in unit.asking:
            unit.asking.append(key)
        token = annotation(pool, names.ROTATE)
        tokens = {**(unit.wanted.tokens if unit.wanted else {}), **({metadata["name"]: token} if token else {})}
        first = unit.wanted or _wanted(wish)
        unit.wanted = Wanted(first.strategy, first.interval, first.roles, tokens)


def _wanted(rotation: Mapping[str, Any]) -> Wanted:
    interval = rotation.get("interval")
    roles = tuple(str(role) for role in rotation.get("roles") or ())
    return Wanted(str(rotation.get("strategy", PASSWORD)), duration_seconds(interval) if interval else None, roles)


def _look(context: Context, view: ServerView, unit: Unit) -> None:
    """Find the pods that may log in by the Secret, and what the pools' x-config have of it."""
    for pool in unit.places:
        namespace, _, name = pool.partition("/")
        config = context.store.get(SECRET.plural, namespace, names.config_secret(name))
        unit.staged[pool] = [each for each in (annotation(config, names.STAGED) or "").split(",") if each]
    pods = {pod.uid: pod for pod in view.world.pods}
    seen = set()
    for entry in view.world.ledger.entries:
        pod = pods.get(entry.pod)
        gone = entry.pod in view.world.off or (pod is not None and (pod.ended or _stopped(pod)))
        if entry.pool in unit.places and entry.pod not in seen and not gone and not _at_its_gate(pod):
            seen.add(entry.pod)
            unit.pods.append((entry.pod, entry.pool))


def _at_its_gate(pod: Pod | None) -> bool:
    """Whether a pod was never told which configuration to load: its PgBouncer cannot have started."""
    return pod is not None and bool(pod.directive) and not pod.directive.get("config")


def _stopped(pod: Pod) -> bool:
    """Whether a draining pod's PgBouncer has ended: it logs in no more."""
    return pod.terminating and pod.state is not None and pod.state.draining and not pod.state.started


def _refusal(context: Context, view: ServerView, unit: Unit, server: Body | None, pools: list[Body]) -> str:
    """What the objects say against altering the role, "" for nothing (design section 5)."""
    try:
        spec = PgServerSpec.model_validate((server or {}).get("spec") or {})
    except ValidationError:
        return "The PgServer's spec is not valid."
    name = (server or {}).get("metadata", {}).get("name")
    if spec.admin_secret_ref is None:
        return f'PgServer "{name}" has no adminSecretRef: without it nobody can alter the role.'
    if unit.main is None:
        return f'Secret "{unit.secret}" does not exist: nothing shows that the pool may use the role. Create it.'
    login = unit.login
    if login is None:
        keys = f'"{unit.username_key}" and "{unit.password_key}"'
        return f'Secret "{unit.secret}" has not both keys {keys}: nothing shows that the pool may use the role.'
    if refusal := managed.refusal(unit.main):
        return refusal
    if not unit.places:
        return "No PgPool uses it any more."
    following = next_role_login(unit.following)
    roles: tuple[str, ...] = (login.username,)
    if unit.strategy == ALTERNATING:
        roles = unit.wanted.roles if unit.wanted is not None else ()
        if following is not None:
            former = str(managed.read_about(unit.following or {}).get("former", ""))
            roles = tuple(dict.fromkeys((*roles, login.username, following.username, former)))
    if login.username not in roles:
        return f'Secret "{unit.secret}" names "{login.username}", which is none of rotation.roles: {", ".join(roles)}.'
    for role in roles:
        if role not in spec.managed_roles:
            return f'Role "{role}" is not in managedRoles of PgServer "{name}". Whoever owns the server may add it.'
    by_key = {f"{pool['metadata']['namespace']}/{pool['metadata']['name']}": pool for pool in pools}
    for pool in unit.places:
        body = by_key[pool]
        if (body.get("spec") or {}).get("paused"):
            return f'PgPool "{pool.partition("/")[2]}" is paused.'
        labels = namespace_labels(context.store, body["metadata"]["namespace"])
        if standing(body, server, labels) is not Standing.ALLOWED:
            return f'PgPool "{pool.partition("/")[2]}" may not use the server any more.'
    return _strangers(view, unit, roles)


def _strangers(view: ServerView, unit: Unit, roles: tuple[str, ...]) -> str:
    """Whether the role is used otherwise than by this Secret: such clients would be locked out."""
    for wish in view.world.wishes:
        for database, used in sorted(wish.roles.items()):
            both = sorted(used.intersection(roles))
            if not both or database in unit.places.get(wish.pool, ()):
                continue
            namespace, _, pool = wish.pool.partition("/")
            where = f'database "{database}" of PgPool "{pool}"' if namespace == unit.namespace else "another namespace"
            return f'Role "{both[0]}" is used by {where} as well, and not by Secret "{unit.secret}".'
    return ""

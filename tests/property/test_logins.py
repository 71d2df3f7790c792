"""Rotation of a client user's login with a crash between any two effects, over two pools that share the Secret.

The world is as small as can be: one Secret, the second one while there is a rotation, and of each pool x-config and
pods that have loaded some version of it. Everything is planned by the real functions.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poolfleet.api import names
from poolfleet.api.wire import tombstone
from poolfleet.pgbouncer import quoting
from poolfleet.plan import config, logins, pool
from poolfleet.plan.managed import encoded
from poolfleet.plan.model import Pod
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.times import timestamp
from tests.unit.pool_fixtures import KEY, NOW, pod, pool_body, server_body, state, view

SECRET = "app"
NEXT = names.next_secret(SECRET)
OVERLAP = 3600.0
Body = dict[str, Any]
Users = Mapping[str, str]


def listed(files: Mapping[str, bytes]) -> dict[str, str]:
    """The users that a configuration lets in, with their passwords."""
    pairs = quoting.read_userlist(files[names.USERLIST_FILE].decode())
    return {user: password for user, password in pairs if password != tombstone(bytes.fromhex(KEY), user)}


class Fleet:
    """One pool: its PgPool, its x-config, and what its pods have loaded."""

    def __init__(self, name: str) -> None:
        self.body = pool_body(
            server=None,
            serverRef={"name": "db"},
            databases=[{"name": "shop", "credentialsSecretRef": {"name": "role"}}],
            users=[{"secretRef": {"name": SECRET}}],
        )
        self.body["metadata"] |= {"name": name, "uid": f"uid-{name}"}
        self.config: Body | None = None
        self.pods: dict[str, dict[str, bytes]] = {}

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def user(self) -> Body:
        user: Body = self.body["spec"]["users"][0]
        return user

    def seen_pods(self) -> tuple[Pod, ...]:
        return tuple(pod(name, state=state(config.live_hash(files), name)) for name, files in self.pods.items())


class Logins(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.count = 0
        self.hands = False  # whether people interfere
        self.secrets: dict[str, Body] = {}
        self.fleets = [Fleet("first"), Fleet("second")]
        self.promised: tuple[str, str] | None = None  # what the operator has handed out
        self.former: tuple[str, str, float] | None = None  # what it has promised to let in, and until when

    def number(self) -> int:
        self.count += 1
        return self.count

    def put(self, manifest: Mapping[str, Any]) -> None:
        body = copy.deepcopy(dict(manifest))
        number = self.number()
        stamp = {"uid": f"uid-{number}", "resourceVersion": str(number), "creationTimestamp": timestamp(self.now)}
        body["metadata"] = {**body["metadata"], **stamp}
        assert body["metadata"]["name"] not in self.secrets
        self.secrets[body["metadata"]["name"]] = body

    @initialize(both=st.booleans(), interval=st.booleans(), hands=st.booleans())
    def begin(self, both: bool, interval: bool, hands: bool) -> None:
        self.hands = hands
        labels = {names.LABEL_MANAGED: "true"}
        metadata = {"name": SECRET, "namespace": "demo", "labels": labels}
        self.put({"metadata": metadata, "data": encoded({"username": "app", "password": "first"})})
        self.somebody_asks(0)
        for fleet in self.fleets[: 2 if both else 1]:
            fleet.user["rotation"] = {"overlap": "1h"} | ({"interval": "4h"} if interval else {})
        for fleet in self.fleets:
            self.configure(fleet)
            assert fleet.config is not None
            fleet.pods = {f"{fleet.name}-{each}": decode(fleet.config) for each in "xy"}

    def view(self, fleet: Fleet) -> PoolView:
        bodies = {("demo", name): self.secrets.get(name) for name in (SECRET, "role")}
        found: dict[str, Mapping[str, bytes] | None] = {SECRET: decode(self.secrets[SECRET])}
        found["role"] = {"username": b"role", "password": b"role's"}
        following = {SECRET: self.secrets[NEXT]} if NEXT in self.secrets else {}
        return view(
            copy.deepcopy(fleet.body),
            server_body("db"),
            secrets=found,
            live={("Secret", f"{fleet.name}-config"): fleet.config} if fleet.config else {},
            pods=fleet.seen_pods(),
            now=self.now,
            secret_bodies=bodies,
            next_secrets=following,
            fresh_password=f"password {self.number()}",
        )

    def around(self, fleet: Fleet) -> dict[str, logins.Around]:
        others = [
            logins.Neighbour(other.body, other.config, other.seen_pods()) for other in self.fleets if other is not fleet
        ]
        return {SECRET: logins.Around(tuple(others))}

    def configure(self, fleet: Fleet) -> None:
        """What the pool reconciler does to x-config."""
        planned = pool.plan(self.view(fleet))
        assert not planned.findings
        wanted = [obj for obj in planned.wanted if obj["metadata"]["name"] == f"{fleet.name}-config"]
        fleet.config = copy.deepcopy(wanted[0])

    def effects(self, fleet: Fleet) -> bool:
        """Plan, and do what is planned; whether there was anything."""
        planned = logins.plan(self.view(fleet), self.around(fleet))
        for effect in planned.effects:
            if isinstance(effect, logins.Create):
                assert effect.manifest["metadata"]["name"] == NEXT
                self.put(effect.manifest)
            elif isinstance(effect, logins.Write):
                self.move(effect)
            else:
                if self.former is not None and self.written_by(effect.secret):
                    assert self.now >= self.former[2], "retired before its time"
                del self.secrets[NEXT]
        return bool(planned.effects)

    def written_by(self, following: Mapping[str, Any]) -> bool:
        return following["metadata"]["uid"] in str(self.secrets[SECRET]["metadata"].get("annotations"))

    def move(self, effect: logins.Write) -> None:
        main = self.secrets[SECRET]
        assert effect.secret["metadata"]["resourceVersion"] == main["metadata"]["resourceVersion"]
        before = {key: value.decode() for key, value in decode(main).items()}
        main["data"] = {**main["data"], **encoded(effect.values)}
        main["metadata"]["resourceVersion"] = str(self.number())
        main["metadata"]["annotations"] = {names.ROTATED: json.dumps(dict(effect.rotated))}
        self.promised = (effect.values["username"], effect.values["password"])
        self.former = (before["username"], before["password"], self.now + OVERLAP)
        assert before["username"] != effect.values["username"]

    @rule(which=st.integers(0, 1))
    def step(self, which: int) -> None:
        """A crash right after the Secrets were written, before x-config was."""
        self.effects(self.fleets[which])

    @rule(which=st.integers(0, 1))
    def reconcile(self, which: int) -> None:
        self.effects(self.fleets[which])
        self.configure(self.fleets[which])

    @rule(which=st.integers(0, 1), each=st.integers(0, 5))
    def a_pod_loads(self, which: int, each: int) -> None:
        fleet = self.fleets[which]
        assert fleet.config is not None
        fleet.pods[sorted(fleet.pods)[each % len(fleet.pods)]] = decode(fleet.config)

    @rule(which=st.sampled_from([(0,), (1,), (0, 1), (0, 1)]))
    def all_goes_well(self, which: tuple[int, ...]) -> None:
        """Often enough that rotations get somewhere."""
        for each in which:
            self.reconcile(each)
            fleet = self.fleets[each]
            assert fleet.config is not None
            fleet.pods = dict.fromkeys(fleet.pods, decode(fleet.config))

    @rule(which=st.integers(0, 1))
    def a_pod_is_born(self, which: int) -> None:
        fleet = self.fleets[which]
        assert fleet.config is not None
        if len(fleet.pods) < 4:
            fleet.pods[f"{fleet.name}-{self.number()}"] = decode(fleet.config)

    @rule(which=st.integers(0, 1))
    def somebody_asks(self, which: int) -> None:
        self.fleets[which].body["metadata"]["annotations"] = {names.ROTATE: str(self.number())}

    @rule(seconds=st.sampled_from([OVERLAP / 2, OVERLAP / 2, 4 * OVERLAP]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.hands)
    @rule(rename=st.booleans())
    def somebody_edits_the_secret(self, rename: bool) -> None:
        """By hand: what was promised before is his to keep now."""
        main = self.secrets[SECRET]
        values = {"password": f"by hand {self.number()}"} | ({"username": f"hand{self.number()}"} if rename else {})
        main["data"] = {**main["data"], **encoded(values)}
        main["metadata"]["resourceVersion"] = str(self.number())
        self.promised = None

    @precondition(lambda self: self.hands)
    @rule(which=st.integers(0, 1))
    def the_spec_turns_it_on_or_off(self, which: int) -> None:
        user = self.fleets[which].user
        user["rotation"] = None if user.get("rotation") else {"overlap": "1h"}

    @invariant()
    def what_was_handed_out_works_everywhere(self) -> None:
        for fleet in self.fleets:
            for files in fleet.pods.values():
                if self.promised is not None:
                    assert listed(files).get(self.promised[0]) == self.promised[1]
                if self.former is not None and self.promised is not None and self.now < self.former[2]:
                    assert listed(files).get(self.former[0]) == self.former[1]

    @invariant()
    def never_more_than_two_names(self) -> None:
        for fleet in self.fleets:
            if fleet.config is not None:
                assert len(listed(decode(fleet.config))) <= (2 if self.promised else 3)

    def teardown(self) -> None:
        """Left alone, it comes to an end: one login, and only that."""
        if not self.secrets:
            return
        for fleet in self.fleets:
            fleet.user.pop("rotation", None)
        for _ in range(6):
            for fleet in self.fleets:
                self.effects(fleet)
                self.configure(fleet)
                assert fleet.config is not None
                fleet.pods = dict.fromkeys(fleet.pods, decode(fleet.config))
            self.now += OVERLAP
        assert NEXT not in self.secrets
        login = {key: value.decode() for key, value in decode(self.secrets[SECRET]).items()}
        for fleet in self.fleets:
            for files in fleet.pods.values():
                assert listed(files) == {login["username"]: login["password"]}


TestLogins = Logins.TestCase
TestLogins.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

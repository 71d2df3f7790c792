"""Rotation of a role on the server: whoever does what, and whenever the operator ends, a stored password is valid, and
nobody is told a password that is not (rotation_model.py has the world and the operator)."""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from poolfleet.plan.rotation import ALTERNATING
from poolfleet.plan.secrets import Login
from tests.property.rotation_model import OTHER, ROLE, STRANGER, Config, Operated, Role


class Rotating(Operated):
    """What others do, and what must hold."""

    # -- everybody else ----------------------------------------------------------------------------------------------

    @rule()
    def x_config_is_written(self) -> None:
        login, staged = self.main.login, 0
        if self.following and self.following.login.username == login.username and self.following.login != login:
            login, staged = self.following.login, self.following.uid
        turn = self.config.turn + (login.username != self.config.login.username)
        self.config = Config(login, turn, staged)

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 3), reachable=st.sampled_from([True, True, True, False]))
    def a_pod_is_cut_off_or_back(self, which: int, reachable: bool) -> None:
        self.pods[which % len(self.pods)].reachable = reachable

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 3))
    def a_pod_mounts(self, which: int) -> None:
        self.pods[which % len(self.pods)].mounted = self.config

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 3))
    def a_pod_obeys(self, which: int) -> None:
        self.pods[which % len(self.pods)].obey(self.now)

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 3), lingers=st.booleans())
    def a_pod_is_replaced(self, which: int, lingers: bool) -> None:
        pod = self.pods.pop(which % len(self.pods))
        if pod.loaded and lingers:
            role = pod.loaded.login.username
            self.leaving[role] = self.leaving.get(role, 0) + 1
        self.a_pod_is_born()

    @rule()
    def sessions_end(self) -> None:
        self.leaving.clear()

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 5.0, 15.0, 80.0, 600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for pod in self.pods:
            pod.hold_ended = pod.hold_ended if pod.left(self.now) or not pod.hold_until else pod.directive.get("rev")
            pod.hold_until = pod.hold_until if pod.left(self.now) else None

    @rule(
        phase=st.sampled_from(["Idle", "Checking", "Staging", "Holding", "Holding", "Storing", "Rolling", "Retiring"]),
        lazy=st.sampled_from([0, 0, 0, 1, 2]),
        after=st.sampled_from([0.0, 0.0, 2.0, 6.5, 80.0]),
        but=st.sampled_from(["", "", "", "forbidden", "superuser", "down", "leader", "edited"]),
        outcome=st.sampled_from(["done", "done", "unknown", "unknown, done", "pending"]),
        stale=st.booleans(),
    )
    def all_goes_well(self, phase: str, lazy: int, after: float, but: str, outcome: str, stale: bool) -> None:
        """Often enough that rotations get somewhere; but for `lazy` pods, and for what happens in this phase."""
        self.down, self.refusal, self.role_refusal, self.wanted = False, "", "", self.spec
        self.what_hung_is_over(True)
        if self.following is None:
            self.somebody_asks()
        for pod in self.pods:
            pod.reachable = True
        for _ in range(8):
            self.well(lazy)
            if self.line is not None and self.line.phase == phase:
                break
        self.time_passes(after)
        self.refusal = "not in managedRoles" if but == "forbidden" else self.refusal
        self.role_refusal = "it is superuser" if but == "superuser" else self.role_refusal
        self.down = but == "down"
        if but == "leader":
            self.another_leader()
        if but == "edited" and self.hands:
            self.somebody_edits_the_secret(None)
        self.turn_of_the_operator(stale=stale, outcome=outcome)

    def well(self, lazy: int = 0) -> None:
        """A round of everybody, in a tenth of a second; pods made for another role are replaced."""
        self.x_config_is_written()
        for pod in [pod for pod in self.pods[lazy:] if pod.turn != self.config.turn]:
            self.pods.remove(pod)
            self.a_pod_is_born()
        for pod in self.pods[lazy:]:
            pod.mounted = self.config
            pod.obey(self.now)
        self.turn_of_the_operator(stale=False, outcome="done")
        self.the_check_is_done()
        for pod in self.pods[lazy:]:
            pod.obey(self.now)
        self.time_passes(0.1)

    @rule(happens=st.booleans())
    def what_hung_is_over(self, happens: bool) -> None:
        if self.pending is not None and happens:
            self.set_password(self.pending)
        self.pending = None

    @rule(down=st.booleans())
    def the_server_goes_down_or_comes_back(self, down: bool) -> None:
        self.down = down

    @rule()
    def somebody_asks(self) -> None:
        if self.spec is not None:
            self.spec = replace(self.spec, tokens={"main": str(self.number())})
            self.wanted = self.wanted and self.spec

    @rule(refusal=st.sampled_from(["", "", "not in managedRoles"]))
    def the_objects_forbid_it(self, refusal: str) -> None:
        self.refusal = refusal

    @rule(refusal=st.sampled_from(["", "", "it is superuser"]))
    def the_server_forbids_it(self, refusal: str) -> None:
        self.role_refusal = refusal

    @rule(on=st.booleans())
    def the_spec_turns_it_on_or_off(self, on: bool) -> None:
        self.wanted = self.spec if on else None

    @precondition(lambda self: self.hands)
    @rule(username=st.sampled_from([None, None, STRANGER, OTHER]))
    def somebody_edits_the_secret(self, username: str | None) -> None:
        """By hand. If it had the only copy of a valid password, that is his to keep."""
        before, login = self.main.login, Login(username or self.main.login.username, f"by hand {self.number()}")
        self.main = replace(self.main, login=login)
        if self.valid(before) or (self.pending is not None and before == self.pending):
            self.elsewhere.add(before.password)

    @precondition(lambda self: self.hands and self.elsewhere)
    @rule()
    def somebody_puts_it_right(self) -> None:
        for name in (ROLE, OTHER):
            password = self.roles[name].password
            if password is not None and password in self.elsewhere:
                self.main = replace(self.main, login=Login(name, password))

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def a_stored_password_is_valid(self) -> None:
        if self.count:
            stored = [self.main.login] + ([self.following.login] if self.following else [])
            roles = [self.roles[name] for name in (ROLE, OTHER)]
            assert any(map(self.valid, stored)) or any(r.can_login and r.password in self.elsewhere for r in roles)

    @invariant()
    def nobody_else_is_touched(self) -> None:
        """Not even what may be altered, by one who never knew its password."""
        if self.count:
            assert self.roles[STRANGER] == Role("secret")
            assert self.strategy == ALTERNATING or self.roles[OTHER] == Role(None, False)

    @invariant()
    def the_main_secret_is_valid_until_somebody_edits_it(self) -> None:
        """With two roles there is no moment in which it is not."""
        if self.count and self.strategy == ALTERNATING and not self.hands:
            assert self.valid(self.main.login)

    def until(self, done: Callable[[], bool], rounds: int) -> None:
        self.well()
        for _ in range(rounds):
            self.well()
            if done():
                return
            self.time_passes(min(self.again or 0.0, 600.0) if (self.again or 0.0) > 1.0 else 0.0)
        raise AssertionError(f"not over in {rounds} rounds: {self.line} {self.known} {self.following}")

    def put_right(self) -> None:
        """If nothing that is stored logs in, somebody stores what does."""
        if not any(map(self.valid, [self.main.login] + ([self.following.login] if self.following else []))):
            roles = [(name, self.roles[name]) for name in (ROLE, OTHER) if self.roles[name].can_login]
            self.main = replace(self.main, login=Login(roles[0][0], str(roles[0][1].password)))

    def teardown(self) -> None:
        """Left alone, and once what people did by hand is put right, it comes to an end."""
        if not self.count:
            return
        self.fuse, self.down, self.refusal, self.role_refusal = -1, False, "", ""
        self.what_hung_is_over(True)
        self.leaving.clear()
        for pod in self.pods:
            pod.reachable = True
        self.put_right()
        assert self.spec is not None
        self.spec = self.wanted = replace(self.spec, interval=None)
        self.until(lambda: self.following is None, 100)
        self.put_right()
        for name in {ROLE, OTHER} - {self.main.login.username}:  # set, but given up: it says so, and wants an admin
            self.roles[name] = Role(None, False)
        self.until(lambda: self.following is None and self.line is not None and self.line.phase == "Idle", 100)
        self.well()
        self.well()
        assert self.valid(self.main.login)
        assert self.main.obeyed == self.spec.tokens
        for pod in self.pods:
            assert pod.loaded is not None and pod.loaded.login == self.main.login and pod.left(self.now) is None


TestRotating = Rotating.TestCase
TestRotating.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

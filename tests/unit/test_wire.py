"""poolfleet.api.wire"""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolfleet.api import wire

KEY = bytes(range(32))
DIRECTIVE = wire.Directive("srv", "pod", 7, "hash", {"shop": 3, "ü": 1}, {"shop": 5}, hold=("shop",), stage="next")
STATE = wire.AgentState(
    server="srv",
    pod="pod",
    seq=3,
    rev=7,
    config="hash",
    config_error="",
    started="1-2",
    databases={"shop": wire.DatabaseState(3, 2, 2, 10, 1, 2, 3, True, True, "", hold=7.5)},
    mounted="next",
    users={"app": 3},
    max_wait=0.25,
    pids=(1, 2),
    draining=True,
    cut=3,
    moved=4,
    cpu=0.25,
    ready=True,
)


def test_what_is_signed_is_verified() -> None:
    assert wire.Directive.from_message(wire.verify(wire.sign(DIRECTIVE.to_message(), KEY), KEY)) == DIRECTIVE
    assert wire.AgentState.from_message(wire.verify(wire.sign(STATE.to_message(), KEY).encode(), KEY)) == STATE


@pytest.mark.parametrize("member", ["server", "pod", "rev", "config", "grant", "share", "v"])
def test_a_changed_member_breaks_the_mac(member: str) -> None:
    message = json.loads(wire.sign(DIRECTIVE.to_message(), KEY))
    message[member] = {"shop": 99} if isinstance(message[member], dict) else 99
    with pytest.raises(wire.WireError, match="MAC"):
        wire.verify(json.dumps(message), KEY)


def test_an_added_member_breaks_the_mac_and_another_key_does_not_fit() -> None:
    text = wire.sign(DIRECTIVE.to_message(), KEY)
    with pytest.raises(wire.WireError):
        wire.verify(json.dumps({**json.loads(text), "x": 1}), KEY)
    with pytest.raises(wire.WireError):
        wire.verify(text, bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "null", "[]", "{}", '{"mac": 5}', '{"mac": "ü"}', b"\xff"),
        *("[" * 100_000, '{"mac": "\\ud800"}', '{"mac": "x", "a": "\\udfff"}'),
    ],
)
def test_garbage_is_a_wire_error(text: str | bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.verify(text, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 9},
        {"v": True},
        {"rev": -1},
        {"rev": "1"},
        {"rev": True},
        {"grant": {"shop": 0}},
        {"grant": {"shop": 1.0}},
        {"grant": None},
        {"grant": {"shop": True}},
        {"share": {"shop": -1}},
        {"server": 1},
        {"pod": None},
    ],
)
def test_a_directive_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        wire.Directive.from_message({**DIRECTIVE.to_message(), **change})


def test_unknown_members_and_a_missing_share_are_fine() -> None:
    message = {**DIRECTIVE.to_message(), "later": 3}
    del message["share"]
    assert wire.Directive.from_message(message) == dataclasses.replace(DIRECTIVE, share={})
    del message["hold"], message["stage"]
    assert wire.Directive.from_message(message) == dataclasses.replace(DIRECTIVE, share={}, hold=(), stage="")


def test_peers_and_moves_travel_and_are_absent_while_there_are_none() -> None:
    full = dataclasses.replace(DIRECTIVE, peer=3, peers={"1": "10.0.0.7", "3": "fd00::1"}, move=wire.Move(10, 60, 5))
    assert wire.Directive.from_message(wire.verify(wire.sign(full.to_message(), KEY), KEY)) == full
    assert not {"peer", "peers", "move"} & DIRECTIVE.to_message().keys()


@pytest.mark.parametrize("peer", [-1, 1.0, True, "1", None, wire.MAX_PEER + 1, [], {}])
def test_a_peer_is_a_peer_id(peer: object) -> None:
    with pytest.raises(wire.WireError):
        wire.Directive.from_message({**DIRECTIVE.to_message(), "peer": peer})


@pytest.mark.parametrize(
    "peers",
    [
        *(None, [], "1", ["1"]),
        *({id: "10.0.0.7"} for id in ("0", "-1", "01", "+1", " 1", "1 ", "1_0", "\u0661", "x", "", "16384", "1\n")),
        *({"1": address} for address in (None, 5, True, ["10.0.0.7"], "", "10.0.0", "010.0.0.7", "10.0.0.7 ")),
        *({"1": address} for address in ("db.shop", "/run/x", "10.0.0.7/32", "10.0.0.7\nadmin_users = app", "*")),
        *({"1": address} for address in ("fe80::1%eth0", "fe80::1%\nadmin_users = app", "[fd00::1]", "fd00::1 port=1")),
    ],
)
def test_hostile_peers_are_refused(peers: object) -> None:
    with pytest.raises(wire.WireError):
        wire.Directive.from_message({**DIRECTIVE.to_message(), "peer": 1, "peers": peers})


@pytest.mark.parametrize(
    "move",
    [
        *(0, [], "x", {}, {"above": 1, "idle": 1}),
        *({"above": value, "idle": 1, "percent": 1} for value in (-1, "1")),
        *({"above": 1, "idle": value, "percent": 1} for value in (-1, "1")),
        *({"above": 1, "idle": 1, "percent": value} for value in (-1, 1.5, True, None)),
    ],
)
def test_a_move_of_another_shape_is_refused(move: object) -> None:
    with pytest.raises(wire.WireError):
        wire.Directive.from_message({**DIRECTIVE.to_message(), "move": move})


@pytest.mark.parametrize("name", ["server", "pod", "seq", "rev", "config", "started", "databases", "v"])
def test_a_state_without_a_member_is_refused(name: str) -> None:
    message = STATE.to_message()
    del message[name]
    with pytest.raises(wire.WireError):
        wire.AgentState.from_message(message)


def test_agents_of_the_build_before_say_nothing_of_demand_cuts_moves_and_cpu() -> None:
    message = STATE.to_message()
    for name in ("peak", "demand", "waited"):
        del message["databases"]["shop"][name]
    for name in ("cut", "moved", "cpu"):
        del message[name]
    quiet = dataclasses.replace(STATE.databases["shop"], peak=0, demand=0, waited=False)
    expected = dataclasses.replace(STATE, databases={"shop": quiet}, cut=0, moved=0, cpu=None)
    assert wire.AgentState.from_message(message) == expected


@given(
    st.dictionaries(st.text(max_size=3), st.binary(max_size=3)),
    st.dictionaries(st.text(max_size=3), st.binary(max_size=3)),
)
def test_equal_files_have_equal_hashes_and_others_have_others(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    assert wire.config_hash(a) == wire.config_hash(dict(reversed(a.items())))
    assert (wire.config_hash(a) == wire.config_hash(b)) == (a == b)


def test_the_drain_token_does_not_tell_the_key() -> None:
    assert wire.drain_token(KEY) not in KEY.hex()
    assert wire.drain_token(KEY) != wire.drain_token(bytes(32))

"""Cancel requests that reach another pod than their query: PgBouncers that know each other (design section 5)."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolfleet.api import names
from tests.integration.agent_pod import Drained, Pod, Service, pod
from tests.integration.pgbouncer_fixtures import Postgres, free_port, postgres, wait_until

GRANT = 4


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        server.query("CREATE ROLE shop LOGIN PASSWORD 'shop'")
        server.query("CREATE DATABASE shop OWNER shop")
        yield server


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@contextlib.contextmanager
def pods(folder: Path, pg: Postgres, *addresses: str) -> Iterator[list[Pod]]:
    """A pool: running pods with one port and an address each, which do not know each other yet."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        made = []
        for number, address in enumerate(addresses):
            one = stack.enter_context(pod(folder / str(number), pg, address, port))
            one.up(shop=GRANT)
            made.append(one)
        yield made


def introduce(made: Sequence[Pod], ids: Sequence[int]) -> None:
    """Tell each pod its id and everybody's address, as the operator does."""
    peers = {str(id): one.address for id, one in zip(ids, made, strict=True)}
    for id, one in zip(ids, made, strict=True):
        one.told({"peer": id, "peers": peers}, shop=GRANT)


class Query:
    """A query that runs until it is cancelled, over a connection that came by `service` to `owner`."""

    def __init__(self, service: Service, owner: Pod) -> None:
        service.to = (owner.address, owner.port)
        self.error = ""
        self._service = service
        self.connection = owner.client(port=service.port)
        self.name = f"query {id(self)}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.connection.execute(f"/* {self.name} */ SELECT pg_sleep(15)".encode())
        except psycopg.Error as error:
            self.error = str(error)

    def runs(self, pg: Postgres) -> bool:
        rows = pg.query("SELECT query FROM pg_stat_activity WHERE state = 'active' AND usename = 'shop'")
        return any(self.name in str(row[0]) for row in rows)

    def cancel_at(self, receiver: Pod) -> None:
        """Send a cancel request, which the service takes to `receiver`."""
        self._service.to = (receiver.address, receiver.port)
        self.connection.cancel_safe(timeout=10)  # plain cancel() holds the interpreter, and so the service

    def cancelled(self) -> bool:
        self._thread.join(5)
        return "canceling statement due to user request" in self.error

    def close(self) -> None:
        self.connection.close()
        self._thread.join()


def round_of_cancels(service: Service, pg: Postgres, pairs: Sequence[tuple[Pod, Pod]]) -> int:
    """One query per (owner, receiver), all at once, and its cancel request; how many reached their query."""
    queries = [(Query(service, owner), receiver) for owner, receiver in pairs]
    try:
        for query, _ in queries:
            wait_until("it runs", lambda q=query: q.runs(pg))  # type: ignore[misc]
        for query, receiver in queries:
            query.cancel_at(receiver)
        return sum(query.cancelled() for query, _ in queries)
    finally:
        for query, _ in queries:
            query.close()


def test_100_of_100_cancels_reach_their_query_from_any_pod_also_while_it_drains(
    tmp_path: Path, pg: Postgres, service: Service
) -> None:
    with pods(tmp_path, pg, "127.0.0.2", "127.0.0.3", "127.0.0.4") as made:
        introduce(made, [1, 2, 16383])
        pairs = [(owner, receiver) for owner in made for receiver in made if receiver is not owner]
        reached = 0
        for turn in range(5):
            reached += round_of_cancels(service, pg, pairs * 2)
            assert reached == 12 * (turn + 1)
            assert pg.sessions("shop") <= GRANT * len(made)  # a cancel request is no session
        with made[0].client() as held_open:  # it keeps the drain waiting
            hook = Drained(made[0])
            wait_until("it drains", lambda: made[0].state().draining)
            for _ in range(4):
                reached += round_of_cancels(service, pg, [pair for pair in pairs if made[0] in pair] * 2)
            reached += round_of_cancels(service, pg, [(made[0], made[1])] * 4 + [(made[1], made[0])] * 4)
            assert not hook.answered
            held_open.execute("SELECT 1")
        assert hook.wait(10) == (200, "no client is left\n")
        assert reached == 5 * 12 + 4 * 8 + 8 == 100
        for one in made[1:]:  # one on its way looks like a login, for a moment
            wait_until("within the grant", lambda one=one: one.state().databases["shop"].held <= GRANT)  # type: ignore[misc]
        assert all(limit == (GRANT, GRANT) for one in made for limit in one.limits().values())


def test_cancels_that_come_together_all_reach_their_query(tmp_path: Path, pg: Postgres, service: Service) -> None:
    # PgBouncer forgets some of them, the agent does not (agent/cancels.py)
    with pods(tmp_path, pg, "127.0.0.2", "127.0.0.3") as (owner, receiver):
        introduce([owner, receiver], [1, 2])
        reached = 0
        for _ in range(8):
            queries = [Query(service, owner) for _ in range(GRANT)]
            try:
                for query in queries:
                    wait_until("it runs", lambda q=query: q.runs(pg))  # type: ignore[misc]
                with ThreadPoolExecutor(GRANT) as together:
                    list(together.map(lambda query: query.cancel_at(receiver), queries))
                reached += sum(query.cancelled() for query in queries)
            finally:
                for query in queries:
                    query.close()
        assert reached == 8 * GRANT
        assert receiver.show("SHOW PEER_POOLS")


def test_peers_come_and_move_and_go_by_directive_alone(tmp_path: Path, pg: Postgres, service: Service) -> None:
    with pods(tmp_path, pg, "127.0.0.2", "127.0.0.3", "127.0.0.4") as (first, second, other):
        for one in (first, second):
            one.told({"peer": 1, "peers": {"1": one.address}}, shop=GRANT)
        assert round_of_cancels(service, pg, [(first, first)]) == 1
        query = Query(service, first)
        wait_until("it runs", lambda: query.runs(pg))
        query.cancel_at(other)
        assert query.runs(pg)  # it was lost
        introduce([first, other], [1, 2])
        query.cancel_at(other)
        assert query.cancelled()
        query.close()
        introduce([second, other], [1, 2])
        assert round_of_cancels(service, pg, [(second, other), (other, second)]) == 2
        other.more = {}
        other.told(shop=GRANT)
        assert other.setting("peer_id") == "0"
        assert other.show("SHOW PEERS") == []
        assert round_of_cancels(service, pg, [(second, second), (other, other)]) == 2


def test_an_ipv6_peer_and_a_restarted_one(tmp_path: Path, pg: Postgres, service: Service) -> None:
    with pods(tmp_path, pg, "::1", "127.0.0.2") as (six, four):
        introduce([six, four], [1, 2])
        assert round_of_cancels(service, pg, [(six, four), (four, six)]) == 2
        for one in (six, four):
            text = (one.run / names.INI_FILE).read_text()
            assert one.file_is_cold()
            assert "\n[peers]\n1 = host=::1 " in text
        four.bouncer.kill()
        four.agent.kill()  # so nobody raises what a restarted PgBouncer finds
        wait_until("its backends are gone", lambda: pg.sessions("shop") <= GRANT)
        four.bouncer.start()
        wait_until("it answers", lambda: _answers(four))
        assert four.limits() == {"shop": (1, 1)}
        assert round_of_cancels(service, pg, [(six, four), (four, six)]) == 2


def _answers(one: Pod) -> Any:
    with contextlib.suppress(psycopg.Error):
        return one.show("SHOW VERSION")
    return None

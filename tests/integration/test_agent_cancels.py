"""Cancel requests that reach one pod at one moment and belong to another: PgBouncer forgets some of them, the agent
does not (agent/cancels.py)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.agent_pod import Service
from tests.integration.pgbouncer_fixtures import Postgres, postgres, wait_until
from tests.integration.test_agent_peers import GRANT, Query, introduce, pods

ROUNDS = 8


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


def test_cancels_that_come_together_all_reach_their_query(tmp_path: Path, pg: Postgres, service: Service) -> None:
    with pods(tmp_path, pg, "127.0.0.2", "127.0.0.3") as (owner, receiver):
        introduce([owner, receiver], [1, 2])
        reached = 0
        for _ in range(ROUNDS):
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
        assert reached == ROUNDS * GRANT
        assert receiver.show("SHOW PEER_POOLS")

"""What the property tests share: the exhaustive searches run beside all others, and figures are told at the end."""

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.property.small_search import SCOPES, Search, search

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session", autouse=True)
def searches(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Search]]]:
    """The searches that the selected tests ask for, two at a time from the beginning on."""
    selected = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    names = [name for name in SCOPES if name in selected]
    if not names:
        yield {}
        return
    pool = ProcessPoolExecutor(2)
    yield {name: pool.submit(search, *SCOPES[name]) for name in names}
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the end of the run."""
    return pytestconfig.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The lines, passed or not."""
    if lines := config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)

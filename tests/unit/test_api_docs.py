"""docs/reference.md: no drift, and every field is on it."""

from pathlib import Path

import pytest

from poolfleet.api import docs

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_checked_in_page_is_the_generated_one() -> None:
    assert REFERENCE.read_text() == docs.reference(), "run `make docs`"


def test_main_writes_the_page(tmp_path: Path) -> None:
    assert docs.main([str(tmp_path / "docs" / "page.md")]) == 0
    assert (tmp_path / "docs" / "page.md").read_text() == docs.reference()
    assert docs.main(["--help"]) == 2


@pytest.mark.parametrize(
    "row",
    [
        "| `databases[].name` | string of at most 63 characters | **required** |",
        "| `replicas` | integer, 0 to 100 | `2` |",
        "| `paused` | boolean | `false` |",
        '| `headroom` | integer or string | `"10%"` |',
        "| `pgbouncer.parameters{}` | map to integer or string, at most 100 |  |",
        "| `ledger.entries[].bound` | integer |  |",
        "| `drain.timeoutSeconds` | integer, 0 to 3600 | `60` |",
    ],
)
def test_rows(row: str) -> None:
    assert any(line.startswith(row) for line in docs.reference().splitlines())


def test_rows_have_four_columns() -> None:
    for line in docs.reference().splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 5, line


def test_the_inline_server_is_not_described_twice() -> None:
    assert docs.reference().count("server_tls_sslmode") == 1
    assert "[PgServer](#pgserver-spec)" in docs.reference()

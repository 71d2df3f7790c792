"""Who makes tokens: AWS's signature without any network, and commands of the chart, for those who may."""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from poolfleet.controller import logs, providers
from poolfleet.controller.providers import Allowed, Command, Providers, load, run
from poolfleet.plan.tokens import NoToken, Request

EXEC = Request("uid", "dba", "db", "db.dba.svc", 5433, "app", command="vend")
RDS = Request("uid", "dba", "db", "db.abc.eu-central-1.rds.amazonaws.com", 5432, "a b&c", region="eu-central-1")
NOW = 1_800_000_000.0


def command(code: str, *, timeout: float = 10.0, namespaces: tuple[str, ...] = ("dba",)) -> Command:
    """A command that runs this Python."""
    return Command((sys.executable, "-c", code), frozenset(namespaces), timeout)


async def refusal(made: Command, request: Request = EXEC) -> str:
    with pytest.raises(NoToken) as refused:
        await run(made, request, lambda: NOW)
    return str(refused.value)


# Commands


async def test_a_command_is_told_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", "mine")
    code = (
        "import os; names = ['HOST', 'PORT', 'ROLE', 'SERVER']; "
        "print(*[os.environ['POOLFLEET_' + n] for n in names], os.environ['AZURE_CLIENT_ID'], sep='|')"
    )
    token = await run(command(code), EXEC, lambda: NOW)
    assert token.text == "db.dba.svc|5433|app|dba/db|mine"
    assert (token.issued, token.expires) == (NOW, NOW + 900)


async def test_a_role_s_name_is_no_shell_s() -> None:
    odd = Request("uid", "dba", "db", "h", 1, "$(id);`id`", command="vend")
    assert (await run(command("import os; print(os.environ['POOLFLEET_ROLE'])"), odd)).text == "$(id);`id`"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; sys.exit(3)", "the command ended with 3"),
        ("import sys; sys.exit('first\\nno  such\\trole\\x1b[2J')", "the command ended with 1: no such role [2J"),
        ("import sys; print('s3cretword', file=sys.stderr); print('s3cretword'); sys.exit(1)", "ended with 1"),
        ("import sys; sys.exit('w' * 5000)", "ended with 1: " + "w" * 200),
        ("print()", "the command printed no token"),
        ("print('s3cretword' * 100000)", "more than 65536 bytes"),
    ],
)
async def test_a_command_that_fails_says_why_but_never_what_it_printed(code: str, says: str) -> None:
    words = await refusal(command(code))
    assert words.endswith(says)
    assert "s3cret" not in words


async def test_a_command_that_cannot_be_started() -> None:
    nothing = Command(("/nowhere/at-all",), frozenset({"*"}))
    assert await refusal(nothing) == "the command does not start: No such file or directory"


async def test_a_command_that_does_not_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys; p = subprocess.Popen(['sleep', '600']); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid)); p.wait()"
    )
    assert await refusal(command(code, timeout=1.0)) == "the command did not end in 1 s"
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


async def test_what_escapes_the_kill_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "GONE", 0.1)
    code = (
        "import pathlib, subprocess; p = subprocess.Popen(['sleep', '60'], start_new_session=True); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid)); print('word')"
    )
    try:
        assert await refusal(command(code, timeout=1.0)) == "the command did not end in 1 s"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_only_the_namespaces_that_the_chart_names_may_have_it_run() -> None:
    vend = command("print('word')", namespaces=("dba", "shop"))
    made = Providers(Allowed({"vend": vend, "all": command("print('word')", namespaces=("*",))}))
    assert (await made.make(EXEC)).text == "word"
    for namespace, name, says in (
        ("evil", "vend", 'namespace "evil" may not use the token command "vend"'),
        ("dba", "other", 'no token command "other"'),
    ):
        with pytest.raises(NoToken, match=says):
            await made.make(Request("uid", namespace, "db", "h", 1, "app", command=name))
    assert (await made.make(Request("uid", "evil", "db", "h", 1, "app", command="all"))).text == "word"
    made.close()


# AWS


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment with static credentials, and nothing else of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    fakes = {
        "AWS_ACCESS_KEY_ID": "AKIAFAKE",
        "AWS_SECRET_ACCESS_KEY": "fakesecret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in {**fakes, "AWS_SESSION_TOKEN": "s" * 1500, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)


def parts(text: str) -> tuple[str, Mapping[str, list[str]]]:
    url = urlsplit(f"https://{text}")
    assert url.path == "/"
    return url.netloc, parse_qs(url.query, strict_parsing=True)


async def test_a_login_to_rds_is_signed(aws: None) -> None:
    made = Providers(Allowed(aws_namespaces=frozenset({"dba"})), lambda: NOW)
    token = await made.make(RDS)
    made.close()
    assert (token.issued, token.expires) == (NOW, NOW + 900)
    assert len(token.text) > 1500
    where, query = parts(token.text)
    assert where == "db.abc.eu-central-1.rds.amazonaws.com:5432"
    assert query["Action"] == ["connect"] and query["DBUser"] == ["a b&c"]
    assert query["X-Amz-Expires"] == ["900"] and query["X-Amz-SignedHeaders"] == ["host"]
    assert query["X-Amz-Credential"][0].startswith("AKIAFAKE/")
    assert query["X-Amz-Credential"][0].endswith("/eu-central-1/rds-db/aws4_request")


async def test_the_signature_is_the_one_of_botocore_s_own_client(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.session  # type: ignore[import-untyped]
    from botocore import auth

    moment = datetime(2027, 1, 15, 8, tzinfo=UTC)
    for name in ("get_current_datetime", "get_current_datetime_utc"):
        if hasattr(auth, name):
            monkeypatch.setattr(auth, name, lambda *_: moment)
    made = Providers(Allowed(aws_namespaces=frozenset({"*"})))
    token = await made.make(RDS)
    made.close()
    client = botocore.session.get_session().create_client("rds", region_name="us-west-1")
    assert parts(token.text) == parts(client.generate_db_auth_token(RDS.host, RDS.port, RDS.role, RDS.region))


async def test_only_the_namespaces_that_the_chart_names_have_logins_signed(aws: None) -> None:
    made = Providers(Allowed(aws_namespaces=frozenset({"other"})))
    with pytest.raises(NoToken, match=r'namespace "dba" may not use awsIam.*awsIam\.namespaces'):
        await made.make(RDS)
    made.close()


async def test_without_credentials_or_botocore_it_says_what_to_do(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Providers(Allowed(aws_namespaces=frozenset({"*"})))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(NoToken, match="no AWS credentials"):
        await made.make(RDS)
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(NoToken, match="EXTRAS=aws"):
        await made.make(RDS)
    made.close()


async def test_a_log_of_everything_holds_no_signature(aws: None, caplog: pytest.LogCaptureFixture) -> None:
    before = [*logging.getLogger().handlers], logging.getLogger().level
    try:
        logs.configure("debug")
        logging.getLogger().addHandler(caplog.handler)
        made = Providers(Allowed(aws_namespaces=frozenset({"*"})))
        token = await made.make(RDS)
        made.close()
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
    assert parse_qs(token.text)["X-Amz-Signature"][0] not in caplog.text
    assert "fakesecret" not in caplog.text


# The file


def written(path: Path, said: Any) -> Path:
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


def test_the_file_says_what_there_is(tmp_path: Path) -> None:
    said = {
        "commands": {
            "vend": {"command": ["a", "b"], "timeoutSeconds": 3, "namespaces": ["x"]},
            "other": {"command": ["c"], "namespaces": ["*"]},
        },
        "awsIam": {"namespaces": ["y"]},
    }
    commands = {"vend": Command(("a", "b"), frozenset("x"), 3.0), "other": Command(("c",), frozenset("*"), 10.0)}
    assert load(written(tmp_path / "f", said)) == Allowed(commands, frozenset("y"))
    assert load(written(tmp_path / "f", {})) == Allowed()
    assert load(None) == Allowed()


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        {"commands": []},
        {"commands": {"a": ["b"]}},
        {"commands": {"a": {"command": [], "namespaces": []}}},
        {"commands": {"a": {"command": "rm -rf", "namespaces": []}}},
        {"commands": {"a": {"command": ["b"]}}},
        {"commands": {"a": {"command": ["b"], "namespaces": "*"}}},
        {"commands": {"a": {"command": ["b"], "namespaces": [], "timeoutSeconds": "long"}}},
        {"awsIam": {"namespaces": [1]}},
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, said: Any) -> None:
    with pytest.raises(ValueError, match="does not say which token providers"):
        load(written(tmp_path / "f", said))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not say"):
        load(tmp_path / "f")
    assert providers.TIMEOUT == 10.0

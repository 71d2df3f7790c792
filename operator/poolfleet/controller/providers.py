"""Making tokens: AWS's signature, or a command of the administrator's. Which ones there are says the chart, in a file.

A token provider speaks with the operator's identity. So the file also says whose PgServers may use it: a tenant who may
make a PgServer could otherwise have tokens made for everything that this identity may log in to, and read them.

The file is JSON: {"commands": {name: {"command": [...], "timeoutSeconds": 10, "namespaces": [...]}},
"awsIam": {"namespaces": [...]}}; "*" means every namespace.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from poolfleet.plan.tokens import OUTPUT_BYTES, NoToken, Request, Token, read_output

AT_ONCE: Final = 4  # commands that run at the same time
TIMEOUT: Final = 10.0  # seconds
GONE: Final = 2.0  # seconds after which a killed command is not waited for any more
AWS_SECONDS: Final = 900.0  # the life of a token; AWS knows no other
STDERR_SHOWN: Final = 200  # characters of a command's last words


@dataclass(frozen=True, slots=True)
class Command:
    """A command that prints a token, and the namespaces whose PgServers may name it."""

    argv: tuple[str, ...]
    namespaces: frozenset[str]
    timeout: float = TIMEOUT  # seconds


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the chart allows: nothing, unless it says so."""

    commands: Mapping[str, Command] = field(default_factory=dict)
    aws_namespaces: frozenset[str] = frozenset()


def load(path: Path | None) -> Allowed:
    """Read the file. Raises ValueError, whose text names the file, if it is not there or makes no sense."""
    if path is None:
        return Allowed()
    try:
        said = json.loads(path.read_text())
        commands = {name: _command(each) for name, each in said.get("commands", {}).items()}
        return Allowed(commands, frozenset(_texts((said.get("awsIam") or {}).get("namespaces", []))))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} does not say which token providers there are: {error!r}") from error


def _command(said: Mapping[str, Any]) -> Command:
    argv = _texts(said["command"])
    if not argv:
        raise ValueError("a command is empty")
    return Command(argv, frozenset(_texts(said["namespaces"])), float(said.get("timeoutSeconds", TIMEOUT)))


def _texts(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(isinstance(each, str) for each in said):
        raise TypeError(f"{type(said).__name__} instead of a list of texts")
    return tuple(said)


class Providers:
    """Makes tokens, as far as that is allowed."""

    def __init__(self, allowed: Allowed, clock: Callable[[], float] = time.time) -> None:
        """`clock` in seconds since the epoch."""
        self._allowed = allowed
        self._clock = clock
        self._running = asyncio.Semaphore(AT_ONCE)
        # botocore's session is not made for threads, and its look for credentials may wait for the network
        self._aws = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aws")
        self._session: Any = None

    async def make(self, request: Request) -> Token:
        """A new token. Raises NoToken."""
        if request.region:
            return await self._signed(request)
        command = self._allowed.commands.get(request.command)
        if command is None:
            raise NoToken(
                f'the operator knows no token command "{request.command}": its chart has it in the value tokenCommands'
            )
        if not _may(request, command.namespaces):
            raise NoToken(
                f'PgServers of namespace "{request.namespace}" may not use the token command "{request.command}": add '
                "the namespace in the chart's value tokenCommands"
            )
        async with self._running:
            return await run(command, request, self._clock)

    def close(self) -> None:
        """Wait for nothing that still runs."""
        self._aws.shutdown(wait=False, cancel_futures=True)

    async def _signed(self, request: Request) -> Token:
        if not _may(request, self._allowed.aws_namespaces):
            raise NoToken(
                f'PgServers of namespace "{request.namespace}" may not use awsIam: add the namespace to the chart\'s '
                "value awsIam.namespaces"
            )
        now = self._clock()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT):
                text = await loop.run_in_executor(self._aws, self._sign, request)
        except TimeoutError:
            raise NoToken(f"AWS gave no credentials in {TIMEOUT:.0f} s") from None
        return Token(text, now, now + AWS_SECONDS)

    def _sign(self, request: Request) -> str:
        """In the thread: a presigned request to connect, without its scheme, is the password. Only the look for
        credentials may need the network (an IAM role's are renewed while they are valid for 10 minutes or more, which
        is how long a token is used)."""
        try:
            import botocore.session  # type: ignore[import-untyped]
            from botocore.auth import SigV4QueryAuth  # type: ignore[import-untyped]
            from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
            from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
        except ImportError:
            raise NoToken(
                "the operator's image is without botocore: build it with EXTRAS=aws hack/images.sh operator"
            ) from None
        try:
            self._session = self._session or botocore.session.get_session()
            credentials = self._session.get_credentials()
            if credentials is None:
                raise NoToken(
                    "the operator has no AWS credentials: give its ServiceAccount an IAM role (IRSA, Pod Identity)"
                )
            url = f"https://{request.host}:{request.port}/"
            signed = AWSRequest("GET", url, params={"Action": "connect", "DBUser": request.role})
            frozen = credentials.get_frozen_credentials()
            SigV4QueryAuth(frozen, "rds-db", request.region, expires=int(AWS_SECONDS)).add_auth(signed)
            return str(signed.prepare().url).removeprefix("https://")
        except (BotoCoreError, ClientError, OSError) as error:
            raise NoToken(f"AWS gave no credentials: {_one_line(str(error))}") from None


def _may(request: Request, namespaces: frozenset[str]) -> bool:
    return bool({"*", request.namespace} & namespaces)


async def run(command: Command, request: Request, clock: Callable[[], float] = time.time) -> Token:
    """Run a command for a role, without a shell, with the operator's environment and what it has to know. Raises
    NoToken, with its last words on stderr but never what it printed."""
    about = {
        "POOLFLEET_HOST": request.host,
        "POOLFLEET_PORT": str(request.port),
        "POOLFLEET_ROLE": request.role,
        "POOLFLEET_SERVER": f"{request.namespace}/{request.server}",
    }
    now = clock()
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **about},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NoToken(f"the command does not start: {why}") from None
    try:
        async with asyncio.timeout(command.timeout):
            output, words = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            code = await process.wait()
    except TimeoutError:
        raise NoToken(f"the command did not end in {command.timeout:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # whatever it has started, too
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):  # asyncio also waits for its pipes; who left the group may hold them
            async with asyncio.timeout(GONE):
                await process.wait()
    if code:
        raise NoToken(f"the command ended with {code}{_last_words(words, output)}")
    return read_output(output, now)


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    """All that comes, and one byte more than OUTPUT_BYTES of it at most."""
    assert stream is not None
    kept = b""
    while chunk := await stream.read(OUTPUT_BYTES):
        kept = (kept + chunk)[: OUTPUT_BYTES + 1]
    return kept


def _last_words(stderr: bytes, stdout: bytes) -> str:
    """': ' and the last line of `stderr`, shortened; "" if it holds what was printed, which may be a token."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    printed = [piece for piece in re.split(r'[\s"]+', stdout.decode(errors="replace")) if len(piece) >= 8]
    if not lines or any(piece in lines[-1] for piece in printed):
        return ""
    return f": {_one_line(lines[-1])}"


def _one_line(text: str) -> str:
    """`text` on one line, shortened, without what could move a cursor."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"\s+", " ", plain).strip()[:STDERR_SHOWN]

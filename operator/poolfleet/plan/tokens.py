"""Short-lived passwords of server roles: who needs one, what a command printed, when the next one is due. Pure.

A PgServer says in spec.tokenProvider where tokens come from and for which roles. A pool names such a role by a Secret
with a user name and without a password; a password in the Secret wins over the provider. Every pool that may use the
PgServer may use the listed roles: it is the PgServer's owner who lists them.

How long a token may be: quoting.py writes up to 4,096 bytes. PgBouncer 1.26.1 took 65,520 bytes from its file and
logged in with them to PostgreSQL 15 both ways, by SCRAM and in the clear (`password` in pg_hba.conf, as RDS asks for
tokens); 65,531 it cut, and was refused. tests/integration/test_tokens.py holds up to 4,096.
"""

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from poolfleet.plan.poolview import PoolView
from poolfleet.plan.tenancy import Standing, full_host, server_name

PLAIN_SECONDS: Final = 900.0  # life of a token of which nothing else is said; RDS and Aurora give 15 minutes
OUTPUT_BYTES: Final = 65536
AHEAD: Final = 2 / 3  # part of a token's life after which the next one is made
MARGIN_SECONDS: Final = 60.0  # before a token's end: then it is late
JITTER: Final = 0.1  # of the time until the next token, taken off: not all roles at once
RETRY_SECONDS: Final = (1.0, 30.0)  # after the first failure, and at most


class NoToken(Exception):
    """There is no token; the text says why and what to do, and holds nothing of a token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A password and its time, in seconds since the epoch."""

    text: str = field(repr=False)
    issued: float
    expires: float

    @property
    def late(self) -> float:
        """From when on the next one should have been there: MARGIN_SECONDS before the end, half of a short life."""
        return self.expires - min(MARGIN_SECONDS, (self.expires - self.issued) / 2)


@dataclass(frozen=True, slots=True)
class Request:
    """A role on a server, and who makes its tokens: exactly one of `region` and `command` is not ""."""

    uid: str  # of the PgServer
    namespace: str  # its
    server: str  # its name
    host: str  # as it is understood in every namespace
    port: int
    role: str
    region: str = ""  # of AWS
    command: str = ""  # its name in the chart


def requests(view: PoolView) -> tuple[Request, ...]:
    """The tokens that the pool's configuration needs; `view` with its Secrets."""
    server, spec, pool = view.server, view.server_spec, view.spec
    if server is None or spec is None or pool is None or view.standing is not Standing.ALLOWED:
        return ()
    provider = spec.token_provider
    if provider is None:
        return ()
    roles: dict[str, None] = {}  # in the order of the databases
    for database in pool.databases:
        reference = database.credentials_secret_ref
        data = view.secrets.get((view.owner.namespace, reference.name)) if reference is not None else None
        if reference is None or data is None or reference.password_key in data:
            continue
        role = data.get(reference.username_key, b"").decode(errors="replace")
        if role in provider.roles:
            roles[role] = None
    namespace, name = server_name(view.body)
    region = provider.aws_iam.region if provider.aws_iam is not None else ""
    command = provider.exec.name if provider.exec is not None else ""
    host = full_host(spec.host, namespace)
    return tuple(Request(view.server_uid, namespace, name, host, spec.port, role, region, command) for role in roles)


def read_output(output: bytes, now: float) -> Token:
    """What a command printed: {"token": …, "expiresAt": RFC 3339} or {"token": …, "expiresInSeconds": …}, or one line,
    which is a token that lives PLAIN_SECONDS. `now`: when the command was started. Raises NoToken."""
    if len(output) > OUTPUT_BYTES:
        raise NoToken(f"the command printed more than {OUTPUT_BYTES} bytes")
    try:
        text = output.decode().strip()
    except UnicodeDecodeError:
        raise NoToken("the command printed what is not UTF-8 text") from None
    if not text.startswith("{"):
        return Token(_one_line(text), now, now + PLAIN_SECONDS)
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise NoToken('the command printed what begins with "{" but is no JSON') from None
    token = said.get("token")
    if not isinstance(token, str):
        raise NoToken('the command printed JSON without a text "token"')
    expires = _expires(said, now)
    if not expires > now:
        raise NoToken("the command printed a token that has expired already")
    return Token(_one_line(token), now, expires)


def refresh_in(token: Token, now: float, chance: float) -> float:
    """Seconds until the token after this one is due: after AHEAD of its life, before it is late, less a part of JITTER
    by `chance` (0 to 1)."""
    latest = min((token.expires - token.issued) * AHEAD, token.late - token.issued)
    return max(0.0, token.issued + latest * (1 - JITTER * chance) - now)


def retry_in(failures: int, token: Token | None, now: float, chance: float) -> float:
    """Seconds until the next try after so many failures in a row (1 or more); no later than the moment when the token
    that there is becomes late, or ends: then there is something else to be said."""
    first, most = RETRY_SECONDS
    delay: float = min(most, first * 2 ** min(failures - 1, 10)) * (1 - JITTER * chance)
    if token is not None:
        delay = min(delay, *(moment - now for moment in (token.late, token.expires) if moment > now), delay)
    return delay


def _one_line(text: str) -> str:
    if not text:
        raise NoToken("the command printed no token")
    if not text.isprintable() or " " in text:
        raise NoToken("the command printed more than a token: white space or control characters are in it")
    return text


def _expires(said: dict[str, Any], now: float) -> float:
    at, seconds = said.get("expiresAt"), said.get("expiresInSeconds")
    if at is None and seconds is None:
        return now + PLAIN_SECONDS
    if at is None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise NoToken('the command printed an "expiresInSeconds" that is no number')
        return now + seconds
    try:
        moment = datetime.fromisoformat(at)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise NoToken('the command printed an "expiresAt" that is no RFC 3339 time with its zone')
    return moment.timestamp()

"""What the Secrets that a PgPool names give: logins and certificates, or what is missing in words that say what to do.

Removed users. PgBouncer 1.26 still accepts a removed user's old password if he had logged in before; only another
password puts an end to it (facts/pgbouncer.md 4). So every user that ever was in the userlist stays there: once removed
from the spec, with a password that nobody knows, derived from the pool's key. Their names are in an annotation of
x-config, for as long as the pool exists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from poolfleet.api import names
from poolfleet.api.base import CredentialsSecretRef
from poolfleet.api.conditions import Reason
from poolfleet.api.wire import tombstone
from poolfleet.pgbouncer import quoting
from poolfleet.plan.model import Problem as Problem
from poolfleet.plan.objects.meta import annotation
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.tenancy import server_name

USERS: Final = f"{names.GROUP}/users"
"""Annotation of x-config: names of all users that ever were in its userlist, as a JSON list."""


@dataclass(frozen=True, slots=True)
class Login:
    """A name and its password."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that the Secrets give; with `problems` it is incomplete and must not be used."""

    users: tuple[Login, ...]  # clients, in the order of spec.users
    databases: Mapping[str, Login]  # database -> the one login on the server; no entry: each client's own
    server_ca: bytes | None
    problems: tuple[Problem, ...]


def credentials(view: PoolView) -> Credentials:
    """Read the Secrets that spec.users, spec.databases and the server's TLS name. `view.spec` must be readable."""
    assert view.spec is not None
    problems: list[Problem] = []
    users: dict[str, Login] = {}
    for number, user in enumerate(view.spec.users):
        where = f"users[{number}]"
        login = _login(view, user.secret_ref, f"{where}.secretRef", user.username, problems)
        if login is None:
            continue
        if login.username in users:
            message = f'{where} has the user name "{login.username}" of an earlier user; remove one of them.'
            problems.append(Problem(Reason.INVALID_SPEC, message))
            continue
        _check(user.secret_ref.name, login, problems, of_server=False)
        users[login.username] = login
    databases: dict[str, Login] = {}
    for number, database in enumerate(view.spec.databases):
        reference = database.credentials_secret_ref
        if reference is None:
            continue
        login = _login(view, reference, f"databases[{number}].credentialsSecretRef", None, problems)
        if login is not None:
            _check(reference.name, login, problems, of_server=True)
            databases[database.name] = login
    return Credentials(tuple(users.values()), databases, _server_ca(view, problems), tuple(problems))


def userlist(view: PoolView, users: tuple[Login, ...], key: str) -> dict[str, str]:
    """User name -> password for userlist.txt: today's users first, then those that were removed."""
    listed = {login.username: login.password for login in users}
    former = [name for name in former_users(view) if name not in listed]
    return listed | {name: tombstone(bytes.fromhex(key), name) for name in former}


def former_users(view: PoolView) -> tuple[str, ...]:
    """Names of all users that ever were in the pool's userlist, sorted, as far as they are remembered."""
    try:
        known = json.loads(annotation(view.remembered_config, USERS) or "[]")
    except ValueError:
        known = []
    # Somebody else may have written the annotation: take only what the userlist can carry.
    return tuple(sorted({name for name in known if _listable(name)})) if isinstance(known, list) else ()


def users_annotation(names_listed: Mapping[str, str]) -> str:
    """The value of the annotation USERS for a userlist."""
    return json.dumps(sorted(names_listed), separators=(",", ":"), ensure_ascii=False)


def _listable(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(quoting.userlist_line(name, "x"))
    except quoting.Unwritable:
        return False


def _login(
    view: PoolView, reference: CredentialsSecretRef, where: str, username: str | None, problems: list[Problem]
) -> Login | None:
    data = _data(view, reference.name, where, problems)
    if data is None:
        return None
    password = _text(data, reference.name, reference.password_key, f"{where}.passwordKey", problems)
    if username is not None and reference.username_key not in data:
        name: str | None = username
    else:
        name = _text(data, reference.name, reference.username_key, f"{where}.usernameKey", problems)
        if name is not None and username is not None and name != username:
            field_name = f"{where.removesuffix('.secretRef')}.username"
            message = (
                f'{field_name} is "{username}", but key "{reference.username_key}" of Secret "{reference.name}" says '
                f"otherwise. Remove {field_name}: it is only for a Secret without a user name."
            )
            problems.append(Problem(Reason.INVALID_SPEC, message))
            return None
    return None if name is None or password is None else Login(name, password)


def _data(
    view: PoolView, name: str, where: str, problems: list[Problem], namespace: str | None = None
) -> Mapping[str, bytes] | None:
    namespace = namespace or view.owner.namespace
    data = view.secrets.get((namespace, name))
    if data is None:
        message = f'Secret "{name}" ({where}) does not exist in namespace "{namespace}". Create it.'
        problems.append(Problem(Reason.SECRET_NOT_FOUND, message))
    return data


def _text(data: Mapping[str, bytes], secret: str, key: str, where: str, problems: list[Problem]) -> str | None:
    if key not in data:
        there = ", ".join(sorted(data)) or "nothing"
        message = f'Secret "{secret}" has no key "{key}"; it has: {there}. Set {where} or add the key.'
        problems.append(Problem(Reason.SECRET_KEY_NOT_FOUND, message))
        return None
    try:
        return data[key].decode()
    except UnicodeDecodeError:
        message = f'Key "{key}" of Secret "{secret}" is not UTF-8 text. Write it anew.'
        problems.append(Problem(Reason.INVALID_CREDENTIALS, message))
        return None


def _check(secret: str, login: Login, problems: list[Problem], *, of_server: bool) -> None:
    """Say so if PgBouncer's files cannot carry the login."""
    try:
        if of_server:
            quoting.database_value("the user name", login.username, quoting.MAX_NAME_BYTES)
            quoting.database_value("the password", quoting.password("the password", login.password))
        else:
            quoting.userlist_line(login.username, login.password)
    except quoting.Unwritable as error:
        echo = " (`echo` ends its output with one; use printf or kubectl's --from-literal)"
        hint = echo if "line feed" in str(error) else ""
        problems.append(Problem(Reason.INVALID_CREDENTIALS, f'Secret "{secret}": {error}{hint}. Write it anew.'))


def _server_ca(view: PoolView, problems: list[Problem]) -> bytes | None:
    reference = view.server_spec.tls.ca_secret_ref if view.server_spec is not None else None
    if reference is None:
        return None
    namespace, _ = server_name(view.body)
    data = _data(view, reference.name, "the server's tls.caSecretRef", problems, namespace)
    if data is None:
        return None
    text = _text(data, reference.name, reference.key, "the server's tls.caSecretRef.key", problems)
    if text is None:
        return None
    if "-----BEGIN CERTIFICATE-----" not in text:
        message = f'Key "{reference.key}" of Secret "{reference.name}" holds no certificate in PEM. Write it anew.'
        problems.append(Problem(Reason.INVALID_CREDENTIALS, message))
        return None
    return data[reference.key]

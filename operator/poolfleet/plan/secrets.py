"""What the Secrets that a PgPool names give: logins and certificates, or what is missing in words that say what to do.

Removed users. PgBouncer 1.26 still accepts a removed user's old password if he had logged in before; only another
password puts an end to it (facts/pgbouncer.md 4). So every user that ever was in the userlist stays there: once removed
from the spec, with a password that nobody knows, derived from the pool's key. Their names are in an annotation of
x-config, for as long as the pool exists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from poolfleet.api import names
from poolfleet.api.base import CaSecretRef, CertificateSecretRef, CredentialsSecretRef
from poolfleet.api.conditions import Reason
from poolfleet.api.pgpool import User
from poolfleet.api.wire import tombstone
from poolfleet.pgbouncer import quoting
from poolfleet.plan import certificates
from poolfleet.plan.managed import read_about, refusal
from poolfleet.plan.model import Problem as Problem
from poolfleet.plan.objects.meta import annotation
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.tenancy import server_name

USERS: Final = f"{names.GROUP}/users"
"""Annotation of x-config: names of all users that ever were in its userlist, as a JSON list."""
_ALTERNATE: Final = "_alt"


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
    tls: Mapping[str, bytes] = field(repr=False)  # file of x-config -> content: certificates, keys, CAs
    problems: tuple[Problem, ...]
    staged: tuple[str, ...] = ()  # Secrets of which `databases` has the next password: not set on the server yet


def next_role_login(following: Mapping[str, Any] | None) -> Login | None:
    """The next login of a role on the server, from the Secret that a rotation keeps it in; None if it is none."""
    if following is None or read_about(following).get("kind") != "role":
        return None
    login = _login_of(following, "username", "password")
    # What a rotation makes is ASCII; a verifier of anything else would need SASLprep (postgres/passwords.py).
    return login if login is not None and login.password and login.password.isascii() else None


def former_login(following: Mapping[str, Any] | None) -> Login | None:
    """The login that a rotation replaces, as its Secret keeps it; None if it does not."""
    return None if following is None else _login_of(following, "formerUsername", "formerPassword")


def _login_of(secret: Mapping[str, Any], username: str, password: str) -> Login | None:
    data = decode(secret)
    try:
        return Login(data[username].decode(), data[password].decode())
    except (KeyError, UnicodeDecodeError):
        return None


def next_user_logins(following: Mapping[str, Any] | None, secret: str) -> tuple[Login, Login] | None:
    """The new and the former login of a client user's Secret `secret`, from the Secret that a rotation keeps them in;
    None if it is none, or was spoilt by hand."""
    about = read_about(following) if following is not None else {}
    if following is None or (about.get("kind"), about.get("secret")) != ("user", secret) or refusal(following):
        return None
    data = decode(following)
    try:
        keys = ("username", "password", "formerUsername", "formerPassword")
        name, password, former, former_password = (data[key].decode() for key in keys)
        quoting.userlist_line(name, password)
        quoting.userlist_line(former, former_password)
    except (KeyError, UnicodeDecodeError, quoting.Unwritable):
        return None
    return Login(name, password), Login(former, former_password)


def alternate(name: str, base: str | None = None) -> str:
    """The other user name of a login that rotates: `app_alt` for `app`, and the other way round, at most 63 bytes.
    `base` is the first of the two where the spec says it."""
    long = (base or name).encode()[: quoting.MAX_NAME_BYTES - len(_ALTERNATE)].decode(errors="ignore") + _ALTERNATE
    if base is not None:
        return base if name == long else long
    first = name.removesuffix(_ALTERNATE)
    return first if first != name and listable(first) else long


def current_login(view: PoolView, user: User) -> Login | None:
    """The login that a user's Secret holds; None if it holds none that a userlist can carry."""
    login = _login(view, user.secret_ref, "", _declared(view, user), [])
    try:
        return login if login is not None and quoting.userlist_line(login.username, login.password) else None
    except quoting.Unwritable:
        return None


def _declared(view: PoolView, user: User) -> str | None:
    """The user name that spec says, None if the Secret's own is good: a rotation alternates between two."""
    reference = user.secret_ref
    secret = view.secret_bodies.get((view.owner.namespace, reference.name))
    if user.username is None or secret is None or refusal(secret):
        return user.username
    there = decode(secret).get(reference.username_key, b"").decode(errors="replace")
    return None if there == alternate(user.username, user.username) else user.username


def credentials(view: PoolView) -> Credentials:
    """Read the Secrets that spec.users, spec.databases and the server's TLS name. `view.spec` must be readable."""
    assert view.spec is not None
    problems: list[Problem] = []
    users: dict[str, Login] = {}
    for number, user in enumerate(view.spec.users):
        where = f"users[{number}]"
        login = _login(view, user.secret_ref, f"{where}.secretRef", _declared(view, user), problems)
        if login is None:
            continue
        if login.username in users:
            message = f'{where} has the user name "{login.username}" of an earlier user; remove one of them.'
            problems.append(Problem(Reason.INVALID_SPEC, message))
            continue
        _check(user.secret_ref.name, login, problems, of_server=False)
        users[login.username] = login
    databases: dict[str, Login] = {}
    staged: dict[str, None] = {}
    for number, database in enumerate(view.spec.databases):
        reference = database.credentials_secret_ref
        if reference is None:
            continue
        where = f"databases[{number}].credentialsSecretRef"
        login = _login(view, reference, where, None, problems, of_server=True)
        if login is not None:
            following = next_role_login(view.next_secrets.get(reference.name))
            if following is not None and following != login and following.username == login.username:
                login = following
                staged[reference.name] = None
            _check(reference.name, login, problems, of_server=True)
            databases[database.name] = login
    return Credentials(tuple(users.values()), databases, _tls(view, problems), tuple(problems), tuple(staged))


def userlist(view: PoolView, users: tuple[Login, ...], key: str) -> dict[str, str]:
    """User name -> password for userlist.txt: today's users first, then the new and the former logins of rotations,
    then users that were removed."""
    listed = {login.username: login.password for login in users}
    for secret, following in sorted(view.next_secrets.items()):
        for login in next_user_logins(following, secret) or ():
            listed.setdefault(login.username, login.password)
    former = [name for name in former_users(view) if name not in listed]
    return listed | {name: tombstone(bytes.fromhex(key), name) for name in former}


def former_users(view: PoolView) -> tuple[str, ...]:
    """Names of all users that ever were in the pool's userlist, sorted, as far as they are remembered."""
    try:
        known = json.loads(annotation(view.remembered_config, USERS) or "[]")
    except ValueError:
        known = []
    # Somebody else may have written the annotation: take only what the userlist can carry.
    return tuple(sorted({name for name in known if listable(name)})) if isinstance(known, list) else ()


def users_annotation(names_listed: Mapping[str, str]) -> str:
    """The value of the annotation USERS for a userlist."""
    return json.dumps(sorted(names_listed), separators=(",", ":"), ensure_ascii=False)


def listable(name: object) -> bool:
    """Whether a userlist can carry a user of that name."""
    try:
        return isinstance(name, str) and bool(quoting.userlist_line(name, "x"))
    except quoting.Unwritable:
        return False


def _login(
    view: PoolView,
    reference: CredentialsSecretRef,
    where: str,
    username: str | None,
    problems: list[Problem],
    *,
    of_server: bool = False,
) -> Login | None:
    data = _data(view, reference.name, where, problems)
    if data is None:
        return None
    if of_server and reference.password_key not in data and reference.username_key in data:
        return _token_login(view, data, reference, where, problems)
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


def _token_login(
    view: PoolView, data: Mapping[str, bytes], reference: CredentialsSecretRef, where: str, problems: list[Problem]
) -> Login | None:
    """The login of a Secret with a role's name and no password: that comes from the server's tokenProvider."""
    name = _text(data, reference.name, reference.username_key, f"{where}.usernameKey", problems)
    token = view.tokens.get(name) if name is not None else None
    if name is None or isinstance(token, Problem):
        problems.extend([token] if isinstance(token, Problem) else [])
        return None
    if token is None:
        missing: list[Problem] = []
        _text(data, reference.name, reference.password_key, f"{where}.passwordKey", missing)
        if view.server_spec is not None and view.server_spec.token_provider is not None:
            words = f'{missing[0].message} The tokenProvider of {view.server_title} does not list role "{name}".'
            missing = [replace(missing[0], message=words)]
        problems.extend(missing)
        return None
    try:
        quoting.password(f'the token for role "{name}" of {view.server_title}', token)
    except quoting.Unwritable as error:
        problems.append(Problem(Reason.TOKEN_UNAVAILABLE, f"{str(error)[:1].upper()}{str(error)[1:]}."))
        return None
    return Login(name, token)


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
        problems.append(_missing(data, secret, key, where))
        return None
    try:
        return data[key].decode()
    except UnicodeDecodeError:
        message = f'Key "{key}" of Secret "{secret}" is not UTF-8 text. Write it anew.'
        problems.append(Problem(Reason.INVALID_CREDENTIALS, message))
        return None


def _missing(data: Mapping[str, bytes], secret: str, key: str, where: str) -> Problem:
    there = ", ".join(sorted(data)) or "nothing"
    message = f'Secret "{secret}" has no key "{key}"; it has: {there}. Set {where} or add the key.'
    return Problem(Reason.SECRET_KEY_NOT_FOUND, message)


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


def shown_ca(view: PoolView) -> bytes | None:
    """The CA that clients may check the pool's certificate by: key ca.crt of its Secret, where cert-manager writes it.
    None if there is none."""
    if view.spec is None or view.spec.tls is None:
        return None
    secret = view.spec.tls.secret_ref.name
    content = (view.secrets.get((view.owner.namespace, secret)) or {}).get(CaSecretRef(name=secret).key, b"")
    return content if content and certificates.check_authorities(content, secret, "", view.now) is None else None


def _tls(view: PoolView, problems: list[Problem]) -> dict[str, bytes]:
    """The files of x-config for TLS on both sides."""
    found: dict[str, bytes] = {}
    if view.server_spec is not None:
        server, (namespace, _) = view.server_spec.tls, server_name(view.body)
        if server.ca_secret_ref is not None:
            where = "the server's tls.caSecretRef"
            found |= _authorities(view, names.SERVER_CA_FILE, server.ca_secret_ref, where, namespace, problems)
        if server.client_cert_secret_ref is not None:
            files = (names.SERVER_CERT_FILE, names.SERVER_KEY_FILE)
            where = "the server's tls.clientCertSecretRef"
            found |= _certificate(view, files, server.client_cert_secret_ref, where, namespace, problems)
    if view.spec is not None and view.spec.tls is not None:
        tls, namespace = view.spec.tls, view.owner.namespace
        files = (names.CLIENT_CERT_FILE, names.CLIENT_KEY_FILE)
        found |= _certificate(view, files, tls.secret_ref, "tls.secretRef", namespace, problems)
        if tls.mode.startswith("verify"):
            reference = certificates.clients_ca(tls)
            found |= _authorities(view, names.CLIENT_CA_FILE, reference, "tls.caSecretRef", namespace, problems)
    return found


def _certificate(
    view: PoolView,
    files: tuple[str, str],
    reference: CertificateSecretRef,
    where: str,
    namespace: str,
    problems: list[Problem],
) -> dict[str, bytes]:
    data = _data(view, reference.name, where, problems, namespace)
    if data is None:
        return {}
    keys = {reference.cert_key: f"{where}.certKey", reference.private_key_key: f"{where}.privateKeyKey"}
    missing = [_missing(data, reference.name, key, place) for key, place in keys.items() if key not in data]
    if missing:
        problems += missing
        return {}
    pair = certificates.Certificate(data[reference.cert_key], data[reference.private_key_key])
    use = certificates.TO_CLIENTS if files[0] == names.CLIENT_CERT_FILE else certificates.TO_SERVER
    problem = certificates.check_pair(pair, reference.name, reference, use, view.now)
    return _good(view, {files[0]: pair.chain, files[1]: pair.key}, problem, problems)


def _authorities(
    view: PoolView, file: str, reference: CaSecretRef, where: str, namespace: str, problems: list[Problem]
) -> dict[str, bytes]:
    data = _data(view, reference.name, where, problems, namespace)
    if data is None:
        return {}
    if reference.key not in data:
        problems.append(_missing(data, reference.name, reference.key, f"{where}.key"))
        return {}
    problem = certificates.check_authorities(data[reference.key], reference.name, reference.key, view.now)
    return _good(view, {file: data[reference.key]}, problem, problems)


def _good(
    view: PoolView, files: dict[str, bytes], problem: Problem | None, problems: list[Problem]
) -> dict[str, bytes]:
    """`files`, with `problem` among `problems`. What is in force and has merely expired keeps nothing else back."""
    if problem is not None:
        in_force = all(view.config_files.get(name) == content for name, content in files.items())
        if problem.reason != Reason.CERTIFICATE_EXPIRED or not in_force:
            problems.append(problem)
            return {}
    return files

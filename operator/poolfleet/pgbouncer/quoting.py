"""Writing values into PgBouncer's files so that they stay in their place.

How PgBouncer 1.26 reads them (tried; the property tests in tests/property/test_ini.py ask a real one):
* A database name as ini key stands in single quotes and cannot hold one: there is no escape. At most 63 bytes.
* A value on a database line stands in single quotes, a quote in it is doubled, a backslash is nothing special. It must
  not be empty.
* userlist.txt has double quotes, a quote in it is doubled; a password that looks like an MD5 hash or a SCRAM secret is
  taken for one.
* A setting's value runs to the end of its line, white space around it is dropped.

Every function returns the text to write or raises Unwritable. Messages name the thing, never its value. Standard
library only.
"""

import re
from typing import Final

MAX_NAME_BYTES: Final = 63  # PgBouncer's for databases, PostgreSQL's for roles and databases
MAX_VALUE_BYTES: Final = 4096

_HOST: Final = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,252}")
_SETTING: Final = re.compile(r"[a-z][a-z0-9_]*")
_MD5: Final = re.compile(r"md5[0-9A-Fa-f]{32}")
_USERLIST: Final = re.compile(r'^"((?:[^"\n]|"")*)" "((?:[^"\n]|"")*)"$', re.MULTILINE)
_SPACE: Final = " \t\v\f"
RESERVED: Final = "pgbouncer"  # the admin console's database and user


class Unwritable(ValueError):
    """A value that PgBouncer's files cannot carry. The text names the thing, never its value."""


def _checked(what: str, value: str, most: int = MAX_VALUE_BYTES) -> str:
    for character, name in (("\0", "NUL character"), ("\n", "line feed"), ("\r", "carriage return")):
        if character in value:
            raise Unwritable(f"{what} holds a {name}, which PgBouncer's files cannot carry")
    if not value:
        raise Unwritable(f"{what} is empty, which PgBouncer does not accept")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Unwritable(f"{what} is not valid Unicode") from None
    if size > most:
        raise Unwritable(f"{what} is {size} bytes long; at most {most} are possible")
    return value


def database_value(what: str, value: str, most: int = MAX_VALUE_BYTES) -> str:
    """`value` for the right side of `key=` on a database line; `most` is in bytes."""
    return "'" + _checked(what, value, most).replace("'", "''") + "'"


def database_key(name: str) -> str:
    """A database's name as ini key."""
    what = f"database name {name[:80]!r}"
    _checked(what, name, MAX_NAME_BYTES)
    if "'" in name:
        raise Unwritable(f"{what} holds a single quote, which PgBouncer's files cannot carry in a name")
    if name in ("*", RESERVED):
        raise Unwritable(f"{what} has a meaning of its own in PgBouncer")
    return f"'{name}'"


def host(what: str, value: str) -> str:
    """A host for a database line: one DNS name or IP address. PgBouncer would take commas for several hosts, and a
    leading slash or @ for a Unix socket."""
    if not _HOST.fullmatch(_checked(what, value)):
        raise Unwritable(f"{what} must be one DNS name or IP address")
    return f"'{value}'"


def password(what: str, value: str) -> str:
    """`value` itself, if PgBouncer takes it for the plain text password that it is."""
    _checked(what, value)
    if _MD5.fullmatch(value) or value.startswith("SCRAM-SHA-256$"):
        raise Unwritable(f"{what} looks like a password hash; PgBouncer needs the password itself")
    return value


def userlist_line(user: str, secret: str) -> str:
    """One line of userlist.txt, without its line feed."""
    _checked(f"user name {user[:80]!r}", user, MAX_NAME_BYTES)
    if user == RESERVED:
        raise Unwritable(f'user name "{RESERVED}" is the admin console\'s')
    password(f"password of user {user!r}", secret)
    return " ".join('"' + text.replace('"', '""') + '"' for text in (user, secret))


def read_userlist(text: str) -> list[tuple[str, str]]:
    """The (user, password) pairs of a userlist.txt that `userlist_line` wrote, in its order."""
    return [(m[1].replace('""', '"'), m[2].replace('""', '"')) for m in _USERLIST.finditer(text)]


def setting(name: str, value: str) -> str:
    """One line of the [pgbouncer] section, without its line feed. An empty value is possible."""
    if not _SETTING.fullmatch(name):
        raise Unwritable(f"setting {name[:80]!r} is no name of a PgBouncer setting")
    if not value:
        return f"{name} ="
    _checked(f"setting {name}", value)
    if value.strip(_SPACE) != value:
        raise Unwritable(f"setting {name} begins or ends with white space, which PgBouncer drops")
    return f"{name} = {value}"


def identifier(name: str) -> str:
    """A name as an argument of an admin command, such as RECONNECT."""
    return '"' + _checked("name", name, MAX_NAME_BYTES).replace('"', '""') + '"'

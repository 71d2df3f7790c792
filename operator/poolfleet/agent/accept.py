"""Which directive an agent obeys: pure, no I/O (design section 4; facts/ledger.md 4, 6, 12, 23)."""

from collections.abc import Sequence

from poolfleet.agent.files import Applied
from poolfleet.api import wire


class Refused(ValueError):
    """The directive is not obeyed; the text says why, without quoting it."""


def accept(
    text: str, *, keys: Sequence[bytes], pod: str, server: str, applied: Applied | None, max_grant: int | None
) -> wire.Directive | None:
    """The directive in `text` if it is to be obeyed, None if it is absent or the one already applied.

    `keys`: the MAC must fit one of them. `pod`, `server`: this pod's UID and its PgServer's. `max_grant`: the most that
    one database may be granted; None (unknown) refuses everything. Raises Refused.
    """
    if not text.strip():
        return None
    directive = _read(text, keys)
    if directive.pod != pod:
        raise Refused("it is for another pod")
    if directive.server != server or (applied is not None and directive.server != applied.server):
        raise Refused("it is for another server")
    if applied is not None and directive.rev <= applied.rev:
        if directive.rev == applied.rev:
            return None
        raise Refused(f"its revision {directive.rev} is older than {applied.rev}, which is applied")
    if max_grant is None:
        raise Refused("the largest possible grant is not known")
    if any(n > max_grant for n in directive.grant.values()):
        raise Refused(f"it grants a database more than the server's {max_grant} connections")
    return directive


def _read(text: str, keys: Sequence[bytes]) -> wire.Directive:
    problem = "there is no key to check it with"
    for key in keys:
        try:
            return wire.Directive.from_message(wire.verify(text, key))
        except wire.WireError as error:
            problem = str(error)
        except RecursionError:
            problem = "it is nested too deeply"
    raise Refused(problem)

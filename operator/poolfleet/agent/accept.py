"""Which directive an agent obeys: pure, no I/O (design section 4; facts/ledger.md 4, 6, 12, 23)."""

from collections.abc import Sequence

from poolfleet.agent.files import Applied
from poolfleet.api import wire


class Refused(ValueError):
    """The directive is not obeyed; the text says why, without quoting it."""


class Forged(Refused):
    """Its MAC fits no key of this pool."""


class Superseded(Refused):
    """A newer one is applied: nothing is wrong, two lanes are never equally fast."""


class NotReady(Refused):
    """What is needed to judge it is not mounted yet."""


def accept(
    text: str, *, keys: Sequence[bytes], pod: str, server: str, applied: Applied | None, max_grant: int | None
) -> wire.Directive | None:
    """The directive in `text` if it is to be obeyed, None if it is the one already applied.

    `keys`: the MAC must fit one of them. `pod`, `server`: this pod's UID and its PgServer's. `max_grant`: the most that
    one database may be granted; None (unknown) refuses everything. Raises Refused, or the kind of it that fits.
    """
    if not pod:
        raise NotReady("this pod's UID is not known yet")
    directive = _read(text, keys)
    if directive.pod != pod:
        raise Refused("it is for another pod")
    if directive.server != server or (applied is not None and directive.server != applied.server):
        raise Refused("it is for another server")
    if applied is not None and directive.rev <= applied.rev:
        if directive.rev == applied.rev:
            return None
        raise Superseded(f"its revision {directive.rev} is older than {applied.rev}, which is applied")
    if max_grant is None:
        raise NotReady("the largest possible grant is not known")
    if any(n > max_grant for n in directive.grant.values()):
        raise Refused(f"it grants a database more than the server's {max_grant} connections")
    return directive


def _read(text: str, keys: Sequence[bytes]) -> wire.Directive:
    if not keys:
        raise NotReady("there is no key to check it with")
    problem = ""
    for key in keys:
        try:
            message = wire.verify(text, key)
        except wire.WireError as error:
            problem = str(error)
        else:
            try:
                return wire.Directive.from_message(message)
            except wire.WireError as error:
                raise Refused(str(error)) from error
    raise Forged(problem)

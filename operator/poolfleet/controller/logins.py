"""Carrying out the rotations of client users that plan/logins.py decides."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from poolfleet.api import names
from poolfleet.api.conditions import Reason
from poolfleet.controller import managed
from poolfleet.controller.context import Context, Key
from poolfleet.controller.observe import pods_of, states_of
from poolfleet.kube.errors import Conflict, Forbidden, Invalid
from poolfleet.kube.kinds import POOL, SECRET, SERVER
from poolfleet.plan import logins
from poolfleet.plan.logins import Around, Create, Effect, Neighbour, Write
from poolfleet.plan.model import RotationLine
from poolfleet.plan.poolview import PoolView

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
REFUSED_RETRY_SECONDS: Final = 30.0  # RBAC, a quota or an admission policy may change without a word to us


@dataclass(frozen=True, slots=True)
class Turn:
    """What was done, and what is left."""

    lines: tuple[RotationLine, ...]  # for the status
    again: float | None  # seconds until the next look, None if events are enough
    acted: bool  # Secrets are not what `view` shows any more: observe anew, and look again


async def turn(context: Context, view: PoolView) -> Turn:
    """Take the steps that are due. What the API server refuses becomes a line. Raises ApiError for what another try may
    mend, NotLeader."""
    planned = logins.plan(view, _around(context, view))
    lines = {line.secret: line for line in planned.lines}
    again, acted = planned.again, False
    for effect in planned.effects:
        try:
            await _do(context, effect)
        except Conflict as error:  # somebody was faster: look at what he made of it
            logger.info("rotation step again: %s", error, extra=_about(view, effect))
            again = RETRY_SECONDS
            continue
        except (Forbidden, Invalid) as error:
            logger.warning("rotation step refused: %s", error, extra=_about(view, effect))
            lines[effect.about] = replace(
                lines[effect.about], phase="Failed", message=str(error), reason=Reason.ROTATION_FAILED
            )
            again = min(again or REFUSED_RETRY_SECONDS, REFUSED_RETRY_SECONDS)
            continue
        logger.info("rotation step taken", extra=_about(view, effect))
        acted = True
        for key in _users(context, view, effect.about):
            context.queue.add(key)  # no watch tells the others of a Secret that their specs do not name
    return Turn(tuple(lines.values()), again, acted)


def look(context: Context, view: PoolView) -> Turn:
    """How the rotations stand right after steps were taken, without taking more."""
    planned = logins.plan(view, _around(context, view))
    again = RETRY_SECONDS if planned.effects else planned.again
    return Turn(planned.lines, again, acted=False)


async def _do(context: Context, effect: Effect) -> None:
    if isinstance(effect, Create):
        body = await managed.create(context, effect.manifest)
        context.secrets.written(body)
    elif isinstance(effect, Write):
        await managed.write(context, dict(effect.secret), effect.values, effect.rotated)
    else:
        await managed.remove(context, dict(effect.secret))


def _around(context: Context, view: PoolView) -> Mapping[str, Around]:
    """Who else names the users' Secrets."""
    if view.spec is None:
        return {}
    secrets = {
        user.secret_ref.name
        for user in view.spec.users
        if user.rotation is not None or user.secret_ref.name in view.next_secrets
    }
    namespace = view.owner.namespace
    found = {}
    for secret in secrets:
        others = context.store.referring(namespace, secret)
        pools = [_neighbour(context, namespace, name) for plural, name in others if plural == POOL.plural]
        servers = sorted(name for plural, name in others if plural == SERVER.plural)
        found[secret] = Around(
            tuple(pool for pool in pools if pool is not None and pool.name != view.owner.name),
            tuple(servers),
        )
    return found


def _neighbour(context: Context, namespace: str, name: str) -> Neighbour | None:
    body = context.store.get(POOL.plural, namespace, name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        return None
    states = states_of(context.store, context.agents, namespace, name)
    return Neighbour(
        body,
        context.store.get(SECRET.plural, namespace, names.config_secret(name)),
        pods_of(context.store, namespace, name, None, states),
    )


def _users(context: Context, view: PoolView, secret: str) -> list[Key]:
    """The other pools that name the Secret."""
    namespace = view.owner.namespace
    others = context.store.referring(namespace, secret)
    return [Key(plural, namespace, name) for plural, name in others if (plural, name) != (POOL.plural, view.owner.name)]


def _about(view: PoolView, effect: Effect) -> dict[str, str]:
    return {
        "namespace": view.owner.namespace,
        "pool": view.owner.name,
        "secret": effect.about,
        "step": type(effect).__name__,
    }

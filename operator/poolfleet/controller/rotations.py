"""Rotations of the roles of one PgServer, inside its reconciliation (plan/rotation.py decides).

    turn = await rotations.turn(…)      # observe, decide; CREATE and ALTER; whose queries wait, what may be loaded
    … the ledger is written, the pods are told …
    await rotations.finish(…, turn)     # STORE, DISABLE, REMOVE: what must not keep the clients waiting

Only one rotation at a time touches a pool: its configuration is either staged or not. CHECK goes on beside everything,
for it logs in, which may take seconds.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from poolfleet.controller import managed
from poolfleet.controller.context import Context, Key
from poolfleet.controller.failpoints import reach
from poolfleet.controller.rotation_state import Memory
from poolfleet.controller.units import Unit, holders, see, units_of
from poolfleet.kube.errors import ApiError, Conflict, NotLeader
from poolfleet.kube.kinds import POOL
from poolfleet.plan import rotation
from poolfleet.plan.managed import next_login, read_about
from poolfleet.plan.model import RotationLine
from poolfleet.plan.rotation import ALTERNATING, LEAST_HOLD, Effect, Seen, Step
from poolfleet.plan.secrets import Login
from poolfleet.plan.server import ServerView
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.times import timestamp
from poolfleet.postgres.checks import check
from poolfleet.postgres.connection import ServerError
from poolfleet.postgres.passwords import Refused, Unknown, disable, set_password, verifier
from poolfleet.postgres.roles import Busy

ALTER_SECONDS: Final = 3.5  # for the whole of it; the statement itself has 2 s
LEAST_LEASE: Final = 3.0  # seconds that this process still leads when it alters a role
PASSWORD_BYTES: Final = 24  # 192 bits, as 48 hexadecimal digits
RETRY: Final = 2.0  # seconds after the API server did not take something
LATER: Final = (Effect.STORE, Effect.DISABLE, Effect.REMOVE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a reconciliation does about its rotations."""

    view: ServerView  # with the wishes as they are to be told
    later: Sequence[tuple[Unit, Seen, Step]] = ()  # effects for after the pods were told
    load: bool = False  # a next password was set: what is told now is what clients wait for
    again: float | None = None


async def turn(context: Context, key: Key, view: ServerView) -> Turn:
    """Decide about every rotation of a PgServer, and do what comes before the pods are told. Raises NotLeader."""
    uid = view.world.server
    units = await units_of(context, key, view)
    state = context.rotations
    for gone in {each for each in state.memories if each[0] == uid} - {(uid, *unit.key) for unit in units}:
        state.drop(gone)
    if not units:
        _tell(context, uid, {})
        return Turn(view)
    lines: dict[str, list[RotationLine]] = {}
    later: list[tuple[Unit, Seen, Step]] = []
    waits: list[float] = []
    busy: dict[str, str] = {}  # pool -> Secret of the rotation that touches it
    wishes = {wish.pool: wish for wish in view.world.wishes}
    load = False
    for unit in sorted(units, key=lambda unit: (unit.following is None, unit.key)):
        if unit.unreadable:
            step = _as_before(context, view, unit)
            waits.append(RETRY)
            if unit.following is not None or step.line.phase not in ("Idle", "Blocked"):
                busy |= dict.fromkeys(unit.places, unit.secret)
            _wish(wishes, unit, step)
            for pool in unit.asking:
                lines.setdefault(pool, []).append(step.line)
            continue
        seen, step = await _decide(context, key, view, unit, busy)
        if unit.following is not None:
            busy |= dict.fromkeys(unit.places, unit.secret)
        if step.effect in LATER:
            later.append((unit, seen, step))
        if step.again is not None:
            waits.append(step.again)
        load = load or step.load
        _wish(wishes, unit, step)
        for pool in unit.asking:
            lines.setdefault(pool, []).append(step.line)
    _tell(context, uid, {pool: tuple(found) for pool, found in lines.items()})
    world = replace(view.world, wishes=tuple(wishes.values()))
    return Turn(replace(view, world=world), later, load, min(waits, default=None))


def _as_before(context: Context, view: ServerView, unit: Unit) -> Step:
    """What was decided last, while the Secrets cannot be read: who holds goes on holding."""
    memory = context.rotations.memories.get((view.world.server, *unit.key))
    last = memory.step if memory is not None else None
    if last is None:
        return Step(None, RotationLine(unit.secret, "", "Checking", unit.unreadable))
    return replace(last, effect=None, line=replace(last.line, message=unit.unreadable))


async def finish(context: Context, key: Key, turn: Turn) -> None:
    """Do what is left when the pods were told. Raises NotLeader."""
    for unit, seen, step in turn.later:
        assert step.effect is not None
        memory = context.rotations.memories[turn.view.world.server, *unit.key]
        reach(f"rotation-{step.effect.value}-before")
        try:
            await _do_later(context, turn.view.world.server, unit, seen, step.effect, memory)
        except Conflict as error:
            logger.info("rotation: again: %s", error, extra=unit.about)
            context.queue.add(key, delay=0.1)
            continue
        except NotLeader:
            raise
        except ApiError as error:
            logger.warning("rotation: %s: %s", step.effect.value, error, extra=unit.about)
            context.queue.add(key, delay=RETRY)
            continue
        reach(f"rotation-{step.effect.value}-after")
        context.queue.add(key)
        _look_at(context, unit.places)


# -- one rotation -------------------------------------------------------------------------------------------------


async def _decide(
    context: Context, key: Key, view: ServerView, unit: Unit, busy: Mapping[str, str]
) -> tuple[Seen, Step]:
    """Decide, do, and decide again until something is to be waited for."""
    memory = context.rotations.memories.setdefault((view.world.server, *unit.key), Memory())
    memory.step = None
    following = unit.following["metadata"]["uid"] if unit.following is not None else ""
    if memory.following != following:
        memory.following = following
        memory.known = replace(memory.known, check=None, holding=None)
    if memory.login != unit.login:  # of another login nothing was tried
        memory.login = unit.login
        memory.known = replace(memory.known, check=None)
    while True:
        seen = see(context, view, unit, memory.known)
        step = rotation.decide(seen)
        memory.known = step.known
        if step.effect is None or step.effect in LATER:
            break
        if step.effect is Effect.CHECK:
            _begin_check(context, key, view, unit, memory)
            break
        other = next((busy[pool] for pool in unit.places if pool in busy), None)
        if step.effect is Effect.CREATE and other is not None:
            words = f'It waits for the rotation of Secret "{other}", which touches the same pool.'
            step = replace(step, effect=None, line=replace(step.line, phase="Idle", message=words))
            break
        assert step.effect is not None
        if not await _do(context, key, view, unit, seen, step.effect, memory):
            step = replace(step, effect=None)
            break
    memory.step = step
    return seen, step


async def _do(
    context: Context, key: Key, view: ServerView, unit: Unit, seen: Seen, effect: Effect, memory: Memory
) -> bool:
    """CREATE or ALTER; False if there is nothing more to decide now."""
    reach(f"rotation-{effect.value}-before")
    if effect is Effect.ALTER:
        done = await _alter(context, view, unit, seen, memory)
    else:
        done = await _create(context, key, unit, seen, memory)
    reach(f"rotation-{effect.value}-after")
    return done


async def _create(context: Context, key: Key, unit: Unit, seen: Seen, memory: Memory) -> bool:
    assert seen.main is not None
    server = f"{key.namespace}/{key.name}"
    login = {"username": rotation.next_username(seen), "password": secrets.token_hex(PASSWORD_BYTES)}
    if seen.wanted is not None and seen.wanted.strategy == ALTERNATING:  # who disables the former role must know it
        login |= {"formerUsername": seen.main.login.username, "formerPassword": seen.main.login.password}
    pool = unit.asking[0].partition("/")[2]
    manifest = next_login(unit.secret, unit.namespace, login, rotation.about(unit.secret, server, seen), pool)
    try:
        body = await managed.create(context, manifest)
    except NotLeader:
        raise
    except ApiError as error:
        words = f'Secret "{manifest["metadata"]["name"]}" could not be made: {error}.'
        memory.known = rotation.failed(memory.known, words, seen.now)
        return False
    logger.info("rotation begins", extra={**unit.about, "role": login["username"]})
    memory.following = body["metadata"]["uid"]
    unit.following = body
    check = memory.known.check
    # It was just seen that the present password is valid; of another role nothing was seen.
    alternating = seen.wanted is not None and seen.wanted.strategy == ALTERNATING
    known = replace(check, works="main") if check is not None and not alternating else None
    memory.known = replace(memory.known, check=known)
    _look_at(context, unit.places)
    context.queue.add(key)
    return False


async def _alter(context: Context, view: ServerView, unit: Unit, seen: Seen, memory: Memory) -> bool:
    """Set the next password, if every pod holds for long enough still; what came of it goes into `memory`."""
    assert seen.following is not None
    admin = context.discoveries.admin(view.world.server)
    now = context.clock()
    if admin is None:
        memory.known = rotation.failed(memory.known, "There is no admin login any more.", now)
        return True
    alternating = seen.following.strategy == ALTERNATING
    deadline = now + ALTER_SECONDS
    if not alternating and seen.holders:
        states = await context.agents.ask_now([uid for uid, _ in unit.pods])
        passed = context.clock() - now
        late = [h for h in holders(view, unit, states) if h.left is None or h.left - passed < LEAST_HOLD]
        if late or len(states) < len(unit.pods):
            return False  # `decide` waits for them, or gives up
        deadline = now + LEAST_HOLD / 2  # a statement that begins by then has 2 s, and is over before any hold is
    role = seen.following.login.username
    secret = verifier(seen.following.login.password)

    def alive() -> bool:
        return context.clock() < deadline and _leads(context)

    try:
        async with asyncio.timeout(ALTER_SECONDS):
            await admin.run(lambda c: set_password(c, role, secret, alive=alive, login=alternating))
    except (Refused, ServerError) as error:
        memory.known = rotation.failed(memory.known, _sentence(error), context.clock())
    except (Busy, Unknown, TimeoutError) as error:
        # Busy as well: whoever is altering a role may be this rotation's last try, of a process that is gone.
        logger.warning("rotation: whether the password was set is not known: %r", error, extra=unit.about)
        memory.known = rotation.unknown(memory.known)
    else:
        logger.info("the next password is set", extra={**unit.about, "role": role})
        memory.known = rotation.altered(memory.known, context.clock())
    return True


async def _do_later(context: Context, uid: str, unit: Unit, seen: Seen, effect: Effect, memory: Memory) -> None:
    """STORE, DISABLE or REMOVE. Raises ApiError."""
    assert unit.following is not None and seen.following is not None
    if effect is Effect.STORE:
        assert unit.main is not None
        login = seen.following.login
        values = {unit.username_key: login.username, unit.password_key: login.password}
        rotated = {"at": timestamp(seen.now), "for": read_about(unit.following).get("for", {})}
        await managed.write(context, unit.main, values, rotated)
        memory.login = login
        logger.info("the valid login is stored", extra={**unit.about, "role": login.username})
    elif effect is Effect.REMOVE:
        await managed.remove(context, unit.following)
        logger.info("rotation is over", extra={**unit.about, "failure": memory.known.failure})
    else:
        await _disable(context, uid, seen.following.former, memory)
        if not memory.known.failure:
            await managed.remove(context, unit.following)


async def _disable(context: Context, uid: str, role: str, memory: Memory) -> None:
    admin = context.discoveries.admin(uid)
    memory.known = replace(memory.known, failure="", check=None)
    words = "There is no admin login any more."
    if admin is not None:
        try:
            async with asyncio.timeout(ALTER_SECONDS):
                await admin.run(lambda c: disable(c, role, alive=lambda: _leads(context)))
            memory.known = replace(memory.known, failures=0)
            return
        except (Refused, ServerError, Unknown) as error:
            words = _sentence(error)
        except (Busy, TimeoutError):
            words = "The server did not answer."
    words = f'Role "{role}" is not disabled: {words}'
    failures = memory.known.failures + 1
    memory.known = replace(memory.known, failure=words, failed=context.clock(), failures=failures)


# -- beside everything --------------------------------------------------------------------------------------------


def _begin_check(context: Context, key: Key, view: ServerView, unit: Unit, memory: Memory) -> None:
    """Try the passwords, unless that is under way."""
    if memory.task is not None:
        return
    admin = context.discoveries.admin(view.world.server)
    if admin is None:
        memory.known = replace(memory.known, check=rotation.Check(context.clock(), error="no admin login"))
        context.queue.add(key, delay=rotation.CHECK_SECONDS)
        return
    work = check(admin, unit.questions(), context.clock)
    memory.task = asyncio.create_task(
        _check(work, memory, (memory.following, memory.login), lambda: context.queue.add(key)),
        name=f"check {unit.secret}",
    )


def _tell(context: Context, uid: str, lines: Mapping[str, tuple[RotationLine, ...]]) -> None:
    """Keep the lines; have a look at every pool whose lines are others now."""
    before = context.rotations.of_server.get(uid, {})
    _look_at(context, {pool for pool in {*before, *lines} if before.get(pool) != lines.get(pool)})
    context.rotations.of_server[uid] = dict(lines)


def _look_at(context: Context, pools: Iterable[str]) -> None:
    for pool in pools:
        namespace, _, name = pool.partition("/")
        context.queue.add(Key(POOL.plural, namespace, name))


async def _check(
    work: Awaitable[rotation.Check], memory: Memory, of: tuple[str, Login | None], done: Callable[[], None]
) -> None:
    """Take in what is found, unless the Secrets it was asked about are others by now."""
    try:
        found = await work
        if (memory.following, memory.login) == of:
            memory.known = replace(memory.known, check=found)
    finally:
        memory.task = None
        done()


def _wish(wishes: dict[str, PoolWish], unit: Unit, step: Step) -> None:
    """Put into the wishes which databases hold, and which configuration may be loaded."""
    for pool, databases in unit.places.items():
        wish = wishes.get(pool)
        if wish is None:
            continue
        if step.hold:
            wish = replace(wish, hold=wish.hold | frozenset(databases))
        if step.load and unit.is_staged(pool):
            wish = replace(wish, staged=False)
        wishes[pool] = wish


def _leads(context: Context) -> bool:
    """Whether this process leads for long enough still to alter a role."""
    return context.kube.leadership is None or context.kube.leadership() >= LEAST_LEASE


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:].rstrip(".") + "."

"""Conditions as the API conventions want them: transition times move with the status only, events with a change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from poolfleet.api.conditions import AUTOSCALING_LIMITED, READY, STALLED, Reason
from poolfleet.plan.model import Condition, Event
from poolfleet.plan.times import timestamp

MESSAGE_LENGTH = 1024

_LOGIN_ERRORS = (
    "password authentication failed",
    "authentication failed",
    "no pg_hba.conf entry",
    "is not permitted to log in",
)


def refused_login(error: str) -> bool:
    """Whether PostgreSQL's words mean that it was there and did not let the role in."""
    return any(words in error for words in _LOGIN_ERRORS) or ('role "' in error and "does not exist" in error)


_TOO_MANY = (
    "too many clients already",
    "remaining connection slots are reserved",
    "too many connections for role",
    "too many connections for database",
)


def too_many(error: str) -> bool:
    """Whether PostgreSQL's words are those of SQLSTATE 53300: somebody else has the connections, or a limit of the
    database or the role is lower than what was granted."""
    return any(words in error for words in _TOO_MANY)


def merge(
    old: Sequence[Mapping[str, Any]], wished: Iterable[Condition], generation: int, now: float
) -> list[dict[str, Any]]:
    """`wished` as they stand in a status, sorted by type; lastTransitionTime moves only with the status."""
    before = {condition.get("type"): condition for condition in old}
    merged = []
    for condition in sorted(wished, key=lambda c: c.type):
        last = before.get(condition.type, {})
        same = last.get("status") == condition.status and "lastTransitionTime" in last
        since = last["lastTransitionTime"] if same else timestamp(now)[:19] + "Z"
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_LENGTH],
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return merged


def transitions(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Event]:
    """One event for each condition whose status or reason changed, a Warning where the change is for the worse.

    A condition that first appears in its good state is no news; of several with one reason only one speaks, Stalled or
    Ready if they are among them: theirs are the words with the remedy. Of what limits autoscaling only the budget is
    news: minReplicas and maxReplicas are what the user wanted.
    """
    before = {condition.get("type"): condition for condition in old}
    events: dict[tuple[str, str], Event] = {}
    for condition in sorted(new, key=lambda c: c["type"] not in (STALLED, READY)):
        last = before.get(condition["type"])
        limited = condition["type"] == AUTOSCALING_LIMITED
        bad = condition["status"] == ("True" if limited or condition["type"] == STALLED else "False")
        if condition["type"] == "Reconciling" or (limited and condition["reason"] != Reason.BUDGET_LIMITED):
            continue
        if last is None and not bad and condition["type"] != READY:
            continue
        if last is not None and (last.get("status"), last.get("reason")) == (condition["status"], condition["reason"]):
            continue
        if condition["status"] == "Unknown" or (condition["type"] == STALLED and not bad):
            continue
        message = condition["message"] or f"{condition['type']} is {condition['status']}"
        kind = "Warning" if bad or condition["reason"] == Reason.HEADROOM_EXCEEDED else "Normal"
        events.setdefault((kind, condition["reason"]), Event(kind, condition["reason"], message))
    return list(events.values())

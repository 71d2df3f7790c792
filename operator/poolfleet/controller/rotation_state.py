"""What an operator process remembers of rotations (controller/rotations.py): of a new leader nothing is needed."""

import asyncio
from dataclasses import dataclass, field

from poolfleet.plan.model import RotationLine
from poolfleet.plan.rotation import Known, Step
from poolfleet.plan.secrets import Login

MemoryKey = tuple[str, str, str]
"""PgServer UID, namespace and name of the Secret."""


@dataclass(slots=True)
class Memory:
    """What is known of one rotation, and the CHECK that is under way."""

    following: str = ""  # UID of its next Secret, "" for none
    login: Login | None = None  # in its main Secret
    known: Known = field(default_factory=Known)
    task: asyncio.Task[None] | None = None
    step: Step | None = None  # what was decided last


class Rotations:
    """All rotations of all servers."""

    def __init__(self) -> None:
        self.memories: dict[MemoryKey, Memory] = {}
        self.of_server: dict[str, dict[str, tuple[RotationLine, ...]]] = {}  # PgServer UID -> pool -> lines

    def lines(self, pool: str) -> tuple[RotationLine, ...]:
        """How the rotations of roles that the PgPool "<namespace>/<name>" asks for stand."""
        return next((lines[pool] for lines in self.of_server.values() if pool in lines), ())

    def forget(self, uid: str) -> None:
        """The PgServer is gone."""
        self.of_server.pop(uid, None)
        for key in [key for key in self.memories if key[0] == uid]:
            self.drop(key)

    def drop(self, key: MemoryKey) -> None:
        """Nobody wants this rotation any more."""
        memory = self.memories.pop(key)
        if memory.task is not None:
            memory.task.cancel()

    def close(self) -> None:
        """End what is under way."""
        for key in [*self.memories]:
            self.drop(key)

"""What the operator wants of this pod: the mounted configuration and the newest directive that was accepted.

A directive comes on two lanes, the annotation (`look`) and the POST (`take`), with the same rules.
"""

import logging
import time
from typing import Final

from poolfleet.agent.accept import Refused, Superseded, accept
from poolfleet.agent.files import Applied, Config, Mount, Paths, Staged
from poolfleet.agent.logs import log

_NOTHING: Final = Config.of({})


class Intake:
    """Reads the mounts and keeps what must outlive the agent. Used by the engine's loop only."""

    def __init__(self, paths: Paths) -> None:
        self._run = paths.run
        self._config_mount = Mount(paths.config)
        self._pod_mount = Mount(paths.pod)
        self._recovered = False
        self._unread = True  # a directive may be there that was not looked at, or could not be written down
        self._unsaved = False
        self._last_refusal = ""
        self.pod = ""  # this pod's UID
        self.applied: Applied | None = None
        self.staged: Staged | None = None
        self.mounted = _NOTHING

    @property
    def keys(self) -> list[bytes]:
        """The pool's HMAC key: as mounted, then as last loaded."""
        configs = (self.mounted, self.staged.config if self.staged else _NOTHING)
        return [key for key in (config.key for config in configs) if key]

    def look(self) -> bool:
        """Take in what the kubelet mounts; True if a new directive is to be obeyed, which is then written down durably.

        Raises OSError if it cannot be written; the next call tries again.
        """
        self._recover()
        if self._config_mount.poll():
            self.mounted = Config.of(self._config_mount.files)
            self._unread = True
        if self._pod_mount.poll():
            self.pod = self._pod_mount.text("uid").strip()
            self._unread = True
        accepted = False
        if self._unread:
            accepted = self._take_annotation()
            self._unread = False
        if self._unsaved and self.staged is not None:
            self.stage(self.staged)
        return accepted

    def take(self, text: str) -> bool:
        """Take in a directive; True if it is a new one, which is then written down durably before this returns.

        To be called after `look`. Raises Refused, or OSError if it cannot be written: then it is not applied.
        """
        most = self.mounted.max_grant
        if most is None and self.staged is not None:
            most = self.staged.config.max_grant
        directive = accept(
            text,
            keys=self.keys,
            pod=self.pod,
            server=self._pod_mount.text("server").strip(),
            applied=self.applied,
            max_grant=most,
        )
        if directive is None:
            return False
        applied = Applied(
            server=directive.server,
            rev=directive.rev,
            grant=directive.grant,
            share=directive.share,
            config=directive.config,
            first=self.applied.first if self.applied else time.time(),
            peer=directive.peer,
            peers=directive.peers,
            move=directive.move,
            hold=directive.hold,
        )
        applied.save(self._run)
        self.applied = applied
        log.info("directive accepted", extra={"rev": applied.rev, "grant": applied.grant, "config": applied.config})
        return True

    def stage(self, staged: Staged) -> None:
        """Keep the last good configuration. Raises OSError if it cannot be written; `look` tries again."""
        self.staged, self._unsaved = staged, True
        staged.save(self._run)
        self._unsaved = False

    def wanted(self) -> Config | None:
        """The configuration that the directive wants, if it is mounted and not the last good one."""
        if self.applied is None or self.mounted.hash != self.applied.config:
            return None
        return None if self.staged is not None and self.staged.config.hash == self.mounted.hash else self.mounted

    def _recover(self) -> None:
        """Go on where an earlier agent of this pod stopped."""
        if self._recovered:
            return
        try:
            self.applied = Applied.load(self._run)
            self.staged = Staged.load(self._run) if self.applied is not None else None
        except ValueError as error:  # no crash does this: both files are replaced in one step
            log.error("the durable state is damaged; waiting for a directive", extra={"reason": str(error)})
            self.applied = self.staged = None
        self._recovered = True

    def _take_annotation(self) -> bool:
        text = self._pod_mount.text("directive")
        if not text.strip():
            return False
        try:
            return self.take(text)
        except Refused as refusal:
            if self._last_refusal != text + str(refusal):
                self._last_refusal = text + str(refusal)
                # The kubelet's file follows the POST by half a second: an older revision is nothing to warn of.
                level = logging.INFO if isinstance(refusal, Superseded) else logging.WARNING
                log.log(level, "directive refused", extra={"reason": str(refusal), "bytes": len(text)})
            return False

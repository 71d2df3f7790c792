"""Loading a grant or a configuration into the running PgBouncer, with the cold file on disk before and after.

A restarted container reads the file on disk without asking anybody, and its predecessor's backends may still run: so
that file allows one connection per database, except while a RELOAD of the granted one is under way (design section 3).
Both files are written before the RELOAD, so that putting the cold one back is a rename that a full disk cannot stop.
"""

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from poolfleet.agent.files import Config, commit, prepare
from poolfleet.agent.process import Console
from poolfleet.api import names
from poolfleet.pgbouncer import fill
from poolfleet.pgbouncer.admin import ServerError

LIVE: Final = (
    names.USERLIST_FILE,
    names.SERVER_CA_FILE,
    names.SERVER_CERT_FILE,
    names.SERVER_KEY_FILE,
    names.CLIENT_CERT_FILE,
    names.CLIENT_KEY_FILE,
    names.CLIENT_CA_FILE,
)
"""What PgBouncer reads besides pgbouncer.ini, as it is in the configuration. Tried with 1.26.1: the files towards the
clients are read at RELOAD, also while the ini stays as it was; a broken one, or a key of another certificate, is
answered with an error although everything else is loaded, the marker too, and the old ones go on being shown, but a
PgBouncer that starts ends with one. The files towards the server are read for each connection: what is wrong with them
shows only there."""

_COLD: Final = ".cold"


class Rejected(Exception):
    """PgBouncer did not take the file, or this configuration cannot become one; the text says why."""


class Loader:
    """Writes the live files in `run` and makes PgBouncer load them."""

    def __init__(self, run: Path, console: Console) -> None:
        self._run = run
        self._console = console
        # Never the number of an earlier load, not of an earlier agent's either: an old marker must not look new.
        self._numbers = itertools.count(time.time_ns() // 1_000_000)

    def put_cold(self, config: Config, grant: Mapping[str, int], own: fill.Own = fill.NOTHING) -> None:
        """Write the live files with the cold ini, for a PgBouncer that starts. Raises Rejected, OSError."""
        _, cold = _render(config, grant, own, fill.COLD)
        self._write_live(config)
        ini = self._run / names.INI_FILE
        prepare(ini, cold, suffix=_COLD)
        commit(ini, suffix=_COLD)

    async def load(
        self, config: Config, grant: Mapping[str, int], fallback: Config, own: fill.Own = fill.NOTHING
    ) -> None:
        """Load `config` with `grant` and `own` and verify the marker.

        However it ends, the cold ini is on disk again: of `config` if it was taken, else of `fallback`, whose other
        live files are back then as well (PgBouncer itself has to load it again). Raises Rejected if it was not taken,
        AdminError if PgBouncer went away, OSError if there was no room before the RELOAD.
        """
        marker = f"cfg-{next(self._numbers)}"
        granted, cold = _render(config, grant, own, marker)
        _, cold_before = _render(fallback, grant, own, fill.COLD)
        ini = self._run / names.INI_FILE
        prepare(ini, cold_before, suffix=_COLD)
        prepare(ini, granted)
        taken = False
        try:
            self._write_live(config)
            commit(ini)
            await self._reload(marker)
            if config.hash != fallback.hash:
                prepare(ini, cold, suffix=_COLD)
            taken = True
        finally:
            commit(ini, suffix=_COLD)
            if not taken and config.hash != fallback.hash:
                self._write_live(fallback)

    async def _reload(self, marker: str) -> None:
        try:
            await self._console.query("RELOAD")
        except ServerError as error:
            raise Rejected(f"PgBouncer refused it: {error.text}") from error
        if await self._console.marker() != marker:
            raise Rejected("PgBouncer stopped reading it at a line that it does not take")

    def _write_live(self, config: Config) -> None:
        for name in LIVE:
            path = self._run / name
            if name not in config.files:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != config.files[name]:
                prepare(path, config.files[name])
                commit(path)


def _render(config: Config, grant: Mapping[str, int], own: fill.Own, marker: str) -> tuple[bytes, bytes]:
    try:
        template = config.template
        return fill.fill(template, grant, marker, own).encode(), fill.cold(template, grant, own).encode()
    except ValueError as error:
        raise Rejected(str(error)) from error

"""Points at which a test may end this process, as a crash would: POOLFLEET_FAILPOINT names one of them."""

import logging
import os
from typing import Final

VARIABLE: Final = "POOLFLEET_FAILPOINT"
CRASHED: Final = 137  # the exit code of a process that was killed

logger = logging.getLogger(__name__)


def reach(name: str) -> None:
    """End the process at once, without any clean-up, if the environment names this point."""
    if os.environ.get(VARIABLE) == name:
        logger.warning("failpoint %s: this process ends", name)
        os._exit(CRASHED)

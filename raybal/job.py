"""What every job does around its work: logging, one line for an error, the exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from raybal.errors import RaybalError

log = logging.getLogger("raybal")


def run_job(main: Callable[[], None]) -> None:
    """Runs a job's main function and exits.

    An error that the user can act on is one line and exit code 2; an interrupt says that the same command continues,
    with exit code 130; anything else keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    try:
        main()
    except RaybalError as error:
        # What a library said may be of several lines.
        print("error:", " ".join(str(getattr(error, "cause", None) or error).split("\n")), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        sys.exit(130)

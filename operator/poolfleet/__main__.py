"""`python3 -m poolfleet <operator|agent|admin|explain|simulate|crds|docs> …`

Standard library only, and each part is imported only when it is asked for: an agent runs in every pod and must not
carry kopf, kubernetes or even argparse.
"""

import sys

USAGE = """\
usage: python3 -m poolfleet COMMAND [ARGUMENTS]

  operator   run the operator (operator --help)
  agent      run the agent beside a PgBouncer
  admin      what this pod's PgBouncer shows (admin --help)
  explain    why a pool has the connections it has (explain --help)
  simulate   what PgServer and PgPool documents would come to (simulate --help)
  crds       write the CustomResourceDefinitions
  docs       write the field reference
"""


def main() -> int:
    """Run the command that the first argument names; return the exit code."""
    command, argv = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if command == "agent":
        from poolfleet.agent.main import main as run
    elif command == "operator":
        from poolfleet.controller.app import main as run
    elif command == "admin":
        from poolfleet.agent.console import main as run
    elif command in ("explain", "simulate"):
        from poolfleet.cli.main import main as run_pgpool

        return run_pgpool([command, *argv])
    elif command == "crds":
        from poolfleet.api.crd import main as run
    elif command == "docs":
        from poolfleet.api.docs import main as run
    else:
        asked = command in ("-h", "--help", "help")
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return 0 if asked else 2
    code: int | None = run(argv)
    return code or 0


if __name__ == "__main__":
    sys.exit(main())

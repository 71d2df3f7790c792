"""The commands of `kubectl pgpool`."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poolfleet import __version__
from poolfleet.cli import cluster, documents, text
from poolfleet.cli.cluster import ApiError, ConfigException, Target
from poolfleet.cli.documents import Case, Changes, Unusable
from poolfleet.plan import budget as budgets
from poolfleet.plan.explain import explain
from poolfleet.plan.explanation import Explanation
from poolfleet.plan.facts import Facts
from poolfleet.plan.simulate import Moment, rollout, steady

DESCRIPTION = "Where the server connections of a PgPool come from, in a cluster or before there is one. Reads only."

EXPLAIN = """\
The arithmetic from max_connections down to each pod's pool_size, and why anything is smaller than wished.

Needs `get` on the PgPool and `list` on pods; what else cannot be read (the PgServer or other pools in another
namespace) is named and left out.
"""
EXPLAIN_EXAMPLES = """\
examples:
  %(prog)s shop
  %(prog)s shop -n demo --context prod
  %(prog)s shop -o json | jq '.pods[] | select(.poolSize < .fair)'

columns:
  NEEDS      the least the pool can live with: (replicas + 1) x databases, or share.min
  SURE       what it is sure of against older pools; 0: there is no room for it
  SHARE      what it is entitled to, its RESERVE for the first connections of one more pod included
  NOW        what its pods may hold at this moment
  FEWEST     clients of the ready pod that has the fewest; MOST: of the one that has the most
  FAIR       a pod's part if all clients had the same demand
  TARGET     what the operator wanted the pod to reach when it told it last, given its clients' demand
  POOL_SIZE  what the pod was told; PgBouncer's pool_size
  BOUND      what the pod counts with: the most it was told since it last proved to hold less
"""
SIMULATE = """\
The same without a cluster: what PgServer and PgPool documents come to, and the worst moment of a rollout.

It is the operator's own planning that runs, with pods that do at once what they are told and clients that always want
more. Secrets are not looked at.
"""
SIMULATE_EXAMPLES = """\
examples:
  %(prog)s -f pgpool.yaml
  %(prog)s -f server.yaml -f pool.yaml --replicas 6
  %(prog)s -f pgpool.yaml --max-connections 500 --pools 4 --surge 2
  kubectl get pgserver,pgpool -o yaml | %(prog)s -f -

exit codes: 0 everything fits, 1 a document is wrong or a pool gets nothing, 2 wrong usage
"""


def parser(prog: str = "kubectl pgpool") -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    result.add_argument("--version", action="version", version=__version__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter

    one = commands.add_parser(
        "explain",
        help="why a pool has the connections it has",
        description=EXPLAIN,
        epilog=EXPLAIN_EXAMPLES,
        formatter_class=raw,
    )
    one.add_argument("name", metavar="NAME", help="name of the PgPool")
    one.add_argument("-n", "--namespace", help="its namespace (default: the context's)")
    one.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig to use (default: KUBECONFIG, ~/.kube/config)")
    one.add_argument("--context", metavar="NAME", help="context of the kubeconfig to use")
    _output(one)

    two = commands.add_parser(
        "simulate",
        help="what documents would come to",
        description=SIMULATE,
        epilog=SIMULATE_EXAMPLES,
        formatter_class=raw,
    )
    two.add_argument(
        "-f",
        "--filename",
        metavar="FILE",
        action="append",
        required=True,
        dest="files",
        help="YAML with PgServers and PgPools, - for standard input; may be repeated",
    )
    two.add_argument("-n", "--namespace", help="namespace of documents that have none (default: default)")
    two.add_argument("--max-connections", type=_count(1), metavar="N", help="the server's max_connections")
    two.add_argument("--replicas", type=_count(0), metavar="N", help="pods of each pool, whatever it says itself")
    two.add_argument(
        "--surge",
        type=_count(0),
        default=1,
        metavar="N",
        help="pods that a rollout is ahead (default 1, as the operator's; 0: one pod less instead)",
    )
    two.add_argument("--pools", type=_count(1), default=1, metavar="N", help="how many of each pool there are")
    _output(two)
    return result


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")


def _count(least: int) -> Any:
    def count(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number of at least {least}")
        return number

    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process' arguments); return the exit code. Raises SystemExit(2) for wrong
    usage."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    arguments = parser(_prog()).parse_args(argv)
    try:
        if arguments.command == "explain":
            return asyncio.run(_explain(arguments))
        return _simulate(arguments)
    except (ApiError, ConfigException) as error:
        return _failed(" ".join(str(error).split()))
    except Unusable as error:
        return _failed(*error.findings)
    except BrokenPipeError:
        sys.stderr.close()  # head has what it wants; Python would complain of it
        return 1
    except KeyboardInterrupt:
        return 130


def _prog() -> str:
    return "kubectl pgpool" if Path(sys.argv[0]).name.startswith("kubectl") else "python3 -m poolfleet"


def _failed(*lines: str) -> int:
    for line in lines:
        sys.stderr.write(f"error: {line}\n")
    return 1


def _say(output: str, value: Any, words: str) -> None:
    sys.stdout.write(
        json.dumps(text.as_json(value), indent=2, ensure_ascii=False) + "\n" if output == "json" else words
    )
    sys.stdout.flush()


async def _explain(arguments: argparse.Namespace) -> int:
    target = Target(arguments.kubeconfig, arguments.context, arguments.namespace)
    async with cluster.connect(target) as (kube, namespace):
        explanation = await cluster.explain_pool(kube, namespace, arguments.name)
    _say(arguments.output, explanation, text.explained(explanation))
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    changes = Changes(arguments.max_connections, arguments.replicas, arguments.pools)
    found = documents.cases(documents.read(arguments.files, arguments.namespace), changes)
    results = [simulated(case, arguments.surge) for case in found]
    words = "\n".join(
        text.explained(explanation) + text.rolled(moments, budget, arguments.surge)
        for explanation, moments, budget in results
    )
    value = {
        "servers": [
            {**text.as_json(explanation), "rollout": moments, "surge": arguments.surge}
            for explanation, moments, _ in results
        ]
    }
    _say(arguments.output, value, words)
    fits = all(pool.sure for explanation, _, _ in results for pool in explanation.pools)
    return 0 if fits else 1


def simulated(case: Case, surge: int) -> tuple[Explanation, list[Moment], int]:
    """`case` at rest as an explanation; its rollout with `surge` pods ahead; its budget in connections."""
    spec = case.spec
    budget = budgets.compute(spec.max_connections, None, spec.headroom, spec.admin_secret_ref is not None)
    assert budget is not None and spec.max_connections is not None
    fleet = steady(budget.total, case.wishes)
    facts = Facts(
        server=case.server,
        budget=budget,
        declared=spec.max_connections,
        discovery=None,
        headroom=str(spec.headroom),
        world=fleet.world(),
    )
    return explain(facts, notes=case.notes), rollout(fleet, surge), budget.total


if __name__ == "__main__":
    sys.exit(main())

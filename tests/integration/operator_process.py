"""An operator whose reconcilers only write down what they are asked: started by the tests as a process of its own.

Arguments: kubeconfig, namespace, file to write to, seconds that one reconciliation takes.
"""

import asyncio
import sys
from pathlib import Path

from poolfleet.api import names
from poolfleet.controller import app, logs
from poolfleet.controller.config import Config
from poolfleet.controller.context import Context, Key
from poolfleet.plan.model import Settings


def main() -> None:
    kubeconfig, namespace, file, seconds = sys.argv[1:]
    output = Path(file).open("a", buffering=1)  # noqa: SIM115 - for the life of the process

    async def reconcile(context: Context, key: Key) -> float | None:
        output.write(f"begin {key.plural}/{key.name}\n")
        await asyncio.sleep(float(seconds))
        output.write(f"end {key.plural}/{key.name}\n")
        return None

    logs.configure("info")
    config = Config(
        settings=Settings(agent_image="a", pgbouncer_image="b"),
        namespaces=(namespace,),
        lease_namespace=namespace,
        kubeconfig=kubeconfig,
        http_port=0,
        http_host="127.0.0.1",
        lease_duration=3.0,
        lease_renew_deadline=2.0,
        lease_retry_period=0.5,
    )
    asyncio.run(app._run_process(config, {names.POOL_PLURAL: reconcile, names.SERVER_PLURAL: reconcile}))
    output.write("stopped\n")


if __name__ == "__main__":
    main()

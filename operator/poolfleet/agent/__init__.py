"""The agent: the sidecar beside each PgBouncer (design section 4).

Standard library, `api.names`, `api.wire` and the light half of `pgbouncer` only: every pod carries one agent, so its
memory counts.

`engine` is the one serial loop: directive and configuration in (`files`, `accept`), PgBouncer loaded (`loader`) and
watched (`process`, `samples`, `reach`), state out. `service` answers HTTP from what the loop last published.
"""

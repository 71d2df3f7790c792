"""The resources and the wire: what users write, what the agent and the operator say to each other.

This file stays empty of imports: the agent imports `api.names` and `api.wire` and must not pay for pydantic.
"""

"""Short-lived passwords of server roles: who makes them, and for which roles."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictStr

from poolfleet.api.base import Model, ObjectName, Rule, Text, matches


def _unique(roles: list[str]) -> list[str]:
    """The API server says the same of a list that is a set."""
    if len(set(roles)) != len(roles):
        raise ValueError("a role is there twice")
    return roles


Roles = Annotated[list[Text], Field(max_length=200), AfterValidator(_unique)]
ROLE_SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}


class AwsIam(Model):
    """IAM database authentication of RDS and Aurora: tokens that live 15 minutes, signed by the operator."""

    region: Annotated[StrictStr, Field(min_length=1, max_length=63), matches("[a-z0-9-]+", "must be an AWS region")] = (
        Field(description="AWS region of the server.")
    )
    roles: Annotated[Roles, Field(min_length=1)] = Field(
        description="The roles on the server that get tokens. Pools name them by Secrets without a password.",
        json_schema_extra=ROLE_SET,
    )


class ExecProvider(Model):
    """A command that prints a token. Which one is said in the operator's chart (tokenCommands), by name."""

    name: ObjectName = Field(description="Name of the command in the chart's value tokenCommands.")
    roles: Annotated[Roles, Field(min_length=1)] = Field(
        description="The roles on the server that get tokens. Pools name them by Secrets without a password.",
        json_schema_extra=ROLE_SET,
    )


class TokenProvider(Model):
    """Where short-lived passwords of server roles come from."""

    rules = (
        Rule(
            "has(self.awsIam) != has(self.exec)",
            "set exactly one of awsIam and exec",
            lambda provider: (provider.aws_iam is None) != (provider.exec is None),
        ),
    )

    aws_iam: AwsIam | None = Field(default=None, description="RDS and Aurora with IAM database authentication.")
    exec: ExecProvider | None = Field(default=None, description="A command that the operator's chart knows.")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that get tokens."""
        provider = self.aws_iam or self.exec
        return tuple(provider.roles) if provider is not None else ()

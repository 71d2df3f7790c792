"""Rotation of logins: what the user asks for, and what status says of it (design section 5)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictStr

from poolfleet.api.base import ATOMIC_LIST, Count, Duration, Instant, Model, Rule, Text


def _two(roles: list[str]) -> list[str]:
    if len(set(roles)) != len(roles):
        raise ValueError("a role is there twice")
    return roles


class RoleRotation(Model):
    """New passwords for the role of `credentialsSecretRef`, made and set by the operator."""

    rules = (
        Rule(
            "self.strategy == 'AlternatingRoles' ? has(self.roles) && size(self.roles) == 2 : !has(self.roles)",
            "roles names the two roles of strategy AlternatingRoles, and is for that strategy only",
            lambda rotation: (
                len(rotation.roles or ()) == 2 if rotation.strategy == "AlternatingRoles" else rotation.roles is None
            ),
        ),
    )

    strategy: Literal["Password", "AlternatingRoles"] = Field(
        default="Password",
        description="Password: one role gets another password, while queries wait for a moment. AlternatingRoles: of "
        "two roles with the same rights the other one gets a password, the pods are replaced, and the former role is "
        "disabled when it has no session any more; nothing waits, and session mode is no hindrance.",
    )
    interval: Duration | None = Field(
        default=None,
        description="Time between two rotations, for example 720h. Left out: only when the PgPool gets another value "
        "of the annotation poolfleet.dev/rotate.",
    )
    roles: Annotated[list[Text], Field(min_length=2, max_length=2), AfterValidator(_two)] | None = Field(
        default=None,
        description="The two roles of AlternatingRoles. Both must be in the PgServer's managedRoles, be members of the "
        "same roles and have the same `SET role`.",
        json_schema_extra=ATOMIC_LIST,
    )


class UserRotation(Model):
    """New logins for clients, made by the operator: name and password."""

    interval: Duration | None = Field(
        default=None,
        description="Time between two rotations, for example 720h. Left out: only when the PgPool gets another value "
        "of the annotation poolfleet.dev/rotate.",
    )
    overlap: Duration = Field(
        default="24h", description="How long the former login still works after the new one was handed out."
    )


# Status: for the schema only.


class Retiring(Model):
    """A former login that still works."""

    username: Annotated[StrictStr, Field(max_length=63)] = Field(description="Its user name.")
    until: Instant = Field(description="When it is refused.")
    clients: Count | None = Field(default=None, description="Clients that are still connected with it.")


class Rotation(Model):
    """The rotation of one Secret."""

    secret: Annotated[StrictStr, Field(max_length=253)] = Field(description="Name of the Secret.")
    login: Annotated[StrictStr, Field(max_length=63)] | None = Field(
        default=None, description="Role on the server, or client user, that the Secret holds now."
    )
    phase: Annotated[StrictStr, Field(max_length=64)] | None = Field(
        default=None,
        description="Idle, Blocked, Failed, or what is being done: Checking, Staging, Holding, Setting, Loading, "
        "Storing, Rolling, Retiring.",
    )
    message: Annotated[StrictStr, Field(max_length=2048)] | None = Field(
        default=None, description="What it waits for, or what to do."
    )
    last_rotation_time: Instant | None = Field(default=None, description="When the login was changed last.")
    next_rotation_time: Instant | None = Field(
        default=None, description="When it is due next; missing without interval."
    )
    retiring: Retiring | None = Field(default=None, description="The former login, while it still works.")

"""What the models of both resources are made of: strict scalars, rules that hold in Python and in CEL, shared types.

The API server decides what is stored; these models must say the same of every manifest (tests/integration/test_crds.py
holds them to it). Like the API server they drop unknown fields and treat null as absent.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

VALIDATIONS: Final = "x-kubernetes-validations"


@dataclass(frozen=True)
class Rule:
    """One rule, written twice: in CEL for the API server and as a Python predicate for the models.

    `check` gets the value (a model for rules on models) and returns whether the rule holds; None marks a transition
    rule (CEL with oldSelf), which only the API server can check. As metadata of an Annotated type or in a model's
    `rules` it raises a ValidationError with `message` and lands in the CRD as x-kubernetes-validations.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None
    field_path: str | None = None

    def apply(self, value: Any) -> Any:
        """Return `value` if the rule holds; raise ValueError with the message if not."""
        if self.check is not None and not self.check(value):
            raise ValueError(self.message)
        return value

    def schema(self) -> dict[str, str]:
        """The rule as an item of x-kubernetes-validations."""
        rule = {"rule": self.cel, "message": self.message}
        return rule if self.field_path is None else {**rule, "fieldPath": self.field_path}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.apply, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        result = handler(schema)
        return {**result, VALIDATIONS: [*result.get(VALIDATIONS, []), self.schema()]}


def matches(pattern: str, message: str) -> Rule:
    """A rule that the whole string matches `pattern` (in the syntax that RE2 and Python's re share, no ^ and $)."""
    compiled = re.compile(pattern)
    cel = f"self.matches({cel_string(f'^(?:{pattern})$')})"
    return Rule(cel, message, lambda value: compiled.fullmatch(value) is not None)


def maps(pattern: str, part: str, message: str) -> Rule:
    """A rule on a map of strings: each `part` ("key" or "value") matches `pattern`."""
    compiled = re.compile(pattern)
    subject = "key" if part == "key" else "self[key]"
    return Rule(
        f"self.all(key, {subject}.matches({cel_string(f'^(?:{pattern})$')}))",
        message,
        lambda value: all(compiled.fullmatch(each) for each in (value if part == "key" else value.values())),
    )


def cel_string(text: str) -> str:
    """`text` as a CEL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def without_nulls(value: Any) -> Any:
    """`value`, a map without the entries that are null: the API server takes null for absent."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


class Model(BaseModel):
    """Base of all models: camelCase outside, snake_case inside, frozen, unknown fields dropped, null means absent."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return without_nulls(value)

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for rule in self.rules:
            rule.apply(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        result = handler(schema)
        if cls.rules:
            handler.resolve_ref_schema(result)[VALIDATIONS] = [rule.schema() for rule in cls.rules]
        return result


def explain(error: ValidationError) -> str:
    """The findings of `error` in one line, each as `path: what is wrong`; values are not repeated."""
    return "; ".join(f"{_path(found['loc'])}: {found['msg'].removeprefix('Value error, ')}" for found in error.errors())


def _path(location: tuple[int | str, ...]) -> str:
    plain = re.compile(r"\w+")
    parts = [f".{part}" if isinstance(part, str) and plain.fullmatch(part) else f"[{part!r}]" for part in location]
    return "".join(parts).removeprefix(".") or "."


def list_map(*keys: str) -> dict[str, Any]:
    """Schema extra of a list whose items are told apart by `keys`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


ATOMIC_LIST: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}
ATOMIC_MAP: Final[dict[str, Any]] = {"x-kubernetes-map-type": "atomic"}
ANY_OBJECT: Final[dict[str, Any]] = {"x-kubernetes-preserve-unknown-fields": True}

# Scalars. Control characters are kept out of everything that reaches a file of PgBouncer; C1 ones too, some
# programs take U+0085 for a line end.
NO_CONTROL: Final = r"[^\x00-\x1f\x7f-\x9f]+"
NO_CONTROL_MESSAGE: Final = "must not be empty and must not hold control characters (line breaks, tabs, NUL)"
NAME_BYTES: Final = 63
Text = Annotated[
    StrictStr,
    Field(min_length=1, max_length=NAME_BYTES),
    matches(NO_CONTROL, NO_CONTROL_MESSAGE),
    Rule(
        f"size(bytes(self)) <= {NAME_BYTES}",
        f"must not be longer than {NAME_BYTES} bytes in UTF-8, as PostgreSQL cuts longer names",
        lambda text: len(text.encode(errors="replace")) <= NAME_BYTES,
    ),
]
"""One line of text that PostgreSQL takes as an identifier."""

Host = Annotated[
    StrictStr,
    Field(min_length=1, max_length=253),
    matches(r"[0-9A-Za-z_:][0-9A-Za-z_.:-]*", "must be one DNS name or IP address: letters, digits and . : - _ only"),
]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
ObjectName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=253),
    matches(
        r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?",
        "must be the name of a Kubernetes object: only lower case letters, digits, - and .",
    ),
]
NamespaceName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=63),
    matches(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?", "must be a namespace: lower case letters, digits and - only"),
]
SecretKey = Annotated[
    StrictStr,
    Field(min_length=1, max_length=253),
    matches(r"[-._a-zA-Z0-9]+", "must be a key of a Secret: letters, digits and - _ . only"),
]
Flag = StrictBool
Count = Annotated[StrictInt, Field(ge=0)]
IntOrString = StrictInt | StrictStr


Instant = Annotated[StrictStr, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339 with fractions of a second where they matter."""

_DURATION: Final = re.compile(r"([0-9]+)([hms])")
Duration = Annotated[
    StrictStr,
    Field(min_length=2, max_length=32),
    matches(r"(?:[0-9]{1,6}[hms]){1,3}", 'must be a duration such as "720h", "90m" or "1h30m"'),
    Rule(
        "!self.matches('^(?:0+[hms])+$')",
        "must be longer than nothing",
        lambda text: duration_seconds(text) > 0,
    ),
]
"""A duration as Go writes it: hours, minutes and seconds."""


def duration_seconds(text: str) -> float:
    """Seconds of a `Duration`."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(int(number) * units[unit] for number, unit in _DURATION.findall(text))


class CaSecretRef(Model):
    """Where the certificates to trust are."""

    name: ObjectName = Field(description="Name of the Secret, in the same namespace.")
    key: SecretKey = Field(
        default="ca.crt", description="Key of the Secret that holds one or more certificates in PEM."
    )


class CertificateSecretRef(Model):
    """Where a certificate and its private key are, in PEM; cert-manager's Secrets fit as they are."""

    name: ObjectName = Field(
        description="Name of the Secret, in the same namespace. With the label poolfleet.dev/watch=true a renewal is "
        "seen at once, without it within 60 seconds."
    )
    cert_key: SecretKey = Field(
        default="tls.crt", description="Key of the Secret that holds the certificate, and those between it and its CA."
    )
    private_key_key: SecretKey = Field(default="tls.key", description="Key of the Secret that holds the private key.")


class CredentialsSecretRef(Model):
    """Where a user name and a password are."""

    name: ObjectName = Field(
        description="Name of the Secret, in the same namespace. With the label poolfleet.dev/watch=true a change is "
        "seen at once, without it within 60 seconds."
    )
    username_key: SecretKey = Field(default="username", description="Key of the Secret that holds the user name.")
    password_key: SecretKey = Field(default="password", description="Key of the Secret that holds the password.")


class Condition(Model):
    """One observation about the object, as in Kubernetes' own resources."""

    type: Annotated[StrictStr, Field(max_length=316)] = Field(description="What is observed, for example Ready.")
    status: Annotated[StrictStr, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})] = Field(
        description="Whether it holds: True, False or Unknown."
    )
    observed_generation: Count | None = Field(
        default=None, description="metadata.generation of the object that this was said about."
    )
    last_transition_time: Annotated[StrictStr, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When `status` changed last (RFC 3339)."
    )
    reason: Annotated[StrictStr, Field(min_length=1, max_length=1024)] = Field(
        description="Why, as one word for programs."
    )
    message: Annotated[StrictStr, Field(max_length=32768)] = Field(description="Why, and what to do, for people.")


def conditions_field(description: str) -> Any:
    """The `conditions` field of a status; `description` says which types to expect."""
    return Field(default=None, description=description, json_schema_extra=list_map("type"))


class Metadata(Model):
    """The part of an object's metadata that the schema speaks about."""

    name: Annotated[StrictStr, Field(max_length=253)] = Field(description="Name of the object.")


NAME_PATTERN: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
NAME_LENGTH: Final = 52
NAME_RULES: Final = (
    Rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must start with a letter and hold only lower case letters, digits and -, "
        "because a Service gets the same name",
        lambda obj: NAME_PATTERN.fullmatch(obj.metadata.name) is not None,
    ),
    Rule(
        f"size(self.metadata.name) <= {NAME_LENGTH}",
        f"metadata.name must not be longer than {NAME_LENGTH} characters, because other objects are named after it",
        lambda obj: len(obj.metadata.name) <= NAME_LENGTH,
    ),
)
"""Rules on a whole object (anything with `.metadata.name`)."""

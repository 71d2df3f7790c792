"""Condition types and reasons. A reason is a constant here and nowhere else. Standard library only."""

from typing import Final

# kstatus (facts/kopf.md E.4)
READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
# domain
SERVER_REACHABLE: Final = "ServerReachable"
BUDGET_SATISFIED: Final = "BudgetSatisfied"
CREDENTIALS_CURRENT: Final = "CredentialsCurrent"
AUTOSCALING_LIMITED: Final = "AutoscalingLimited"  # only on a pool with spec.autoscaling


class Reason:
    """Reasons, CamelCase as the API conventions want them."""

    # good
    AS_WISHED: Final = "AsWished"
    SERVING: Final = "Serving"
    REACHABLE: Final = "Reachable"
    WITHIN_BUDGET: Final = "WithinBudget"
    HEADROOM_EXCEEDED: Final = "HeadroomExceeded"  # others have more sessions than was set aside for them
    LOADED: Final = "Loaded"
    PAUSED: Final = "Paused"
    # on the way
    PROGRESSING: Final = "Progressing"
    WAITING_FOR_PODS: Final = "WaitingForPods"
    WAITING_FOR_GRANTS: Final = "WaitingForGrants"
    WAITING_FOR_SERVER: Final = "WaitingForServer"
    LOADING: Final = "Loading"
    SHRINKING: Final = "Shrinking"
    UNKNOWN: Final = "Unknown"
    # autoscaling
    WITHIN_LIMITS: Final = "WithinLimits"
    TOO_MANY_REPLICAS: Final = "TooManyReplicas"  # the clients ask for more than maxReplicas, as an HPA says it
    TOO_FEW_REPLICAS: Final = "TooFewReplicas"  # they ask for fewer than minReplicas
    BUDGET_LIMITED: Final = "BudgetLimited"  # the budget cannot feed more replicas
    SCALED_UP: Final = "ScaledUp"
    SCALED_DOWN: Final = "ScaledDown"
    # rotation
    ROTATING: Final = "Rotating"  # the next password is on its way; what is loaded is valid
    ROTATED: Final = "Rotated"
    ROTATION_BLOCKED: Final = "RotationBlocked"  # nothing was changed, and will not be until somebody acts
    ROTATION_FAILED: Final = "RotationFailed"  # it went back; it is tried again
    LOGIN_RETIRED: Final = "LoginRetired"  # a client user's former login is refused from now on
    CLIENTS_CUT: Final = "ClientsCut"  # a drain's time was over while clients were still there
    # the user can mend it
    INVALID_SPEC: Final = "InvalidSpec"
    SECRET_NOT_FOUND: Final = "SecretNotFound"
    SECRET_KEY_NOT_FOUND: Final = "SecretKeyNotFound"
    INVALID_CREDENTIALS: Final = "InvalidCredentials"  # a value that cannot be written into a PgBouncer file
    PARAMETER_NOT_ALLOWED: Final = "ParameterNotAllowed"
    INVALID_TEMPLATE: Final = "InvalidTemplate"
    RESOURCE_CONFLICT: Final = "ResourceConflict"  # an object of that name exists and is not ours
    SERVER_NOT_FOUND: Final = "ServerNotFound"
    SHARED_SERVER: Final = "SharedServer"  # an older PgServer is the same server
    NAMESPACE_NOT_ALLOWED: Final = "NamespaceNotAllowed"
    BUDGET_TOO_SMALL: Final = "BudgetTooSmall"
    BUDGET_UNKNOWN: Final = "BudgetUnknown"
    OVER_BUDGET: Final = "OverBudget"
    UNREACHABLE: Final = "Unreachable"
    AUTHENTICATION_FAILED: Final = "AuthenticationFailed"
    INVALID_CERTIFICATE: Final = "InvalidCertificate"  # not PEM, of another key, or not to be used as what it is for
    CERTIFICATE_EXPIRED: Final = "CertificateExpired"  # or not valid yet
    TOKEN_UNAVAILABLE: Final = "TokenUnavailable"  # the token provider gives no password
    CONFIG_REFUSED: Final = "ConfigRefused"  # PgBouncer did not take the new file; the last good one is in force
    REPLICA_FAILURE: Final = "ReplicaFailure"

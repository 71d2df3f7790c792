"""Flags and environment of the operator."""

import pytest

from poolfleet.controller.config import parse

IMAGES = ["--agent-image=a:1", "--pgbouncer-image=b:2"]


def test_defaults() -> None:
    config = parse(IMAGES, {})
    assert config.settings.agent_image == "a:1"
    assert config.settings.run_as_user is None
    assert config.namespaces == ()
    assert (config.lease_namespace, config.lease_name) == ("poolfleet-system", "poolfleet")
    assert (config.http_port, config.workers, config.watch_secrets) == (8080, 8, True)
    assert config.kubeconfig is None


def test_flags() -> None:
    more = ["--namespace=a", "--namespace=b", "--image-pull-secret=x", "--run-as-user=70", "--no-watch-secrets"]
    config = parse(
        [*IMAGES, *more, "--workers=2", "--lease-name=l", "--log-level=debug", "--image-pull-policy=Never"], {}
    )
    assert config.namespaces == ("a", "b")
    assert config.settings.image_pull_secrets == ("x",)
    assert config.settings.run_as_user == 70
    assert config.settings.image_pull_policy == "Never"
    assert not config.watch_secrets
    assert (config.workers, config.lease_name, config.log_level) == (2, "l", "debug")


def test_the_environment_fills_in_and_flags_win() -> None:
    environment = {
        "POOLFLEET_AGENT_IMAGE": "env:1",
        "POOLFLEET_PGBOUNCER_IMAGE": "env:2",
        "POOLFLEET_NAMESPACES": "a, b,",
        "POOLFLEET_WATCH_SECRETS": "false",
        "POOLFLEET_RUN_AS_USER": "70",
        "POOLFLEET_HTTP_PORT": "9090",
        "POD_NAMESPACE": "ops",
        "POD_NAME": "poolfleet-0",
    }
    config = parse(["--agent-image=flag:1", "--namespace=c"], environment)
    assert (config.settings.agent_image, config.settings.pgbouncer_image) == ("flag:1", "env:2")
    assert config.settings.operator_namespace == config.lease_namespace == "ops"
    assert config.identity == "poolfleet-0"
    assert config.namespaces == ("c",)
    assert parse([], environment).namespaces == ("a", "b")
    assert (config.settings.run_as_user, config.http_port, config.watch_secrets) == (70, 9090, False)


@pytest.mark.parametrize(
    "argv",
    [[], ["--agent-image=a"], [*IMAGES, "--workers=0"], [*IMAGES, "--log-level=loud"], [*IMAGES, "--http-port=x"]],
)
def test_nonsense_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv, {})
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_number_in_the_environment_is_checked_too() -> None:
    with pytest.raises(SystemExit):
        parse(IMAGES, {"POOLFLEET_WORKERS": "many"})


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    said = capsys.readouterr().out
    for flag in ("--namespace", "--lease-name", "--agent-image", "--no-watch-secrets", "--kubeconfig", "--log-level"):
        assert flag in said

"""The kube-apiserver that other tests stand on: admin, ServiceAccounts under RBAC, restart."""

from tests.integration.conftest import ApiServer


def test_a_service_account_may_do_only_what_it_is_bound_to(apiserver: ApiServer) -> None:
    namespace = apiserver.namespace()
    token = apiserver.service_account_token(namespace, "someone")
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    assert apiserver.request("GET", secrets)[0] == 200
    status, answer = apiserver.request("GET", secrets, token=token)
    assert status == 403
    assert f"system:serviceaccount:{namespace}:someone" in answer["message"]


def test_kubectl_and_a_service_accounts_kubeconfig(apiserver: ApiServer) -> None:
    namespace = apiserver.namespace()
    file = apiserver.service_account_kubeconfig(namespace, "someone")
    assert file.stat().st_mode & 0o077 == 0
    assert apiserver.kubectl("auth", "can-i", "create", "pods", "-n", namespace).stdout == "yes\n"
    told = apiserver.kubectl("--kubeconfig", str(file), "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert told.stdout == f"system:serviceaccount:{namespace}:someone", told.stderr


def test_data_outlives_a_restart_of_the_api_server(apiserver: ApiServer) -> None:
    namespace = apiserver.namespace()
    apiserver.restart()
    assert apiserver.get(f"/api/v1/namespaces/{namespace}")["metadata"]["name"] == namespace

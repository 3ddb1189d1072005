"""The files in deploy/ fit the program: metrics and settings exist, manifests are valid, units write little."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from mapper import settings
from mapper.ops.metrics import TABLE
from tests.test_house import known_settings

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
SERIES = {row.name + part for row in TABLE for part in (("_bucket", "") if row.kind == "histogram" else ("",))}


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / name)
    return parser


@pytest.mark.parametrize("name", ["alerts.yaml", "alerts_test.yaml", "grafana.json"])
def test_every_metric_in_rules_and_dashboard_exists(name: str) -> None:
    named = set(re.findall(r"\bmapper_[a-z_]+", (DEPLOY / name).read_text("utf-8")))
    assert named <= SERIES


def test_every_metric_is_on_the_dashboard() -> None:
    text = (DEPLOY / "grafana.json").read_text("utf-8")
    assert [row.name for row in TABLE if row.name not in text] == []


def test_dashboard_panels_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_promtool_accepts_the_rules_files(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("SKIPPED: promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: str(manifest["kind"]))
def test_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_manifest_references_exist() -> None:
    """A schema does not check references; a cluster does, or waits for ever."""
    named = {(one["kind"], one["metadata"]["name"]) for one in manifests()}
    (deployment,) = (one["spec"] for one in manifests() if one["kind"] == "Deployment")
    labels, pod = deployment["template"]["metadata"]["labels"], deployment["template"]["spec"]
    assert {
        ("ConfigMap", one["configMapRef"]["name"]) for one in container()["envFrom"] if "configMapRef" in one
    } <= named
    assert {("Secret", one["secretRef"]["name"]) for one in container()["envFrom"] if "secretRef" in one} <= named
    assert {one["name"] for one in container()["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    for one in manifests():
        if selector := one.get("spec", {}).get("selector"):
            assert selector.get("matchLabels", selector).items() <= labels.items(), one["kind"]


def container() -> dict[str, Any]:
    (deployment,) = (one for one in manifests() if one["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def given_settings() -> Iterator[str]:
    for manifest in manifests():
        yield from manifest.get("data", {})
        yield from manifest.get("stringData", {})
    yield from load("compose.yaml")["services"]["mapper"]["environment"]


def test_every_setting_in_manifests_exists() -> None:
    assert set(given_settings()) <= known_settings()


def test_containers_have_no_capabilities_and_read_only_root() -> None:
    rights = container()["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    for name, service in load("compose.yaml")["services"].items():
        if name != "postgres":
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name


def test_probes_tolerate_slow_answers() -> None:
    probes = container()
    assert probes["livenessProbe"]["httpGet"]["path"] == "/livez"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert probes[name]["timeoutSeconds"] >= 2, name
    assert probes["livenessProbe"]["failureThreshold"] * probes["livenessProbe"]["periodSeconds"] >= 30


def test_probes_and_metrics_use_the_admin_port() -> None:
    (config,) = (one["data"] for one in manifests() if one["kind"] == "ConfigMap")
    ports = {port["name"]: str(port["containerPort"]) for port in container()["ports"]}
    assert config["MAPPER_ADMIN_PORT"] == ports["admin"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[name]["httpGet"]["port"] == "admin", name
    (deployment,) = (one for one in manifests() if one["kind"] == "Deployment")
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == ports["admin"]
    (service,) = (one for one in manifests() if one["kind"] == "Service")
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]


def test_compose_settings_are_valid() -> None:
    mapper = load("compose.yaml")["services"]["mapper"]
    configured = settings.load(mapper["environment"])
    assert f"127.0.0.1:{configured.admin_port}:{configured.admin_port}" in mapper["ports"]


def test_only_serve_containers_have_a_health_check() -> None:
    """The image's health check asks the service. A container that shares a network starts after its owner."""
    services = load("compose.yaml")["services"]
    for name, service in services.items():
        if service["image"] == "promotions-mapper":
            assert ("serve" in service["command"]) == ("healthcheck" not in service), name
        if shared := service.get("network_mode", "").removeprefix("service:"):
            assert shared in service["depends_on"], name


@pytest.mark.parametrize(("path", "is_well"), [("/livez", True), ("/elsewhere", False)])
def test_image_health_check_asks_admin_port_without_proxy(path: str, *, is_well: bool) -> None:
    class Routes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == path else 404)
            self.end_headers()

    text = (DEPLOY.parent / "Dockerfile").read_text("utf-8").replace("\\\n", "")
    _python, *arguments = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.*)$", text, re.MULTILINE)[0])
    with ThreadingHTTPServer(("127.0.0.1", 0), Routes) as server:
        Thread(target=server.serve_forever).start()
        environment = {"MAPPER_ADMIN_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run([sys.executable, *arguments], env=environment, timeout=30, check=False)
        server.shutdown()
    assert (done.returncode == 0) == is_well


def test_systemd_unit_writes_only_to_its_state_directory() -> None:
    service = unit("promotions-mapper.service")["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["Environment"].endswith("sqlite:////var/lib/promotions-mapper/ledger.db")
    assert service["StateDirectory"] == "promotions-mapper"
    assert "--fd 3" in service["ExecStart"]
    assert unit("promotions-mapper.socket")["Socket"]["ListenStream"] == "8080"

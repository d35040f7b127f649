"""The manifest of an Indexed Job for Kubernetes 1.33 or later, with a pod for each process.

A pod has one GPU, so no launcher is needed in it, and Kubernetes sees the exit code of each process.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from fluxexp.cli.exit_codes import ExitCode
from fluxexp.cli.sweep_part import OPTION
from fluxexp.submit.submit_arguments import ClusterJob

_PORT = 29500
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_FINAL = (ExitCode.CONFIG_ERROR, ExitCode.FAILED_TASKS, ExitCode.TOO_MANY_FAILURES)
"""Another try of the same command would end in the same way."""


def manifest(job: ClusterJob) -> str:
    """The documents for `kubectl apply -f -`: the job, and the service that gives rank 0 a name."""
    service = [] if job.array or job.world_size == 1 else [_service(job)]
    documents = [*service, _job(job)]
    return yaml.safe_dump_all(documents, sort_keys=False, width=120)


def _service(job: ClusterJob) -> dict[str, Any]:
    """A headless service: the pods find rank 0 at JOB-0.JOB, also before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job.name},
        },
    }


def _job(job: ClusterJob) -> dict[str, Any]:
    size = job.array or job.world_size
    spec = {
        "completionMode": "Indexed",
        "completions": size,
        "parallelism": size,
        "backoffLimitPerIndex": job.num_restarts,
        "podFailurePolicy": {"rules": _failure_rules(job)},
    }
    if not job.array and size > 1:
        # The other ranks make the work of a rank that is lost, so only rank 0 says whether the job has succeeded.
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    spec["template"] = {"spec": _pod(job)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(job), "spec": spec}


def _failure_rules(job: ClusterJob) -> list[dict[str, Any]]:
    """What the end of a pod means. Other exit codes, such as 1 and 137, count as one of the restarts."""
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        _on_exit("Ignore", ExitCode.INTERRUPTED),
        _on_exit("FailIndex" if job.array else "FailJob", *_FINAL),
    ]


def _on_exit(action: str, *codes: int) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"operator": "In", "values": sorted(map(int, codes))}}


def _pod(job: ClusterJob) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": job.warning_s,
    }
    if not job.array and job.world_size > 1:
        pod["subdomain"] = job.name
    pod["containers"] = [_container(job)]
    if job.volume:
        pod["volumes"] = [
            {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
            for number, (claim, _) in enumerate(_volumes(job))
        ]
    return pod


def _container(job: ClusterJob) -> dict[str, Any]:
    # Kubernetes replaces $(NAME) in arguments.
    arguments = [override.replace("$(", "$$(") for override in job.overrides]
    part = [OPTION, f"$(INDEX)/{job.array}"] if job.array else []
    container: dict[str, Any] = {
        "name": "fluxexp",
        "image": job.image,
        "command": ["python", "-m", "fluxexp"],
        "args": [*part, *arguments],
        "env": _environment(job),
    }
    if job.env_from:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in job.env_from]
    if resources := _resources(job):
        container["resources"] = resources
    if job.volume:
        volumes = _volumes(job)
        container["workingDir"] = str(PurePosixPath(volumes[0][1]))
        container["volumeMounts"] = [
            {"name": f"volume-{number}", "mountPath": path} for number, (_, path) in enumerate(volumes)
        ]
    return container


def _environment(job: ClusterJob) -> list[dict[str, Any]]:
    index = {"valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}
    if job.array:
        return [{"name": "INDEX", **index}]
    if job.world_size == 1:
        return []
    values = {
        "WORLD_SIZE": job.world_size,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": f"{job.name}-0.{job.name}",
        "MASTER_PORT": _PORT,
    }
    return [{"name": "RANK", **index}, *({"name": name, "value": str(value)} for name, value in values.items())]


def _resources(job: ClusterJob) -> dict[str, Any]:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if job.cpus_per_process:
        requests["cpu"] = str(job.cpus_per_process)
    if job.memory:
        requests["memory"] = limits["memory"] = job.memory
    if job.gpu_resource != "none":
        limits[job.gpu_resource] = "1"
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _volumes(job: ClusterJob) -> list[tuple[str, str]]:
    """Claim and path of each volume."""
    return [(claim, path) for claim, _, path in (volume.partition(":") for volume in job.volume)]


def _metadata(job: ClusterJob) -> dict[str, Any]:
    return {"name": job.name, **({"namespace": job.namespace} if job.namespace else {})}

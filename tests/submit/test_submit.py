"""What `python -m fluxexp.submit` prints and refuses, without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fluxexp.submit.__main__ import main

FAKE = ("model=fake", "sampling.steps=1")
IMAGE = ("--to", "kubernetes", "--image", "registry/fluxexp:1", "--volume", "results:/work")
SCHEMAS = Path(__file__).parents[1] / "fixtures" / "kubernetes_1_33.json"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main([*arguments])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = dict(os.environ)
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 2
    assert dict(os.environ) == before
    captured = capsys.readouterr()
    return captured.out + captured.err


def documents(text: str) -> dict[str, Any]:
    """Manifests by their kind, which hold to the schemas of Kubernetes."""
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    definitions = json.loads(SCHEMAS.read_text())["definitions"]
    for kind, name in (("Job", "io.k8s.api.batch.v1.Job"), ("Service", "io.k8s.api.core.v1.Service")):
        if kind in found:
            jsonschema.validate(found[kind], {"$ref": f"#/definitions/{name}", "definitions": definitions})
    return found


def test_the_script_of_slurm_starts_all_ranks_with_one_srun(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--nodes", "2", "--gpus-per-node", "8", "--cpus-per-process", "12", "--time", "4:00:00")
    further = ("--partition", "gpu", "--sbatch", "account=vision", "--setup", "module load cuda", "--warning-s", "300")
    script = printed(capsys, *options, *further, "--dry-run", "--", *FAKE, "tracking.group='a $HOME'")
    for line in (
        "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8\n#SBATCH --cpus-per-task=12\n",
        "#SBATCH --partition=gpu\n#SBATCH --time=4:00:00\n",
        "#SBATCH --signal=USR1@300\n#SBATCH --account=vision\n",
        "\nmodule load cuda\n",
        "srun --kill-on-bad-exit=0 --no-kill --unbuffered --cpus-per-task=12 ",
        """-m fluxexp model=fake sampling.steps=1 'tracking.group='"'"'a $HOME'"'"''\n""",
        'if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]',
    ):
        assert line in script
    assert script.count("\nsrun ") == 1
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_elements_of_an_array_make_parts_and_a_last_job_the_whole_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, "--array", "3", "--dry-run", "--", "-m", "model=fake", "sampling.steps=1,2,3,4")
    elements, last = output.removeprefix("#!/bin/bash\n").split("#!/bin/bash\n")
    assert "#SBATCH --array=0-2\n" in elements
    assert '-m fluxexp --part "$SLURM_ARRAY_TASK_ID/3" -m model=fake sampling.steps=1,2,3,4\n' in elements
    # `scontrol requeue` with the job id of the first element would restart the whole array
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' in elements
    assert "#SBATCH --dependency=afterany:ARRAY_JOB\n" in last
    assert "--part" not in last


def test_an_indexed_job_has_a_pod_for_each_rank_and_ends_with_rank_0(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--nodes", "3", "--memory", "64Gi", "--cpus-per-process", "8", "--env-from", "s3", "--namespace", "ml")
    found = documents(printed(capsys, *IMAGE, *options, "--", *FAKE, "name=fill"))
    spec = found["Job"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"]) == (3, 3, 6)
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    rules = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {"Ignore": [75], "FailJob": [2, 3, 4]}
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == [*FAKE, "name=fill"]
    values = {item["name"]: item.get("value") for item in container["env"]}
    assert values["WORLD_SIZE"] == "3"
    assert values["MASTER_ADDR"] == f"fluxexp-0.{found['Service']['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == "fluxexp"
    assert container["workingDir"] == "/work"
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "1"}


def test_an_array_is_an_indexed_job_whose_parts_fail_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = documents(
        printed(capsys, *IMAGE, "--array", "4", "--", "-m", "model=fake", "seed=1,2", "tracking.group='$(x)'")
    )
    assert found.keys() == {"Job"}
    spec = found["Job"]["spec"]
    assert spec["completions"] == 4
    assert "successPolicy" not in spec
    assert spec["podFailurePolicy"]["rules"][-1]["action"] == "FailIndex"
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    assert arguments == ["--part", "$(INDEX)/4", "-m", "model=fake", "seed=1,2", "tracking.group='$$(x)'"]


def test_one_process_on_cpus_needs_no_service(capsys: pytest.CaptureFixture[str]) -> None:
    found = documents(printed(capsys, *IMAGE, "--gpu-resource", "none", "--", *FAKE))
    assert found.keys() == {"Job"}
    assert "resources" not in found["Job"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes", "0", "--", *FAKE), "--nodes: must be a number of at least 1"),
        (("--image", "x", "--", *FAKE), "--image: has no effect with --to slurm"),
        (("--to", "kubernetes", "--", *FAKE), "--image: is not set"),
        ((*IMAGE, "--time", "1:00", "--", *FAKE), "--time: has no effect with --to kubernetes"),
        ((*IMAGE[:4], "--", *FAKE), "output.dir: is a directory of a container"),
        ((*IMAGE, "--array", "2", "--nodes", "2", "--", "-m", *FAKE), "--nodes=2: excludes --array"),
        (("--name", "My Job", "--", *FAKE), "--name='My Job': is not a name for a job"),
        (("--sbatch", "Account x", "--", *FAKE), "--sbatch='Account x': is not NAME"),
        (("--array", "2", "--", *FAKE), "--array='2': needs a sweep"),
        (("--", "--part", "0/2", "-m", *FAKE), "start it without fluxexp.submit"),
        (("--", "--cfg", "job"), "start it without fluxexp.submit"),
        (("--", "model=fake", "sampling.step=4"), "did you mean 'sampling.steps'?"),
        (("--nodes", "2", "--", *FAKE, "parallelism.expect_world_size=3"), "2 process(es) were started"),
        (("--", "-m", *FAKE, "hydra/launcher=submitit_slurm"), "python -m fluxexp.submit"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)


def test_the_number_of_processes_that_a_command_expects_is_that_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert "srun" in printed(capsys, "--nodes", "2", "--dry-run", "--", *FAKE, "parallelism.expect_world_size=2")


def test_without_slurm_the_script_can_still_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "--dry-run prints the script" in refused(capsys, "--", *FAKE)

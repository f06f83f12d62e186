"""The files in configs/launch/ have the form that Slurm and Kubernetes ask for, and name ours."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import ROOT

LAUNCH = ROOT / "configs/launch"
# By hand, from the API's reference: what is used here, and nothing else.
SCHEMAS = json.loads((Path(__file__).parent / "launch_schemas.json").read_text(encoding="utf-8"))
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


def problems(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Where a document is not as a JSON schema says; other properties than it knows are none."""
    schema = SCHEMAS.get(schema.get("$ref"), schema)
    if "type" in schema and type(value) is not TYPES[schema["type"]]:
        yield f"{where}: {value!r} is no {schema['type']}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} does not match"
    for name in schema.get("required", []):
        if name not in value:
            yield f"{where}.{name}: missing"
    for name, part in value.items() if isinstance(value, dict) else ():
        known = schema.get("properties", {}).get(name)
        yield from ([f"{where}.{name}: unknown"] if known is None else
                    problems(part, known, f"{where}.{name}"))
    for i, part in enumerate(value if isinstance(value, list) else ()):
        yield from problems(part, schema["items"], f"{where}[{i}]")


def documents() -> list[dict[str, Any]]:
    return [document for path in sorted(LAUNCH.glob("*.yaml"))
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specifications anywhere in it."""
    inner = [part for part in document.values() if isinstance(part, dict)]
    return [*([document] if "containers" in document else []),
            *(pod for part in inner for pod in pods(part))]


JOBS = {document["kind"]: document for document in documents() if pods(document)}


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_a_manifest_is_as_its_schema_says(document):
    assert list(problems(document, SCHEMAS[document["kind"]])) == []


@pytest.mark.parametrize(("kind", "path", "value", "problem"), [
    ("PyTorchJob", ["spec", "nprocPerNode"], 8, ".spec.nprocPerNode: 8 is no string"),
    ("PyTorchJob", ["spec", "elasticPolicy", "minNodes"], 2, ".spec.elasticPolicy.minNodes: unkn"),
    ("PyTorchJob", ["spec", "pytorchReplicaSpecs", "Worker", "restartPolicy"], "Sometimes",
     ".spec.pytorchReplicaSpecs.Worker.restartPolicy: 'Sometimes' is none of"),
    ("Job", ["spec", "completionMode"], None, ".spec.completionMode: missing"),
    ("Job", ["metadata", "name"], "GPT", ".metadata.name: 'GPT' does not match")])
def test_what_is_wrong_in_a_manifest_would_be_seen(kind, path, value, problem):
    changed = part = copy.deepcopy(JOBS[kind])
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    if value is None:
        del part[path[-1]]
    [found] = problems(changed, SCHEMAS[kind])
    assert found.startswith(problem)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_pod_mounts_what_there_is_and_has_time_to_save(job):
    [pod] = pods(job)
    [container] = pod["containers"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [
        volume["name"] for volume in pod["volumes"]]
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_kubeflow_finds_its_container_and_as_many_processes_as_gpus():
    job = JOBS["PyTorchJob"]["spec"]
    worker = job["pytorchReplicaSpecs"]["Worker"]
    [container] = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # by which the operator knows it
    assert job["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert job["elasticPolicy"]["minReplicas"] <= worker["replicas"] == job["elasticPolicy"][
        "maxReplicas"]


def test_the_pods_of_a_job_meet_at_the_first_by_its_name():
    service, job = (next(d for d in documents() if d["kind"] == kind) for kind in ("Service",
                                                                                   "Job"))
    name, spec = job["metadata"]["name"], job["spec"]
    [pod] = pods(job)
    words = pod["containers"][0]["command"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["metadata"]["name"] == pod["subdomain"]
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:29400" in words
    assert f"--nnodes={spec['completions']}" in words
    assert spec["parallelism"] == spec["completions"]


# ----- Commands

def script() -> str:
    return (LAUNCH / "slurm.sh").read_text(encoding="utf-8")


def slurm_commands() -> list[list[str]]:
    lines = script().replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("srun ")]


def options_of(words: list[str]) -> list[str]:
    """Of torchrun: what stands between it and the script."""
    start = words.index("torchrun") + 1
    return [word for word in words[start:words.index("train.py")] if word.startswith("-")]


def all_commands() -> list[list[str]]:
    pages = (ROOT / "docs/scale.md").read_text(encoding="utf-8").splitlines()
    shown = [shlex.split(line) for line in pages
             if line.startswith(("torchrun ", "sbatch ", "LAUNCH=", "kubectl "))]
    usage = [shlex.split(line[4:]) for path in LAUNCH.iterdir()
             for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]
    manifests = [pod["containers"][0]["command"] for job in JOBS.values() for pod in pods(job)]
    return [*shown, *usage, *manifests, *slurm_commands()]


def test_the_commands_name_files_that_exist():
    named = [word for words in all_commands() for word in words
             if re.fullmatch(r"[\w/-]+[\w/.-]*\.(py|yaml|sh)", word)]
    assert {word for word in named if not (ROOT / word).is_file()} == set()
    assert {"train.py", *(f"configs/launch/{path.name}" for path in LAUNCH.iterdir())} <= set(named)


def test_torchrun_knows_its_options():
    from torch.distributed.run import get_args_parser
    found = [options_of(words) for words in all_commands() if {"torchrun", "train.py"} <= {*words}]
    assert len(found) >= 6
    for options in found:
        known = get_args_parser().parse_args([*options, "train.py"])
        assert known.training_script == "train.py"
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--nodes=2", "train.py"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_understands_the_slurm_script():
    def check(text: str) -> int:
        return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True
                              ).returncode

    assert check(script()) == 0
    assert check(script().replace("\nfi\n", "\n")) != 0


STUBS = {"scontrol": "seq -f gpu-%g 7 20000",  # more than a pipe holds
         "srun": 'echo "$MASTER_ADDR $MASTER_PORT" "$@"'}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("launch", "expected"), [
    ("torchrun", "gpu-7 20123 --kill-on-bad-exit=1 --cpus-per-task=48 torchrun --nnodes=2 "
                 "--nproc-per-node=gpu --max-restarts=3 --rdzv-backend=c10d --rdzv-id=123 "
                 "--rdzv-endpoint=gpu-7:20123 train.py a.yaml run.name=two words"),
    ("srun", "gpu-7 20123 --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task=6 python train.py "
             "a.yaml run.name=two words")])
def test_the_slurm_script_starts_training_in_both_ways(tmp_path, launch, expected):
    """With stand-ins for Slurm's commands that say what they were asked for."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in STUBS.items():
        (tmp_path / ".venv/bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}/.venv/bin:/usr/bin:/bin", "SLURM_JOB_ID": "123",
                   "SLURM_JOB_NODELIST": "gpu-[7-20000]", "SLURM_NNODES": "2",
                   "SLURM_CPUS_ON_NODE": "48",
                   "SLURM_NTASKS_PER_NODE": "8", "LAUNCH": launch}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sh"), "a.yaml", "run.name=two words"],
                          cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")

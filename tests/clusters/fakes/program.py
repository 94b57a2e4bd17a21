"""Stand-ins for sbatch, squeue, scancel, scontrol, srun, ray and kubectl, over processes of this machine.

Called by a link of the program's name; the folder $FAKE_CLUSTER holds what they share.
"""

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_CLUSTER"])
NAME, ARGUMENTS = Path(sys.argv[0]).name, sys.argv[1:]


def option(name, default=None):
    for at, word in enumerate(ARGUMENTS):
        if word == name:
            return ARGUMENTS[at + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return default


def spawn(key, command, cwd, log, env):
    """Run a command under a watcher that keeps its exit code."""
    watcher = "import subprocess,sys,pathlib; p=subprocess.Popen(sys.argv[2:]); pathlib.Path(sys.argv[1]+'.pid').write_text(str(p.pid)); pathlib.Path(sys.argv[1]+'.code').write_text(str(p.wait()))"
    with log.open("ab") as out:
        subprocess.Popen(
            [sys.executable, "-c", watcher, str(HOME / key), *command],
            cwd=cwd,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
            start_new_session=True,
        )
    while not (HOME / f"{key}.pid").exists():
        time.sleep(0.01)


def code(key):
    path = HOME / f"{key}.code"
    return int(path.read_text() or 0) if path.exists() and path.read_text() else None


def stop(key, number=signal.SIGTERM):
    if code(key) is None:
        os.kill(int((HOME / f"{key}.pid").read_text()), number)


def sbatch():
    script = Path(ARGUMENTS[-1])
    job = str(len(list(HOME.glob("job-*.pid"))) + 1)
    log = next(line.partition("--output=")[2] for line in script.read_text().splitlines() if "--output=" in line)
    env = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1"}
    spawn(f"job-{job}", ["bash", str(script)], str(HOME), Path(log), env)
    print(job)


def squeue():
    job = f"job-{option('--jobs')}"
    if (HOME / f"{job}.pid").exists() and code(job) is None:
        print("RUNNING")


def sacct():
    sys.exit(1)  # no accounting here


def scontrol():
    if ARGUMENTS[:2] == ["show", "hostnames"]:
        print(ARGUMENTS[2])
        return
    job = f"job-{ARGUMENTS[2]}"
    if code(job) is None:
        sys.exit(1)
    print(f"JobState={'COMPLETED' if code(job) == 0 else 'FAILED'}")


def scancel():
    stop(f"job-{ARGUMENTS[-1]}")


def srun():
    command = [word for word in ARGUMENTS if not word.startswith("--")]
    if command[0] == "hostname":
        print("127.0.0.1")
        return
    at = next(i for i, word in enumerate(ARGUMENTS) if not word.startswith("--"))
    os.execvp(ARGUMENTS[at], ARGUMENTS[at:])


def ray():
    assert ARGUMENTS[0] == "symmetric-run"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    after = ARGUMENTS[ARGUMENTS.index("--") + 1 :]
    os.execvp(after[0], after)


def kubectl():
    words = [w for w in ARGUMENTS if not w.startswith("--")]
    words = [w for w in words if w != option("--namespace")]
    with (HOME / "kubectl.jsonl").open("a") as log:
        log.write(json.dumps(ARGUMENTS) + "\n")
    verb = words[0]
    if verb == "apply":
        from ruamel.yaml import YAML

        for manifest in YAML(typ="safe").load_all(sys.stdin.read()):
            apply(manifest)
    elif verb == "get":
        get(words[1], words[2])
    elif verb == "logs":
        logs(words[1].partition("/")[2], "--follow" in ARGUMENTS)
    elif verb == "patch":
        stop(words[2])
        (HOME / f"{words[2]}.suspended").touch()
    elif verb == "exec":
        os.execvp("tar", ARGUMENTS[ARGUMENTS.index("tar") :])
    elif verb in ("wait", "delete", "auth", "version"):
        pass
    else:
        sys.exit(f"kubectl {verb}?")


def apply(manifest):
    name = manifest["metadata"]["name"]
    (HOME / f"{manifest['kind']}-{name}.json").write_text(json.dumps(manifest))
    if manifest["kind"] != "RayJob":
        return
    content = json.loads((HOME / f"ConfigMap-{name}.json").read_text())["binaryData"]["package.zip"]
    folder = HOME / f"{name}-working-dir"
    folder.mkdir()
    (folder / "package.zip").write_bytes(base64.b64decode(content))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", "package.zip", "."], cwd=folder, check=True)
    [inside] = [path for path in folder.iterdir() if path.is_dir()]  # Ray strips the one folder at the top
    spawn(name, shlex.split(manifest["spec"]["entrypoint"]), str(inside), HOME / f"{name}.log", {})


def get(kind, name):
    if not (HOME / f"RayJob-{name}.json").exists() or not kind.startswith("rayjob"):
        sys.exit(f'Error from server (NotFound): {kind} "{name}" not found')
    ended = code(name)
    if (HOME / f"{name}.suspended").exists() and ended is not None:
        status = {"jobDeploymentStatus": "Suspended"}
    elif ended is None:
        status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    elif ended == 0:
        status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    else:
        status = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}
    print(json.dumps({"status": status}))


def logs(name, follow):
    while follow and code(name) is None:
        time.sleep(0.05)
    print((HOME / f"{name}.log").read_text(), end="")


globals()[NAME]()

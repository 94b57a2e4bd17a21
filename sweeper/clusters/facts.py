"""What a node is like: plain facts, no judgement. Runs on every node of a cluster, whatever is installed there.

    python -m sweeper.clusters.facts '{"storage": "/mnt/sweeper/results"}'      prints one line of JSON

Standard library only (others are looked at where they are installed): Ray sends this module to the nodes as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

PACKAGES = (
    "fairsweep",
    "ray",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "optuna",
    "pyarrow",
    "numpy",
    "safetensors",
    "tokenizers",
    "wandb",
    "peft",
)
MARK = "sweeper-facts "
REACH_SECONDS = 5.0
_PROBE = ".sweeper-doctor"
_OFFLINE = {
    "wandb": ("WANDB_MODE", ("offline", "disabled", "dryrun")),
    "hub": ("HF_HUB_OFFLINE", ("1", "on", "true", "yes")),
}


def node_facts(questions: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of this node; see `sweeper.clusters.doctor.NodeFacts` for each.

    Parameters
    ----------
    questions:
        ``storage`` (a path, a URL or None), ``nonce`` (names the probe), ``salt`` (of the token's digest),
        ``reach`` (URLs by name), ``connect`` (``HOST:PORT`` by name).
    """
    began = time.time()
    storage = questions.get("storage")
    gpus = _gpus()
    return {
        "host": socket.gethostname(),
        "asked_at": began,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": _torch() if questions.get("torch", True) else {},
        "gpus": gpus["gpus"],
        "driver": gpus["driver"],
        "driver_cuda": gpus["cuda"],
        "auth_mode": os.environ.get("RAY_AUTH_MODE", ""),
        "token_digest": _token_digest(str(questions.get("salt", ""))),
        "storage": _storage(storage, str(questions.get("nonce", uuid.uuid4().hex))) if storage else None,
        "disk_free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
        "shared_memory_bytes": _size("/dev/shm"),  # noqa: S108
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "reach": {name: _reach(url) for name, url in questions.get("reach", {}).items() if not _offline(name)},
        "connect": {name: _connect(at) for name, at in questions.get("connect", {}).items()},
        "environment": {
            name: os.environ[name]
            for name in ("HF_HUB_OFFLINE", "WANDB_MODE", "RAY_AUTH_MODE", "CUDA_VISIBLE_DEVICES")
            if name in os.environ
        },
        "seconds": time.time() - began,
    }


def probe_names(storage: str, nonce: str) -> list[str]:
    """Return the names of the probe files that are seen from here."""
    folder = f"{storage.rstrip('/')}/{_PROBE}-{nonce}"
    if "://" not in storage:
        return sorted(path.name for path in Path(folder).glob("*"))
    from pyarrow import fs

    system, root = fs.FileSystem.from_uri(folder)
    if system.get_file_info(root).type is not fs.FileType.Directory:
        return []
    return sorted(entry.base_name for entry in system.get_file_info(fs.FileSelector(root)))


def remove_probe(storage: str, nonce: str) -> None:
    """Remove the files by which nodes were asked about the storage."""
    folder = f"{storage.rstrip('/')}/{_PROBE}-{nonce}"
    with contextlib.suppress(Exception):
        if "://" not in storage:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            from pyarrow import fs

            system, root = fs.FileSystem.from_uri(folder)
            system.delete_dir(root)


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _torch() -> dict[str, Any]:
    """Ask torch in a process of its own: importing it here would cost every node its memory, or its life."""
    script = (
        "import json, torch; f = {'version': torch.__version__, 'cuda': torch.version.cuda, "
        "'devices': torch.cuda.device_count()}\n"
        "import importlib.util\n"
        "if importlib.util.find_spec('torchvision'):\n"
        "    try:\n        import torchvision\n        torchvision.extension._assert_has_ops()\n"
        "    except Exception as e:\n        f['torchvision_error'] = f'{type(e).__name__}: {e}'[:200]\n"
        "print(json.dumps(f))"
    )
    if importlib.util.find_spec("torch") is None:
        return {}
    with contextlib.suppress(Exception):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found
        return {"error": " ".join(done.stderr.split())[-200:]}
    return {"error": "torch did not import within 120 s"}


def _gpus() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    found: dict[str, Any] = {"gpus": [], "driver": None, "cuda": None}
    with contextlib.suppress(Exception):
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        for line in done.stdout.splitlines():
            name, memory, driver = (part.strip() for part in line.split(","))
            found["gpus"].append({"name": name, "memory_bytes": int(float(memory)) * 2**20})
            found["driver"] = driver
        if found["gpus"]:
            plain = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False).stdout
            after = plain.partition("CUDA Version:")[2].split()
            found["cuda"] = after[0] if after else None
    return found


def _token_digest(salt: str) -> str | None:
    """Return a salted digest of this node's token, by which tokens are compared and from which none can be read."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        token = token or path.read_text().strip()
    return hashlib.pbkdf2_hmac("sha256", token.encode(), salt.encode(), 10_000).hex() if token else None


def _storage(storage: str, nonce: str) -> dict[str, Any]:
    """Write a small file into the storage and read it back; its name says who wrote it."""
    folder, name = f"{storage.rstrip('/')}/{_PROBE}-{nonce}", f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    try:
        if "://" in storage:
            from pyarrow import fs

            system, root = fs.FileSystem.from_uri(folder)
            with system.open_output_stream(f"{root}/{name}") as file:
                file.write(nonce.encode())
            with system.open_input_stream(f"{root}/{name}") as file:
                same = file.read() == nonce.encode()
            free = None
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_text(nonce)
            same = (Path(folder) / name).read_text() == nonce
            free = shutil.disk_usage(folder).free
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200], "name": name, "free_bytes": None}
    return {"error": "" if same else "it gives back other bytes", "name": name, "free_bytes": free}


def _size(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path).total
    return None


def _offline(server: str) -> bool:
    """Whether this node is told to leave a server alone: then it is not asked, not even whether it is there."""
    variable, values = _OFFLINE[server]
    return os.environ.get(variable, "").lower() in values


def _reach(url: str) -> str:
    """Return why a server is out of reach; empty when it answers, whatever it answers."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http(s) alone is asked for
    try:
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):  # noqa: S310
            return ""
    except urllib.error.HTTPError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"[:200]


def _connect(at: str) -> str:
    host, _, port = at.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=REACH_SECONDS):
            return ""
    except OSError as error:
        return f"{type(error).__name__}: {error}"[:200]


if __name__ == "__main__":
    asked = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    print(MARK + json.dumps(node_facts(asked)), flush=True)  # noqa: T201

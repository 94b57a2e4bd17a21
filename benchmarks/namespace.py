"""A machine of one's own for a benchmark: fresh namespaces of processes, network, mounts and host name.

Everything that runs inside ends with the script, nothing outside is seen or touched, and there is no way out: the only
addresses are loopback and one of a link that leads nowhere. Needs root and ``ip`` (iproute2).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ADDRESS = "10.77.32.1"
_INSIDE = "SWEEPER_NAMESPACE"


def is_inside() -> bool:
    """Whether this process is in namespaces that `enter` made."""
    return _INSIDE in os.environ


def enter() -> int:
    """Start the running script again as the first process of fresh namespaces; return its exit code."""
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--uts"]
    process = subprocess.Popen([*words, sys.executable, *sys.argv], env=os.environ | {_INSIDE: "1"})
    signal.signal(signal.SIGTERM, lambda *_: process.kill())  # and with it all that is inside
    return process.wait()


def bring_up(name: str, folder: Path) -> None:
    """Give the machine its name and its address; call inside."""
    for words in (
        "link set lo up",
        "link add node0 type veth peer name node1",  # an address beside loopback, which resolvers want to see
        f"addr add {ADDRESS}/24 dev node0",
        "link set node0 up",
        "link set node1 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    subprocess.run(["hostname", name], check=True)
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} {name}\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)

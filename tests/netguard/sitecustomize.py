"""Loaded by every Python process that a test starts, Ray's workers too: notes and refuses outgoing connections.

Only loopback is allowed. Datagram sockets are let through: Ray asks the kernel for its own address by one, which
sends nothing.
"""

import ipaddress
import os
import socket
import sys


def _guard(event, arguments):
    if event != "socket.connect":
        return
    connection, address = arguments
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type & socket.SOCK_STREAM == 0:
        return
    try:
        if ipaddress.ip_address(address[0]).is_loopback:
            return
    except ValueError:
        if address[0] == "localhost":
            return
    with open(os.environ["SWEEPER_NETGUARD_LOG"], "a") as log:  # noqa: PTH123 - loaded before everything else
        log.write(f"{os.getpid()} {sys.argv[:3]} {address}\n")
    raise ConnectionRefusedError(f"outgoing connection to {address} during tests")


if "SWEEPER_NETGUARD_LOG" in os.environ:
    sys.addaudithook(_guard)

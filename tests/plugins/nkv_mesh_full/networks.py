"""Network namespaces, one for each node, that can be cut off from each other."""

import logging
import os
import random
import secrets
import shutil
import subprocess

#: How `lose` delays.
LATE = ("netem", "delay", "20ms", "10ms")


def missing():
    """Why there can be no namespaces here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [name for name in ("ip", "iptables", "tc") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = f"nkvp{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Network:
    """A bridge with an address here, and namespaces behind it."""

    def __init__(self):
        self._mark = secrets.token_hex(3)
        self._bridge = f"nkvb{self._mark}"
        self._network = f"10.{random.randrange(180, 250)}.{random.randrange(250)}"
        self._names = []
        self._links = []
        self._late = set()

    def __enter__(self):
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self._network}.254/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_):
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        # A namespace goes in the background, and its link with it: not to be waited for.
        for link in (*self._links, self._bridge):
            subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)

    def host(self):
        """A namespace of its own: its name and its address."""
        number = len(self._names) + 1
        name, outer = f"nkvn{self._mark}x{number}", f"nkv{self._mark}v{number}"
        address = f"{self._network}.{number}"
        run("ip", "netns", "add", name)
        self._names.append(name)
        self._links.append(outer)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", outer, "master", self._bridge, "up")
        self._in(name, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        self._in(name, "ip", "link", "set", "lo", "up")
        return name, address

    def cut(self, at, *addresses):
        """What comes from these addresses no longer reaches the namespace `at`."""
        for address in addresses:
            self._in(at, "iptables", "-A", "INPUT", "-s", address, "-j", "DROP")

    def lose(self, at, share):
        """Of the packets to the namespace `at` this share is lost. Where the kernel can, the
        others come late, and not equally late.
        """
        how = ("-m", "statistic", "--mode", "random", "--probability", str(share))
        self._in(at, "iptables", "-A", "INPUT", "-i", "eth0", *how, "-j", "DROP")
        try:
            self._in(at, "tc", "qdisc", "add", "dev", "eth0", "root", *LATE)
        except subprocess.CalledProcessError as error:
            # A kernel without netem says that it knows no such thing.
            if b"qdisc kind is unknown" not in error.stderr:
                raise
            logging.warning("this kernel has no netem: packets are lost, and none is late")
        else:
            self._late.add(at)

    def heal(self):
        """Everybody reaches everybody, at once."""
        for name in self._names:
            self._in(name, "iptables", "-F", "INPUT")
        for name in self._late:
            self._in(name, "tc", "qdisc", "del", "dev", "eth0", "root")
        self._late.clear()

    def _in(self, name, *command):
        run("ip", "netns", "exec", name, *command)

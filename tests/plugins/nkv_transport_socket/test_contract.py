"""The suite of transports, over a Unix socket and over TCP."""

from nkv_core.testing import TransportContract


class SocketContract(TransportContract):
    plugin = "nkv_transport_socket"
    listener = "socket"

    def prepare(self, node):
        node.put("a", b"1")

    def ask(self, address):
        with self.open(address) as connection:
            connection.settimeout(30)
            connection.sendall(b"GET 1 me a\n")
            seen = b""
            while b"\n" not in seen:
                data = connection.recv(4096)
                if not data:
                    raise EOFError(seen)
                seen += data
            return seen


class TestOverUnix(SocketContract):
    def settings(self, path):
        return {"path": str(path / "socket" / "nkv.sock")}


class TestOverTcp(SocketContract):
    def settings(self, path):
        return {"path": "", "host": "127.0.0.1", "port": 0}

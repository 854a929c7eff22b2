"""The suite of transports."""

from nkv_core.testing import TransportContract


class TestRespTransport(TransportContract):
    plugin = "nkv_transport_resp"
    listener = "resp"
    backends = ("asyncio",)

    def prepare(self, node):
        node.put("a", b"1")

    def ask(self, address):
        # One command a connection: that of the library begins with some of its own.
        with self.open(address) as connection, connection.makefile("rb") as answers:
            connection.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n")
            first = answers.readline()
            if not first:
                raise EOFError("closed without an answer")
            return first + answers.readline() if first.startswith(b"$") else first

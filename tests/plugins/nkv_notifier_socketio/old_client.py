"""A client of python-socketio's 5.3 line, as a program.

It is given the URL, the transport, and how many updates to wait for. It says `ready` once it was
greeted, and then each update, as JSON lines.
"""

import json
import sys
import threading

import socketio

DEADLINE = 60  # seconds


def main(url, transport, count):
    client = socketio.Client()
    done = threading.Event()
    left = [int(count)]

    def say(what):
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    @client.on("connected")
    def connected(data):
        say({"ready": data, "version": socketio.__version__})

    @client.on("key_update")
    def told(data):
        say(data)
        left[0] -= 1
        if not left[0]:
            done.set()

    client.connect(url, transports=[transport])
    if not done.wait(DEADLINE):
        sys.exit("not told in time")
    client.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A store on loopback that does what its user plans: `python tests/faultstore FOLDER [CERTIFICATE]`.

It prints its port. Each line of its input is a command in JSON, and each line it prints then an answer:
{"plan": {…}} begins another plan (see plan.py), {"take": true} gives the requests since the last one. It ends
with its input, and so with its user.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
from pathlib import Path

from server import Server

from plan import Plan


def main() -> None:
    folder, *certificate = sys.argv[1:]
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[0])
    server = Server(Path(folder), context)
    server.start()
    print(server.port, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "plan" in command:
            server.plan = Plan(command["plan"])
        print(json.dumps(server.take() if "take" in command else True), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

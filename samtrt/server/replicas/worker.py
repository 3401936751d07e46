"""One replica, as ``processes`` starts it: ``python -m samtrt.server.replicas.worker``.

It takes its options in JSON, and the path of the socket to listen on.

It says on its standard output that it is up, in a line of JSON, and ends when its standard input
does: with the process that has started it.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading

from samtrt.console import run_script
from samtrt.server.guard.serving import Server
from samtrt.server.launch import BACKLOG, find_decoder, load_application
from samtrt.server.options import from_text


def main() -> None:
    """Loads the model and serves until it is told to end."""
    # What libraries print goes to the log: standard output has one line, and a reader for that.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    options = from_text(sys.argv[1])
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    app = load_application(options, options.settings, find_decoder(options))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[2])
        listener.listen(BACKLOG)
        with os.fdopen(answers, "w") as pipe:
            pipe.write(json.dumps({"computed_by": app.state.studio.computed_by}) + "\n")
        Server(app).run(sockets=[listener])


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run_script(main))

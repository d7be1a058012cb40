"""A process that has everything imported and starts commands by forking, so that hundreds of them cost little.

It reads one JSON object a line, `{"start": [arguments], "output": file, "limits": {name: value}, "environment": {name: value},
"folder": path}` or `{"poll": pid}`, and answers with a line: the pid, or the exit code (negative: the signal), or null while the
process runs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

import visionattn.jobs.evaluate
import visionattn.jobs.train
import visionattn.tasks.classification.model
import visionattn.tasks.segmentation.model  # noqa: F401
from visionattn.cli import app


def run(arguments: list[str], output: str, limits: dict[str, int], environment: dict[str, str], folder: str) -> NoReturn:
    """Be a command of its own, in a session of its own."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.argv = ["visionattn", *arguments]
    code: Any = 0
    try:
        app(arguments, prog_name="visionattn")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer: Any = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                run(request["start"], request["output"], request["limits"], request["environment"], request["folder"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

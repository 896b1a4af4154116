"""An export, or a look at what it takes, in a process of its own that the page can stop as Ctrl-C would.

Reads one line of JSON, what to do, from standard input, and ends as at Ctrl-C when another comes or the input ends:
then who asked is gone. Writes lines of JSON: progress, and at last what was made or what was wrong.
"""

from __future__ import annotations

import _thread
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.errors import EdgeError

_TELL_SECONDS = 0.1


def main() -> None:
    """Do what standard input says."""
    asked = json.loads(sys.stdin.readline())
    done = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        if not done.is_set():
            _thread.interrupt_main()

    try:
        threading.Thread(target=listen, name="listen", daemon=True).start()
        made = _work(asked)
        done.set()
        _say(done=made)
    except EdgeError as error:
        done.set()
        _say(error=[error.message, error.hint])
    except OSError as error:
        done.set()
        _say(error=[f"{error.filename or 'a file'} could not be used ({error.strerror or error})",
                    "Mend its permissions, or name another folder."])  # fmt: skip
    except KeyboardInterrupt:
        _say(stopped=True)


def _work(asked: dict[str, Any]) -> Any:
    from edge.commands.dry_run import facts
    from edge.commands.export import export_model, without_torch

    last = ("", 0.0)

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now > last[1] + _TELL_SECONDS or done == total:
            last = stage, now
            _say(progress=[stage, done, total])

    model, out, target = asked["model"], Path(asked["out"]), asked["target"]
    if asked["job"] == "cost":
        with without_torch():
            return facts(model, out, target=target, progress=tell)
    return str(export_model(model, out, target=target, tell=tell)[0])


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

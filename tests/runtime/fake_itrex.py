"""Stands for `edge/runtime/itrex_worker.py` where no ITREX is: the same protocol, and answers that are easily told.

The next token is the last one plus one; a fake logit is 1 there and 0 elsewhere. The words behind the script's name say
what goes wrong.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRONG = sys.argv[1:]
cancelled: set[int] = set()
questions: list[dict[str, Any]] = []
there = threading.Condition()


def tell(number: int, **what: Any) -> None:
    sys.stdout.write(json.dumps({"id": number, **what}) + "\n")
    sys.stdout.flush()


def read() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "cancel":
            cancelled.add(asked["id"])
            continue
        with there:
            questions.append(asked)
            there.notify()
    import os

    os._exit(0)


def main() -> None:
    if "no start" in WRONG:
        sys.stderr.write("ImportError: undefined symbol\n")
        sys.exit(0)  # as ITREX does
    threading.Thread(target=read, daemon=True).start()
    print("not JSON, as a library might print")
    print('123\n["a list"]\n{"no": "number"}')
    tell(0, ok={"torch": "fake"})
    vocab, seen = 0, []
    while True:
        with there:
            there.wait_for(lambda: questions)
            asked = questions.pop(0)
        number, what = asked["id"], asked["do"]
        if what in WRONG:
            tell(number, error=f"ValueError: no {what} today")
        elif f"die in {what}" in WRONG:
            sys.stderr.write("Killed\n")
            sys.stderr.flush()
            import os

            os._exit(9)
        elif what == "begin":
            vocab = asked["config"]["vocab_size"]
            tell(number, ok=None)
        elif what == "add":
            seen += sorted(asked["matrices"])
            assert Path(asked["path"]).stat().st_size > 0
            tell(number, ok=len(seen))
        elif what == "ready":
            tell(number, ok=len(seen))
        elif what == "generate":
            generate(number, asked, vocab)
            tell(number, ok=None)
        elif what == "logits":
            import numpy as np
            from safetensors.numpy import save_file

            logits = np.zeros((len(asked["ids"]), vocab), np.float32)
            logits[np.arange(len(logits)), (np.array(asked["ids"]) + 1) % vocab] = 1
            save_file({"logits": logits}, asked["path"])
            tell(number, ok=None)


def generate(number: int, asked: dict[str, Any], vocab: int) -> None:
    if asked["echo"]:
        tell(number, prompt=[-1.0] * (len(asked["ids"]) - 1))
    token = asked["ids"][-1]
    for _ in range(asked["max_new_tokens"]):
        while "slow" in WRONG and number not in cancelled:
            time.sleep(0.01)
        if number in cancelled:
            return
        token = (token + 1) % vocab
        tell(number, token=token, log_prob=-0.5)
        if token in asked["stop"]:
            return


if __name__ == "__main__":
    main()

"""`python -m embedpool.models WANTED_JSON LIFELINE_FD`: resolves one model and prints {"spec": …} or {"error": …} on stdout.

Started by the supervisor; the progress of a download goes to stderr. Exit status 2 with an error that the user can mend.
"""

from __future__ import annotations

import json
import os
import sys

from embedpool.errors import EmbedpoolError
from embedpool.lifeline import end_with
from embedpool.models.resolve import Wanted, resolve


def main() -> None:
    end_with(int(sys.argv[2]))
    # stdout is for the one result line; whatever a library prints must not mix with it.
    result, answer = os.dup(1), ""
    os.dup2(2, 1)
    try:
        spec = resolve(Wanted(**json.loads(sys.argv[1])))
        answer = json.dumps({"spec": spec.to_json()})
    except EmbedpoolError as error:
        answer = json.dumps({"error": error.message})
    os.write(result, answer.encode())
    sys.exit(2 if "error" in json.loads(answer) else 0)


if __name__ == "__main__":
    main()

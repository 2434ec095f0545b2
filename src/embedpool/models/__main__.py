"""`python -m embedpool.models WANTED_JSON LIFELINE_FD LOG_FORMAT`: prepares one model and prints {"spec": …} or {"error": …}
on stdout.

Started by the supervisor; what takes time is told on stderr. Exit status 2 with an error that the user can mend.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from embedpool import logs
from embedpool.errors import EmbedpoolError
from embedpool.lifeline import die_first, end_with
from embedpool.models.spec import ModelSpec

log = logging.getLogger("embedpool.models")


def spec_of(wanted: dict[str, object]) -> ModelSpec:
    """Raises ModelError."""
    name = str(wanted["model"])
    if name == "echo" or name.startswith("echo:"):
        from embedpool.models.echo import echo_spec

        return echo_spec(name)
    from embedpool.models.artifact import prepare
    from embedpool.models.resolve import Wanted, resolve

    source = resolve(Wanted(**wanted))  # type: ignore[arg-type]  # the supervisor's own words
    return prepare(source, Path(str(wanted["cache"])), _tell).spec


def _tell(what: str) -> None:
    log.info("%s", what, extra={"event": "preparing"})


def main() -> None:
    end_with(int(sys.argv[2]))
    die_first()
    logs.begin("embedpool", sys.argv[3], logging.INFO)
    # stdout is for the one result line; whatever a library prints must not mix with it.
    result, answer = os.dup(1), ""
    os.dup2(2, 1)
    try:
        answer = json.dumps({"spec": spec_of(json.loads(sys.argv[1])).to_json()})
    except EmbedpoolError as error:
        answer = json.dumps({"error": error.message})
    os.write(result, answer.encode())
    sys.exit(2 if "error" in json.loads(answer) else 0)


if __name__ == "__main__":
    main()

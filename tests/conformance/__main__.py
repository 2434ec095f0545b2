"""One line per transcript, and a verdict. Exit status 0: all hold; 1: one does not; 2: used wrongly."""

from __future__ import annotations

import sys

from tests.conformance.player import play
from tests.conformance.transcript import transcripts


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2 or "://" not in arguments[0]:
        print("usage: python -m tests.conformance ENDPOINT [WORD], ENDPOINT as in ipc:///run/embedpool/embedpool.sock")
        return 2
    outcomes = []
    for transcript in transcripts(*arguments[1:]):
        outcomes.append(play(arguments[0], transcript))
        print(outcomes[-1], flush=True)
    counts = {verdict: sum(each.verdict == verdict for each in outcomes) for verdict in ("ok", "FAIL", "skip")}
    print(f"{len(outcomes)} transcripts: {counts['ok']} hold, {counts['FAIL']} do not, {counts['skip']} could not be told")
    return 1 if counts["FAIL"] or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Entry of the forkserver: `python -m embedpool.worker SPEC_JSON CONTROL_FD LIFELINE_FD`, started by the supervisor only."""

import signal
import sys

from embedpool.worker.main import main

if __name__ == "__main__":
    # Stopping is the supervisor's business; a signal meant for the whole terminal group must not cut a job short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))

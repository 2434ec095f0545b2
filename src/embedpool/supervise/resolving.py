"""Finding a model and making it ready, in a process of its own: it may download, compute for minutes, or crash."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable

from embedpool.config import Config
from embedpool.errors import ModelError
from embedpool.models.spec import ModelSpec

MEANWHILE_S = 1.0


class Resolving:
    """A child that resolves and prepares the configured model. It ends when this process does."""

    def __init__(self, config: Config) -> None:
        self.config = config
        lifeline, self._lifeline_end = os.pipe()
        command = [sys.executable, "-P", "-m", "embedpool.models", json.dumps(config.wanted_model()), str(lifeline)]
        command.append(config.log_format)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=(lifeline,), process_group=0
            )
        except BaseException:
            os.close(self._lifeline_end)
            raise
        finally:
            os.close(lifeline)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when it has its result, or has ended without one."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def spec(self, meanwhile: Callable[[], None] | None = None) -> ModelSpec:
        """Waits for the result, and calls `meanwhile` every second. Raises ModelError, with the reason in one sentence."""
        try:
            while meanwhile is not None and not select.select([self], [], [], MEANWHILE_S)[0]:
                meanwhile()
            said = self._process.communicate()[0]
        finally:
            self.close()
        try:
            answer = json.loads(said or "{}")
        except ValueError:
            answer = {}
        if "spec" in answer:
            return ModelSpec.from_json(answer["spec"])
        reason = f"{self.config.model} ended the process that tried it (status {self._process.returncode})"
        raise ModelError(answer.get("error") or reason)

    def close(self) -> None:
        """Ends it, if it has not ended; idempotent."""
        if self._lifeline_end >= 0:
            os.close(self._lifeline_end)
            self._lifeline_end = -1
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

"""A way to finish tracks that kills the process it runs in, for recordings of some names."""

import os
import signal
from dataclasses import dataclass

from flasepformer.inference.finishing import Finished


@dataclass(frozen=True)
class Killing:
    """Kills once or always; otherwise the estimates are the tracks.

    Args:
        always: Part of the names of recordings that kill whenever they are tried.
        once: Part of the names of those that kill while there is no file of this path, which they make.
        mark: That path.
    """

    always: str
    once: str
    mark: str
    options = {}  # noqa: RUF012

    def labels(self, n_sources):
        return tuple(f"speaker{number}" for number in range(1, n_sources + 1))

    def endings(self):
        return ()

    def need_bytes(self, n_sources, seconds):
        return 0

    def finish(self, passed):
        if self.always in passed.name:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.once in passed.name and not os.path.exists(self.mark):
            with open(self.mark, "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        return Finished(self.labels(passed.n_sources), passed.filtered_at_rate)

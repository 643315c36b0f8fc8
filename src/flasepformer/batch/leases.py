"""Claims among machines that have nothing in common but a bucket: objects that only one can put, renewed."""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flasepformer.batch.buckets import Bucket, NoConditions, StoreError
from flasepformer.batch.claims import Claims

RENEWAL_SECONDS = 15.0
"""After so long a claim is put anew, with another content."""

LEASE_SECONDS = 60.0
"""A claim that has not changed for so long, by the clock of who looks, is nobody's: its machine has died."""

_POLL_SECONDS = 0.5


class Leases:
    """Claims of names among machines, each an object in a bucket while it is held.

    An object does not go with the process that has put it. Who finds one that a process of the same machine
    has put, while that machine's own lock is free, knows it dead and takes its place at once; one of another
    machine is nobody's when it is no longer renewed. No clocks are compared. Of all who take one over, one
    succeeds. A process that was stopped for longer than a lease may do work twice, and commits it whole.

    Args:
        bucket: Where the objects are.
        place: The folder for them.
        here: Claims of this machine, of the same names.
        machine: A file for the name of this machine, beside those claims; made if missing.
    """

    def __init__(self, bucket: Bucket, place: str, here: Claims, machine: Path) -> None:
        self._bucket, self._place, self._here = bucket, place, here
        self._machine = _machine_name(machine) if here.exclude else ""
        self._knows_conditions = True

    @contextmanager
    def hold(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Claim a name for a while; yield whether it is ours.

        Args:
            name: Of anything.
            wait: Until nobody else has it, so that it is always ours.

        Raises:
            StoreError: The store does not answer.
        """
        with self._here.hold(name, wait=wait) as ours:
            held = self._obtained(name, wait) if ours and self._knows_conditions else None
            if held is None:
                yield ours and not self._knows_conditions
                return
            renewal = _Renewal(self._bucket, held)
            renewal.start()
            try:
                yield True
            finally:
                renewal.end()

    def _obtained(self, name: str, wait: bool) -> "_Held | None":
        """Return a claim that is ours; None if somebody else has it, or nobody can have one."""
        place = f"{self._place}/{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:32]}"
        held = _Held(place, self._machine, uuid.uuid4().hex)
        last, since = "", time.monotonic()
        try:
            while True:
                if mark := self._bucket.put_new(held.content(), place):
                    held.mark = mark
                    return held
                there = self._bucket.read(place)
                if there is None:  # it has just been given up
                    continue
                content, mark = there
                if content == held.content():  # the store took it, and its answer was lost
                    held.mark = mark
                    return held
                if mark != last:
                    last, since = mark, time.monotonic()
                if self._is_dead(content) or time.monotonic() - since > LEASE_SECONDS:
                    if taken := self._bucket.put_over(held.content(), place, mark):
                        held.mark = taken
                        return held
                    continue
                if not wait:
                    return None
                time.sleep(_POLL_SECONDS)
        except NoConditions:
            self._knows_conditions = False
            return None

    def _is_dead(self, content: bytes) -> bool:
        """Tell whether a process of this machine put it: it cannot live, as it would hold the lock here."""
        with suppress(ValueError, AttributeError):
            return self._machine != "" and json.loads(content).get("machine") == self._machine
        return False


@dataclass
class _Held:
    """A claim of ours."""

    place: str
    machine: str
    token: str
    mark: str = ""
    """Of the object as we have put it."""
    n_renewals: int = 0

    def content(self) -> bytes:
        return json.dumps({"machine": self.machine, "token": self.token, "n": self.n_renewals}).encode()


class _Renewal(threading.Thread):
    """Puts a claim anew until it is given up, or somebody else has taken it."""

    def __init__(self, bucket: Bucket, held: _Held) -> None:
        super().__init__(daemon=True)
        self._bucket, self._held = bucket, held
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(RENEWAL_SECONDS):
            self._held.n_renewals += 1
            with suppress(StoreError):  # the next one may succeed
                self._held.mark = self._renewed() or ""
                if not self._held.mark:
                    return

    def _renewed(self) -> str | None:
        """Return the mark of our claim; None if somebody else has it."""
        held = self._held
        if mark := self._bucket.put_over(held.content(), held.place, held.mark):
            return mark
        content, mark = self._bucket.read(held.place) or (b"", "")
        return mark if held.token.encode() in content else None  # an answer was lost

    def end(self) -> None:
        """Give the claim up."""
        self._over.set()
        self.join()
        if self._held.mark:
            with suppress(StoreError):  # it ends without us
                self._bucket.remove(self._held.place)


def _machine_name(path: Path) -> str:
    """Return a name that is the same for all processes that share the file, and for no others."""
    own = path.with_name(uuid.uuid4().hex)
    own.write_text(own.name, encoding="ascii")
    with suppress(FileExistsError):
        os.link(own, path)
    own.unlink()
    return f"{path.read_text(encoding='ascii')} {socket.gethostname()}"

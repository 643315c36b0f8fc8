"""Decide before the start how a recording goes through a model, so that memory and disk hold it."""

import math
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from typing import Literal

import torch

from flasepformer.errors import FlasepformerError
from flasepformer.inference.estimates import (
    SAMPLE_BYTES,
    Need,
    goes_in_pieces,
    need_as_a_whole,
    need_beside_frames,
    need_in_pieces,
)
from flasepformer.inference.memory import USABLE_SHARE, format_size, free_memory
from flasepformer.inference.outputs import OutputError
from flasepformer.models import SeparationNetwork

MIN_CHUNK_SECONDS = 4.0
"""Chunks are not halved below this for want of memory: it is as much as models hear at a time in training."""

Mode = Literal["auto", "whole", "chunks"]
Way = Literal["pieces", "whole", "chunks"]


class SeparationError(FlasepformerError, RuntimeError):
    """The model gave no usable answer."""


class NotEnoughMemory(SeparationError):
    """The recording needs more memory than may be used; the message has both figures."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a mixture goes through the model."""

    way: Way
    need: Need | None
    """What that takes; None where nobody knows."""
    frame_bytes: int | None = None
    """In pieces: memory for what is kept between two sweeps; the rest goes to files."""
    chunk_length: int = 0
    overlap: int = 0
    reason: str = ""
    """Why it is not the whole, where that was wanted."""


class Planner:
    """Decides for one model.

    Args:
        model: See `ModelRunner`.
        mode: See `RunOptions`.
        memory: Most bytes for one recording; None takes a share of what is free.
        chunk_length: Samples in a chunk.
        overlap: Samples that two chunks have in common.
    """

    def __init__(
        self, model: SeparationNetwork, mode: Mode, memory: int | None, chunk_length: int, overlap: int
    ) -> None:
        self._model = model
        self._mode = mode
        self._memory = memory
        self._chunk_length = chunk_length
        self._overlap = overlap
        self._sample_rate, self._n_sources = model.sample_rate, model.n_sources

    def plan(
        self, n_samples: int, device: torch.device, *, held_bytes: int = 0, after_bytes: int = 0
    ) -> Plan:
        """Decide how a mixture goes through the model, and estimate what that takes.

        Args:
            n_samples: Length of the mixture at the model's sample rate.
            device: Where.
            held_bytes: What the recording takes already.
            after_bytes: What will be needed on top of that when the model has done its part.

        Raises:
            NotEnoughMemory: Not in any way that the mode allows.
            OutputError: The disk has no room for what the memory does not hold, and the mode is "whole".
        """
        usable = self._usable_bytes(torch.device("cpu"), held_bytes)
        if after_bytes > usable:
            raise self.shortage(after_bytes, usable, n_samples)
        if device.type == "cuda":
            usable = self._usable_bytes(device, 0)
        if self._mode == "chunks":
            return self._plan_chunks(n_samples, usable)
        if goes_in_pieces(self._model):
            return self._plan_pieces(n_samples, usable)
        need = need_as_a_whole(self._model, n_samples)
        if need is None and (self._mode == "whole" or n_samples <= self._chunk_length):
            return Plan(way="whole", need=None)
        if need is not None and need.memory_bytes <= usable:
            return Plan(way="whole", need=need)
        if self._mode == "whole" and need is not None:
            raise self.shortage(need.memory_bytes, usable, n_samples)
        reason = "nobody knows how much memory the whole recording needs at once"
        if need is not None:
            reason = (
                f"the whole recording at once needs about {format_size(need.memory_bytes)} of memory and "
                f"{format_size(usable)} may be used"
            )
        return self._plan_chunks(n_samples, usable, reason)

    def leaner(self, plan: Plan, n_samples: int) -> Plan | None:
        """Return a plan that takes less memory than one that has failed, if there is one."""
        if plan.way == "chunks":
            return self._halved(plan)
        if plan.way == "whole":
            if self._mode == "whole" or n_samples <= self._chunk_length:
                return None
            return Plan(way="chunks", need=None, chunk_length=self._chunk_length, overlap=self._overlap)
        if plan.frame_bytes == 0:
            return None
        need = need_in_pieces(self._model, n_samples, 0)
        if need.disk_bytes > shutil.disk_usage(spill_folder()).free:
            return None
        return replace(plan, need=need, frame_bytes=0)

    def _plan_pieces(self, n_samples: int, usable: float) -> Plan:
        """Plan the exact pass; or chunks, if even its least does not fit and the mode allows them."""
        least = need_beside_frames(self._model, n_samples)
        if least > usable:
            if self._mode == "whole":
                raise self.shortage(least, usable, n_samples)
            reason = (
                f"the whole recording needs at least {format_size(least)} of memory and "
                f"{format_size(usable)} may be used"
            )
            return self._plan_chunks(n_samples, usable, reason)
        frame_bytes = None if usable == math.inf else int(usable - least)
        need = need_in_pieces(self._model, n_samples, frame_bytes)
        free = shutil.disk_usage(spill_folder()).free
        if need.disk_bytes <= free:
            return Plan(way="pieces", need=need, frame_bytes=frame_bytes)
        if self._mode == "whole":
            raise full_disk(need.disk_bytes, spill_folder())
        reason = (
            f"the whole recording needs {format_size(need.disk_bytes)} on disk and {spill_folder()} has "
            f"{format_size(free)} free (set TMPDIR to a larger one)"
        )
        return self._plan_chunks(n_samples, usable, reason)

    def _plan_chunks(self, n_samples: int, usable: float, reason: str = "") -> Plan:
        """Plan chunks, shorter ones than wanted if those do not fit."""
        plan: Plan | None = Plan(
            way="chunks", need=None, chunk_length=self._chunk_length, overlap=self._overlap, reason=reason
        )
        while plan is not None:
            chunk_length = min(plan.chunk_length, n_samples)
            need = need_as_a_whole(self._model, chunk_length)
            if need is None:
                return plan
            kept = 0 if chunk_length == n_samples else n_samples + 2 * chunk_length
            memory_bytes = need.memory_bytes + kept * self._n_sources * SAMPLE_BYTES
            if memory_bytes <= usable:
                return replace(plan, need=Need(memory_bytes))
            plan = self._halved(plan)
        raise self.shortage(memory_bytes, usable, n_samples)

    def _halved(self, plan: Plan) -> Plan | None:
        if plan.chunk_length < 2 * MIN_CHUNK_SECONDS * self._sample_rate:
            return None
        return replace(plan, chunk_length=plan.chunk_length // 2, overlap=plan.overlap // 2, need=None)

    def _usable_bytes(self, device: torch.device, held_bytes: int) -> float:
        """Return what a recording may take from now on."""
        known = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        free = math.inf if known is None else float(known)
        if self._memory is None:
            return USABLE_SHARE * free
        return max(0, min(self._memory - held_bytes, free))

    def shortage(self, need: int | None, usable: float | None, n_samples: int) -> NotEnoughMemory:
        """Say how much a recording needs, and how much there is, where they are known."""
        minutes = n_samples / self._sample_rate / 60
        needed = "more memory than there is" if need is None else f"about {format_size(need)} of memory"
        offered = "" if usable is None else f" and {format_size(usable)} may be used"
        return NotEnoughMemory(
            f"{minutes:.1f} minutes need {needed}{offered}; free some memory, allow more (--memory), "
            f"{'choose --mode auto, ' if self._mode == 'whole' else ''}or cut the recording into shorter ones"
        )


def full_disk(n_bytes: int, folder: str) -> OutputError:
    """Say how much the temporary files need."""
    free = shutil.disk_usage(folder).free
    return OutputError(
        f"disk full: {format_size(n_bytes)} are needed for temporary files and {folder} has "
        f"{format_size(free)} free; make room, set TMPDIR to another folder, or allow more --memory"
    )


def spill_folder() -> str:
    """Return where large temporary files go: TMPDIR if it is set, else a folder that is not in memory."""
    if any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")):
        return tempfile.gettempdir()
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # /tmp often is memory

"""Decide before the start how a recording goes through a model, so that memory and disk hold it."""

import math
import shutil
from dataclasses import dataclass, replace
from typing import Literal

import torch

from flasepformer.errors import FlasepformerError
from flasepformer.files.scratch import spill_folder
from flasepformer.inference.estimates import (
    SAMPLE_BYTES,
    WORK_BYTES,
    Need,
    goes_in_pieces,
    need_as_a_whole,
    need_beside_frames,
    need_in_pieces,
    signal_bytes,
)
from flasepformer.inference.memory import USABLE_SHARE, format_size, free_memory
from flasepformer.inference.outputs import OutputError
from flasepformer.models import SeparationNetwork

MIN_CHUNK_SECONDS = 4.0
"""Chunks are not halved below this for want of memory: it is as much as models hear at a time in training."""

SOFTMAX_SECONDS = 120.0
"""Longest recording that a model with softmax attention takes as a whole unless told to: in a TF-Locoformer-M
attention costs as much as all else at 90 s, and three times as much at 5 minutes (counted, not measured)."""

SMALLEST_PIECES = 8
"""Pieces may be so many times shorter than what is fastest, for want of memory."""

SIGNAL_SHARE = 0.25
"""Of the memory beside the pieces that mixture and estimates may take before they go to the disk."""

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
    signals_on_disk: bool = False
    """Whether mixture and estimates are in temporary files."""
    frame_bytes: int | None = None
    """In pieces: memory for what is kept between two sweeps; the rest goes to files."""
    piece_length: int | None = None
    """In pieces: frames in each, where they are smaller than what is fastest."""
    chunk_length: int = 0
    overlap: int = 0
    reason: str = ""
    """Why it is not the whole, where that was wanted."""
    also: "Plan | None" = None
    """How it goes through a second model, where there is one."""


class Planner:
    """Decides for one model.

    Args:
        model: See `ModelRunner`.
        mode: See `RunOptions`.
        memory: Most bytes for one recording; None takes a share of what is free.
        chunk_length: Samples in a chunk.
        overlap: Samples that two chunks have in common.
        shorter_chunks: Halve chunks that do not fit; otherwise the recording is refused.
        several: Whether mixtures go through the model several times.
    """

    def __init__(
        self,
        model: SeparationNetwork,
        mode: Mode,
        memory: int | None,
        chunk_length: int,
        overlap: int,
        shorter_chunks: bool = True,
        several: bool = False,
    ) -> None:
        self._model = model
        self._mode = mode
        self._memory = memory
        self._chunk_length = chunk_length
        self._overlap = overlap
        self._shorter_chunks = shorter_chunks
        self._several = several
        self._sample_rate, self._n_sources = model.sample_rate, model.n_sources

    def plan(
        self, n_samples: int, device: torch.device, *, held_bytes: int = 0, later_bytes: int = 0
    ) -> Plan:
        """Decide how a mixture goes through the model, and estimate what that takes.

        What does not fit in memory goes to temporary files: first the mixture and the estimates, which are
        read a few times only.

        Args:
            n_samples: Length of the mixture at the model's sample rate.
            device: Where.
            held_bytes: What the recording and its tracks take beside that.
            later_bytes: What is taken when the model is done, beside mixture and estimates.

        Raises:
            NotEnoughMemory: Not in any way that the mode allows.
            OutputError: The disk has no room for what the memory does not hold, and the mode is "whole".
        """
        here = self._usable_bytes(torch.device("cpu"), held_bytes)
        if held_bytes and here <= 0:
            raise self.shortage(held_bytes + WORK_BYTES, here + held_bytes, n_samples)
        if later_bytes > here:
            raise self.shortage(held_bytes + later_bytes, here + held_bytes, n_samples)
        there = self._usable_bytes(device, 0) if device.type == "cuda" else here
        plan = self._plan(n_samples, there, device)
        return self._with_signals(plan, n_samples, here, device, later_bytes)

    def _plan(self, n_samples: int, usable: float, device: torch.device) -> Plan:
        """Plan without the mixture and the estimates, but such that there is some memory left for them."""
        if self._mode == "chunks":
            return self._plan_chunks(n_samples, usable)
        if goes_in_pieces(self._model):
            return self._plan_pieces(n_samples, usable, device)
        known = isinstance(self._model, SeparationNetwork)
        if self._mode == "auto" and known and n_samples > SOFTMAX_SECONDS * self._sample_rate:
            reason = f"softmax attention takes the square of the time beyond {SOFTMAX_SECONDS / 60:g} minutes"
            return self._plan_chunks(n_samples, usable, reason)
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

    def _with_signals(
        self, plan: Plan, n_samples: int, usable: float, device: torch.device, later_bytes: int
    ) -> Plan:
        """Find room for the mixture and the estimates."""
        if plan.need is None:
            return plan
        n_bytes = signal_bytes(self._n_sources, n_samples, self._several)
        taken = max(WORK_BYTES if device.type == "cuda" else plan.need.memory_bytes, later_bytes)
        need = replace(plan.need, memory_bytes=max(plan.need.memory_bytes, later_bytes))
        if taken + n_bytes <= usable:
            return replace(plan, need=replace(need, memory_bytes=need.memory_bytes + n_bytes))
        need = replace(need, disk_bytes=need.disk_bytes + n_bytes)
        if need.disk_bytes > shutil.disk_usage(spill_folder()).free:
            raise full_disk(need.disk_bytes, spill_folder())
        return replace(plan, need=need, signals_on_disk=True)

    def leaner(self, plan: Plan, n_samples: int) -> Plan | None:
        """Return a plan that takes less memory than one that has failed, if there is one."""
        if plan.way == "chunks":
            return self._halved(plan)
        if plan.way == "whole":
            if self._mode == "whole" or n_samples <= self._chunk_length:
                return None
            return replace(
                plan, way="chunks", need=None, chunk_length=self._chunk_length, overlap=self._overlap
            )
        if plan.frame_bytes == 0 and plan.signals_on_disk:
            return None
        need = need_in_pieces(self._model, n_samples, 0, plan.piece_length)
        need = replace(
            need, disk_bytes=need.disk_bytes + signal_bytes(self._n_sources, n_samples, self._several)
        )
        if need.disk_bytes > shutil.disk_usage(spill_folder()).free:
            return None
        return replace(plan, need=need, frame_bytes=0, signals_on_disk=True)

    def _plan_pieces(self, n_samples: int, usable: float, device: torch.device) -> Plan:
        """Plan the exact pass; or chunks, if even its least does not fit and the mode allows them."""
        piece_length, least = self._piece_length(n_samples, usable, device)
        if least > usable:
            if self._mode == "whole":
                raise self.shortage(least, usable, n_samples)
            reason = (
                f"the whole recording needs at least {format_size(least)} of memory and "
                f"{format_size(usable)} may be used"
            )
            return self._plan_chunks(n_samples, usable, reason, least)
        n_bytes = signal_bytes(self._n_sources, n_samples, self._several)
        need = need_in_pieces(self._model, n_samples, None, piece_length)
        frame_bytes = None
        if need.memory_bytes + n_bytes > usable:  # the signals stay in memory where they are small against it
            few = n_bytes if n_bytes <= SIGNAL_SHARE * (usable - least) else 0
            frame_bytes = int(usable - least - few)
            need = need_in_pieces(self._model, n_samples, frame_bytes, piece_length)
        free = shutil.disk_usage(spill_folder()).free
        if need.disk_bytes <= free:
            return Plan(way="pieces", need=need, frame_bytes=frame_bytes, piece_length=piece_length)
        if self._mode == "whole":
            raise full_disk(need.disk_bytes, spill_folder())
        reason = (
            f"the whole recording needs {format_size(need.disk_bytes)} on disk and {spill_folder()} has "
            f"{format_size(free)} free (set TMPDIR to a larger one)"
        )
        return self._plan_chunks(n_samples, usable, reason)

    def _piece_length(self, n_samples: int, usable: float, device: torch.device) -> tuple[int | None, int]:
        """Return the largest pieces that fit, None for those that are fastest; and the least memory then."""
        least = need_beside_frames(self._model, n_samples)
        if device.type != "cpu":
            return None, least
        fastest = length = self._model.piece_length(device)
        while least > usable and length >= 2 * fastest // SMALLEST_PIECES:
            length //= 2
            least = need_beside_frames(self._model, n_samples, length)
        return (None if length == fastest else length), least

    def _plan_chunks(
        self, n_samples: int, usable: float, reason: str = "", otherwise: float = math.inf
    ) -> Plan:
        """Plan chunks, shorter ones if those wanted do not fit; `otherwise` is what another way takes."""
        n_bytes = signal_bytes(self._n_sources, n_samples, self._several)
        if n_bytes > shutil.disk_usage(spill_folder()).free:
            usable -= n_bytes  # mixture and estimates stay in memory
        plan: Plan | None = Plan(
            way="chunks", need=None, chunk_length=self._chunk_length, overlap=self._overlap, reason=reason
        )
        while plan is not None:
            chunk_length = min(plan.chunk_length, n_samples)
            need = need_as_a_whole(self._model, chunk_length)
            if need is None:
                return plan
            kept = 0 if chunk_length == n_samples else 2 * self._n_sources * chunk_length * SAMPLE_BYTES
            memory_bytes = need.memory_bytes + kept
            if memory_bytes <= usable:
                return replace(plan, need=Need(memory_bytes))
            plan = self._halved(plan)
        raise self.shortage(int(min(memory_bytes, otherwise)), usable, n_samples)

    def _halved(self, plan: Plan) -> Plan | None:
        if not self._shorter_chunks or plan.chunk_length < 2 * MIN_CHUNK_SECONDS * self._sample_rate:
            return None
        return replace(plan, chunk_length=plan.chunk_length // 2, overlap=plan.overlap // 2, need=None)

    def _usable_bytes(self, device: torch.device, held_bytes: int) -> float:
        """Return what a recording may take from now on."""
        known = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        free = math.inf if known is None else float(known)
        if self._memory is None:
            return USABLE_SHARE * free - held_bytes
        return min(self._memory, free) - held_bytes

    def shortage(self, need: int | None, usable: float | None, n_samples: int) -> NotEnoughMemory:
        """Say how much a recording needs, and how much there is, where they are known."""
        minutes = n_samples / self._sample_rate / 60
        needed = "more memory than there is" if need is None else f"about {format_size(need)} of memory"
        offered = "" if usable is None else f" and {format_size(usable)} may be used"
        chunks = "choose --mode auto, " if self._mode == "whole" and not goes_in_pieces(self._model) else ""
        return NotEnoughMemory(
            f"{minutes:.1f} minutes need {needed}{offered}; free some memory, allow more (--memory), "
            f"{chunks}or cut the recording into shorter ones"
        )


def full_disk(n_bytes: int, folder: str) -> OutputError:
    """Say how much the temporary files need."""
    free = shutil.disk_usage(folder).free
    return OutputError(
        f"disk full: {format_size(n_bytes)} are needed for temporary files and {folder} has "
        f"{format_size(free)} free; make room, set TMPDIR to another folder, or allow more --memory"
    )

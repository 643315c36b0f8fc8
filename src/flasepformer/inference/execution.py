"""Get one mixture through a model: as a whole, in pieces of time, or in chunks; with less if that fails."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flasepformer.audio import StoredSignals
from flasepformer.errors import is_out_of_memory
from flasepformer.files.scratch import spill_folder
from flasepformer.inference.chunks import Join, Signals, separate_in_chunks
from flasepformer.inference.devices import pick_device
from flasepformer.inference.estimates import SAMPLE_BYTES, Need
from flasepformer.inference.memory import free_memory, parse_size
from flasepformer.inference.passes import ALSO_SHARE, Variant, blend, explain, variants
from flasepformer.inference.plans import (
    Mode,
    Plan,
    Planner,
    SeparationError,
    full_disk,
)
from flasepformer.models import SeparationNetwork, load_model, separate
from flasepformer.running import FrameMemory

Precision = Literal["float32", "bfloat16", "float16"]


class RunOptions(TypedDict, total=False):
    """How recordings go through the model."""

    mode: Mode
    """"whole": every recording with all its past and future, in exact pieces of time where the attention is
    linear. "chunks": in overlapping chunks. "auto": the whole, but in chunks where it does not fit."""
    memory: int | str | None
    """Most memory for one recording, however long, beside the program and the model: bytes, or such as "800M"
    and "4G"; by default half of what is free. Never more than is free; what does not fit goes to temporary
    files."""
    chunk_seconds: float
    """Length of a chunk, 30 by default."""
    overlap_seconds: float
    """What two chunks have in common, at most half a chunk; 5 by default."""
    precision: Precision
    """Of the model's arithmetic, "float32" by default. What overflows in float16 is done again in float32."""
    passes: int
    """How often a mixture goes through the model, 1 by default and 8 at most: each time a little shifted or
    upside down. The estimates are the mean of all, which is better and takes so many times as long."""
    also: str | None
    """Name or checkpoint of a second model, as in `load_model`; none by default. Estimates are the mean of
    both, in which it has a quarter."""
    post_filter: float | None
    """Share, from 0 to 1, of estimates behind a filter in the tracks; see
    `flasepformer.inference.post_filter`. By default what is known to be best for the model, or else 0."""
    shorter_chunks: bool
    """Halve chunks for which there is too little memory, as by default; otherwise the recording is refused,
    and the result never depends on the memory."""


@dataclass
class Passage:
    """How a mixture has gone through the model."""

    plan: Plan
    device: torch.device
    estimates: StoredSignals = field(default_factory=lambda: StoredSignals(0, 0))
    """One signal for each source."""
    joins: list[Join] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class ModelRunner:
    """Holds a model on a device.

    Args:
        model: A network that maps mixtures (batch, time) to estimates (batch, source, time), with attributes
            `sample_rate` in Hz and `n_sources`.
        device: See `pick_device`.
        mode: See `RunOptions`, also for the others.
        memory: Most bytes for one recording.
        chunk_seconds: Length of a chunk.
        overlap_seconds: What two chunks have in common.
        precision: Of the model's arithmetic.
        passes: How many.
        also: A second model, or where to load it from.
        shorter_chunks: Whether chunks that do not fit are halved.

    Raises:
        CheckpointError: There is no such second model.
        DeviceError: The device cannot be used.
        ValueError: An option makes no sense.
    """

    def __init__(
        self,
        model: SeparationNetwork,
        device: str | torch.device = "auto",
        *,
        mode: Mode = "auto",
        memory: int | str | None = None,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 5.0,
        precision: Precision = "float32",
        passes: int = 1,
        also: str | SeparationNetwork | None = None,
        shorter_chunks: bool = True,
    ) -> None:
        for name, value, kinds in (("mode", mode, Mode), ("precision", precision, Precision)):
            if value not in get_args(kinds):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {value!r}")
        if not 1 <= chunk_seconds < math.inf:
            raise ValueError(f"chunk_seconds must be at least 1, got {chunk_seconds}")
        if not 0 < overlap_seconds <= chunk_seconds / 2:
            raise ValueError(
                f"overlap_seconds must be above 0 and at most half a chunk ({chunk_seconds / 2:g} s), "
                f"got {overlap_seconds}"
            )
        limit = self.memory = None if memory is None else parse_size(memory)
        """Most bytes for one recording."""
        self.precision = precision
        self.device = pick_device(device)
        self.sample_rate, self.n_sources = model.sample_rate, model.n_sources
        self._variants = variants(passes, model.sample_rate)
        self._original = model.eval()
        self.model = _on(self.device, model)
        chunk_length, overlap = (
            round(seconds * self.sample_rate) for seconds in (chunk_seconds, overlap_seconds)
        )
        several = passes > 1 or also is not None
        self._planner = Planner(
            self._original, mode, limit, chunk_length, overlap, shorter_chunks, several=several
        )
        self.also: ModelRunner | None = None
        """Holds the second model."""
        if also is not None:
            second = load_model(also) if isinstance(also, str) else also
            for what in ("sample_rate", "n_sources"):
                if (its := getattr(second, what)) != (ours := getattr(model, what)):
                    raise ValueError(
                        f"also must be a model with {what} {ours} as the first, got one with {its}"
                    )
            self.also = ModelRunner(
                second, device, mode=mode, memory=memory, chunk_seconds=chunk_seconds,
                overlap_seconds=overlap_seconds, precision=precision, shorter_chunks=shorter_chunks,
            )  # fmt: skip

    def plan(self, n_samples: int, *, held_bytes: int = 0, later_bytes: int = 0) -> Plan:
        """Decide how a mixture goes through the model on its device; see `Planner.plan`.

        What it needs covers the second model, whose own plan it holds.
        """
        plan = self._planner.plan(n_samples, self.device, held_bytes=held_bytes, later_bytes=later_bytes)
        if self.also is None:
            return plan
        kept_bytes = self.n_sources * n_samples * SAMPLE_BYTES  # they wait for the second model's
        in_memory, on_disk = (0, kept_bytes) if plan.signals_on_disk else (kept_bytes, 0)
        its = self.also.plan(n_samples, held_bytes=held_bytes + in_memory)
        need = plan.need
        if need is not None and its.need is not None:
            need = Need(
                max(need.memory_bytes, its.need.memory_bytes + in_memory),
                max(need.disk_bytes, its.need.disk_bytes + on_disk),
            )
        return replace(plan, need=need, also=its)

    def run(
        self,
        mixture: Signals,
        plan: Plan,
        *,
        silence: float = 0.0,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Passage:
        """Get a mixture through the model; what fails for want of memory is tried again with less.

        Args:
            mixture: One signal, at the model's sample rate.
            plan: What `plan` says.
            silence: Peak up to which sound is no speech.
            progress: Told the share that is done.

        Raises:
            NotEnoughMemory: Even the least was too much.
            OutputError: The disk was full.
        """
        passage = Passage(plan, self.device)
        n_passes = len(self._variants) + (self.also is not None)
        while True:
            try:
                self._execute(passage, mixture, silence, n_passes, progress)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = passage.device.type
            self._go_on_with_less(passage, mixture.n_samples)
            passage.warnings.append(f"{failed} ran out of memory; {self._describe(passage)}")
        if self.also is not None:
            tell = _told_of_all(progress, n_passes - 1, n_passes)
            other = self.also.run(
                mixture, plan.also or self.also.plan(mixture.n_samples), silence=silence, progress=tell
            )
            passage.warnings += [warning for warning in other.warnings if warning not in passage.warnings]
            for estimates in (passage.estimates, other.estimates):
                explain(mixture, estimates)
            blend(passage.estimates, other.estimates, Variant(), ALSO_SHARE, self.sample_rate)
        return passage

    def _execute(
        self,
        passage: Passage,
        mixture: Signals,
        silence: float,
        n_passes: int,
        progress: Callable[[float], None],
    ) -> None:
        plan, folder = passage.plan, spill_folder()
        try:
            for number, variant in enumerate(self._variants):
                changed = variant.of(mixture)
                estimates = StoredSignals(
                    self.n_sources, changed.n_samples, folder if plan.signals_on_disk else None
                )
                tell = _told_of_all(progress, number, n_passes)
                joins = self._pass(passage, changed, estimates, silence, tell)
                tell(1.0)
                if number == 0:
                    passage.estimates, passage.joins = estimates, joins
                else:
                    blend(passage.estimates, estimates, variant, 1 / (number + 1), self.sample_rate)
                del estimates  # before there is room for those of the next pass
        except OSError as error:
            raise full_disk(plan.need.disk_bytes if plan.need else 0, folder) from error

    def _pass(
        self,
        passage: Passage,
        mixture: Signals,
        estimates: StoredSignals,
        silence: float,
        progress: Callable[[float], None],
    ) -> list[Join]:
        """Write the estimates of one pass down; return the joins of its chunks."""
        plan = passage.plan
        if plan.way == "chunks":
            return separate_in_chunks(
                lambda chunk: self._forward(passage, chunk), mixture, estimates, plan.chunk_length,
                plan.overlap, silence=silence, progress=progress,
            )  # fmt: skip
        if plan.way == "whole":
            estimates.write(0, self._forward(passage, mixture.read(0, mixture.n_samples)[0]))
        else:
            self._attempt(
                passage, lambda model: self._go_through(passage, model, mixture, estimates, progress)
            )
        return []

    def _go_through(
        self,
        passage: Passage,
        model: SeparationNetwork,
        mixture: Signals,
        found: StoredSignals,
        progress: Callable[[float], None],
    ) -> bool:
        """Write the estimates down as they come, unless one is not finite; return whether all are."""
        plan, first = passage.plan, 0
        samples = _OnDevice(mixture, passage.device)
        memory = FrameMemory(plan.frame_bytes, spill_folder())
        pieces = model.estimates_in_pieces(samples, memory, progress, piece_length=plan.piece_length)
        for piece in pieces:
            estimates = piece[0].float().cpu()
            if not _is_finite(estimates):
                return False
            found.write(first, estimates.numpy())
            first += estimates.shape[-1]
        return True

    def _forward(self, passage: Passage, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Let the model separate a mixture (time,) as a whole; return (source, time)."""
        batch, made = torch.from_numpy(mixture)[None], list[Tensor]()

        def call(model: SeparationNetwork) -> bool:
            made[:] = [separate(model, batch.to(passage.device))[0].float().cpu()]
            return _is_finite(made[0])

        self._attempt(passage, call)
        return made[0].numpy()

    def _attempt(self, passage: Passage, call: Callable[[SeparationNetwork], bool]) -> None:
        """Use the model; again on the CPU if the device fails, again in float32 if numbers overflow.

        Args:
            passage: Where, and what is to be said.
            call: Tells whether all numbers were finite.
        """

        def attempt(precision: Precision) -> bool:
            device = passage.device
            low = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
            with torch.inference_mode(), low:
                return call(_on(device, self.model, self._original))

        def attempt_anywhere(precision: Precision) -> bool:
            try:
                return attempt(precision)
            except RuntimeError as error:  # an operation or the device itself is missing
                if passage.device.type == "cpu" or is_out_of_memory(error):
                    raise
                reason = str(error).split("\n")[0]
                passage.warnings.append(f"{passage.device} failed ({reason}); going on on the CPU")
                passage.device = torch.device("cpu")
            return attempt(precision)

        finite = attempt_anywhere(self.precision)
        if not finite and self.precision != "float32":
            warning = f"numbers overflowed in {self.precision}; that part was done again in float32"
            if warning not in passage.warnings:
                passage.warnings.append(warning)
            finite = attempt_anywhere("float32")
        if not finite:
            raise SeparationError(
                "the model's answer is not finite; its weights are damaged or do not suit it"
            )

    def _go_on_with_less(self, passage: Passage, n_samples: int) -> None:
        """Change the plan to one that takes less memory, or else the device to the CPU."""
        if passage.device.type == "cuda":
            torch.cuda.empty_cache()
        leaner = self._planner.leaner(passage.plan, n_samples)
        if leaner is not None:
            passage.plan = leaner
        elif passage.device.type != "cpu":
            passage.device = torch.device("cpu")
            passage.plan = self._planner.plan(n_samples, passage.device)
        else:
            need = passage.plan.need
            raise self._planner.shortage(need.memory_bytes if need else None, free_memory(), n_samples)

    def _describe(self, passage: Passage) -> str:
        plan, where = passage.plan, "" if passage.device.type != "cpu" else " on the CPU"
        if plan.way == "chunks":
            return f"going on{where} with chunks of {plan.chunk_length / self.sample_rate:g} s"
        return f"going on{where} with temporary files" if plan.frame_bytes == 0 else f"going on{where}"


class _OnDevice:
    """A mixture as the networks read it: (1, some time) on a device."""

    def __init__(self, mixture: Signals, device: torch.device) -> None:
        self._mixture, self._device = mixture, device
        self.n_samples = mixture.n_samples

    def read(self, first: int, last: int) -> Tensor:
        return torch.from_numpy(self._mixture.read(first, last)).to(self._device)


def _on(device: torch.device, *models: SeparationNetwork) -> SeparationNetwork:
    """Return the first of equal models that is on the device, or else a copy of the last."""
    for model in models:
        if all(parameter.device == device for parameter in model.parameters()):
            return model
    return copy.deepcopy(models[-1]).to(device)


def _told_of_all(progress: Callable[[float], None], number: int, n_passes: int) -> Callable[[float], None]:
    """Return what tells the share of all passes, given that of one of them."""
    return lambda share: progress((number + share) / n_passes)


def _is_finite(x: Tensor) -> bool:
    low, high = x.aminmax()  # NaN and infinity show in these two
    return bool(low.isfinite() and high.isfinite())

"""What is measured, and what came out of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

OK = "ok"
NOT_RUN = "not run"
OUT_OF_MEMORY = "out of memory"
TIME_LIMIT = "time limit"
FAILED = "failed"
KILLED = "killed"

LOAD_MODEL = "flasepformer.models:load_model"
"""Builder of our own models."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on one recording, under fixed settings."""

    model: str
    """Name or checkpoint, as the builder takes it."""
    seconds: float
    """Length of the recording."""
    builder: str = LOAD_MODEL
    """`module:function` that makes the network of `model`, to be called in the measuring process."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    precision: str = "float32"
    """"float32", or "bfloat16" by autocast."""
    threads: int = 1
    """Threads of PyTorch."""

    @property
    def label(self) -> str:
        """The model's name; of a checkpoint the last part of its path."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_own(self) -> bool:
        """Whether this is one of our models, not a peer."""
        return self.builder == LOAD_MODEL

    def is_longer_than(self, other: "Case") -> bool:
        """Tell whether this is the other case with a longer recording."""
        settings = ("model", "builder", "device", "precision", "threads")
        same = all(getattr(self, name) == getattr(other, name) for name in settings)
        return same and self.seconds > other.seconds


@dataclass(kw_only=True)
class CaseResult:
    """What was measured of a case, round after round."""

    case: Case
    status: str = NOT_RUN
    """`OK`, or why there is no number."""
    error: str = ""
    """Traceback of a broken case, for the person; in no file, for it may name files of theirs."""
    round_seconds: list[float] = field(default_factory=list)
    """Median time of a pass, one value a round."""
    round_cpu_seconds: list[float] = field(default_factory=list)
    """Median time that a pass kept processors busy, all threads together, one value a round."""
    n_passes: int = 0
    """Timed passes, all rounds together."""
    peak_memories: list[int] = field(default_factory=list)
    """Bytes above the loaded model at the peak, one value a round."""
    n_parameters: int = 0
    """Trainable parameters, without auxiliary heads."""
    weight_bytes: int = 0
    """Bytes of all weights."""
    multiply_adds: int | None = None
    """Of one pass; None where they cannot be counted."""

    @property
    def ok(self) -> bool:
        """Whether there are numbers."""
        return self.status == OK

    @property
    def failed(self) -> bool:
        """Whether it was tried and gave no numbers."""
        return not self.ok and not self.status.startswith(NOT_RUN)

    @property
    def broken(self) -> bool:
        """Whether it failed in a way that no limit explains."""
        return self.status.startswith((FAILED, KILLED))

    @property
    def seconds(self) -> float:
        """Median time of a pass over the rounds."""
        return median(self.round_seconds)

    @property
    def cpu_seconds(self) -> float:
        """Median processor time of a pass; other work on the machine hardly changes it."""
        return median(self.round_cpu_seconds)

    @property
    def real_time_factor(self) -> float:
        """Time of a pass divided by the recording's length."""
        return self.seconds / self.case.seconds

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        return (max(self.round_seconds) - min(self.round_seconds)) / self.seconds

    @property
    def peak_memory(self) -> float:
        """Median over the rounds, in bytes above the loaded model."""
        return median(self.peak_memories)


def cases_for(
    models: Sequence[str],
    lengths: Iterable[float],
    *,
    builder: str = LOAD_MODEL,
    device: str = "cpu",
    precision: str = "float32",
    threads: int = 1,
) -> list[Case]:
    """Return a case for every model and length (s), shortest first, the models in turn at each length.

    Raises:
        ValueError: If a length is not positive, or two models would go by the same name in the results.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] <= 0:
        raise ValueError(f"lengths must be positive, in seconds, got {lengths}")
    models = list(dict.fromkeys(models))
    cases = [
        Case(
            model=model, seconds=seconds, builder=builder, device=device, precision=precision, threads=threads
        )
        for seconds in lengths
        for model in models
    ]
    labels = [case.label for case in cases[: len(models)]]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"several models are called {', '.join(twice)}; rename their folders")
    return cases

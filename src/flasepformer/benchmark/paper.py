"""The paper's experiment: FLA-SepReformer against softmax SepReformer of the same size, at 30 s.

Reference: Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528, measured there on an 80 GB GPU.
"""

from collections.abc import Sequence

from flasepformer.benchmark.cases import CaseResult
from flasepformer.files import markdown_table

PAPER_SECONDS = 30.0
"""Length of the paper's recording."""

PAPER_RESULTS = {"t": (2.29, 0.158), "b": (1.91, 0.209), "l": (1.49, 0.319)}
"""Size: how many times faster, and the share of the memory, as published."""

PAPER_MODELS = tuple(
    f"{family}-{size}" for size in PAPER_RESULTS for family in ("fla-sepreformer", "sepreformer")
)
"""The six models."""


def paper_table(results: Sequence[CaseResult]) -> str:
    """Return a Markdown table of speed-up and memory share beside the paper's.

    Returns:
        The table; empty if the six models were not measured in float32 at `PAPER_SECONDS`.
    """
    by_name = {
        result.case.label: result
        for result in results
        if result.case.seconds == PAPER_SECONDS and result.case.precision == "float32"
    }
    if not set(PAPER_MODELS) <= set(by_name):
        return ""
    rows = []
    for size, (speed_up, share) in PAPER_RESULTS.items():
        pair = by_name[f"fla-sepreformer-{size}"], by_name[f"sepreformer-{size}"]
        measured = _speed_up_and_share(*pair)
        rows.append((size.upper(), measured[0], f"{speed_up:.2f} x", measured[1], f"{share:.1%}"))
    header = ("size", "faster", "faster in the paper", "share of the memory", "share in the paper")
    title = f"FLA-SepReformer against softmax SepReformer at {PAPER_SECONDS:g} s:"
    return f"{title}\n\n{markdown_table(header, rows)}"


def _speed_up_and_share(linear: CaseResult, softmax: CaseResult) -> tuple[str, str]:
    failed = "; ".join(
        f"{result.case.label}: {result.status}" for result in (linear, softmax) if not result.ok
    )
    if failed:
        return failed, failed
    return f"{softmax.seconds / linear.seconds:.2f} x", f"{linear.peak_memory / softmax.peak_memory:.1%}"

"""What a model costs: time, real-time factor, peak memory and multiply-adds against the recording's length.

Every measurement runs in a process of its own, one at a time, round after round over all cases, so that
models compared in one run share the machine's noise. Beside them stand the machine's own limits, measured in
the same run.
"""

from flasepformer.benchmark.cases import Case, CaseResult, cases_for
from flasepformer.benchmark.harness import available_memory, measure_machine, run_case, run_cases
from flasepformer.benchmark.machine import MachineRates, describe_machine, versions
from flasepformer.benchmark.paper import PAPER_MODELS, PAPER_SECONDS, paper_table
from flasepformer.benchmark.peers import PEERS, PeerError, peer_cases
from flasepformer.benchmark.plots import draw_plots
from flasepformer.benchmark.report import Report, fit_slope
from flasepformer.benchmark.run import run_benchmark

__all__ = [
    "PAPER_MODELS",
    "PAPER_SECONDS",
    "PEERS",
    "Case",
    "CaseResult",
    "MachineRates",
    "PeerError",
    "Report",
    "available_memory",
    "cases_for",
    "describe_machine",
    "draw_plots",
    "fit_slope",
    "measure_machine",
    "paper_table",
    "peer_cases",
    "run_benchmark",
    "run_case",
    "run_cases",
    "versions",
]

"""How well models separate mixtures whose sources are known.

`evaluate` scores a model: one row for each mixture, then the summary. `compare` takes two such tables of the
same mixtures. `measure` scores models in all conditions of a model card.
`write_report` makes a page of one or several evaluations, with sounds and pictures.
"""

from flasepformer.evaluation.comparison import (
    Difference,
    check_same_sets,
    compare,
    comparison_as_dict,
    scatter_plot,
    write_comparison,
)
from flasepformer.evaluation.conditions import CONDITIONS, MeasuredSpeech
from flasepformer.evaluation.evaluate import evaluate
from flasepformer.evaluation.examples import Example, choose_examples, make_examples
from flasepformer.evaluation.measuring import measure
from flasepformer.evaluation.provenance import describe_set, versions
from flasepformer.evaluation.published_scores import (
    Reproduction,
    compare_with_published,
    find_published_score,
    n_published_mixtures,
)
from flasepformer.evaluation.report import write_report
from flasepformer.evaluation.rows import EvaluationRow, read_scores, write_scores
from flasepformer.evaluation.scoring import EXTRA_METRICS, METRICS, Metric, check_metrics, score_estimates
from flasepformer.evaluation.separating import describe_run, fix_options, label_run
from flasepformer.evaluation.statistics import bootstrap_interval
from flasepformer.evaluation.stored import StoredResult, load_result
from flasepformer.evaluation.streams import StreamOptions, summarise_blocks
from flasepformer.evaluation.summary import EvaluationResult, Summary
from flasepformer.inference import weights_digest

__all__ = [
    "CONDITIONS",
    "EXTRA_METRICS",
    "METRICS",
    "Difference",
    "EvaluationResult",
    "EvaluationRow",
    "Example",
    "MeasuredSpeech",
    "Metric",
    "Reproduction",
    "StoredResult",
    "StreamOptions",
    "Summary",
    "bootstrap_interval",
    "check_metrics",
    "check_same_sets",
    "choose_examples",
    "compare",
    "compare_with_published",
    "comparison_as_dict",
    "describe_run",
    "describe_set",
    "evaluate",
    "find_published_score",
    "fix_options",
    "label_run",
    "load_result",
    "make_examples",
    "measure",
    "n_published_mixtures",
    "read_scores",
    "scatter_plot",
    "score_estimates",
    "summarise_blocks",
    "versions",
    "weights_digest",
    "write_comparison",
    "write_report",
    "write_scores",
]

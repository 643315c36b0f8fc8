"""Score a model on mixtures with known sources: one row for each mixture, then the summary."""

from flasepformer.evaluation.evaluate import METRICS, EvaluationResult, EvaluationRow, Summary, evaluate

__all__ = ["METRICS", "EvaluationResult", "EvaluationRow", "Summary", "evaluate"]

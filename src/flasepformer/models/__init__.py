"""The networks, one file per family, and how to get one: by name or from a checkpoint."""

from flasepformer.models.checkpoints import (
    CheckpointError,
    list_models,
    load_described_model,
    load_model,
    model_info,
    save_model,
)
from flasepformer.models.registry import DEFAULT_MODEL, ModelInfo, count_parameters
from flasepformer.models.sepreformer import SepReformer, SepReformerConfig

__all__ = [
    "DEFAULT_MODEL",
    "CheckpointError",
    "ModelInfo",
    "SepReformer",
    "SepReformerConfig",
    "count_parameters",
    "list_models",
    "load_described_model",
    "load_model",
    "model_info",
    "save_model",
]

"""The networks, one file per family, and how to get one: by name or from a checkpoint."""

from flasepformer.models.checkpoints import (
    convert_checkpoint,
    list_models,
    load_described_model,
    load_model,
    model_info,
    save_model,
)
from flasepformer.models.errors import CheckpointError
from flasepformer.models.hub import HubError, download_model, push_to_hub
from flasepformer.models.multiply_adds import multiply_adds
from flasepformer.models.network import SeparationNetwork, separate
from flasepformer.models.registry import DEFAULT_MODEL, ModelInfo, count_parameters
from flasepformer.models.sepreformer import SepReformer, SepReformerConfig
from flasepformer.models.tflocoformer import TFLocoformer, TFLocoformerConfig

__all__ = [
    "DEFAULT_MODEL",
    "CheckpointError",
    "HubError",
    "ModelInfo",
    "SepReformer",
    "SepReformerConfig",
    "SeparationNetwork",
    "TFLocoformer",
    "TFLocoformerConfig",
    "convert_checkpoint",
    "count_parameters",
    "download_model",
    "list_models",
    "load_described_model",
    "load_model",
    "model_info",
    "multiply_adds",
    "push_to_hub",
    "save_model",
    "separate",
]

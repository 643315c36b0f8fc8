"""The networks, one file per family, and how to get one: by name or from a checkpoint."""

from flasepformer.models.checkpoints import (
    convert_checkpoint,
    list_models,
    load_described_model,
    load_filter,
    load_model,
    model_info,
    save_model,
    shipped_offer,
)
from flasepformer.models.errors import CheckpointError
from flasepformer.models.hub import HubError, download_model, push_to_hub
from flasepformer.models.multiply_adds import multiply_adds
from flasepformer.models.network import SeparationNetwork, separate
from flasepformer.models.published import (
    LicenceNotAccepted,
    PublishedError,
    PublishedModel,
    PublishedScore,
    find_published,
    local_copy,
    obtain,
    published_models,
)
from flasepformer.models.registry import DEFAULT_MODEL, FAST_MODEL, ModelInfo, count_parameters
from flasepformer.models.sepreformer import SepReformer, SepReformerConfig
from flasepformer.models.tflocoformer import TFLocoformer, TFLocoformerConfig

__all__ = [
    "DEFAULT_MODEL",
    "FAST_MODEL",
    "CheckpointError",
    "HubError",
    "LicenceNotAccepted",
    "ModelInfo",
    "PublishedError",
    "PublishedModel",
    "PublishedScore",
    "SepReformer",
    "SepReformerConfig",
    "SeparationNetwork",
    "TFLocoformer",
    "TFLocoformerConfig",
    "convert_checkpoint",
    "count_parameters",
    "download_model",
    "find_published",
    "list_models",
    "load_described_model",
    "load_filter",
    "load_model",
    "local_copy",
    "model_info",
    "multiply_adds",
    "obtain",
    "published_models",
    "push_to_hub",
    "save_model",
    "separate",
    "shipped_offer",
]

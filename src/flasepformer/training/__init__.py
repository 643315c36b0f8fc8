"""Training: a recipe and single-talker speech go in, a checkpoint and its curve come out."""

from flasepformer.training.loop import train
from flasepformer.training.losses import magnitude_loss, multi_stage_loss, si_snr_loss
from flasepformer.training.packing import pack_run, unpack_run
from flasepformer.training.recipe import DataConfig, OptimizationConfig, Recipe, load_recipe, save_recipe
from flasepformer.training.run_folder import TrainingError
from flasepformer.training.schedules import Plateau, learning_rate
from flasepformer.training.speech_packing import PackedSpeech, pack_speech

__all__ = [
    "DataConfig",
    "OptimizationConfig",
    "PackedSpeech",
    "Plateau",
    "Recipe",
    "TrainingError",
    "learning_rate",
    "load_recipe",
    "magnitude_loss",
    "multi_stage_loss",
    "pack_run",
    "pack_speech",
    "save_recipe",
    "si_snr_loss",
    "train",
    "unpack_run",
]

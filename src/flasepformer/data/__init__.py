"""Speech in, mixtures out: lists of recordings, dynamic mixing for training, fixed sets for evaluation."""

from flasepformer.data.dynamic_mixing import DynamicMixing, DynamicMixingConfig
from flasepformer.data.manifest import Utterance, check_disjoint, read_utterances
from flasepformer.data.mixture_sets import (
    Mixture,
    MixtureFolder,
    MixtureList,
    MixtureSet,
    MixtureSpec,
    make_mixture_list,
    open_mixtures,
    read_mixture_list,
    render,
    write_mixture_list,
)
from flasepformer.data.speech_store import SpeechStore

__all__ = [
    "DynamicMixing",
    "DynamicMixingConfig",
    "Mixture",
    "MixtureFolder",
    "MixtureList",
    "MixtureSet",
    "MixtureSpec",
    "SpeechStore",
    "Utterance",
    "check_disjoint",
    "make_mixture_list",
    "open_mixtures",
    "read_mixture_list",
    "read_utterances",
    "render",
    "write_mixture_list",
]

"""Speech in, mixtures out: mixed anew for training, or in fixed sets that are read, checked or made.

A set on disk is listed in a CSV manifest: `check_published_set` writes one for what was downloaded,
`make_set` for what it makes. `open_mixtures` opens it for evaluation; training takes `FixedMixtures` of its
splits (`read_split`), or its sources as utterances (`read_utterances`) for `DynamicMixing`.
"""

from flasepformer.data.dynamic_mixing import DynamicMixing, DynamicMixingConfig
from flasepformer.data.fixed_mixtures import Examples, FixedMixtures
from flasepformer.data.long_mixtures import LONG_SECONDS, LongMixture
from flasepformer.data.manifest import Utterance, check_disjoint, read_utterances, shared_speakers
from flasepformer.data.mixture import Mixture, MixtureSet
from flasepformer.data.mixture_manifest import (
    MixtureFiles,
    read_mixture_manifest,
    read_split,
    write_mixture_manifest,
)
from flasepformer.data.mixture_sets import (
    MixtureFolder,
    MixtureList,
    MixtureManifest,
    MixtureSpec,
    make_mixture_list,
    open_mixtures,
    read_mixture_list,
    render,
    write_mixture_list,
)
from flasepformer.data.published_sets import PUBLISHED_SETS, SetReport, check_published_set
from flasepformer.data.set_making import (
    PlannedMixture,
    SetConfig,
    estimated_bytes,
    make_set,
    plan_conversations,
    plan_mixtures,
)
from flasepformer.data.speech_store import SpeechStore
from flasepformer.data.turn_taking import TurnTaking

__all__ = [
    "LONG_SECONDS",
    "PUBLISHED_SETS",
    "DynamicMixing",
    "DynamicMixingConfig",
    "Examples",
    "FixedMixtures",
    "LongMixture",
    "Mixture",
    "MixtureFiles",
    "MixtureFolder",
    "MixtureList",
    "MixtureManifest",
    "MixtureSet",
    "MixtureSpec",
    "PlannedMixture",
    "SetConfig",
    "SetReport",
    "SpeechStore",
    "TurnTaking",
    "Utterance",
    "check_disjoint",
    "check_published_set",
    "estimated_bytes",
    "make_mixture_list",
    "make_set",
    "open_mixtures",
    "plan_conversations",
    "plan_mixtures",
    "read_mixture_list",
    "read_mixture_manifest",
    "read_split",
    "read_utterances",
    "render",
    "shared_speakers",
    "write_mixture_list",
    "write_mixture_manifest",
]

"""Read, write and resample recordings: numpy arrays on one side, files as people have them on the other.

What a file holds is decided by its content, never by its name. A recording that is damaged or cut short is
read as far as it goes, and `Recording.warnings` says what is missing; one that cannot be read at all raises
`AudioError` with the sentence to show. `RecordingFile` goes through one of any length, block by block, with
`resample_blocks` and `write_blocks`, whose samples are those of `resample` and `write_audio`. Nothing here
imports torch.
"""

from flasepformer.audio.blocks import BLOCK_LENGTH, ArrayStream, Stream, regular_blocks, silent_blocks
from flasepformer.audio.levels import Products, explaining_gains, gains_of
from flasepformer.audio.live_resampling import LiveResampler
from flasepformer.audio.mixdown import Channels, MixDown, mix_down, talkers_have_channels
from flasepformer.audio.reading import AUDIO_EXTENSIONS, KEPT_BYTES, RecordingFile, read_audio
from flasepformer.audio.recording import AudioError, Recording
from flasepformer.audio.resampling import resample, resample_blocks, resampled_length
from flasepformer.audio.stored import StoredSignals
from flasepformer.audio.writing import WRITABLE_FORMATS, allowed_rate, write_audio, write_blocks

__all__ = [
    "AUDIO_EXTENSIONS",
    "BLOCK_LENGTH",
    "KEPT_BYTES",
    "WRITABLE_FORMATS",
    "ArrayStream",
    "AudioError",
    "Channels",
    "LiveResampler",
    "MixDown",
    "Products",
    "Recording",
    "RecordingFile",
    "StoredSignals",
    "Stream",
    "allowed_rate",
    "explaining_gains",
    "gains_of",
    "mix_down",
    "read_audio",
    "regular_blocks",
    "resample",
    "resample_blocks",
    "resampled_length",
    "silent_blocks",
    "talkers_have_channels",
    "write_audio",
    "write_blocks",
]

"""Read, write and resample recordings: numpy arrays on one side, files as people have them on the other.

What a file holds is decided by its content, never by its name. A recording that is damaged or cut short is
read as far as it goes, and `Recording.warnings` says what is missing; one that cannot be read at all raises
`AudioError` with the sentence to show. Nothing here imports torch.
"""

from flasepformer.audio.live_resampling import LiveResampler
from flasepformer.audio.mixdown import mix_down, talkers_have_channels
from flasepformer.audio.reading import AUDIO_EXTENSIONS, read_audio
from flasepformer.audio.recording import AudioError, Recording
from flasepformer.audio.resampling import resample
from flasepformer.audio.writing import WRITABLE_FORMATS, allowed_rate, write_audio

__all__ = [
    "AUDIO_EXTENSIONS",
    "WRITABLE_FORMATS",
    "AudioError",
    "LiveResampler",
    "Recording",
    "allowed_rate",
    "mix_down",
    "read_audio",
    "resample",
    "talkers_have_channels",
    "write_audio",
]

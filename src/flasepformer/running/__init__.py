"""How a network's score is played: with all frames at once, in pieces of time, or live; knows layers only."""

from flasepformer.running.frames import FrameMemory, Frames
from flasepformer.running.performers import Following, Live, Performer, Whole
from flasepformer.running.pieces import Made, Pieces, Readable
from flasepformer.running.signals import OverlapAdd, Samples, TensorSamples, read_reflected, read_with_zeros
from flasepformer.running.threads import Threads

__all__ = [
    "Following",
    "FrameMemory",
    "Frames",
    "Live",
    "Made",
    "OverlapAdd",
    "Performer",
    "Pieces",
    "Readable",
    "Samples",
    "TensorSamples",
    "Threads",
    "Whole",
    "read_reflected",
    "read_with_zeros",
]

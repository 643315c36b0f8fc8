from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

SAMPLE_RATE = 16_000


@pytest.fixture(scope="session")
def speechlike() -> np.ndarray:
    """Three seconds at 16 kHz that codecs like and no two places of which look alike: (48000,), float32."""
    rng = np.random.default_rng(7)
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time) * (0.6 + 0.4 * np.sin(6 * np.pi * time))
    return (tone + 0.02 * rng.standard_normal(time.size)).astype(np.float32)


@pytest.fixture(scope="session")
def encode_media() -> Callable[..., Path]:
    return _encode_media


def _encode_media(
    path: Path,
    codec: str,
    tracks: Sequence[np.ndarray],
    *,
    rate: int = SAMPLE_RATE,
    video: bool = False,
    start_seconds: float = 0.0,
    silent_gap: tuple[int, int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write mono tracks with PyAV; `silent_gap` leaves out the frames between two samples, times kept."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        picture = container.add_stream("mpeg4", rate=10) if video else None
        streams = [container.add_stream(codec, rate=rate, layout="mono") for _ in tracks]
        if picture is not None:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            for _ in range(30):
                black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(black))
            container.mux(picture.encode(None))
        for stream, track in zip(streams, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(track[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            context = stream.codec_context
            if not context.is_open:  # the first packet of another stream opens them all
                context.open()
            cut = av.AudioResampler(context.format, "mono", rate, frame_size=context.frame_size or 1024)
            for part in [*cut.resample(frame), *cut.resample(None)]:
                for packet in stream.encode(part):
                    _mux(container, packet, rate, start_seconds, silent_gap)
            for packet in stream.encode(None):
                _mux(container, packet, rate, start_seconds, silent_gap)
    return path


def _mux(container, packet, rate, start_seconds, silent_gap):
    at = float(packet.pts * packet.time_base) * rate
    if silent_gap is not None and silent_gap[0] <= at < silent_gap[1]:
        return
    shift = round(start_seconds / packet.time_base)
    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    container.mux(packet)


@pytest.fixture(scope="session")
def lag() -> Callable[[np.ndarray, np.ndarray], int]:
    return _lag


def _lag(late: np.ndarray, reference: np.ndarray) -> int:
    """Samples by which the first signal comes later than the second, by their cross-correlation."""
    n = 1 << (len(late) + len(reference)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(late, n) * np.fft.rfft(reference, n).conj())
    peak = int(np.argmax(np.abs(correlation)))
    return peak if peak < n // 2 else peak - n

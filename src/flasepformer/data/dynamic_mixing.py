"""Dynamic mixing: mixtures of random talkers, drawn anew for every step of the training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from flasepformer.data.acoustics import Noise, RoomResponse, equalize, load_rooms, low_pass, rms
from flasepformer.data.simulated_rooms import simulate_rooms
from flasepformer.data.speech_store import SpeechStore

SIMULATED = "simulated"  # in place of a folder of rooms
_KEEP_TURN = 0.2  # how often a talker goes on after a pause
_N_DRAWS = 100  # of one example, before the whole set is held to be silent


@dataclass(frozen=True, kw_only=True)
class DynamicMixingConfig:
    """How mixtures are drawn."""

    n_sources: int = 2
    """Speakers in each mixture."""
    segment_seconds: float = 4.0
    """Length of every mixture."""
    gain_range_db: tuple[float, float] = (-2.5, 2.5)
    """Level of each source, about `level_db`."""
    level_db: float = -26.0
    """RMS level of a source at gain 0, against full scale."""
    max_peak: float = 0.9
    """A mixture above it is turned down as a whole."""
    speed_range: tuple[float, float] = (0.95, 1.05)
    """Playing speed of each source, in hundredths; above 1 is faster and higher."""
    fill_probability: float = 0.9
    """How often other utterances of the speaker follow one that is shorter than the segment."""
    pause_seconds: tuple[float, float] = (0.05, 0.5)
    """Silence between two utterances that follow each other."""
    min_filled: float = 0.75
    """Least share of the segment that a source covers, its pauses included; so two overlap in half of it."""
    speaker_balance: float = 0.5
    """0 draws a speaker as often as there is speech of them, 1 every speaker equally often."""
    silence_db: float = -50.0
    """A crop below this level, against its utterance, is drawn again."""
    equalization_db: float = 0.0
    """Largest slope, and largest shelf at either end, that colours each source; its level stays."""
    absent_probability: float = 0.0
    """How often one talker speaks alone and the other sources are silent."""
    conversation_probability: float = 0.0
    """How often the talkers take turns, as in a conversation, instead of all speaking all the time."""
    long_conversation_probability: float = 0.0
    """The same for segments that are longer than `segment_seconds`; see `OptimizationConfig.long_every`."""
    turn_seconds: tuple[float, float] = (0.5, 15.0)
    """Length of a turn of a conversation; short ones are as frequent as their logarithm."""
    turn_pause_seconds: tuple[float, float] = (0.0, 10.0)
    """Silence between two turns; each conversation draws its own longest one within this, short ones are more
    frequent."""
    turn_overlap_probability: float = 0.6
    """How often a conversation has turns that begin before the last one ends: in such a one, any share of
    them, many more often than few, by any part of the shorter of both turns."""
    rooms: str = ""
    """Folder of room responses, where a file is a room, and so is a folder of files; "simulated" draws rooms
    as WHAMR! has them, empty stays dry. All talkers of a mixture are in one room."""
    n_simulated_rooms: int = 200
    """How many are drawn before the training."""
    decay_seconds: tuple[float, float] = (0.2, 0.6)
    """Time in which their reverberation falls by 60 dB."""
    room_probability: float = 1.0
    """How often a mixture is in a room."""
    room_target: Literal["dry", "early"] = "dry"
    """What the sources are then: without the room, or with its early reflections."""
    early_seconds: float = 0.05
    """Reflections that reach the microphone so long after the direct sound are early."""
    noise: tuple[str, ...] = ()
    """Folders with recordings of noise; none adds none."""
    noise_probability: float = 1.0
    """How often a mixture has noise."""
    noise_snr_db: tuple[float, float] = (0.0, 20.0)
    """Level of all talkers together, above the noise."""
    band_limit_probability: float = 0.0
    """How often everything above a limit is cut off, as in a telephone or a codec: mixture and sources."""
    band_limit_hz: tuple[float, float] = (2000.0, 3600.0)
    """Where that limit lies."""

    def __post_init__(self) -> None:
        if self.n_sources < 1:
            raise ValueError(f"n_sources must be at least 1, got {self.n_sources}")
        if not self.segment_seconds > 0:
            raise ValueError(f"segment_seconds must be positive, got {self.segment_seconds}")
        for name in (
            "gain_range_db", "speed_range", "pause_seconds", "noise_snr_db", "band_limit_hz", "decay_seconds",
            "turn_seconds", "turn_pause_seconds",
        ):  # fmt: skip
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must run from low to high, got {(low, high)}")
        if self.speed_range[0] < 0.5 or self.speed_range[1] > 2:
            raise ValueError(f"speed_range must lie within 0.5 to 2, got {self.speed_range}")
        for name in (
            "fill_probability", "min_filled", "speaker_balance", "absent_probability",
            "room_probability", "noise_probability", "band_limit_probability", "conversation_probability",
            "long_conversation_probability", "turn_overlap_probability",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie within 0 to 1, got {getattr(self, name)}")
        if not self.band_limit_hz[0] > 0:
            raise ValueError(f"band_limit_hz must be positive, got {self.band_limit_hz}")
        if not self.turn_seconds[0] > 0:
            raise ValueError(f"turn_seconds must be positive, got {self.turn_seconds}")
        if not self.turn_pause_seconds[0] >= 0:
            raise ValueError(f"turn_pause_seconds must not be negative, got {self.turn_pause_seconds}")
        if isinstance(self.noise, str):
            raise ValueError(f"noise must be a list of folders, got {self.noise!r}")
        if self.n_simulated_rooms < 1:
            raise ValueError(f"n_simulated_rooms must be at least 1, got {self.n_simulated_rooms}")
        for name in ("equalization_db", "early_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class DynamicMixing:
    """An endless list of training mixtures; example `i` depends on the seed and on `i`, and on nothing else.

    So any worker, and any run that is resumed, makes the same mixtures.

    Args:
        store: The speech; its sample rate is that of the mixtures.
        config: How mixtures are drawn.
        seed: Another seed, another list.
        cache: Folder that keeps the decoded noise and the simulated rooms; see `SpeechStore.load`.

    Raises:
        ValueError: There are fewer speakers than sources, or no rooms or noise where the config says.
    """

    def __init__(
        self,
        store: SpeechStore,
        config: DynamicMixingConfig,
        seed: int,
        *,
        cache: str | Path | None = None,
    ) -> None:
        self.store, self.config, self.seed = store, config, seed
        self.n_samples = round(config.segment_seconds * store.sample_rate)
        by_speaker: dict[str, list[int]] = {}
        for i, utterance in enumerate(store.utterances):
            by_speaker.setdefault(utterance.speaker, []).append(i)
        if len(by_speaker) < config.n_sources:
            raise ValueError(f"mixtures of {config.n_sources} need as many speakers, got {len(by_speaker)}")
        self._utterances = list(by_speaker.values())
        amount = np.array([sum(map(store.length, indices)) for indices in by_speaker.values()], dtype=float)
        weight = amount ** (1 - config.speaker_balance)
        self._speaker_probability = weight / weight.sum()
        noisy = config.noise and config.noise_probability > 0
        self._noise = Noise.load(config.noise, store.sample_rate, cache) if noisy else None
        self._rooms = self._load_rooms(cache) if config.rooms and config.room_probability > 0 else None

    def example(self, index: int, seconds: float | None = None) -> tuple[Tensor, Tensor]:
        """Return mixture (time,) and sources (source, time), float32.

        The mixture is the sum of the sources, and of reverberation and noise where the config has them.

        Args:
            index: Which one.
            seconds: Its length; None takes `segment_seconds`. Another length, another mixture.
        """
        rng = np.random.default_rng([self.seed, index])
        n_samples = self.n_samples if seconds is None else round(seconds * self.store.sample_rate)
        for _ in range(_N_DRAWS):
            sources = self._draw(rng, n_samples)
            if sources is not None:
                return self._record(rng, sources)
        raise ValueError(f"{_N_DRAWS} draws in a row fell below {self.config.silence_db} dB: silent speech?")

    def batch(self, first_index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return `batch_size` examples from `first_index` on: (batch, time) and (batch, source, time)."""
        mixtures, sources = zip(*map(self.example, range(first_index, first_index + batch_size)), strict=True)
        return torch.stack(mixtures), torch.stack(sources)

    def batches(self, first_index: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batch after batch without end, as `batch` returns them."""
        while True:
            yield self.batch(first_index, batch_size)
            first_index += batch_size

    def _draw(self, rng: np.random.Generator, n_samples: int) -> NDArray[np.float32] | None:
        """Return sources (source, time), or None when one of them is silent."""
        config = self.config
        is_long = n_samples > self.n_samples
        share = config.long_conversation_probability if is_long else config.conversation_probability
        converse = share > 0 and rng.random() < share
        speakers = rng.choice(
            len(self._utterances), config.n_sources, replace=False, p=self._speaker_probability
        )
        turns = draw_turns(rng, n_samples, self.store.sample_rate, config) if converse else []
        if converse and not turns:
            return None
        sources = np.zeros((config.n_sources, n_samples), dtype=np.float32)
        for talker, speaker in enumerate(speakers):
            own = [turn for turn in turns if turn.talker == talker]
            if converse and not own:
                continue  # who never has a turn is silent
            n_heard = sum(turn.stop - turn.start for turn in own) if converse else n_samples
            speed = round(rng.uniform(*config.speed_range), 2)  # hundredths halve the time of the resampler
            utterances, n_drawn = self._utterances[speaker], round(n_heard * speed)
            if converse:
                speech = monologue(self.store, rng, utterances, n_drawn)
            else:
                speech = self._speech(rng, utterances, n_drawn)
            if np.sqrt(np.mean(np.square(speech))) < 10 ** (config.silence_db / 20):
                return None
            gain = 10 ** ((config.level_db + rng.uniform(*config.gain_range_db)) / 20)
            speech = gain * _fit(speech, n_heard)
            if not converse:
                sources[talker] = speech
            for turn in own:
                sources[talker, turn.start : turn.stop], speech = np.split(speech, [turn.stop - turn.start])
        if not converse and config.absent_probability and rng.random() < config.absent_probability:
            sources[np.arange(config.n_sources) != rng.integers(config.n_sources)] = 0
        return sources

    def _record(self, rng: np.random.Generator, sources: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Return mixture and sources as a microphone hears them, in surroundings drawn anew."""
        config, sample_rate = self.config, self.store.sample_rate
        if config.equalization_db:
            sources = np.stack([equalize(s, sample_rate, config.equalization_db, rng) for s in sources])
        rest = np.zeros((0, sources.shape[-1]), np.float32)  # what the mixture holds besides the sources
        if self._rooms and rng.random() < config.room_probability:
            sources, rest = self._in_a_room(rng, sources)
        if self._noise and rng.random() < config.noise_probability:
            speech = np.concatenate([sources, rest]).sum(0)
            noise = self._noise.draw(rng, sources.shape[-1])
            snr = 10 ** (rng.uniform(*config.noise_snr_db) / 20)
            noise *= rms(speech) / (snr * max(rms(noise), 1e-9))
            rest = np.concatenate([rest, noise[None]])
        if rng.random() < config.band_limit_probability:
            limit = rng.uniform(*config.band_limit_hz)
            sources, rest = (low_pass(tracks, sample_rate, limit) for tracks in (sources, rest))
        peak = np.abs(sources.sum(0) + rest.sum(0)).max()
        scale = np.float32(min(1.0, config.max_peak / peak))
        heard = torch.from_numpy(sources * scale)
        mixture = heard.sum(0)
        return (mixture + torch.from_numpy(rest * scale).sum(0) if len(rest) else mixture), heard

    def _in_a_room(
        self, rng: np.random.Generator, sources: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the targets (source, time) in a room, and what it adds to each; no talker gets louder."""
        assert self._rooms
        room = self._rooms[rng.integers(len(self._rooms))]
        n_early = round(self.config.early_seconds * self.store.sample_rate)
        targets, wet = np.empty_like(sources), np.empty_like(sources)
        for k, source in enumerate(sources):
            response = room[rng.integers(len(room))]
            heard = response.apply(source)
            target = source if self.config.room_target == "dry" else response.early(n_early).apply(source)
            level = np.float32(rms(source) / max(rms(heard), 1e-9))  # an absent talker stays silent
            targets[k], wet[k] = level * target, level * heard
        return targets, wet - targets

    def _load_rooms(self, cache: str | Path | None) -> list[list[RoomResponse]]:
        config, sample_rate = self.config, self.store.sample_rate
        if config.rooms != SIMULATED:
            return load_rooms(config.rooms, sample_rate)
        return simulate_rooms(
            config.n_simulated_rooms, config.n_sources, config.decay_seconds, sample_rate, seed=self.seed,
            cache=cache,
        )  # fmt: skip

    def _speech(self, rng: np.random.Generator, indices: list[int], n_samples: int) -> NDArray[np.float32]:
        """Return a random stretch of one speaker: a crop, or utterances in a row with pauses between."""
        store, config = self.store, self.config
        order: list[int] = rng.permutation(indices).tolist()
        length = store.length(order[0])
        if length >= n_samples:
            start = int(rng.integers(length - n_samples + 1))
            return store.waveform(order[0], start, start + n_samples)
        fill = rng.random() < config.fill_probability
        pieces, total = [store.waveform(order[0])], length
        for k in range(1, n_samples):
            if total >= n_samples * (1.0 if fill and k < len(order) else config.min_filled):
                break
            pause = round(rng.uniform(*config.pause_seconds) * store.sample_rate)
            piece = store.waveform(order[k % len(order)])  # over again for whoever said too little
            pieces += [np.zeros(pause, np.float32), piece]
            total += pause + len(piece)
        speech = np.concatenate(pieces)
        if total >= n_samples:
            start = int(rng.integers(total - n_samples + 1))
            return speech[start : start + n_samples]
        before = rng.integers(n_samples - total + 1)
        return np.pad(speech, (before, n_samples - total - before))


def monologue(
    store: SpeechStore, rng: np.random.Generator, indices: Sequence[int], n_samples: int
) -> NDArray[np.float32]:
    """Return so much of what one speaker says, utterance after utterance, begun anywhere, without pauses.

    Args:
        store: The speech.
        rng: Draws the order of the utterances, and where the first one begins.
        indices: Utterances of the speaker; over again if they are not enough.
        n_samples: Length.
    """
    order: list[int] = rng.permutation(indices).tolist()
    start = int(rng.integers(store.length(order[0])))
    pieces, total = [store.waveform(order[0], start)], store.length(order[0]) - start
    for k in range(1, n_samples):
        if total >= n_samples:
            break
        pieces.append(store.waveform(order[k % len(order)]))
        total += len(pieces[-1])
    return np.concatenate(pieces)[:n_samples]


class TurnSamples(NamedTuple):
    """A turn of a talker in a segment, in samples."""

    talker: int
    start: int
    stop: int


def draw_turns(
    rng: np.random.Generator, n_samples: int, sample_rate: int, config: DynamicMixingConfig
) -> list[TurnSamples]:
    """Let talkers take turns until the end of a segment, where the last turn is cut.

    Turns of one talker never overlap. After a turn another talker follows, or now and then the same one.

    Args:
        rng: Draws who speaks, the turns, the pauses and the overlaps.
        n_samples: Length of the segment.
        sample_rate: Hz.
        config: `n_sources`, and what begins with `turn_`.
    """
    shortest, longest = np.log(config.turn_seconds)
    low, high = config.turn_pause_seconds
    high = low + (high - low) * rng.random()
    overlaps = rng.random() < config.turn_overlap_probability
    overlap_share = rng.random() ** 0.25 if overlaps else 0.0  # of the turns
    turns: list[TurnSamples] = []
    talker = int(rng.integers(config.n_sources))
    end = last_end = last_start = -round(
        rng.random() * np.exp(longest) * sample_rate
    )  # the segment begins anywhere
    free = np.full(config.n_sources, end)  # when each has finished
    while True:
        length = max(1, round(float(np.exp(rng.uniform(shortest, longest))) * sample_rate))
        pause = round(float(low + (high - low) * rng.random() ** 2) * sample_rate)
        start = end + pause
        if turns and free[talker] < last_end and rng.random() < overlap_share:
            shorter = min(length, last_end - max(last_start, 0))
            start = max(last_end - round(rng.random() * shorter), int(free[talker]))
        if start >= n_samples:
            return turns
        turn = TurnSamples(talker, max(start, 0), min(start + length, n_samples))
        if turn.stop - turn.start >= np.exp(shortest) * sample_rate - 1:  # else too little to tell a voice by
            turns.append(turn)
        last_start, free[talker] = start, start + length
        last_end = start + length
        end = int(free.max())
        if config.n_sources > 1 and rng.random() > _KEEP_TURN:
            talker = int((talker + 1 + rng.integers(config.n_sources - 1)) % config.n_sources)


def _fit(waveform: NDArray[np.float32], n_samples: int) -> NDArray[np.float32]:
    """Resample to exactly `n_samples`."""
    if len(waveform) == n_samples:
        return waveform
    fitted = soxr.resample(waveform, len(waveform), n_samples)[:n_samples]
    return np.pad(fitted, (0, n_samples - len(fitted)))

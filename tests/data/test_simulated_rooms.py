import numpy as np
import pytest

from flasepformer.data.simulated_rooms import SimulatedRoom, draw_room, simulate_rooms

BOOTH = SimulatedRoom((5.0, 6.0, 3.0), (2.5, 3.0, 1.5), ((2.5, 4.0, 1.5), (1.5, 3.0, 1.2)), 0.2)


def test_the_whole_response_is_the_direct_path_and_what_follows_it():
    for (direct, whole), metres in zip(BOOTH.responses(8000), (1.0, np.hypot(1, 0.3)), strict=True):
        assert direct.direct == whole.direct == pytest.approx(40 + metres / 343 * 8000, abs=1)
        assert np.linalg.norm(direct.samples) == pytest.approx(1.0)
        difference = whole.samples[: whole.direct + 10] - direct.samples[: whole.direct + 10]
        assert np.abs(difference).max() < 0.05  # the first wall is 1.5 m away
        late = np.square(whole.samples[whole.direct + 40 :], dtype=float).sum()
        assert 0.1 < late < 3


def test_reverberation_decays_as_asked_for():
    energies = []
    for seconds in (0.2, 0.4):
        room = SimulatedRoom(BOOTH.size, BOOTH.microphone, BOOTH.talkers[:1], seconds)
        ((_, whole),) = room.responses(8000)
        decay = np.cumsum(np.square(whole.samples[::-1], dtype=float))[::-1]
        level_db = 10 * np.log10(decay / decay[0])
        energies.append(3 * (np.argmax(level_db < -25) - np.argmax(level_db < -5)) / 8000)
    assert energies == pytest.approx([0.2, 0.4], rel=0.35)  # Sabine's formula is an approximation


def test_rooms_depend_on_the_generator_only():
    one, other = (draw_room(np.random.default_rng(3), 2, (0.2, 0.6)) for _ in range(2))
    assert one == other != draw_room(np.random.default_rng(4), 2, (0.2, 0.6))
    for pair, again in zip(one.responses(8000), other.responses(8000), strict=True):
        for response, same in zip(pair, again, strict=True):
            np.testing.assert_array_equal(response.samples, same.samples)


def test_drawn_rooms_keep_to_their_ranges():
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = draw_room(rng, 3, (0.2, 0.6))
        length, width, height = room.size
        assert 5 <= length <= 10
        assert 5 <= width <= 10
        assert 3 <= height <= 4
        assert 0.2 <= room.decay_seconds <= 0.6
        for talker in room.talkers:
            distance = np.hypot(talker[0] - room.microphone[0], talker[1] - room.microphone[1])
            assert 0.65 < distance < 2.01
            assert min(talker[0], talker[1]) > 0
            assert talker[0] < length
            assert talker[1] < width
            assert 0.9 <= talker[2] <= 1.8


def test_a_decay_that_no_room_has_is_refused():
    with pytest.raises(
        ValueError, match=r"no room of 5 to 10 m decays in 0.01 to 0.02 s; take 0.2 s or more"
    ):
        draw_room(np.random.default_rng(0), 2, (0.01, 0.02))


def test_simulating_says_so_where_no_bar_is_shown(capsys):  # issue 16
    pytest.importorskip("pyroomacoustics")
    simulate_rooms(2, 2, (0.2, 0.3), 8000, seed=0)
    assert "simulating 2 rooms\n" in capsys.readouterr().err


def test_simulated_rooms_are_kept_and_read_again(tmp_path, capsys):  # issue 16
    pytest.importorskip("pyroomacoustics")
    first = simulate_rooms(2, 2, (0.2, 0.3), 8000, seed=0, cache=tmp_path / "cache")
    assert "simulating 2 rooms" in capsys.readouterr().err
    again = simulate_rooms(2, 2, (0.2, 0.3), 8000, seed=0, cache=tmp_path / "cache")
    assert capsys.readouterr().err == ""
    for room, same in zip(first, again, strict=True):
        assert [response.direct for response in room] == [response.direct for response in same]
        for response, other in zip(room, same, strict=True):
            np.testing.assert_array_equal(response.samples, other.samples)
            assert response.samples.dtype == other.samples.dtype
    other = simulate_rooms(2, 2, (0.2, 0.3), 8000, seed=1, cache=tmp_path / "cache")
    assert other[0][0].samples.shape != first[0][0].samples.shape or not np.array_equal(
        other[0][0].samples, first[0][0].samples
    )
    assert len(list((tmp_path / "cache").glob("rooms-*.npz"))) == 2

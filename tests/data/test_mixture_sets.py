from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from flasepformer.data import (
    MixtureFolder,
    MixtureList,
    MixtureSpec,
    Utterance,
    make_mixture_list,
    open_mixtures,
    read_mixture_list,
    render,
    write_mixture_list,
)


def crowd(sexes, n_each=3):
    return [
        Utterance(Path(f"{sex}{i}/{k}.wav"), f"{sex}{i}", 3.0, sex, "made")
        for i, sex in enumerate(sexes)
        for k in range(n_each)
    ]


def test_sex_pairs_take_turns_and_no_speaker_pair_comes_back_early():
    specs = make_mixture_list(crowd("FFFMMM"), 18, seed=1)
    assert Counter(spec.groups["sexes"] for spec in specs) == {"F-F": 6, "F-M": 6, "M-M": 6}
    pairs = Counter(frozenset(spec.speakers) for spec in specs)
    assert all(len(pair) == 2 for pair in pairs)
    assert Counter(pairs.values()) == {2: 6, 1: 6}  # 3 pairs of F, twice each; 3 of M; 6 of the 9 mixed ones
    assert len({spec.name for spec in specs}) == 18


def test_pairs_with_an_unknown_sex_share_one_turn():
    specs = make_mixture_list(crowd(["F", "F", "M", "M", "", ""]), 40, seed=1)
    assert Counter(spec.groups["sexes"] for spec in specs) == {"": 10, "F-F": 10, "F-M": 10, "M-M": 10}


def test_the_list_depends_on_the_seed_only():
    utterances = crowd("FFFMMM")
    assert make_mixture_list(utterances, 9, seed=1) == make_mixture_list(utterances, 9, seed=1)
    assert make_mixture_list(utterances, 9, seed=1) != make_mixture_list(utterances, 9, seed=2)
    gains = [gain for spec in make_mixture_list(utterances, 99, seed=1) for gain in spec.gains_db]
    assert -2.5 <= min(gains) < -2.3
    assert 2.3 < max(gains) <= 2.5


def test_three_speakers_are_three():
    specs = make_mixture_list(crowd("FFMM"), 8, seed=1, n_sources=3)
    assert all(len(set(spec.speakers)) == 3 for spec in specs)
    with pytest.raises(ValueError, match="mixtures of 3 need as many speakers, got 2"):
        make_mixture_list(crowd("FM"), 1, seed=1, n_sources=3)


def test_a_list_reads_back_as_written_with_relative_paths(tmp_path):
    here = [
        Utterance(tmp_path / "speech" / u.path, u.speaker, 3.0, u.sex, u.corpus)
        for u in crowd(["F", "M", ""])
    ]
    specs = make_mixture_list(here, 5, seed=3)
    (tmp_path / "lists").mkdir()
    write_mixture_list(specs, tmp_path / "lists/test.csv")
    assert str(tmp_path) not in (tmp_path / "lists/test.csv").read_text()
    again = read_mixture_list(tmp_path / "lists/test.csv")
    assert [spec.paths[0].resolve() for spec in again] == [spec.paths[0] for spec in specs]
    assert [(s.name, s.speakers, s.gains_db, s.starts_seconds, s.groups) for s in again] == [
        (s.name, s.speakers, s.gains_db, s.starts_seconds, s.groups) for s in specs
    ]
    assert [path.name for path in (tmp_path / "lists").iterdir()] == ["test.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,speaker\na.wav,a\n", "lacks name, path_1"),
        ("name,path_1,speaker_1,start_s_1\nx,a.wav,a,0\n", "lacks gain_db_1"),
        ("name,path_1,speaker_1,gain_db_1,start_s_1\nx,a.wav,a,loud,0\n", "line 2: could not convert.*loud"),
        ("name,path_1,speaker_1,gain_db_1,start_s_1\n", "lists no mixture"),
    ],
)
def test_what_is_no_list_is_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_mixture_list(tmp_path / "list.csv")


def spec_of(paths, gains_db=(0.0, 0.0), starts=(0.0, 0.0)):
    return MixtureSpec("m", tuple(paths), ("a", "b"), gains_db, starts)


def test_render_cuts_to_the_shorter_and_sets_the_levels(tmp_path, write_tone):
    paths = [
        write_tone(tmp_path / "a.wav", 500, 2.0, rate=16000, amplitude=0.9),
        write_tone(tmp_path / "b.wav", 700, 1.0, amplitude=0.01),
    ]
    mixture, sources = render(spec_of(paths, gains_db=(1.5, -2.0), starts=(0.25, 0.5)), 8000)
    assert sources.shape == (2, 4000)
    assert torch.equal(mixture, sources.sum(0))
    levels_db = 20 * sources[:, 500:-500].square().mean(-1).sqrt().log10()
    assert levels_db.tolist() == pytest.approx([-26 + 1.5, -26 - 2.0], abs=0.02)


def test_render_turns_a_clipping_mixture_down_as_a_whole(tmp_path):
    for name in "ab":  # clicks far above their RMS, at the same place
        click = np.full(8000, 1e-3)
        click[4000] = 1.0
        soundfile.write(tmp_path / f"{name}.wav", click, 8000, "FLOAT")
    mixture, sources = render(spec_of([tmp_path / "a.wav", tmp_path / "b.wav"], gains_db=(6.0, 0.0)), 8000)
    assert mixture.abs().max().item() == pytest.approx(0.9)
    assert (sources[0] / sources[1]).mean().item() == pytest.approx(10 ** (6 / 20), rel=1e-4)


def test_render_refuses_a_silent_recording_and_a_start_after_the_end(tmp_path, write_tone):
    tone = write_tone(tmp_path / "a.wav", 500, 1.0)
    silent = write_tone(tmp_path / "b.wav", 500, 1.0, amplitude=0.0)
    with pytest.raises(ValueError, match=r"mixture m: .*b.wav is silent"):
        render(spec_of([tone, silent]), 8000)
    with pytest.raises(ValueError, match=r"a.wav is silent, or shorter than its start 2.0 s"):
        render(spec_of([tone, tone], starts=(2.0, 0.0)), 8000)


def test_a_list_and_a_folder_of_the_same_mixtures_are_the_same_set(tmp_path, write_tone):
    paths = [write_tone(tmp_path / f"{name}.wav", f, 0.5) for name, f in (("a", 500), ("b", 700))]
    write_mixture_list([spec_of(paths)], tmp_path / "list.csv")
    (made,) = open_mixtures(tmp_path / "list.csv", 8000)
    for folder, waveform in (("mix_clean", made.mixture), ("s1", made.sources[0]), ("s2", made.sources[1])):
        (tmp_path / "tt" / folder).mkdir(parents=True)
        soundfile.write(tmp_path / "tt" / folder / "m.wav", waveform, 8000, "FLOAT")
    (read,) = open_mixtures(tmp_path / "tt", 8000)
    assert (read.name, read.sample_rate, read.groups) == (made.name, 8000, {})
    assert_close((read.mixture, read.sources), (made.mixture, made.sources), rtol=0, atol=0)
    assert len(MixtureList([spec_of(paths)], 8000)) == len(MixtureFolder(tmp_path / "tt")) == 1


@pytest.fixture
def whamr(tmp_path, write_tone):
    for k, folder in enumerate(("mix_both_reverb", "mix_clean", "s1_anechoic", "s2_anechoic", "noise")):
        write_tone(tmp_path / folder / "x.wav", 300 + 100 * k, 0.25)
    return tmp_path


def test_a_folder_with_several_mixtures_wants_a_choice(whamr):
    with pytest.raises(ValueError, match=r"name mix_dir .and source_dirs. to choose"):
        MixtureFolder(whamr)
    for source_dirs in (("s1_anechoic", "s2_anechoic"), None):  # in rooms, the dry talkers are the targets
        (item,) = MixtureFolder(whamr, "mix_both_reverb", source_dirs)
        frequencies = [int(torch.fft.rfft(w).abs().argmax()) * 4 for w in (item.mixture, *item.sources)]
        assert frequencies == [300, 500, 600]


def test_mix_clean_and_mix_both_side_by_side_want_a_choice(tmp_path, write_tone):
    for folder in ("mix_both", "mix_clean", "s1", "s2"):
        write_tone(tmp_path / folder / "x.wav", 500 if folder == "mix_both" else 300, 0.25)
    with pytest.raises(ValueError, match="name mix_dir"):
        MixtureFolder(tmp_path)
    assert int(torch.fft.rfft(MixtureFolder(tmp_path, "mix_both")[0].mixture).abs().argmax()) * 4 == 500


def test_a_missing_source_and_a_source_of_another_length_are_named(whamr, write_tone):
    dirs = "mix_clean", ("s1_anechoic", "s2_anechoic")
    write_tone(whamr / "s2_anechoic/x.wav", 300, 0.5)
    with pytest.raises(ValueError, match=r"mixture x.wav .* differ in length: \[2000, 2000, 4000\]"):
        list(MixtureFolder(whamr, *dirs))
    (whamr / "s2_anechoic/x.wav").unlink()
    with pytest.raises(ValueError, match=r"mixture x.wav lacks its source .*s2_anechoic.x.wav"):
        MixtureFolder(whamr, *dirs)


def test_a_choice_among_folders_is_refused_for_a_file(tmp_path):
    (tmp_path / "list.csv").write_text("name,path_1\n")
    with pytest.raises(ValueError, match="mix_dir chooses a folder"):
        open_mixtures(tmp_path / "list.csv", 8000, "mix_both")
    (tmp_path / "talk.wav").write_bytes(b"RIFF\x80")
    with pytest.raises(ValueError, match=r"talk\.wav is no CSV list"):
        open_mixtures(tmp_path / "talk.wav", 8000)

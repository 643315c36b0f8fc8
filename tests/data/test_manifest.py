from pathlib import Path

import pytest

from flasepformer.data import (
    MixtureFiles,
    Utterance,
    check_disjoint,
    read_split,
    read_utterances,
    shared_speakers,
    write_mixture_manifest,
)

MANIFEST = """path,split,corpus,speaker,duration_s,licence,sex
train/a/1.ogg,train,vctk,a,2.5,CC BY 4.0,F
train/b/1.ogg,train,msc,b,3.0,CC BY-SA 4.0,
test/c/1.flac,test,vctk,c,4.0,CC BY 4.0,M
noise/rain.ogg,noise,rain,,30.0,CC0,
"""


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(MANIFEST)
    return path


def test_a_manifest_gives_the_rows_of_one_split_with_paths_beside_it(manifest):
    assert read_utterances(manifest, "train") == [
        Utterance(manifest.parent / "train/a/1.ogg", "a", 2.5, "F", "vctk", "CC BY 4.0"),
        Utterance(manifest.parent / "train/b/1.ogg", "b", 3.0, "", "msc", "CC BY-SA 4.0"),
    ]


def test_rows_without_a_speaker_are_no_speech(manifest):
    assert [utterance.speaker for utterance in read_utterances(manifest)] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="line 5: speaker and duration_s must not be empty"):
        read_utterances(manifest, "noise")


def test_a_licence_can_be_left_out(manifest):
    kept = read_utterances(manifest, "train", exclude={"licence": {"CC BY-SA 4.0"}})
    assert [utterance.speaker for utterance in kept] == ["a"]


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "m.csv").write_text("path,speaker\na.wav,a\n")
    with pytest.raises(ValueError, match=r"lacks the column.*duration_s"):
        read_utterances(tmp_path / "m.csv")


def test_a_folder_per_speaker_is_listed_with_durations(tmp_path, write_tone):
    write_tone(tmp_path / "train/anna/x/2.wav", 400, 1.5)
    write_tone(tmp_path / "train/bert/1.wav", 400, 0.5, rate=16000)
    (tmp_path / "train/bert/notes.txt").write_text("no speech")
    (tmp_path / "train/bert/cut.wav").write_bytes(b"RIFF")  # stays listed, for the count of corrupt items
    assert read_utterances(tmp_path, "train") == [
        Utterance(tmp_path / "train/anna/x/2.wav", "anna", 1.5),
        Utterance(tmp_path / "train/bert/1.wav", "bert", 0.5),
        Utterance(tmp_path / "train/bert/cut.wav", "bert", 0.0),
    ]


def test_nothing_to_read_is_an_error(tmp_path, manifest):
    with pytest.raises(ValueError, match=r"no speech in .* for split 'valid'"):
        read_utterances(manifest, "valid")
    with pytest.raises(FileNotFoundError, match="no such folder or manifest"):
        read_utterances(tmp_path / "nowhere.csv")
    (tmp_path / "talk.wav").write_bytes(b"RIFF\x80")
    with pytest.raises(ValueError, match=r"talk\.wav is no CSV manifest"):
        read_utterances(tmp_path / "talk.wav")
    with pytest.raises(FileNotFoundError, match="no folder train in"):
        read_utterances(tmp_path, "train")


def of(*speakers):
    """Return a mixture of these speakers."""
    tracks = tuple(Path(name) for name in speakers)
    return MixtureFiles("m", Path("mix"), tracks, speakers, speakers, 1000, 8000)


def test_a_speaker_in_both_splits_is_refused():
    a, b, c = (Utterance(Path(name), name, 1.0) for name in "abc")
    check_disjoint([a, b], [c])
    check_disjoint([a, b], [of("c", "d")])
    check_disjoint([of("a", "b")], [of("c", "d")])
    for train, valid in (([a, b], [b, c]), ([of("a", "b")], [b]), ([b], [of("c", "d"), of("b", "d")])):
        with pytest.raises(ValueError, match=r"1 speaker\(s\) are in both splits: b; split by speaker"):
            check_disjoint(iter(train), iter(valid))
    many = [of(*"abcdefg")]
    with pytest.raises(ValueError, match=r"7 speaker\(s\) are in both splits: a, b, c, d, e, \.\.\.;"):
        check_disjoint(many, many)


def test_speakers_that_are_not_known_may_be_in_both_splits():
    with pytest.raises(ValueError, match="the speakers of some mixtures are not known"):
        check_disjoint([of("a", "")], [of("b", "c")])
    assert shared_speakers([of("a", ""), of("b", "c")], [of("", "c"), of("d", "a")]) == ["a", "c"]


def test_a_split_of_a_set_is_read_by_its_name(tmp_path):
    (tmp_path / "dev").mkdir()
    for name, speakers in (("tr.csv", ("a", "b")), ("dev/mix_both.csv", ("c", "d"))):
        write_mixture_manifest([of(*speakers)], tmp_path / name)
    assert [item.speakers for item in read_split(tmp_path, "tr")] == [("a", "b")]
    assert [item.speakers for item in read_split(tmp_path, "dev/mix_both")] == [("c", "d")]
    with pytest.raises(
        FileNotFoundError, match=r"no manifest .*/cv\.csv; expected is the folder of manifests"
    ):
        read_split(tmp_path, "cv")

"""What a run is trained and validated on, and its recipe's say in it."""

import dataclasses
import shutil

import pytest
import soundfile
import torch
from tests.training.conftest import SPEAKERS, changed, curve, with_data, write_set
from torch.testing import assert_close
from torch.utils.data import DataLoader

from flasepformer.data import (
    DynamicMixing,
    DynamicMixingConfig,
    FixedMixtures,
    Utterance,
    read_split,
)
from flasepformer.data.mixture_manifest import write_mixture_manifest
from flasepformer.training import TrainingError, train
from flasepformer.training.examples import (
    VALID_SEED,
    BatchTable,
    Draw,
    is_held_out,
    n_valid_mixtures,
    open_examples,
    open_further_validation,
)


def whole(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def test_fixed_mixtures_are_cut_for_the_training_and_whole_for_the_validation(
    fixed_recipe, mixtures, tmp_path
):
    train_on, validate_on = open_examples(fixed_recipe, tmp_path)
    expected = FixedMixtures(read_split(mixtures, "tr"), 0.25, fixed_recipe.seed)
    for index in (0, 7):
        assert_close(train_on.example(index), expected.example(index), rtol=0, atol=0)
    assert n_valid_mixtures(fixed_recipe, validate_on) == 3
    heard = [validate_on.example(index) for index in range(3)]
    for item in read_split(mixtures, "cv"):  # each of them once, in an order that is the same in every run
        (found,) = [pair for pair in heard if len(pair[0]) == item.n_samples]
        assert torch.equal(found[0], whole(item.mixture))
        assert torch.equal(found[1], torch.stack([whole(path) for path in item.sources]))


def test_validation_may_be_cut_and_fewer(fixed_recipe, mixtures, tmp_path):
    short = with_data(fixed_recipe, valid_segment_seconds=0.1, n_valid_mixtures=2)
    _, validate_on = open_examples(short, tmp_path)
    assert n_valid_mixtures(short, validate_on) == 2
    assert validate_on.example(0)[1].shape == (2, 800)
    assert n_valid_mixtures(with_data(short, n_valid_mixtures=100), validate_on) == 3
    expected = FixedMixtures(read_split(mixtures, "cv"), 0.1, VALID_SEED)
    assert_close(validate_on.example(1), expected.example(1), rtol=0, atol=0)


def test_training_may_mix_anew_what_is_validated_on_fixed_mixtures(fixed_recipe, speech, mixtures, tmp_path):
    mixed = with_data(fixed_recipe, train_on="speech", speech=str(speech), train_split="train")
    train_on, validate_on = open_examples(mixed, tmp_path)
    assert (type(train_on), type(validate_on)) == (DynamicMixing, FixedMixtures)
    assert {utterance.speaker for utterance in train_on.store.utterances} == {"anna", "ben"}
    # the sources of fixed mixtures will do, too
    sources = with_data(mixed, speech=str(mixtures), train_split="tr")
    train_on, _ = open_examples(sources, tmp_path)
    assert {u.path.parent.name for u in train_on.store.utterances} == {"s1", "s2"}
    assert len(train_on.store.utterances) == 10


def test_fixed_mixtures_may_be_validated_on_mixtures_of_speech(fixed_recipe, speech, tmp_path):
    mixed = with_data(
        fixed_recipe, validate_on="speech", speech=str(speech), valid_split="valid", n_valid_mixtures=2,
        valid_segment_seconds=0.5,
    )  # fmt: skip
    train_on, validate_on = open_examples(mixed, tmp_path)
    assert (type(train_on), type(validate_on)) == (FixedMixtures, DynamicMixing)
    assert validate_on.example(0)[0].shape == (4000,)
    assert {utterance.speaker for utterance in validate_on.store.utterances} == {"cleo", "dan"}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_read_the_same_batches(fixed_recipe, tmp_path, n_workers):
    examples, _ = open_examples(fixed_recipe, tmp_path)
    draws = [Draw(range(first, first + 2), None) for first in range(0, 12, 2)]
    alone, helped = (
        list(DataLoader(BatchTable(examples), sampler=draws, batch_size=None, num_workers=n))
        for n in (0, n_workers)
    )
    assert len(helped) == 6
    for one, other in zip(alone, helped, strict=True):
        assert_close(list(one[:2]), list(other[:2]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixtures": ""}, "names no mixtures; set data.mixtures"),
        ({"train_on": "speech", "speech": ""}, "names no speech; set data.speech"),
    ],
)
def test_a_recipe_without_data_is_refused(fixed_recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        open_examples(with_data(fixed_recipe, **changes), tmp_path)


def test_a_split_that_is_not_there_is_named(fixed_recipe, mixtures, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^no manifest train-100\.csv in .*; it has cv, tr: give two"
    ):
        open_examples(with_data(fixed_recipe, train_split="train-100"), tmp_path)


def test_mixtures_for_another_model_are_refused(fixed_recipe, tmp_path):
    write_set(tmp_path, "three", ("eve", "fay", "gus"), 1)
    with pytest.raises(
        ValueError, match=r"'three'.* have 3 talkers at 8000 Hz, the model separates 2 at 8000"
    ):
        open_examples(with_data(fixed_recipe, mixtures=str(tmp_path), train_split="three"), tmp_path)
    files = write_set(tmp_path, "fast", SPEAKERS["train"], 1)
    write_mixture_manifest([dataclasses.replace(files[0], sample_rate=16_000)], tmp_path / "fast.csv")
    with pytest.raises(ValueError, match="have 2 talkers at 16000 Hz"):
        open_examples(with_data(fixed_recipe, mixtures=str(tmp_path), train_split="fast"), tmp_path)


def test_manifests_that_lie_elsewhere_are_named(fixed_recipe, mixtures, tmp_path):
    (tmp_path / "train").mkdir()
    shutil.copy(mixtures / "tr.csv", tmp_path / "train" / "mix_clean.csv")
    (tmp_path / "train" / "timeline.csv").write_text("name,speaker,start,end\n")
    with pytest.raises(FileNotFoundError, match=r"it has train/mix_clean: give two .*train_split and"):
        open_examples(with_data(fixed_recipe, mixtures=str(tmp_path)), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no manifest tr\.csv in .*`flasepformer prepare` and"):
        open_examples(with_data(fixed_recipe, mixtures=str(tmp_path / "no")), tmp_path)


@pytest.mark.parametrize("kind", ["speech", "mixtures"])
def test_a_manifest_in_another_encoding_is_named(fixed_recipe, recipe, tmp_path, kind):
    (tmp_path / "tr.csv").write_bytes("path,speaker,duration_s\nJosé.wav,José,1\n".encode("latin-1"))
    opened = fixed_recipe if kind == "mixtures" else with_data(recipe, train_split="tr")
    with pytest.raises(ValueError, match=r"tr\.csv is no .* not text in UTF-8"):
        open_examples(with_data(opened, **{kind: str(tmp_path)}), tmp_path)


@pytest.fixture
def wsj0_recipe(fixed_recipe, tmp_path):
    """Return a recipe for a set whose two splits have one of their speakers in common."""
    write_set(tmp_path / "set", "tr", ("anna", "ben"), 2)
    write_set(tmp_path / "set", "cv", ("ben", "cleo"), 2)
    return with_data(fixed_recipe, mixtures=str(tmp_path / "set"))


def test_shared_speakers_need_a_word_in_the_recipe(wsj0_recipe, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"1 speaker\(s\) are in both splits: ben;.*allow_shared_speakers"):
        open_examples(wsj0_recipe, tmp_path)
    open_examples(with_data(wsj0_recipe, allow_shared_speakers=True), tmp_path)
    assert "1 speakers are in both 'tr' and 'cv', as the recipe allows" in capsys.readouterr().err


def test_speakers_of_speech_and_of_mixtures_are_compared(wsj0_recipe, speech, tmp_path):
    mixed = with_data(wsj0_recipe, train_on="speech", speech=str(speech), train_split="train")
    with pytest.raises(ValueError, match="in both splits: ben"):
        open_examples(mixed, tmp_path)


def test_speakers_that_are_not_known_are_refused_unless_allowed(fixed_recipe, tmp_path):
    write_set(tmp_path, "tr", ("", "ben"), 2)
    write_set(tmp_path, "cv", ("", "cleo"), 2)
    unknown = with_data(fixed_recipe, mixtures=str(tmp_path))
    with pytest.raises(ValueError, match="speakers of some mixtures are not known"):
        open_examples(unknown, tmp_path)
    open_examples(with_data(unknown, allow_shared_speakers=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_corrupt_mixture_is_replaced_and_counted_up_to_the_limit_of_the_recipe(
    fixed_recipe, mixtures, tmp_path, capsys, n_workers
):
    shutil.copytree(mixtures, tmp_path / "set")
    files = read_split(tmp_path / "set", "tr")
    many = [dataclasses.replace(files[k % 4], name=f"copy-{k}") for k in range(120)]
    (tmp_path / "set/tr/s2/4.wav").write_bytes(b"<html>not found</html>")
    write_mixture_manifest([*many[:119], files[4]], tmp_path / "set/tr.csv")
    recipe = dataclasses.replace(
        changed(fixed_recipe, n_steps=4, batch_size=60),
        mixing=DynamicMixingConfig(segment_seconds=0.02),
        steps_per_epoch=4,
    )
    recipe = with_data(recipe, mixtures=str(tmp_path / "set"), n_workers=n_workers)
    train(recipe, tmp_path / "run")  # twice through the set: it is met twice and counts once
    told = [line for line in capsys.readouterr().err.splitlines() if "corrupt" in line]
    assert len(told) == 1
    assert "1 of 120 mixtures of split 'tr' are corrupt and replaced by others; new: tr-4: " in told[0]

    strict = with_data(recipe, max_corrupt_share=0.005)
    with pytest.raises(
        TrainingError, match=r"1 of 120 .* 'tr' are corrupt, more than data.max_corrupt_share 0"
    ):
        train(strict, tmp_path / "strict")


@pytest.mark.slow
def test_a_corrupt_mixture_of_the_validation_counts_too(fixed_recipe, mixtures, tmp_path):
    shutil.copytree(mixtures, tmp_path / "set")
    (tmp_path / "set/cv/mix/1.wav").unlink()
    recipe = with_data(fixed_recipe, mixtures=str(tmp_path / "set"))
    with pytest.raises(TrainingError, match=r"1 of 3 mixtures of split 'cv' are corrupt.*cv-1: "):
        train(recipe, tmp_path / "run")
    train(with_data(changed(recipe, n_steps=1), max_corrupt_share=0.4), tmp_path / "lenient")
    shutil.rmtree(tmp_path / "set/cv/mix")
    with pytest.raises(TrainingError, match=r"^all 3 mixtures are corrupt"):
        train(recipe, tmp_path / "none")


def test_a_set_that_is_gone_ends_the_run_with_its_name(fixed_recipe, mixtures, tmp_path):
    shutil.copytree(mixtures, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "tr")
    recipe = with_data(fixed_recipe, mixtures=str(tmp_path / "set"), n_workers=1)
    with pytest.raises(TrainingError, match=r"^all 5 mixtures are corrupt; tr-\d: ") as error:
        train(recipe, tmp_path / "run")
    assert "Traceback" not in str(error.value)


@pytest.mark.slow
def test_validation_mixtures_with_a_silent_source_have_no_score(fixed_recipe, mixtures, tmp_path, capsys):
    shutil.copytree(mixtures, tmp_path / "set")
    files = read_split(tmp_path / "set", "cv")
    silent = files[2].sources[0]
    soundfile.write(silent, 0 * soundfile.read(silent)[0], 8000, "FLOAT")
    recipe = with_data(changed(fixed_recipe, n_steps=1), mixtures=str(tmp_path / "set"))
    train(recipe, tmp_path / "with")
    assert "1 of 3 validation mixtures have a silent source, and so no score" in capsys.readouterr().err
    write_mixture_manifest(files[:2], tmp_path / "set/cv.csv")
    train(recipe, tmp_path / "without")
    (score,), (expected,) = (
        [float(row["valid_si_snr_improvement_db"]) for row in curve(tmp_path / run)]
        for run in ("with", "without")
    )
    assert score == pytest.approx(expected, abs=2e-3)


def test_held_out_speakers_are_validated_on_and_never_trained_on(small_recipe, speech, tmp_path):
    """The SHA-256 of "cv-0", "cv-2" and "cv-3" begin with 0x36, 0x2b and 0x58, that of "cv-1" with 0xba."""
    manifest = tmp_path / "MANIFEST.csv"
    recordings = sorted((speech / "train" / "anna").glob("*.wav"))
    names = [("train", "cvfr", f"cv-{k}") for k in range(4)]
    names += [
        ("train", "read", "anna"),
        ("train", "read", "ben"),
        ("valid", "read", "cleo"),
        ("valid", "read", "dan"),
    ]
    rows = [f"{recordings[0]},{split},{corpus},{speaker},2.0" for split, corpus, speaker in names]
    manifest.write_text("\n".join(["path,split,corpus,speaker,duration_s", *rows]))
    recipe = with_data(small_recipe, speech=str(manifest), held_out_share=0.5, held_out_corpora=("cv",))
    train_on, _ = open_examples(recipe, tmp_path / "cache")
    held_out, conversations = open_further_validation(recipe, tmp_path / "cache")
    assert {u.speaker for u in train_on.store.utterances} == {"cv-1", "anna", "ben"}
    assert {u.speaker for u in held_out.store.utterances} == {"cv-0", "cv-2", "cv-3"}
    assert conversations == []
    assert not is_held_out(Utterance(manifest, "cv-2", 2.0, corpus="read"), recipe.data)

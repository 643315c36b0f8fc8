import errno
import fcntl
import os
import signal
import threading
import time

import pytest

from flasepformer.inference.outputs import (
    AlreadySeparated,
    OutputError,
    explain_write_failure,
    growing_folder,
    plan_outputs,
    portable_name,
    publish,
)

SPEAKERS = ("speaker1", "speaker2")


def grow(folder, text):
    folder.mkdir()
    files = [folder / name for name in ("1", "2", "report")]
    for file in files:
        file.write_text(text)
    return files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("Gespräch 😀 -x", "Gespräch 😀 -x"),
        ("a\nb", "a_b"),
        ("../../etc", ".._.._etc"),
        ("NUL", "_NUL"),
        ("com1.take", "_com1.take"),
        ("talk. ", "talk__"),
    ],
)
def test_names_suit_every_file_system(name, portable):
    assert portable_name(name) == portable


@pytest.mark.parametrize("name", ["x" * 251, "ü" * 120 + "x", os.fsdecode(b"\xff" * 250)])
def test_names_that_grow_too_long_are_cut_and_stay_distinct(tmp_path, name):
    outputs = plan_outputs(tmp_path, name, SPEAKERS, "flac")
    longest = max(len(os.fsencode(path.name)) for path in (*outputs.tracks, outputs.report))
    assert longest <= 255
    for path in (*outputs.tracks, outputs.report):
        path.touch()
    assert plan_outputs(tmp_path, name[:-1] + "y", SPEAKERS, "flac").report != outputs.report


def test_finished_files_take_their_names_and_are_not_replaced_unasked(tmp_path):
    outputs = plan_outputs(tmp_path / "out", "talk", SPEAKERS, "wav")
    (tmp_path / "out").mkdir()
    publish(grow(tmp_path / "a", "a"), outputs, overwrite=False)
    assert names(tmp_path / "out") == ["talk_separation.json", "talk_speaker1.wav", "talk_speaker2.wav"]
    with pytest.raises(AlreadySeparated, match=r"talk_separation\.json"):
        publish(grow(tmp_path / "b", "b"), outputs, overwrite=False)
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"a"}
    publish([tmp_path / "b" / name for name in ("1", "2", "report")], outputs, overwrite=True)
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"b"}


def test_part_of_a_set_of_files_is_told_from_a_whole_one(tmp_path):
    outputs = plan_outputs(tmp_path, "talk", SPEAKERS, "wav")
    outputs.check_absent(lambda report: None)
    outputs.tracks[0].write_text("somebody's")
    with pytest.raises(FileExistsError, match=r"talk_speaker1\.wav exists, but not all") as caught:
        outputs.check_absent(lambda report: None)
    assert not isinstance(caught.value, AlreadySeparated)


def test_two_runs_that_replace_the_same_files_never_mix_them(tmp_path):
    outputs = plan_outputs(tmp_path / "out", "talk", SPEAKERS, "wav")
    (tmp_path / "out").mkdir()
    for turn in range(40):
        runs = [
            threading.Thread(
                target=publish,
                args=(grow(tmp_path / f"{letter}{turn}", letter), outputs),
                kwargs={"overwrite": True},
            )
            for letter in "ab"
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert len({path.read_text() for path in (tmp_path / "out").iterdir()}) == 1


def test_an_interrupt_waits_until_all_files_are_in_place(tmp_path):
    outputs = plan_outputs(tmp_path / "out", "talk", SPEAKERS, "wav")
    (tmp_path / "out").mkdir()
    grown = grow(tmp_path / "a", "a")
    lock = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # holds the publication up

    def interrupt():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.close(lock)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        publish(grown, outputs, overwrite=False)
    assert names(tmp_path / "out") == ["talk_separation.json", "talk_speaker1.wav", "talk_speaker2.wav"]


def test_the_growing_folder_is_hidden_and_leaves_nothing(tmp_path):
    folders = []

    def interrupted():
        with growing_folder(tmp_path / "new" / "out") as growing:
            (growing / "1.wav").write_text("half")
            folders.extend((tmp_path / "new" / "out").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [folder.name[:14] for folder in folders] == [".flasepformer-"]
    assert names(tmp_path / "new" / "out") == []


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(OutputError, match="it is a file; choose another folder"),
        growing_folder(tmp_path / "out"),
    ):
        pass
    with pytest.raises(OutputError, match="Not a directory"), growing_folder(tmp_path / "out" / "below"):
        pass


def test_a_full_disk_is_told_with_what_is_needed(tmp_path):
    error = OSError(errno.EIO, "System error")
    assert "need 1000000000000.0 MB" in str(explain_write_failure(error, tmp_path, 10**18))
    assert str(explain_write_failure(error, tmp_path, 1)) == f"cannot write in {tmp_path}: System error"

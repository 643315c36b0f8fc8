import subprocess
import sys

from flasepformer import temporary
from flasepformer.temporary import clear_abandoned, temporary_folder


def test_a_folder_is_cleared_once_no_living_process_owns_it(tmp_path):  # issue 16
    code = (
        "import sys, time; from pathlib import Path; from flasepformer.temporary import temporary_folder\n"
        "with temporary_folder('.ours-', Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(folder.name, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as owner:
        name = owner.stdout.readline().strip()
        clear_abandoned(".ours-", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]  # it lives
        owner.kill()
    (tmp_path / ".other-1").mkdir()
    (tmp_path / ".ours-link").symlink_to(tmp_path / ".other-1")
    with temporary_folder(".ours-", tmp_path) as own:
        assert {path.name for path in tmp_path.iterdir()} == {own.name, ".other-1", ".ours-link"}
        clear_abandoned(".ours-", tmp_path)
        assert own.is_dir()  # neither another run nor the same process takes it away
    assert not own.exists()


def test_a_folder_is_looked_through_once_in_ten_minutes_however_many_are_made_in_it(tmp_path, monkeypatch):
    looked, seconds = [], [0.0]
    monkeypatch.setattr(temporary, "clear_abandoned", lambda prefix, parent: looked.append(parent))
    monkeypatch.setattr(temporary.time, "monotonic", lambda: seconds[0])
    (tmp_path / "below").mkdir()
    for parent in (tmp_path, tmp_path / "below", tmp_path, tmp_path / "below"):
        with temporary_folder(".ours-", parent):
            pass
    assert looked == [tmp_path, tmp_path / "below"]
    seconds[0] = 600.0
    with temporary_folder(".ours-", tmp_path):
        pass
    assert looked == [tmp_path, tmp_path / "below", tmp_path]

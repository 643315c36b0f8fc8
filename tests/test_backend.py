"""What builds the package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[1] / "packaging"


@pytest.mark.slow
def test_a_wheel_leaves_no_build_folder_and_takes_nothing_from_an_old_one(tmp_path):  # issue 16
    pytest.importorskip("setuptools")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "tiny"\nversion = "1"\n')
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "__init__.py").touch()
    for build in ("build/lib/tiny", ""):
        if build:
            (tmp_path / build).mkdir(parents=True)
            (tmp_path / build / "gone.py").touch()
        code = "import backend; print(backend.build_wheel('.'))"
        environment = {**os.environ, "PYTHONPATH": str(PACKAGING)}
        words = [sys.executable, "-c", code]
        built = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        with zipfile.ZipFile(tmp_path / built.stdout.splitlines()[-1]) as wheel:
            assert [name for name in wheel.namelist() if name.startswith("tiny/")] == ["tiny/__init__.py"]
        (tmp_path / "build/lib/tiny/gone.py").unlink(missing_ok=True)
        for folder in ("build/lib/tiny", "build/lib", "build"):
            if build:
                (tmp_path / folder).rmdir()
    assert not (tmp_path / "build").exists()

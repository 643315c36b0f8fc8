"""Builds wheels as setuptools does, but leaves no folder `build`, and takes nothing from an old one."""

import tempfile
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel; see PEP 517."""
    with tempfile.TemporaryDirectory() as folder:
        given = (config_settings or {}).get("--build-option") or []
        options = [*(given.split() if isinstance(given, str) else given), "build", f"--build-base={folder}"]
        settings = {**(config_settings or {}), "--build-option": options}
        return build_meta.build_wheel(wheel_directory, settings, metadata_directory)

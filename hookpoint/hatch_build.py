"""Compiles libsonde into the package where a C++ compiler and the source tree are.

Without them the package installs all the same; `sonde.attach` then says what is missing.
Reading what was captured needs no library.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

# In a folder of its own: beside libsonde.py, Python would import it as the module of that name.
TARGET = "sonde/native/libsonde.so"


class CustomBuildHook(BuildHookInterface):
    """Runs before a wheel is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put build/cuda/libsonde.so into the package; the wheel is then of this platform."""
        source = Path(self.root).parent / "cuda"
        missing = [tool for tool in ("make", "g++") if shutil.which(tool) is None]
        if missing or not (source / "Makefile").exists() or not sys.platform.startswith("linux"):
            self.app.display_warning(f"sonde: without libsonde, because of {' and '.join(missing) or 'no sources'}")
            return
        done = subprocess.run(["make", "-s", "-C", str(source), "all"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"sonde: libsonde was not compiled:\n{done.stderr[-2000:]}")
        build_data["force_include"][str(source.parent / "build" / "cuda" / "libsonde.so")] = TARGET
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(sys_tags()).platform}"

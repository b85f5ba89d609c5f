"""Compiles the small C core. Where there is no compiler the package is built without it and works the same, slower."""

import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CoreBuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            return  # the core relies on the GIL
        package = Path(self.root, "src", "tallymark")
        target = package / ("_core" + sysconfig.get_config_var("EXT_SUFFIX"))
        try:
            self._compile(package / "_core.c", target)
        except Exception as error:
            self.app.display_warning(f"tallymark is built without its compiled core: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"src/tallymark/{target.name}")

    def _compile(self, source: Path, target: Path) -> None:
        from setuptools import Distribution, Extension

        with tempfile.TemporaryDirectory() as folder:
            extension = Extension("_core", [str(source)], extra_compile_args=["-O2"])
            command = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
            command.build_lib = command.build_temp = folder
            command.ensure_finalized()
            command.run()
            # A new file, then a rename: overwriting a library that a running process has mapped would crash it.
            built = Path(command.get_ext_fullpath("_core"))
            fresh = target.with_suffix(".new")
            shutil.copyfile(built, fresh)
            fresh.replace(target)

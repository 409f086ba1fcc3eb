"""Old names of modules that have moved into rooms, for programs written before 2026-12.

`from tora2_jax.video import read_video` goes on working, with a DeprecationWarning that says where
the module is now.
"""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "array_items": "weights.array_items",
    "bundle": "weights.bundle",
    "checkpoint": "weights.checkpoint",
    "encoder_presets": "config.encoders",
    "faces": "references.faces",
    "feature_files": "references.feature_files",
    "flow_color": "trajectory.flow_color",
    "guidance": "sampling.guidance",
    "image_file": "media.image_file",
    "image_text": "evaluation.clip",
    "networks": "weights.networks",
    "optical_flow": "trajectory.optical_flow",
    "optim": "train.optim",
    "pipeline": "sampling.pipeline",
    "placement": "parallel.placement",
    "processes": "parallel.processes",
    "reference_inputs": "conditioning.references",
    "request_file": "request.reader",
    "sample_settings": "sampling.settings",
    "stages": "train.stages",
    "train_config": "config.train",
    "train_state": "train.state",
    "trajectory_file": "trajectory.files",
    "video": "media.video",
    "weight_folder": "weights.folder",
}


class _Alias(importlib.abc.Loader):
    """Gives the module of the new name."""

    def __init__(self, new: str):
        self._new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._module = importlib.import_module(self._new)
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's in its place


class _OldNames(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != _PACKAGE or name not in MOVED:
            return None
        new = f"{_PACKAGE}.{MOVED[name]}"
        warnings.warn(f"{fullname} is now {new}", DeprecationWarning, stacklevel=2)
        return importlib.util.spec_from_loader(fullname, _Alias(new))


def accept() -> None:
    """Lets the old names be imported from now on."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())

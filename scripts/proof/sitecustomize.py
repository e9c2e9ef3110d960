"""Plants a fault: Python imports this first where this folder is in PYTHONPATH."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from faults import FAULTS, VARIABLE, Fault


class Planter(MetaPathFinder):
    """Spoils a module right after it is imported."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the fault's module as usual, but so that its import plants the fault."""
        if name != self.fault.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_plant(module: ModuleType) -> None:
            execute(module)
            self.fault.plant(module)

        spec.loader.exec_module = execute_and_plant
        return spec


if name := os.environ.get(VARIABLE):
    sys.meta_path.insert(0, Planter(FAULTS[name]))

"""Lets `from_pretrained` load pruned models without remote code once this package is imported.

transformers is imported seconds later than this package, or never; and whatever imports it must not
wait for the model families. So `AutoConfig.from_pretrained`, with which every loading begins, is
wrapped when it comes to be: it learns of our configurations when it is called, and of a family's
models when one is found.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register_pruned_models() -> None:
    """Have transformers find the classes of `modeling_pruned`, now or when it is imported."""
    if _AUTO_CONFIG in sys.modules:
        _wrap(sys.modules[_AUTO_CONFIG])
    else:
        sys.meta_path.insert(0, _AutoConfigFinder())


class _AutoConfigFinder(MetaPathFinder):
    """Finds one module as it is found otherwise, and wraps what it brings."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Have the module's execution followed by `_wrap`; leave all others to others."""
        del target
        spec = PathFinder.find_spec(fullname, path) if fullname == _AUTO_CONFIG else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            _wrap(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def _wrap(module: Any) -> None:
    load = module.AutoConfig.from_pretrained

    @functools.wraps(load)
    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        _register_configs()
        loaded = load(*arguments, **options)
        _register_models(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    module.AutoConfig.from_pretrained = staticmethod(from_pretrained)


@functools.cache
def _register_configs() -> None:
    from transformers import AutoConfig

    from pgprune_lightning.modeling_pruned import FAMILY_STEMS, config_class

    for stem in FAMILY_STEMS.values():
        made = config_class(stem)
        AutoConfig.register(made.model_type, made, exist_ok=True)


def _register_models(config: Any) -> None:
    from pgprune_lightning.modeling_pruned import FAMILY_STEMS, PREFIX, config_class, model_class

    stem = FAMILY_STEMS.get(config.model_type.removeprefix(PREFIX))
    if stem is None or type(config) is not config_class(stem):
        return
    from transformers import AutoModel, AutoModelForCausalLM

    for auto_class, part in ((AutoModel, "Model"), (AutoModelForCausalLM, "ForCausalLM")):
        auto_class.register(type(config), model_class(stem, part), exist_ok=True)

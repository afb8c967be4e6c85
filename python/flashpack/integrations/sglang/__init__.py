"""`sglang serve --model-path MODEL --load-format flashpack`.

SGLang finds `register` by its entry point, in the group `sglang.srt.plugins`, and calls it in each of its
processes. It has a list of formats that plugins extend, but no registry of loaders: its own hook on the check
of a load format puts the loader's class there, which SGLang takes for a format as well.

`--model-loader-extra-config '{"mapped": true, "verify": true}'`: see docs/guides/serving.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LOAD_FORMAT = "flashpack"


def register() -> None:
    """Tell SGLang of the load format, before it parses its arguments."""
    from sglang.srt.arg_groups.choices import add_load_format_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    add_load_format_choices([LOAD_FORMAT])
    check = "sglang.srt.configs.load_config.LoadConfig._verify_load_format"
    HookRegistry.register(check, _verify_load_format, HookType.AROUND)


def _verify_load_format(verify: Callable[[Any], None], config: Any) -> None:
    if str(config.load_format).lower() != LOAD_FORMAT:
        verify(config)
        return
    from ._loader import FlashPackModelLoader

    config.load_format = FlashPackModelLoader

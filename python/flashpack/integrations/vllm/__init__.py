"""`vllm serve MODEL --load-format flashpack`.

vLLM finds `register` by its entry point, in the group `vllm.general_plugins`, and calls it in each of its
processes; programs that use vLLM as a library need not call it either. Nothing of vLLM is patched.

`--model-loader-extra-config '{"mapped": true, "verify": true}'`: see docs/guides/serving.md.
"""

from __future__ import annotations

LOAD_FORMAT = "flashpack"


def register() -> None:
    """Tell vLLM of the load format; calling it again changes nothing."""
    from vllm.model_executor.model_loader import register_model_loader

    from ._loader import FlashPackModelLoader

    register_model_loader(LOAD_FORMAT)(FlashPackModelLoader)

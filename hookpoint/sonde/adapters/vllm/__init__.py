"""The plug-in of vLLM: `vllm serve … --additional-config '{"sonde": {}}'` captures. See docs/how-to/vllm.md.

vLLM loads it through the entry point `vllm.general_plugins` in each of its processes: the front end, which validates
what requests ask for and hands on their external ids; the scheduler, which says why sequences end and ends those that
a detector stops; and the worker, whose forwards are captured. Without `sonde` in the additional configuration nothing
of vLLM is changed.
"""

from __future__ import annotations


def register() -> None:
    """Install the plug-in in this process; again: nothing happens."""
    from sonde.adapters.vllm import frontend, scheduling, worker

    frontend.install()
    scheduling.install()
    worker.install()

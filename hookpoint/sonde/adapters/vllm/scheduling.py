"""In the scheduler of vLLM: it says why sequences end, and it ends those that a detector stops.

Scheduler and worker may be two processes. What one has to say rides on what vLLM sends the other anyway, as an
attribute: the ends on the output of the scheduler, the stops on the output of the model runner.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sonde.adapters.vllm.settings import Settings
from sonde.step import Finish

ENDED = "sonde_ended"  # of a scheduler's output: internal id → (Finish, tokens generated)
STOPPING = "sonde_stopping"  # of a model runner's output: internal ids
STOP_REASON = "stopped by a detector"

stopping: set[str] = set()  # internal ids of what the schedulers of this process are to end
hear_end: list[Callable[[str, Finish, int], None]] = []  # of the worker, if it lives in this process


def install() -> None:
    """Follow each scheduler that is made from now on, if its engine captures."""
    from vllm.v1.core.sched import scheduler as module

    original, check = module.Scheduler.__init__, module.check_stop
    if hasattr(original, "sonde"):
        return

    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        if Settings.of(vllm_config.additional_config) is not None:
            _follow(self)

    @functools.wraps(check)
    def check_stop(request: Any, *args: Any, **kwargs: Any) -> bool:
        if check(request, *args, **kwargs):
            return True
        if request.request_id not in stopping:
            return False
        request.status, request.stop_reason = type(request.status).FINISHED_STOPPED, STOP_REASON
        return True

    init.sonde = True
    module.Scheduler.__init__, module.check_stop = init, check_stop


def _follow(scheduler: Any) -> None:
    """Wrap the methods of one scheduler."""
    ended: dict[str, tuple[Finish, int]] = {}  # since the last schedule
    schedule, update, free = scheduler.schedule, scheduler.update_from_output, scheduler._free_request

    def free_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        end = finish_of(request), request.num_output_tokens
        stopping.discard(request.request_id)
        ended[request.request_id] = end
        for hear in hear_end:
            hear(request.request_id, *end)
        return free(request, *args, **kwargs)

    def scheduled(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        if ended:
            setattr(output, ENDED, dict(ended))
            ended.clear()
        return output

    def update_from_output(scheduler_output: Any, model_runner_output: Any, *args: Any, **kwargs: Any) -> Any:
        asked = getattr(model_runner_output, STOPPING, ())
        stopping.update(name for name in asked if name in scheduler.requests)
        return update(scheduler_output, model_runner_output, *args, **kwargs)

    scheduler.schedule, scheduler.update_from_output = scheduled, update_from_output
    scheduler._free_request = free_request


def finish_of(request: Any) -> Finish:
    """Translate why a request ended. A client that goes away is an abort for vLLM."""
    if request.stop_reason == STOP_REASON:
        return Finish.DETECTOR
    names = {"FINISHED_STOPPED": Finish.STOP, "FINISHED_REPETITION": Finish.STOP, "FINISHED_ABORTED": Finish.ABORT,
             "FINISHED_LENGTH_CAPPED": Finish.LENGTH, "FINISHED_IGNORED": Finish.LENGTH}  # fmt: skip
    return names.get(request.status.name, Finish.ERROR)

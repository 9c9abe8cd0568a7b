"""In the front end of vLLM: what requests ask for is validated, and their external ids are handed to the worker."""

from __future__ import annotations

import functools
from typing import Any

from sonde.adapters.vllm import refuse
from sonde.adapters.vllm.settings import EXTERNAL, Settings, check_extra


def install() -> None:
    """Follow each input processor that is made from now on, if its engine captures."""
    from vllm.v1.engine.input_processor import InputProcessor

    original = InputProcessor.__init__
    if hasattr(original, "sonde"):
        return

    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        asked = Settings.of(vllm_config.additional_config) is not None
        if asked:
            refuse.check_config(vllm_config)
        original(self, vllm_config, *args, **kwargs)
        if asked:
            self.assign_request_id = _naming(self.assign_request_id)

    init.sonde = True
    InputProcessor.__init__ = init


def _naming(assign: Any) -> Any:
    from vllm.exceptions import VLLMValidationError

    def assign_request_id(request: Any) -> None:
        """Validate what a request asks for, and write its external id beside it. Raises VLLMValidationError."""
        params = request.sampling_params
        extra = dict(params.extra_args or {}) if params is not None else {}
        extra.pop(EXTERNAL, None)  # of parameters that are used again
        try:
            check_extra(extra)
        except ValueError as e:
            raise VLLMValidationError(str(e)) from None  # which the API server answers as a bad request
        assign(request)
        if params is not None:  # those of this request alone: vLLM has cloned what the caller gave
            params.extra_args = {**extra, EXTERNAL: request.external_req_id}

    return assign_request_id

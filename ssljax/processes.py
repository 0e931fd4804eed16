"""Agreement of several processes on what process 0 has found, and lines that it prints."""

import functools
import json
from typing import Any

import jax
import numpy as np

from ssljax import signals


def agree(value: Any) -> Any:
    """`value`, of JSON's types, as process 0 has it; all processes must call this together."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


@functools.cache
def say(line: str) -> None:
    """Prints a line, in process 0 and once."""
    if jax.process_index() == 0:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            signals.reader_is_gone()

"""Networks, in Flax Linen. `dtype` is what a net computes in; its parameters are float32."""

from typing import Literal

Dtype = Literal["float32", "bfloat16"]

"""The decoder for a model, a precision and a device."""

from codekiln.model.cache import HAS_KERNELS
from codekiln.model.decoder import Decoder, Precision
from codekiln.model.transformer import Transformer


def make_decoder(model: Transformer, precision: Precision) -> Decoder:
    """A decoder with compiled kernels where numba is installed, on CPUs."""
    if HAS_KERNELS and model.embedding.weight.is_cpu and precision != "bfloat16":
        from codekiln.model.cpu_decoder import CpuDecoder  # noqa: PLC0415 - numba is an optional package

        return CpuDecoder(model, precision)
    return Decoder(model, precision)

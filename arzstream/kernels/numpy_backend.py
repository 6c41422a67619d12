"""All NumPy kernels, by the names that they have in the native module."""

from arzstream.kernels.numpy_context import *  # noqa: F403
from arzstream.kernels.numpy_delta import *  # noqa: F403
from arzstream.kernels.numpy_float_fast import *  # noqa: F403
from arzstream.kernels.numpy_optim import *  # noqa: F403
from arzstream.kernels.numpy_records import *  # noqa: F403
from arzstream.kernels.numpy_reference import *  # noqa: F403

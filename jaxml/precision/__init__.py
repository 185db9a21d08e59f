"""Half precision that trains as float32 does: dtypes, loss scaling, rounding, a look inside.

| name | what |
|---|---|
| `Policy`, `policy` | dtypes of parameters, computation and outputs; the usual ones by name |
| `mixed_precision` | a method, computed in half precision |
| `DynamicLossScale`, `StaticLossScale` | lift float16 gradients into range, skip overflows |
| `all_finite` | one decision for all devices |
| `stochastic_rounding` | an optimizer for bfloat16 parameters, right on average |
| `round_stochastically` | float32 to bfloat16 without bias |
| `half_operations`, `assert_float32_ops` | what runs in half precision and must not |
| `float_report` | what a half dtype would make of parameters or gradients |

    method = mixed_precision(simclr(model), policy("mixed_float16"))
    state = init_state(method, optimizer, key, batch, DynamicLossScale.create())
"""

from jaxml.precision.float32_ops import FLOAT32_OPS as FLOAT32_OPS
from jaxml.precision.float32_ops import HalfOperation as HalfOperation
from jaxml.precision.float32_ops import assert_float32_ops as assert_float32_ops
from jaxml.precision.float32_ops import half_operations as half_operations
from jaxml.precision.loss_scale import DynamicLossScale as DynamicLossScale
from jaxml.precision.loss_scale import StaticLossScale as StaticLossScale
from jaxml.precision.loss_scale import all_finite as all_finite
from jaxml.precision.mixed_precision import mixed_precision as mixed_precision
from jaxml.precision.policy import Policy as Policy
from jaxml.precision.policy import policy as policy
from jaxml.precision.report import FloatReport as FloatReport
from jaxml.precision.report import FloatRow as FloatRow
from jaxml.precision.report import float_report as float_report
from jaxml.precision.stochastic_rounding import (
    round_stochastically as round_stochastically,
)
from jaxml.precision.stochastic_rounding import (
    stochastic_rounding as stochastic_rounding,
)

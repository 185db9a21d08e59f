"""Training: state, step, loop, checkpoints, evaluation. Knows no algorithm.

| name | what |
|---|---|
| `TrainState`, `init_state` | everything a run must save |
| `gradient_step` | a method and an optimizer as (state, batch) -> (state, metrics) |
| `fit` | the loop: progress, checkpoints, resume, evaluation |
| `Run` | the folder of a run |
| `evaluate`, `predict` | a metric, or the outputs, over a whole split |
| `save`, `restore`, `latest_step`, `Checkpoints` | checkpoints |
| `restore_params` | only parameters, into another model, with a report |
"""

from jaxml.train.checkpoint import Checkpoints as Checkpoints
from jaxml.train.checkpoint import latest_step as latest_step
from jaxml.train.checkpoint import restore as restore
from jaxml.train.checkpoint import save as save
from jaxml.train.evaluate import evaluate as evaluate
from jaxml.train.evaluate import predict as predict
from jaxml.train.guard import NonFiniteError as NonFiniteError
from jaxml.train.log import print_log as print_log
from jaxml.train.loop import fit as fit
from jaxml.train.run import ConfigMismatchError as ConfigMismatchError
from jaxml.train.run import Run as Run
from jaxml.train.state import TrainState as TrainState
from jaxml.train.state import init_state as init_state
from jaxml.train.step import gradient_step as gradient_step
from jaxml.train.storage import CheckpointError as CheckpointError
from jaxml.train.transfer import RestoreReport as RestoreReport
from jaxml.train.transfer import restore_params as restore_params

"""A small SimCLR run on digits, or one process of it.

simclr_program.py OUT STEPS [HOST:PORT,ID/COUNT]

In the environment: DEVICES of this process (1), STEP_SECONDS that each step waits (0).
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import optax

from jaxml import compose, data, nn, ops, parallel, ssl, train


def build():
    """The step, the first state and the batches, on all devices of all processes."""
    mesh = parallel.data_mesh()
    batches = data.load("digits", "train", 32, seed=0)
    model = ssl.SimCLR(nn.ConvNet((4, 8), axis_name="data"), (8, 4), axis_name="data")
    views = ops.two_views(ops.digit_view)
    method = compose.augmented(ssl.simclr(model, temperature=0.5), views, "data")
    optimizer = optax.sgd(0.002, momentum=0.9)  # gentle: rounding must not grow
    state = train.init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
    step = train.gradient_step(method, optimizer, jax.random.key(1), "data")
    step = parallel.data_parallel(step, mesh)
    return step, parallel.replicate(state, mesh), batches


def main(out, num_steps, where=None):
    jax.config.update("jax_num_cpu_devices", int(os.environ.get("DEVICES", 1)))
    parallel.initialize(where)
    step, state, batches = build()

    def paced_step(state, batch):
        time.sleep(float(os.environ.get("STEP_SECONDS", 0)))
        return step(state, batch)

    train.fit(
        paced_step,
        state,
        batches,
        int(num_steps),
        run=train.Run(out),
        log_every=5,
        save_every=10,
    )
    print(f"process {jax.process_index()} of {jax.process_count()} is done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The program that a device would be given, and functions split over devices."""

import jax


def lowered(platform, f, *args):
    """The program for a platform that need not be here, as text."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def in_shards(f):
    """A function of arrays over four devices, each with some of the heads."""
    mesh = jax.make_mesh((4,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec(None, None, "heads")
    return jax.shard_map(f, mesh=mesh, in_specs=split, out_specs=split)

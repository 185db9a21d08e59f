"""Many devices as one: meshes, data parallelism, collectives.

| name | what |
|---|---|
| `data_mesh` | all devices on one axis named `data` |
| `data_parallel` | a step, run with the batch split over that axis |
| `fsdp`, `fsdp_init`, `fsdp_sharding` | the same with the state split too: 1/N of the memory |
| `pmap_parallel` | `data_parallel` for arrays with a device axis |
| `shard_batch`, `replicate` | arrays onto the mesh |
| `pmean`, `psum`, `all_gather` | collectives with the right gradients; identity on one device |
| `initialize` | several processes, on one machine or many, as one run |
| `ring_all_reduce` | how a sum over devices is made, as a reference |
| `fingerprint`, `assert_replicated` | whether copies are the same to the bit |
| `sample_keys` | random keys that do not depend on the number of devices |
"""

from jaxml.parallel.collectives import all_gather as all_gather
from jaxml.parallel.collectives import pmean as pmean
from jaxml.parallel.collectives import psum as psum
from jaxml.parallel.collectives import sample_keys as sample_keys
from jaxml.parallel.collectives import sample_positions as sample_positions
from jaxml.parallel.data_parallel import data_parallel as data_parallel
from jaxml.parallel.data_parallel import pmap_parallel as pmap_parallel
from jaxml.parallel.fingerprint import assert_replicated as assert_replicated
from jaxml.parallel.fingerprint import fingerprint as fingerprint
from jaxml.parallel.fsdp import fsdp as fsdp
from jaxml.parallel.fsdp import fsdp_init as fsdp_init
from jaxml.parallel.fsdp import fsdp_sharding as fsdp_sharding
from jaxml.parallel.mesh import DATA_AXIS as DATA_AXIS
from jaxml.parallel.mesh import data_mesh as data_mesh
from jaxml.parallel.mesh import replicate as replicate
from jaxml.parallel.mesh import shard_batch as shard_batch
from jaxml.parallel.multihost import initialize as initialize
from jaxml.parallel.ring_all_reduce import ring_all_reduce as ring_all_reduce

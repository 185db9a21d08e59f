"""Data on the host: deterministic, sharded, resumable batches of NumPy arrays.

    batches = jaxml.data.load("digits", "train", 256, seed=0)

| name | samples | where from |
|---|---|---|
| `digits` | 1,797 images 8 x 8, 10 classes | scikit-learn |
| `breast_cancer`, `iris`, `wine`, `diabetes` | small tables | scikit-learn |
| `shapes` | images of any number and size, up to 10 classes | generated |
| `shape_masks` | images of several shapes, with label and instance maps | generated |
| `gaussian_blobs` | points in any dimension | generated |
| `mnist`, `fashion_mnist`, `kmnist` | 70,000 images 28 x 28 x 1, 10 classes | files, TFDS |
| `cifar10`, `cifar100` | 60,000 images 32 x 32 x 3 | files, TFDS |
| `binarized_mnist` | 70,000 images 28 x 28 x 1, 0 or 255, no labels | files |
| `isbi_membrane` | 30 micrographs 512 x 512 x 1 with label maps | files |
| `coco128_masks` | 100 photographs with label maps of up to 129 classes | files |
| any name that TFDS has prepared, `emnist/letters` | | TFDS's folder |
| any folder `<data_dir>/<name>`, `images:<path>` | `<split>/<class>/<file>` | pictures |

Files lie in `<data_dir>/<name>`, where `data_dir` is an argument or JAXML_DATA_DIR.
Nothing is downloaded unless `download=True` or JAXML_DOWNLOAD=1 says so, and TensorFlow is
never imported.
"""

from jaxml.data.images import images
from jaxml.data.pipeline import Description, describe, load, load_arrays
from jaxml.data.sampler import Sampler, permutation
from jaxml.data.source import Source, from_arrays

__all__ = [
    "Description",
    "Sampler",
    "Source",
    "describe",
    "from_arrays",
    "images",
    "load",
    "load_arrays",
    "permutation",
]

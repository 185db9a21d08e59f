"""Pictures of a run: curves, image sheets, embeddings, bars and tables.

| function | picture |
|---|---|
| `save_curves` | losses and metrics over steps; `read_curves` reads `metrics.jsonl` |
| `save_image_sheet` | images side by side: samples, augmented views |
| `save_attention` | what each head of a transformer looks at in an image |
| `save_detections` | boxes with names and scores on a photograph, and masks |
| `save_segmentation` | the class of every pixel, with names |
| `save_key_points` | joints and limbs, landmarks |
| `save_heat_map` | where a network looks or expects an object |
| `save_depth_map` | depth or disparity, with its scale |
| `save_point_cloud` | points in space from several sides |
| `save_embedding` | features in the plane by PCA or t-SNE, coloured by class |
| `save_exponents` | what half precision makes of gradients, a histogram |
| `save_boundary` | regions of a classifier in the plane |
| `save_functions`, `save_surfaces` | functions of one number or two, side by side |
| `save_graph` | boxes and arrows: a graph of operations |
| `save_tree` | a decision tree: questions, answers, the way of missing values |
| `save_bars` | one number per method, with its seeds |
| `save_table` | several numbers per method, the best in bold |

Each takes the path first, writes the file in one move (a reader never sees half a
picture) and returns the picture as a PIL image, which a notebook shows as it is; with
None for the path it only returns it. Images are PNG; charts may also be PDF or SVG, by
the suffix. Names stand beside lines and clusters, so that nothing is told by colour
alone.
"""

from jaxml.draw.attention import save_attention as save_attention
from jaxml.draw.boundary import save_boundary as save_boundary
from jaxml.draw.canvas import COLOURS as COLOURS
from jaxml.draw.comparison import save_bars as save_bars
from jaxml.draw.comparison import save_table as save_table
from jaxml.draw.curves import read_curves as read_curves
from jaxml.draw.curves import save_curves as save_curves
from jaxml.draw.depth_map import save_depth_map as save_depth_map
from jaxml.draw.detections import save_detections as save_detections
from jaxml.draw.embedding import save_embedding as save_embedding
from jaxml.draw.exponents import save_exponents as save_exponents
from jaxml.draw.functions import save_functions as save_functions
from jaxml.draw.functions import save_surfaces as save_surfaces
from jaxml.draw.graph import save_graph as save_graph
from jaxml.draw.heat_map import save_heat_map as save_heat_map
from jaxml.draw.image_sheet import save_image_sheet as save_image_sheet
from jaxml.draw.key_points import save_key_points as save_key_points
from jaxml.draw.point_cloud import save_point_cloud as save_point_cloud
from jaxml.draw.segmentation import save_segmentation as save_segmentation
from jaxml.draw.tree import save_tree as save_tree

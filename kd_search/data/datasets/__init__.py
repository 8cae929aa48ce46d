from kd_search.data.datasets.builtin import register_builtin
from kd_search.data.datasets.coco_json import load_coco_json
from kd_search.data.datasets.prw import attach_queries
from kd_search.data.datasets.register import (
    SplitFiles,
    get_id_map,
    get_person_search_dicts,
    load_split,
    register_person_search_coco,
    register_split,
)

register_builtin()

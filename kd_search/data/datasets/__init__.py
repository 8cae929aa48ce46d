from kd_search.data.datasets.builtin import register_builtin
from kd_search.data.datasets.coco_json import load_coco_json
from kd_search.data.datasets.cuhk_sysu import CUHKSYSUFiles
from kd_search.data.datasets.mot import (
    MOTFiles,
    parse_motchallenge_entry,
    register_motchallenge,
)
from kd_search.data.datasets.prw import attach_queries
from kd_search.data.datasets.prw_mat import PRWFiles
from kd_search.data.datasets.register import (
    SplitFiles,
    get_id_map,
    get_person_search_dicts,
    load_split,
    register_person_search_coco,
    register_split,
)
from kd_search.data.datasets.split import LoadedSplit, SplitSource

register_builtin()

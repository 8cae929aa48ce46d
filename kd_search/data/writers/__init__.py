from kd_search.data.writers.coco_json import write_coco_json
from kd_search.data.writers.common import ImageFolder, new_folder
from kd_search.data.writers.cuhk_sysu import write_cuhk_sysu
from kd_search.data.writers.mot import write_mot
from kd_search.data.writers.prw import write_prw

from kd_search.modeling.meta_arch.person_search_rcnn import PersonSearchRCNN

__all__ = ["PersonSearchRCNN"]

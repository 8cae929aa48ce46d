from kd_search.export.exported_file import Exported, load_exported, weights_sha256
from kd_search.export.model_file import export_model
from kd_search.export.parity import ExportParityError, check_parity, probe_images
from kd_search.export.torchscript import describe, export_torchscript
from kd_search.export.tracing import ExportablePersonSearch, exportable, trace_person_search

__all__ = [
    "ExportParityError",
    "ExportablePersonSearch",
    "Exported",
    "check_parity",
    "describe",
    "export_model",
    "export_torchscript",
    "exportable",
    "load_exported",
    "probe_images",
    "trace_person_search",
    "weights_sha256",
]

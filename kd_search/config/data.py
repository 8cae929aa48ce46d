"""Config keys of images, data sets and crops."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_data(cfg: CfgNode) -> None:
    """Add the keys of images, data sets and crops."""
    _add_input(cfg)
    _add_datasets(cfg)
    _add_reid_data(cfg)


def _add_input(cfg: CfgNode) -> None:
    # For an image that is missing or cannot be decoded: "raise" stops with the name of the file;
    # "skip" draws another image, counts it and warns. (kd_search)
    cfg.INPUT.ON_IMAGE_ERROR = "raise"
    # Training stops when more than this fraction of the drawn images was skipped. (kd_search)
    cfg.INPUT.MAX_SKIPPED_FRACTION = 0.01
    # Images with more pixels are refused from their header, before decoding, as a guard against
    # decompression bombs. (kd_search)
    cfg.INPUT.MAX_IMAGE_PIXELS = 50_000_000
    # Give training batches the image before any transform as well, for companions that need it; the
    # trainer sets it where one does. For TwoStepSearch, which cuts crops from it, test batches have
    # it instead. (kd_search)
    cfg.INPUT.WITH_ORIGINAL_IMAGE = False


def _add_datasets(cfg: CfgNode) -> None:
    # Your own data sets, each [name, annotations.json, image folder] and, for a test set, the query
    # file; registered under that name before the data is loaded. (kd_search)
    cfg.DATASETS.PERSON_SEARCH_COCO = []
    # Folders of MOTChallenge, each [name, folder, "option=value", ...] with the options of
    # docs/datasets.md; registered in the same way. (kd_search)
    cfg.DATASETS.PERSON_SEARCH_MOT = []
    # Released data sets in any folder, each [name, "prw" or "cuhk_sysu", folder, "train" or
    # "test"]; registered in the same way. (kd_search)
    cfg.DATASETS.PERSON_SEARCH_RELEASES = []


def _add_reid_data(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.REID_DATA = CN()
    # Height and width of crops: 256x128 for people; 224x224 for vehicles and animals (VKD, ECCV
    # 2020).
    cfg.REID_DATA.SIZE = [256, 128]
    # P, identities of a batch, with K = SOLVER.IMS_PER_BATCH / P samples each: 16 and 4 in Luo et
    # al. (CVPR workshops 2019), 8 and 4 in VKD.
    cfg.REID_DATA.IDS_PER_BATCH = 16
    # Probability of a horizontal flip: 0.5 (Luo et al., VKD).
    cfg.REID_DATA.FLIP_PROB = 0.5
    # Black padding of the resized crop, in pixels, before a random crop of SIZE: 10 (Luo et al.,
    # VKD).
    cfg.REID_DATA.PAD = 10
    # Probability that a rectangle is replaced by MODEL.PIXEL_MEAN (random erasing, AAAI 2020): 0.5
    # (Luo et al., VKD).
    cfg.REID_DATA.ERASING_PROB = 0.5
    # Range of its share of the area of the crop: 0.02, 0.4 (Luo et al., VKD).
    cfg.REID_DATA.ERASING_SCALE = [0.02, 0.4]
    # Range of its height divided by its width: 0.3, 3.3 for people; 0.7, 1.4 for vehicles (VKD).
    cfg.REID_DATA.ERASING_RATIO = [0.3, 3.3]

    # Spatial-invariant augmentation on the image level (ISA, Zhang et al., AAAI 2021), for crops
    # that are cut from larger images: the box is shifted instead of padding the crop.
    cfg.REID_DATA.SIA = CN()
    # Shift boxes; False pads every crop. (kd_search)
    cfg.REID_DATA.SIA.IMAGE_LEVEL = False
    # dp: pixels of the re-ID input. Not in what is known of the paper; 10 is the usual padding.
    cfg.REID_DATA.SIA.PADDING = 10.0
    # alpha: pixels of the original image. Not in what is known of the paper. (kd_search)
    cfg.REID_DATA.SIA.LIMIT = 20.0

    # Frames of a training sample.
    cfg.REID_DATA.VIEWS = CN()
    # N: 1 for images; 8 in VKD, where a student has MODEL.REID_NETWORK.TRAIN_VIEWS of them.
    cfg.REID_DATA.VIEWS.NUM = 1
    # "tracklet": of one tracklet (teachers of VKD); "cameras": of different cameras, then tracklets
    # (students in the paper of VKD); "tracklets": of different tracklets of any camera (students in
    # the code of VKD); "frames": any frames of the identity. (kd_search)
    cfg.REID_DATA.VIEWS.SOURCE = "tracklet"

    cfg.REID_DATA.TEST = CN()
    # "<query>-to-<gallery>" with image or video; equal for sets of single images. VKD reports
    # image-to-video and video-to-video.
    cfg.REID_DATA.TEST.SETTINGS = ["video-to-video"]
    # Frames of a video: the first ones of this number of equal chunks, 8 (VKD); 0 takes all.
    cfg.REID_DATA.TEST.FRAMES = 8
    # Samples of a batch. (kd_search)
    cfg.REID_DATA.TEST.BATCH_SIZE = 32

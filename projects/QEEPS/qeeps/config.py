"""Config keys of query-guided networks.

Neither code nor all details of the paper are public. Each comment says how sure its value is:
"figure", "authors" (their answers to questions and their evaluation scripts), "second hand"
(descriptions by others), or "ours" (unknown, chosen by this project).
"""

from kd_search.config import register_config


@register_config
def add_query_guided_config(cfg):
    """Add ``MODEL.QUERY_GUIDED`` and ``DATALOADER.PAIRS``."""
    node = cfg.MODEL.QUERY_GUIDED = type(cfg)()
    # Blocks of res4 in the part that whole pictures run through (BaseNet); the others and res5 run
    # on regions. 3 of the 6 of ResNet-50, "conv4_3" (figure).
    node.SPLIT_BLOCK = 3

    gates = node.GATES = type(cfg)()
    # Gates on the channels of both pictures after every block of BaseNet, QSSE (figure).
    gates.ENABLED = True
    # Width of the hidden layer: the 2 C pooled values over it. 16 is that of Hu et al., CVPR 2018,
    # table 10 (ours).
    gates.REDUCTION = 16
    # Both pictures have the same gates, or each its own (ours).
    gates.SEPARATE = False
    # "block": the output of a block is multiplied; "residual": its residual branch, as in Hu et al.
    # (ours: from a trained network, gates of 0.5 on ten outputs leave a thousandth of the signal).
    gates.POSITION = "residual"
    # Initial bias of the gates before the sigmoid; 0 as the layers' own initial values, which the
    # authors keep (authors), and gates of about one half.
    gates.INITIAL_BIAS = 0.0
    # The query's features pass the gates of the pair (figure), or those of the query with itself,
    # which do not depend on the gallery picture: a search then computes them once ("self", ours).
    gates.QUERY_STREAM = "pair"

    rpn = node.RPN = type(cfg)()
    # Objectness by the query's features, added to that of the RPN, QRPN (figure).
    rpn.ENABLED = True
    # As GATES.REDUCTION, of the query's C pooled values (ours).
    rpn.REDUCTION = 16
    # Weight of the loss (ours).
    rpn.LOSS_WEIGHT = 1.0

    sim = node.SIMILARITY = type(cfg)()
    # Similarity network on the squared difference of embeddings, QSimNet (figure; its form is
    # second hand: batch normalisation and one linear layer).
    sim.ENABLED = True
    # Regions that it learns from: "people" (foreground) or "all", where background is different
    # from every query (ours).
    sim.REGIONS = "people"
    # Unlabelled people are different from the query, or left out: in PRW they are people whose
    # identity is not sure (ours).
    sim.UNLABELLED_ARE_NEGATIVE = False
    # Weight of the loss (ours).
    sim.LOSS_WEIGHT = 1.0
    # What a search ranks by: "network" (the probability of QSimNet), "cosine" of the embeddings, or
    # "product" of the two, the cosine moved to 0..1 (ours).
    sim.RANK_BY = "network"

    # OIM also on the query's embedding, as on the gallery's (figure).
    node.OIM_ON_QUERY = True
    # Gallery pictures of one size in a forward of a search. It changes no result but by rounding.
    node.TEST_BATCH = 4

    pairs = cfg.DATALOADER.PAIRS = type(cfg)()
    # "all": an epoch is all N (N - 1) ordered pairs of the N pictures of each person, as for
    # CUHK-SYSU (authors). "sampled": an epoch is every picture once, as the gallery picture, with a
    # query of one of its people; for PRW, whose 85 million pairs are too many (ours).
    pairs.MODE = "all"
    # Of "sampled": prefer query pictures of another camera than the gallery picture's (ours).
    pairs.OTHER_CAMERA = True
    # Share of pairs whose gallery picture does not hold the person (unknown if there are any).
    pairs.ABSENT_FRACTION = 0.0

"""EmbeddingHead: shapes, norms, and batches too small for batch statistics."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from kd_search.modeling import EmbeddingHead


def head(**kwargs):
    torch.manual_seed(0)
    return EmbeddingHead(input_shape=ShapeSpec(channels=4, height=6, width=3), **kwargs)


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("num_stripes", [1, 3])
@pytest.mark.parametrize("num_conv", [0, 2])
def test_embeddings_have_unit_length(pool, num_stripes, num_conv):
    module = head(
        embedding_dim=8, pool=pool, num_stripes=num_stripes, num_conv=num_conv, conv_dim=5
    )
    embeddings = module(torch.randn(7, 4, 6, 3))
    assert embeddings.shape == (7, 8)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(7))


def test_stripes_keep_the_order_from_head_to_foot():
    module = head(embedding_dim=8, num_stripes=2)
    regions = torch.randn(2, 4, 6, 3)
    upside_down = regions.flip(2)
    assert not torch.allclose(module(regions), module(upside_down))
    plain = head(embedding_dim=8, num_stripes=1)
    torch.testing.assert_close(plain(regions), plain(upside_down))


def test_no_region_touches_every_parameter_and_no_statistic():
    module = head(embedding_dim=8, num_conv=1, conv_norm="BN", embedding_norm="BN")
    before = {k: v.clone() for k, v in module.named_buffers()}
    embeddings = module(torch.zeros(0, 4, 6, 3))
    assert embeddings.shape == (0, 8)
    embeddings.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.named_buffers())


def test_one_region_falls_back_to_running_statistics():
    module = head(embedding_dim=8, embedding_norm="BN")
    region = torch.randn(1, 4, 6, 3)
    training = module(region)
    torch.testing.assert_close(training, module.eval()(region))


def test_wrong_options_name_the_key():
    with pytest.raises(ValueError, match="MODEL.REID_HEAD.POOL"):
        head(pool="median")
    with pytest.raises(ValueError, match="MODEL.REID_HEAD.EMBEDDING_NORM"):
        head(embedding_norm="GN")

"""Files that PersonSearchCheckpointer reads, rejects and writes."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from tiny_reid import reid_cfg
from torch import nn

from kd_search.checkpoint import (
    PersonSearchCheckpointer,
    load_arrays_pickle,
    load_trained,
    to_plain,
)
from kd_search.modeling import IDTable


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


class Block(nn.Module):
    """The modules of Detectron2's ResNet that are renamed."""

    def __init__(self, where_res5_is):
        super().__init__()
        self.backbone = nn.Module()
        body = self.backbone
        if where_res5_is == "fpn":
            body = self.backbone.bottom_up = nn.Module()
        body.stem = nn.Module()
        body.stem.conv1 = conv_norm(3, 4)
        body.res2 = nn.Sequential(bottleneck())
        home = body
        if where_res5_is == "roi_heads":
            home = self.roi_heads = nn.Module()
        home.res5 = nn.Sequential(bottleneck())
        self.head = nn.Linear(4, 2)


def conv_norm(inputs, outputs):
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    conv.norm = nn.BatchNorm2d(outputs)
    return conv


def bottleneck():
    block = nn.Module()
    block.conv1 = conv_norm(4, 4)
    block.shortcut = conv_norm(4, 4)
    return block


def caffe2_weights():
    """Names as in Detectron2's MSRA/R-50.pkl; all values differ."""
    generator = np.random.default_rng(0)

    def array(*shape):
        return generator.random(shape, dtype=np.float32)

    weights = {"conv1_w": array(4, 3, 1, 1), "res_conv1_bn_s": array(4)}
    for stage in (2, 5):
        weights[f"res{stage}_0_branch2a_w"] = array(4, 4, 1, 1)
        weights[f"res{stage}_0_branch2a_bn_b"] = array(4)
        weights[f"res{stage}_0_branch1_w"] = array(4, 4, 1, 1)
    return weights


def torchvision_weights():
    names = {"conv1.weight": (4, 3, 1, 1), "fc.weight": (9, 4), "fc.bias": (9,)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        names[f"bn1.{name}"] = (4,)
    for stage in (1, 4):
        names[f"layer{stage}.0.conv1.weight"] = (4, 4, 1, 1)
        names[f"layer{stage}.0.bn1.running_mean"] = (4,)
        names[f"layer{stage}.0.downsample.0.weight"] = (4, 4, 1, 1)
        names[f"layer{stage}.0.downsample.1.running_var"] = (4,)
    state = {name: torch.rand(shape) for name, shape in names.items()}
    state["bn1.num_batches_tracked"] = torch.tensor(5)
    return collections.OrderedDict(state)


def load(network, path, **kwargs):
    return PersonSearchCheckpointer(network, **kwargs).load(str(path))


# ------------------------------------------------------------------------------------------ .pkl


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["fpn", "roi_heads"])
def test_weights_in_the_format_of_the_model_zoo_load(tmp_path, protocol, place):
    weights = caffe2_weights()
    path = tmp_path / "R-50.pkl"
    with open(path, "wb") as f:
        pickle.dump(weights, f, protocol=protocol)
    network = Block(place)
    load(network, path)
    body = network.backbone.bottom_up if place == "fpn" else network.backbone
    home = network.roi_heads if place == "roi_heads" else body
    pairs = {
        "conv1_w": body.stem.conv1.weight,
        "res_conv1_bn_s": body.stem.conv1.norm.weight,
        "res2_0_branch2a_w": body.res2[0].conv1.weight,
        "res5_0_branch2a_w": home.res5[0].conv1.weight,
        "res5_0_branch1_w": home.res5[0].shortcut.weight,
    }
    for name, weight in pairs.items():
        assert np.array_equal(weights[name], weight.detach().numpy()), name


def test_detectron2_zoo_pickle_with_scalars_and_author_loads(tmp_path):
    network = nn.Linear(2, 1)
    model = {"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)}
    content = {"model": model, "__author__": "Detectron2 Model Zoo", "step": np.float64(3)}
    path = tmp_path / "model.pkl"
    with open(path, "wb") as f:
        pickle.dump(content, f)
    assert load(network, path)["step"] == 3
    assert torch.equal(network.weight, torch.ones(1, 2))


def test_hostile_pickle_is_refused_without_running_it(tmp_path):
    mark = tmp_path / "was_here"
    path = tmp_path / "stranger.pkl"
    with open(path, "wb") as f:
        pickle.dump({"model": {"weight": Bomb(mark)}, "__author__": "me"}, f)
    with pytest.raises(ValueError, match=r"stranger.pkl .*mkdir.*MODEL.TRUST_PICKLE"):
        load(nn.Linear(2, 1), path)
    assert not mark.exists()
    # The bomb is a real one: it runs if the file is trusted.
    with pytest.raises(ValueError):
        load(nn.Linear(2, 1), path, trust_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        np.array([{"a": 1}], dtype=object),
        {"w": collections.Counter("aab")},
        {"w": np.ma.masked_array([1.0])},
    ],
)
def test_objects_inside_a_pickle_are_refused(tmp_path, content):
    path = tmp_path / "odd.pkl"
    with open(path, "wb") as f:
        pickle.dump(content, f)
    with pytest.raises(ValueError, match="odd.pkl"):
        load_arrays_pickle(path)


def test_text_codecs_cannot_be_reached_through_a_pickle(tmp_path):
    path = tmp_path / "codec.pkl"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVzlib_codec\ntR.")
    with pytest.raises(ValueError, match="zlib_codec"):
        load_arrays_pickle(path)
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVlatin1\ntR.")
    assert load_arrays_pickle(path) == b"abc"


def test_truncated_pickle_is_named(tmp_path):
    path = tmp_path / "half.pkl"
    content = pickle.dumps(caffe2_weights())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="half.pkl"):
        load(nn.Linear(2, 1), path)


# ------------------------------------------------------------------------------------------ .pth


def test_hostile_pth_is_refused_without_running_it(tmp_path):
    mark = tmp_path / "was_here"
    path = tmp_path / "stranger.pth"
    torch.save({"model": Bomb(mark)}, path)
    with pytest.raises(ValueError, match=r"stranger.pth .*mkdir"):
        load(nn.Linear(2, 1), path)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["backbone", "fpn", "roi_heads"])
def test_torchvision_names_find_their_place(tmp_path, place):
    weights = torchvision_weights()
    torch.save(weights, tmp_path / "resnet.pth")
    network = Block(place)
    load(network, tmp_path / "resnet.pth")
    body = network.backbone.bottom_up if place == "fpn" else network.backbone
    home = network.roi_heads if place == "roi_heads" else body
    pairs = {
        "conv1.weight": body.stem.conv1.weight,
        "bn1.running_mean": body.stem.conv1.norm.running_mean,
        "bn1.num_batches_tracked": body.stem.conv1.norm.num_batches_tracked,
        "layer1.0.conv1.weight": body.res2[0].conv1.weight,
        "layer1.0.bn1.running_mean": body.res2[0].conv1.norm.running_mean,
        "layer4.0.downsample.0.weight": home.res5[0].shortcut.weight,
        "layer4.0.downsample.1.running_var": home.res5[0].shortcut.norm.running_var,
    }
    for name, weight in pairs.items():
        assert torch.equal(weights[name], weight), name


def test_missing_and_unexpected_keys_are_logged_as_by_detectron2(tmp_path, caplog):
    torch.save(
        {"model": {"weight": torch.ones(1, 2), "other.x": torch.ones(1)}}, tmp_path / "a.pth"
    )
    load(nn.Linear(2, 1), tmp_path / "a.pth")
    assert "bias" in caplog.text and "other.x" in caplog.text


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load(nn.Linear(2, 1), tmp_path / "nowhere.pth")


# ---------------------------------------------------------------------------------------- writing


class State:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_numpy_scalars_and_arrays_are_saved_as_plain_types(tmp_path):
    best = State({"best": np.float64(0.5), "steps": [np.int64(3)], "curve": np.arange(3)})
    checkpointer = PersonSearchCheckpointer(nn.Linear(2, 1), str(tmp_path), best=best)
    checkpointer.save("model_0000000", iteration=0)
    best.state = None
    checkpointer.resume_or_load("", resume=True)
    assert type(best.state["best"]) is float and best.state["steps"] == [3]
    assert best.state["curve"].tolist() == [0, 1, 2]


def test_an_object_in_a_checkpoint_is_rejected_by_name_and_leaves_the_old_file(tmp_path):
    best = State({"ok": 1})
    checkpointer = PersonSearchCheckpointer(nn.Linear(2, 1), str(tmp_path), best=best)
    checkpointer.save("model_0000000", iteration=0)
    best.state = {"deep": {"thing": object()}}
    with pytest.raises(TypeError, match="checkpoint.best.deep.thing.*object"):
        checkpointer.save("model_0000000", iteration=0)
    checkpointer.resume_or_load("", resume=True)
    assert best.state == {"ok": 1}


def test_failure_while_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    checkpointer = PersonSearchCheckpointer(nn.Linear(2, 1), str(tmp_path))
    checkpointer.save("model_0000000", iteration=0)
    old = (tmp_path / "model_0000000.pth").read_bytes()

    def full_disk(data, f):
        f.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_0000000", iteration=1)
    assert (tmp_path / "model_0000000.pth").read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000000.pth"]


def test_training_is_not_resumed_from_the_best_checkpoint(tmp_path):
    checkpointer = PersonSearchCheckpointer(nn.Linear(2, 1), str(tmp_path))
    checkpointer.save("model_0000003", iteration=3)
    checkpointer.save("model_best", iteration=2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert checkpointer.last_iteration == 3
    # Nor where nothing else can be read.
    (tmp_path / "model_0000003.pth").write_bytes(b"corrupt")
    with pytest.raises(ValueError, match=r"model_0000003\.pth"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize("part", ["more", "fewer", "of another size"])
def test_a_checkpoint_is_resumed_with_all_its_parameters_or_not_at_all(tmp_path, part):
    other = {
        "more": nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1)),
        "fewer": nn.Sequential(nn.Linear(2, 1, bias=False)),
        "of another size": nn.Sequential(nn.Linear(2, 3)),
    }
    PersonSearchCheckpointer(other[part], str(tmp_path)).save("model_0000000", iteration=0)
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"model_0000000\.pth.*--resume"):
        PersonSearchCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)


def test_weights_of_a_new_training_bring_nothing_else_with_them(tmp_path):
    """Of a checkpoint of another training as MODEL.WEIGHTS, the optimizer state is not loaded."""
    trained, state = nn.Linear(2, 1), State({"steps": 9})
    PersonSearchCheckpointer(trained, str(tmp_path), state=state).save("model_0000008", iteration=8)
    model, fresh = nn.Linear(2, 1), State({"steps": 0})
    checkpointer = PersonSearchCheckpointer(model, str(tmp_path / "new"), state=fresh)
    checkpointer.resume_or_load(str(tmp_path / "model_0000008.pth"), resume=False)
    assert torch.equal(model.weight, trained.weight) and fresh.state == {"steps": 0}


class WithTable(nn.Module):
    def __init__(self, num_ids):
        super().__init__()
        self.head = nn.Module()
        self.head.linear = nn.Linear(2, 1)
        self.head.id_table = IDTable(num_ids=num_ids, queue_size=2, embedding_dim=2)


def test_a_network_in_use_needs_all_its_weights_and_no_id_table(tmp_path):
    model, table = WithTable(3), "head.id_table."
    whole = WithTable(4).state_dict()
    without = {k: v for k, v in whole.items() if not k.startswith(table)}
    assert len(without) < len(whole)
    for weights in (whole, without):
        torch.save({"model": weights}, tmp_path / "a.pth")
        load_trained(model, str(tmp_path / "a.pth"))
        assert torch.equal(model.head.linear.weight, whole["head.linear.weight"])
    torch.save({"model": {"head.linear.weight": torch.ones(1, 2)}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b\.pth.*head\.linear\.bias") as error:
        load_trained(model, str(tmp_path / "b.pth"))
    assert table not in str(error.value)


def test_inference_needs_no_classifier_of_the_training_identities(tmp_path):
    model, path = build_model(reid_cfg()), str(tmp_path / "other.pth")
    torch.save({"model": build_model(reid_cfg("MODEL.REID_NETWORK.NUM_IDS", 7)).state_dict()}, path)
    with pytest.raises(ValueError, match=r"other\.pth.*classifier\.weight"):
        load_trained(model, path)
    load_trained(model, path, for_inference=True)
    state = torch.load(path, weights_only=True)["model"]
    assert torch.equal(model.neck.weight, state["neck.weight"])
    # A name that has the part's within it is no such part.
    state["backbone.classifier.weight"] = state.pop("neck.running_mean")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=r"neck\.running_mean.*backbone\.classifier\.weight"):
        load_trained(model, path, for_inference=True)


def test_layout_versions_of_modules_survive_plain_types():
    state = to_plain(nn.BatchNorm2d(2).state_dict())
    assert state._metadata[""]["version"] == 2


def test_weights_of_pycls_load_without_counters(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2))
    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "n.num_batches_tracked": 1}
    torch.save({"model_state": state}, tmp_path / "net.pyth")
    load(network, tmp_path / "net.pyth")
    assert torch.equal(network[0].weight, torch.ones(2, 3))


def test_names_are_matched_by_their_ends_where_heuristics_are_asked_for(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2))
    torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "net.pth")
    load(network, f"{tmp_path / 'net.pth'}?matching_heuristics=True")
    assert torch.equal(network[0].weight, torch.ones(2, 3))


def test_a_file_without_names_or_state_is_refused(tmp_path):
    network = nn.Linear(3, 2)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth.*list"):
        load(network, tmp_path / "list.pth")
    torch.save({"model": network.state_dict()}, tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(ValueError, match=r"model_0000001\.pth.*no training state"):
        PersonSearchCheckpointer(network, str(tmp_path)).resume_or_load("", resume=True)

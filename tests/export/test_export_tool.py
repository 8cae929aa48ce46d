"""kd-search export: what it exports, and its errors."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from kd_search.cli import export
from kd_search.export import load_exported, tracing
from kd_search.utils.files import file_sha256


@pytest.fixture
def trained(fpn, tmp_path):
    """Config file and checkpoint as training leaves them, and the arguments to export them."""
    config, weights = tmp_path / "config.yaml", tmp_path / "model_final.pth"
    cfg = fpn.cfg.clone()
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.MODEL.META_ARCHITECTURE = "Distiller"
    cfg.DISTILLATION.TERMS = ["IDTableTerm"]
    cfg.DISTILLATION.ID_TABLE.PATH = "not/needed.pth"
    config.write_text(cfg.dump())
    torch.save({"model": fpn.model.state_dict(), "iteration": 9}, weights)
    output = tmp_path / "out" / "student.ts"
    arguments = ["--config-file", str(config), "--weights", str(weights), "--output", str(output)]
    return arguments, output


@pytest.fixture
def street(tmp_path):
    """A registered test set of three pictures."""
    dicts = []
    for i in range(3):
        pixels = (torch.rand(60 + 10 * i, 90, 3) * 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"street{i}.png")
        dicts.append({"file_name": str(tmp_path / f"street{i}.png"), "image_id": i})
    DatasetCatalog.register("export_street", lambda: dicts)
    yield "export_street"
    DatasetCatalog.remove("export_street")


def lines(text):
    return text.strip().splitlines()


def test_the_student_of_a_distiller_is_exported_without_its_table(trained, street, fpn, capsys):
    arguments, output = trained
    opts = ["DATASETS.TEST", f"('{street}',)"]
    assert export.main([*arguments, "--check-images", "2", *opts]) == 0
    exported = load_exported(output)
    assert exported.metadata["source_sha256"] == file_sha256(arguments[3])
    assert exported.metadata["min_size"] == 64
    with torch.no_grad():
        for image in fpn.images:
            people = fpn.model([{"image": image}])[0]["instances"]
            assert torch.equal(exported.module(image)[2], people.pred_embeddings)
    printed, errors = capsys.readouterr()
    assert "street0.png" in printed and "street1.png" in printed and "street2.png" not in printed
    assert "all within 1e-05" in printed and f"wrote {output}" in printed
    assert "id_table" not in errors


def test_an_absent_data_set_is_said_or_refused_where_it_was_asked_for(trained, capsys):
    arguments, output = trained
    opts = ["DATASETS.TEST", "('nowhere',)"]
    assert export.main([*arguments, "--check-images", "1", *opts]) == 2
    assert not output.exists()
    assert "'nowhere' of DATASETS.TEST is not registered" in lines(capsys.readouterr().err)[-1]
    assert export.main([*arguments, *opts]) == 0
    assert output.exists()
    assert "compared on synthetic images only: the data set 'nowhere'" in capsys.readouterr().out


def test_a_network_that_differs_is_not_written(trained, capsys, monkeypatch):
    def add_noise(self, image, boxes):
        return self.model.embed([{"image": image}], [boxes + 1])

    arguments, output = trained
    monkeypatch.setattr(tracing.ExportablePersonSearch, "embed", add_noise)
    assert export.main([*arguments, "--check-images", "0"]) == 2
    assert "export: the exported model differs from the model: query_embeddings by" in (
        capsys.readouterr().err
    )
    assert not output.exists()


def test_weights_of_another_network_are_refused(trained, capsys):
    arguments, output = trained
    assert export.main([*arguments, "MODEL.FPN.OUT_CHANNELS", "8"]) == 2
    error = lines(capsys.readouterr().err)[-1]
    assert "the weights are not of this config" in error and "more" in error
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (("--config-file", "gone.yaml"), "config file gone.yaml does not exist"),
        (("--weights", "gone.pth"), "weights gone.pth do not exist"),
        (("--weights", ""), "no weights: give --weights FILE or MODEL.WEIGHTS"),
        (("MODEL.NO_SUCH_KEY", "1"), "there is no key MODEL.NO_SUCH_KEY"),
    ),
)
def test_bad_arguments_are_one_line(trained, capsys, change, message):
    arguments, output = trained
    assert export.main([*arguments, *change]) == 2
    error = lines(capsys.readouterr().err)[-1]
    assert error.startswith("export: ") and message in error
    assert not output.exists()


def test_a_device_that_is_not_there_is_refused(trained, capsys, monkeypatch):
    arguments, output = trained
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert export.main([*arguments, "--device", "cuda"]) == 2
    assert "--device cuda cannot be used on this machine" in lines(capsys.readouterr().err)[-1]
    assert not output.exists()

"""The API: pictures, searches, filters, marks, pictures of the gallery, export."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_search.gallery import Gallery, GalleryWriter
from tests.gallery.fake_searcher import SIDE, colour_of, embedding_of
from tests.server.inputs import png

DAY = 86400.0


def ids(answer):
    return [result["id"] for result in answer["results"]]


def at(answer):
    """Camera and day of November of each result."""
    return [(r["camera"], int(r["time_text"][8:10])) for r in answer["results"]]


def test_status_and_timeline(client):
    status = client.get("/api/status").json
    assert (status["people"], status["cameras"]) == (8, {"door": 5, "gate": 3})
    assert status["end"] - status["start"] == 5 * DAY and status["calibrated"] is True
    timeline = client.get("/api/timeline?bins=5").json
    # By day: people of the 1st, 2nd, 3rd, 4th, and of the 5th and 6th, the last one included.
    assert timeline["counts"] == {"door": [2, 1, 0, 0, 2], "gate": [0, 0, 2, 0, 1]}
    assert (timeline["start"], timeline["end"]) == (status["start"], status["end"])


def test_a_gallery_in_a_database_gives_the_same_answers(client, server):
    from kd_search.gallery.opening import gallery_name

    url = server.new_schema()
    here = client.get("/api/status").json
    found = client.search(client.wanted(2), top_k=3)
    client.move_to(url)
    there = client.get("/api/status").json
    assert there == {**here, "gallery": Path(gallery_name(url)).name}
    again = client.search(client.wanted(2), top_k=3)
    assert at(again) == at(found)
    assert client.get(f"/api/people/{ids(again)[0]}/picture").status == 200


def test_people_of_a_picture_and_the_search_for_one(client):
    sent = client.send(9, 1)
    assert [p["box"] for p in sent["people"]] == [[0, 0, SIDE, SIDE], [SIDE, 0, 2 * SIDE, SIDE]]
    assert (sent["width"], sent["height"]) == (5 * SIDE, 40)
    found = client.search({"picture": sent["id"], "person": 1}, top_k=3)
    assert sorted(at(found)) == [("door", 1), ("door", 5), ("gate", 3)]
    assert {r["verdict"] for r in found["results"]} == {"likely"} and found["people"] == 8
    box = client.search({"picture": sent["id"], "box": [SIDE, 0, 2 * SIDE, SIDE]}, top_k=3)
    assert ids(box) == ids(found)


def test_people_with_a_low_score_are_left_out_unless_there_is_nobody_else(client):
    assert len(client.send(1, 2, 3, 4, 5)["people"]) == 4  # the fifth has 0.3, the limit is 0.5
    client.searcher.manifest["search_score_threshold"] = 0.95
    assert len(client.send(1, 2)["people"]) == 2


def test_several_pictures_are_one_person(client):
    found = client.search(client.wanted(2), client.wanted(3))
    embeddings = [embedding_of(colour_of(person)) for person in (2, 3)]
    hits = Gallery(client.folder / "people").search(np.stack(embeddings), per="picture")
    assert ids(found) == [hit.id for hit in hits] and len(hits) == 5


def test_a_picture_of_the_gallery_is_left_out_of_its_own_results(client):
    sent = client.ask(
        "POST",
        "/api/pictures",
        (client.folder / "footage/gate/20261103_080000.png").read_bytes(),
        {"content-type": "image/png"},
    ).json
    found = client.search({"picture": sent["id"], "person": 0})
    assert ("gate", 3) not in at(found) and len(found["left_out"]) == 2
    again = client.search({"id": found["results"][0]["id"]})
    assert again["left_out"] == [found["results"][0]["id"]]


def test_filters(client):
    query = client.wanted(1)
    assert {c for c, _ in at(client.search(query, cameras=["gate"]))} == {"gate"}
    day = "2026-11-03"
    assert at(client.search(query, start=day, end=day)) == [("gate", 3)]
    seconds = client.get("/api/status").json["start"]
    assert {d for _, d in at(client.search(query, end=seconds + DAY))} == {1, 2}
    folder = str(client.folder / "footage" / "door")
    assert {c for c, _ in at(client.search(query, folders=[folder]))} == {"door"}
    assert client.search(query, min_score=0.95)["results"] == []
    status = client.get("/api/status").json
    assert status["folders"] == {folder: 5, str(client.folder / "footage" / "gate"): 3}
    assert status["min_score"] == 0.5


@pytest.mark.parametrize(("per", "count"), [("person", 8), ("picture", 5), ("camera", 2)])
def test_what_counts_as_one_result(client, per, count):
    found = client.search(client.wanted(1), per=per)
    assert len(found["results"]) == count


def test_marks_move_the_search_and_can_be_taken_back(client):
    query = client.wanted(6)
    plain = client.search(query, per="person")
    wrong, right = ids(plain)[0], ids(plain)[-1]
    marks = [{"id": right, "right": True}, {"id": wrong, "right": False}]
    moved = client.search(query, per="person", marks=marks)
    assert wrong not in ids(moved) and ids(moved).index(right) < ids(plain).index(right)
    assert [r["id"] for r in moved["results"] if r["mark"] == "right"] == [right]
    # What is shown is the similarity to the query, whatever the order.
    shown = {r["id"]: r["similarity"] for r in plain["results"]}
    assert all(r["similarity"] == pytest.approx(shown[r["id"]]) for r in moved["results"])
    once = client.search(query, per="person", marks=marks[:1])
    assert wrong in ids(once)
    assert ids(client.search(query, per="person", marks=[])) == ids(plain)
    # The last mark of a result counts.
    again = [*marks, {"id": wrong, "right": True}]
    assert wrong in ids(client.search(query, per="person", marks=again))


def test_the_picture_of_a_person_and_its_neighbours_in_time(client):
    query = client.wanted(3)
    (second,) = ids(client.search(query, top_k=1))
    place = client.get(f"/api/people/{second}").json
    assert place["camera"] == "door" and place["time_text"] == "2026-11-02 08:00:00"
    before = client.get(f"/api/people/{place['previous']}").json
    after = client.get(f"/api/people/{place['next']}").json
    # Not the 3rd, of the other camera, and not the 4th, with nobody.
    assert [p["time_text"][8:10] for p in (before, after)] == ["01", "05"]
    assert before["previous"] is None and after["next"] is None
    assert before["next"] == second == after["previous"]
    assert len(before["people"]) == 2 and before["people"][0]["id"] == before["id"]


def test_pictures_of_the_gallery(client):
    (first,) = ids(client.search(client.wanted(3), top_k=1))
    target = f"/api/people/{first}/picture"
    small = client.get(f"{target}?size=small")
    assert small.headers["content-type"] == "image/jpeg"
    assert small.headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(small.body)).size == (100, 40)
    person = np.asarray(Image.open(io.BytesIO(client.get(f"{target}?size=person").body)))
    assert np.abs(person[200, 150].astype(int) - colour_of(3)).max() < 8
    assert client.get(f"{target}?size=huge").code == "request"
    # Changed since it was indexed: its box would frame something else.
    path = client.folder / "footage/door/20261102_080000.png"
    Image.new("RGB", (30, 30)).save(path)
    assert client.get(f"{target}?size=large").code == "file"
    path.unlink()
    assert (client.get(f"{target}?size=large")).status == 410


def test_what_is_forgotten_is_gone(client, monkeypatch):
    monkeypatch.setattr("kd_search.server.library._REFRESH", 0.0)
    monkeypatch.setattr("kd_search.server.library._RELIST", 0.0)
    query = client.wanted(3)
    (first,) = ids(client.search(query, top_k=1))
    assert client.get(f"/api/people/{first}/picture").status == 200
    with GalleryWriter(client.folder / "people") as writer:
        (row,) = (row for row in writer.files() if "20261102" in row.path)
        writer.forget([row.sha256])
        writer.compact()
    assert client.get(f"/api/people/{first}/picture").code == "person"
    found = client.search(query, marks=[{"id": first, "right": True}])
    assert first not in ids(found) and found["gone"] == [first]
    assert client.ask("POST", "/api/search", {"query": [{"id": first}]}).code == "person"
    assert client.get("/api/status").json["cameras"]["door"] == 4


def test_export(client):
    search = {"query": [{"picture": client.send(9, 1)["id"], "person": 1}], "top_k": 3}
    answer = client.ask("POST", "/api/export?format=json", search)
    assert "attachment" in answer.headers["content-disposition"]
    found = client.search(*search["query"], top_k=3)
    assert answer.json["results"] == found["results"]
    assert answer.json["search"]["top_k"] == 3
    page = client.ask("POST", "/api/export?format=html", search)
    assert page.body.count(b"data:image/jpeg") == 2 * 4 and b"likely" in page.body
    by_id = {"query": [{"id": found["results"][0]["id"]}]}
    (client.folder / "footage/gate/20261106_080000.png").unlink()
    assert b"no picture" in client.ask("POST", "/api/export?format=html", by_id).body
    assert client.ask("POST", "/api/export?format=exe", search).status == 422


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "image/png", 415, "type"),
        (b"GIF89a", "image/gif", 415, "type"),
        (b"GIF89a", "image/png", 415, "type"),
        (png(1), "image/jpeg", 415, "type"),
        (png(1)[:60], "image/png", 422, "picture"),
        (b"\xff\xd8\xff\xe0junk", "image/jpeg; charset=x", 422, "picture"),
    ],
)
def test_what_is_no_picture(client, body, kind, status, code):
    answer = client.ask("POST", "/api/pictures", body, {"content-type": kind})
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["request"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "search",
    [
        {"query": []},
        {"query": [{"id": "../../etc/passwd"}]},
        {"query": [{"picture": "x"}]},
        {"query": [{"id": "1.0", "box": [0, 0, 9, 9]}]},
        {"query": [{"id": "1.0"}], "path": "/etc/passwd"},
        {"query": [{"id": "1.0"}], "top_k": 10**9},
        {"query": [{"id": "1.0"}], "cameras": ["roof"]},
        {"query": [{"id": "1.0"}], "start": "yesterday"},
        {"query": [{"id": "1.0"}], "start": "2026-11-03T00:00Z"},
        {"query": [{"id": "1.0"}], "min_score": float("nan")},
        {"query": [{"id": "1.0"}], "marks": [{"id": "1.0"}]},
        {"query": [{"picture": "AAAA", "person": 0}]},
    ],
)
def test_searches_that_are_refused(client, search):
    answer = client.ask("POST", "/api/search", search)
    assert answer.status in (404, 422) and answer.json["error"]["message"]


def test_people_and_boxes_must_be_in_the_picture(client):
    picture = client.send(1)["id"]
    for wrong in ({"person": 1}, {"box": [500, 500, 600, 600]}, {"box": [9, 9, 3, 3]}):
        search = {"query": [{"picture": picture, **wrong}]}
        client.searcher.embed = _as_the_runtime
        assert client.ask("POST", "/api/search", search).status == 422


def _as_the_runtime(rgb, boxes):
    raise ValueError("a box has no area in the picture")


def test_the_description_names_every_path(client):
    document = client.get("/api/openapi.json").json
    assert set(document["paths"]) == {
        "/api/status",
        "/api/timeline",
        "/api/pictures",
        "/api/search",
        "/api/export",
        "/api/people/{person}",
        "/api/people/{person}/picture",
    }
    sent = document["paths"]["/api/pictures"]["post"]["requestBody"]["content"]
    assert set(sent) == {"image/jpeg", "image/png"}
    assert json.dumps(document).count("#/components/schemas/Problem") >= 7
    search = document["components"]["schemas"]["Search"]["properties"]
    for name in ("start", "end", "folders", "min_score", "per", "marks"):
        assert search[name]["description"], name


def test_folders_whose_names_are_not_utf8(client, tmp_path):
    import os

    from kd_search.server.guard import Access
    from kd_search.server.serving import create_app
    from tests.gallery.gallery_inputs import filled, new_file

    name = "/footage/" + os.fsdecode(b"caf\xe9")
    filled(tmp_path / "g", range(3), counts=(1,))
    with GalleryWriter(tmp_path / "g") as writer:
        writer.add([new_file(9, 2, path=f"{name}/1.jpg")])
    client.app = create_app(str(tmp_path / "g"), client.searcher, Access())
    (folder,) = [f for f in client.get("/api/status").json["folders"] if "caf" in f]
    found = client.search({"id": "1.0"}, folders=[folder], per="person")
    assert len(found["results"]) == 2 and all("caf" in r["path"] for r in found["results"])

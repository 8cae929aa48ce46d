"""A registered test set and the outputs of a model that never was, for tests of the evaluator."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

EMBEDDING_DIM = 8


def make_dataset(num_images=12, num_persons=5, seed=0, image_id=int):
    """Dataset dicts with two or three people each; every third image holds a query or two."""
    rng = np.random.default_rng(seed)
    records, query_id = [], 0
    for index in range(num_images):
        count = int(rng.integers(2, 4))
        persons = rng.choice(num_persons, count, replace=False)
        annotations, queries = [], []
        for place, person in enumerate(persons):
            x, y = 100 * place + rng.uniform(0, 20), rng.uniform(0, 50)
            box = [x, y, x + rng.uniform(20, 60), y + rng.uniform(60, 150)]
            person = int(person) if rng.random() < 0.9 else -1
            annotations.append(
                {"bbox": box, "bbox_mode": 0, "category_id": 0, "iscrowd": 0, "person_id": person}
            )
            if index % 3 == 0 and person >= 0 and len(queries) < 2:
                queries.append({"query_id": query_id, "bbox": box, "person_id": person})
                query_id += 1
        record = {"file_name": f"{index}.jpg", "image_id": image_id(1000 - 7 * index)}
        record.update(height=300, width=400, annotations=annotations)
        if queries:
            record["queries"] = queries
        records.append(record)
    return records


def register(name, records):
    """Register dataset dicts and return the name."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    return name


def run_model(records, seed=1):
    """(inputs, outputs), one of each per record, as the test loader and the model give them.

    Boxes are off by some pixels, some are missed, some stand where nobody is; embeddings are the
    person's direction plus noise. What a record gets depends on its image id alone.
    """
    directions = torch.randn(100, EMBEDDING_DIM, generator=torch.Generator().manual_seed(seed))
    inputs, outputs = [], []
    for record in records:
        random = torch.Generator().manual_seed(seed + int(record["image_id"]))
        noise = 0.4 * torch.randn(20, EMBEDDING_DIM, generator=random)
        people = [a for a in record["annotations"]][: 3 if int(record["image_id"]) % 2 else 2]
        boxes = torch.tensor([a["bbox"] for a in people] + [[300.0, 200, 330, 290]])
        boxes[:-1] += 4 * torch.randn(len(people), 1, generator=random)
        persons = [a["person_id"] for a in people] + [-1]
        found = directions[persons] + noise[: len(persons)]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = 0.3 + 0.7 * torch.rand(len(boxes), generator=random)
        instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        instances.pred_embeddings = torch.nn.functional.normalize(found)
        output = {"instances": instances}
        entry = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        queries = record.get("queries", [])
        if queries:
            entry["query_ids"] = [query["query_id"] for query in queries]
            entry["query_boxes"] = torch.tensor([query["bbox"] for query in queries])
            asked = directions[[query["person_id"] for query in queries]]
            output["query_embeddings"] = torch.nn.functional.normalize(
                asked + noise[-len(queries) :]
            )
        inputs.append(entry)
        outputs.append(output)
    return inputs, outputs

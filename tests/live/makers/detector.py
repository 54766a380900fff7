"""For ADetailer's tests, with the Python of a WebUI that has ADetailer: `detector.py FOLDER` writes two files there.

detector.pt is a YOLO that sees one "face" in every square picture, its middle three fifths; face.png is a picture that
scikit-image ships, in which mediapipe sees one.
"""

import math
import sys
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from ultralytics.nn.tasks import DetectionModel

SIZE = 32  # pixels that the detector makes of a picture's side: its coarsest level then has one place
HALF_BOX = 0.3  # of that place's side
COARSEST = 2


def detector():
    """Every weight of the last layers is 0, so that their biases alone say what is seen."""
    model = DetectionModel("yolov8n.yaml", nc=1, verbose=False)
    model.names = {0: "face"}
    head = model.model[-1]
    with torch.no_grad():
        for level, (boxes, classes) in enumerate(zip(head.cv2, head.cv3)):
            for layer in (boxes[-1], classes[-1]):
                layer.weight.zero_()
            # a side's distance is the mean of 0, 1, 2 … under the softmax of these
            distances = boxes[-1].bias.view(4, -1)
            distances.fill_(-30)
            distances[:, 0], distances[:, 1] = math.log(1 - HALF_BOX), math.log(HALF_BOX)
            classes[-1].bias.fill_(2 if level == COARSEST else -12)
    model.args = {"model": "yolov8n.yaml", "task": "detect", "imgsz": SIZE, "single_cls": False, "data": None}
    return {"model": model.half().eval(), "train_args": dict(model.args), "version": "8.0", "date": "", "epoch": -1}


def face():
    """Square, around the face."""
    return Image.fromarray(data.astronaut()).crop((96, 0, 352, 256)).resize((128, 128))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.save(detector(), folder / "detector.pt")
    face().save(folder / "face.png")

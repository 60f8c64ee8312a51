"""`<root>/<split>/`: frames `frames/<video>/*.jpg`, object numbers as pixels of `masks/<video>/*.png`, and `sentences.json`."""

import json

import numpy as np
from PIL import Image

from rvos_cache import Dataset, Expression, GroundTruth, RleMasks
from rvos_cache.media import folder_video


class MyDataset(Dataset):
    def __init__(self, root, split):
        super().__init__(root, split)
        self.folder = self.root / split
        self.sentences = json.loads((self.folder / "sentences.json").read_text())  # {video: [[text, [object numbers]], ...]}

    def video_ids(self):
        return tuple(self.sentences)

    def video(self, video_id):
        return folder_video(self.folder / "frames" / video_id, video_id)

    def expressions(self, video_id):
        rows = enumerate(self.sentences[video_id])
        return tuple(Expression(video_id, str(i), text, tuple(f"{video_id}-{n}" for n in numbers)) for i, (text, numbers) in rows)

    def ground_truth(self, video_id):
        names = self.video(video_id).frame_names
        pixels = np.stack([np.asarray(Image.open(self.folder / "masks" / video_id / f"{name}.png")) for name in names])
        numbers = np.unique(pixels[pixels > 0])  # (A,)
        masks = RleMasks.from_dense(pixels == numbers[:, None, None, None])  # (A, T) masks of (H, W)
        return GroundTruth(tuple(f"{video_id}-{n}" for n in numbers), masks, annotated=np.ones(len(names), bool))

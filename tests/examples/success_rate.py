"""SR: the share of annotated frames in which the IoU of prediction and truth is above 0.5."""

from rvos_select.metrics.metric import Field, FrameMetric
from rvos_select.metrics.silhouette import j_and_f


class SuccessRate(FrameMetric):
    fields = item_fields = (Field("success", "SR"),)

    def frame(self, prediction, truth):
        region, _ = j_and_f(prediction, truth)
        return (float(region > 0.5),)

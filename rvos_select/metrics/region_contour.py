"""J, F and J&F of videos: means over annotated frames, then over expressions, as DAVIS, Ref-YouTube-VOS and MeViS define them."""

from __future__ import annotations

from collections.abc import Mapping

from rvos_select.metrics.metric import Field, FrameMetric
from rvos_select.metrics.silhouette import Silhouette, j_and_f

J, F, JF = Field("j", "J"), Field("f", "F"), Field("jf", "J&F")


class RegionContour(FrameMetric):
    """Region similarity J, contour accuracy F and their mean (Perazzi et al., DAVIS, CVPR 2016, section 5)."""

    fields = measure_fields = (JF, J, F)
    item_fields = (J, F)

    def frame(self, prediction: Silhouette, truth: Silhouette) -> tuple[float, float]:
        """J and F of one frame."""
        return j_and_f(prediction, truth)

    def measures(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """J&F, J and F."""
        region, contour = numbers["j"], numbers["f"]
        return {"jf": (region + contour) / 2, "j": region, "f": contour}


REGION_CONTOUR = RegionContour()

"""The engines by name."""

from __future__ import annotations

from rvos_cache.errors import InputError
from rvos_cache.extraction.engine import Engine


def engine_of(engine: str = "local", jobs: int = 1, ray_address: str | None = None, ray_cores: int | None = None) -> Engine:
    """The engine "local" or "ray". Raises InputError for an option of the other engine, or if Ray is not installed."""
    if engine == "ray":
        if jobs != 1:
            raise InputError(f"--jobs {jobs} is for --engine local; on Ray there is a worker per GPU, or per --ray-cores N")
        from rvos_cache.extraction.ray_engine import RayEngine

        return RayEngine(ray_address, ray_cores)
    if ray_address is not None or ray_cores is not None:
        raise InputError("--ray-address and --ray-cores are for --engine ray; add it or leave them out")
    from rvos_cache.extraction.local_engine import LocalEngine

    return LocalEngine(jobs)

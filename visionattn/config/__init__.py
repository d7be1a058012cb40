"""Settings of a run: the sections every task has, and how files and `key=value` become one validated mapping. No torch here."""

from visionattn.config.schema import BackboneConfig, DataConfig, EvalConfig, RunConfig, Section, setting

__all__ = ["BackboneConfig", "DataConfig", "EvalConfig", "RunConfig", "Section", "setting"]

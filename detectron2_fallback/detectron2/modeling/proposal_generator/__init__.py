"""Registry of proposal generators; this subset has none of its own."""

from .build import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "build_proposal_generator"]

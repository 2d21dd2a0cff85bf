"""Multi-scale deformable attention: one function, several back ends, and the module around it.

- ``functions``: :func:`ms_deform_attn`, the readable reference, and which back ends there are.
- ``modules``: :class:`MSDeformAttn`.
- ``src``: the C++ and CUDA back ends; ``sh make.sh`` builds what the machine allows (optional).
"""
